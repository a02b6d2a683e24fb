//! What ran when the host went down, and left no trace: its end is remembered, and its restart policy holds.

use super::World;
use crate::model::clock::Steady;
use crate::model::exit::Outcome;
use crate::model::record::Record;
use crate::model::time::Timestamp;

fn record(world: &World) -> &Record {
    world.records.values().next().unwrap()
}

/// How many runs it has had.
fn runs(world: &World) -> u64 {
    record(world).instance
}

fn outcomes(world: &World) -> Vec<String> {
    let record = record(world);
    record.earlier_exits.iter().chain(&record.last_exit).map(|exit| exit.outcome.to_string()).collect()
}

#[test]
fn a_service_that_ran_is_started_again_and_its_end_is_remembered() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    let began = world.now;
    world.after(5000).reboot();
    insta::assert_snapshot!(world.settle(), @"
    web: start (its last run: ended by a restart of the host; no cpu.limit: all shared CPUs)
      web Starting Ready=false Starting: being set up
    ");
    let Record { last_exit, restarts, failures, instance, .. } = record(&world);
    let exit = last_exit.as_ref().unwrap();
    assert_eq!((exit.instance, &exit.outcome, exit.started), (1, &Outcome::HostRestarted, Some(began)));
    let booted = world.now.minus(world.steady.since(Steady(0)));
    assert_eq!((exit.at, *instance, *restarts, *failures), (booted, 2, 1, 1));
    assert_eq!(exit.outcome.code(), 137);
    // Once.
    world.after(1000).settle();
    assert_eq!(outcomes(&world), ["ended by a restart of the host"]);
}

#[test]
fn restart_policies_and_retries_hold() {
    for (text, expected) in [
        ("restart: never", "Failed 1"),
        ("restart: on-failure", "Running 2"),
        ("kind: job", "Running 2"),
        ("kind: job\nrestart: never", "Failed 1"),
        ("kind: job\nretries: 0", "Failed 1"),
        ("kind: job\nretries: 1", "Running 2"),
    ] {
        let mut world = World::new(4);
        world.file("web.yaml", &format!("command: a\n{text}")).settle();
        world.reboot().settle();
        let verdict = world.plan().verdicts.into_values().next().unwrap();
        assert_eq!(format!("{} {}", verdict.phase, runs(&world)), expected, "{text}");
        assert_eq!(outcomes(&world), ["ended by a restart of the host"], "{text}");
    }
}

#[test]
fn a_job_uses_up_its_retries_whatever_ends_it() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 2").settle();
    world.exit_code("job", 1);
    world.settle();
    world.sleep().settle();
    world.reboot().settle();
    world.reboot();
    insta::assert_snapshot!(world.settle(), @"
    job: remember (it is not to be run again)
      job Failed Ready=false Finished: ended by a restart of the host; 3 failed, retries is 2
    ");
    assert_eq!(runs(&world), 3);
}

#[test]
fn what_has_completed_stays_completed() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a").settle();
    world.exit_code("job", 0);
    world.settle();
    for _ in 0..2 {
        world.reboot();
        assert_eq!(world.plan().work, [], "nothing to do and nothing to write");
    }
    assert_eq!(outcomes(&world), ["exited with code 0"]);
}

#[test]
fn a_scheduled_run_is_tried_again_within_its_retries_and_no_more() {
    for (retries, expected) in [(0, 1), (1, 2)] {
        let mut world = World::new(4);
        world.set_clock(Timestamp::parse("2026-03-01T12:00:00Z").unwrap());
        let text = format!("kind: job\ncommand: a\nretries: {retries}\nschedule: '0 3 * * *'");
        world.file("job.yaml", &text).settle();
        world.sleep().settle();
        assert_eq!(runs(&world), 1);
        world.reboot().settle();
        assert_eq!(runs(&world), expected);
        world.reboot().settle();
        assert_eq!(runs(&world), expected);
        // The next day is another run.
        world.sleep().settle();
        assert_eq!(runs(&world), expected + 1);
    }
}

#[test]
fn what_was_being_stopped_has_not_failed() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.file("web.yaml", "command: a\nsuspend: true").pass();
    world.reboot().settle();
    assert_eq!((outcomes(&world).len(), record(&world).failures), (1, 0));
    world.file("web.yaml", "command: a").settle();
    assert_eq!((runs(&world), record(&world).restarts), (2, 0));
    // Its manifest is gone meanwhile.
    world.files.clear();
    world.reboot().settle();
    assert!(world.records.is_empty());
}

#[test]
fn an_edit_while_the_host_was_down_is_another_chance() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: never").settle();
    world.file("web.yaml", "command: b\nrestart: never");
    world.reboot().settle();
    assert_eq!((runs(&world), record(&world).failures), (2, 0));
    assert_eq!(outcomes(&world), ["ended by a restart of the host"]);
}

#[test]
fn whoever_takes_the_host_down_with_it_waits_longer_each_time() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: {initialDelay: 40s}").settle();
    let mut waited = Vec::new();
    for _ in 0..3 {
        world.reboot();
        // Up for a second when the controller looks.
        world.steady = Steady(1000);
        world.settle();
        let wait = world.plan().wake_at.unwrap().since(world.now);
        waited.push((wait.as_secs() + 1) / 40);
        world.sleep().settle();
    }
    assert_eq!(waited, [1, 2, 4], "from the boot on, with some jitter");
    assert_eq!(runs(&world), 4);
}

#[test]
fn a_run_that_lasted_is_forgiven() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    for _ in 0..3 {
        world.after(600_000).reboot().settle();
    }
    assert_eq!((record(&world).failures, record(&world).restarts), (1, 3));
}

#[test]
fn a_clock_that_begins_in_1970_ends_nothing_before_it_began() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a").settle();
    world.after(5000).reboot().set_clock(Timestamp(0)).settle();
    let exit = record(&world).last_exit.clone().unwrap();
    assert_eq!(Some(exit.at), exit.started);
    assert_eq!(runs(&world), 2);
}

#[test]
fn a_start_that_was_not_made_or_failed_has_not_ended() {
    // Remembered, and then the controller was killed.
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: never");
    let start = world.plan().work.remove(0);
    world.records.insert(start.name.clone(), start.record.clone().unwrap());
    assert!(world.settle().contains("web: start"));
    assert_eq!(outcomes(&world), [""; 0]);
    // Made, and failed: there was nothing for the host to take down.
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: never");
    world.records.insert(start.name, start.failed.unwrap());
    assert!(world.reboot().settle().contains("web: start"));
    assert_eq!(outcomes(&world), [""; 0]);
}

#[test]
fn a_record_of_before_says_nothing_about_the_boot() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: never").settle();
    world.records.values_mut().next().unwrap().begun = None;
    assert!(world.reboot().settle().contains("web: start"));
}

#[test]
fn traces_that_have_outlived_the_boot_tell_the_same() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: never").settle();
    let seen = world.observed.clone();
    world.reboot().observed = seen;
    world.exit("web", Outcome::HostRestarted);
    world.observed.values_mut().for_each(|seen| {
        seen.group = None;
        seen.instance.as_mut().unwrap().began = None;
    });
    world.settle();
    world.reboot().settle();
    assert_eq!((outcomes(&world), runs(&world)), (vec!["ended by a restart of the host".to_owned()], 1));
}

#[test]
fn traces_that_tell_nothing_do_not_keep_an_end_from_being_remembered() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nrestart: never").settle();
    world.reboot();
    let left = crate::model::observed::Observed { left_traces: true, ..Default::default() };
    world.observed.insert("web".parse().unwrap(), left);
    world.settle();
    assert_eq!((outcomes(&world).len(), runs(&world)), (1, 1));
}
