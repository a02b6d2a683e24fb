//! Jobs: how often, how long, and when.

use super::World;
use crate::model::time::Timestamp;

/// Time passes until then.
fn at(world: &mut World, time: &str) {
    let time = Timestamp::parse(time).unwrap();
    world.after(u64::try_from(time.since(world.now).as_millis()).unwrap());
    assert_eq!(world.now, time, "that has passed");
}

fn set_clock(world: &mut World, time: &str) {
    world.set_clock(Timestamp::parse(time).unwrap());
}

#[test]
fn the_end_of_what_ran_before_an_edit_says_nothing_about_what_is_to_run_after_it() {
    // Seen in one pass: the job has been given another command, and the run of the one before has ended.
    for code in [0, 1] {
        let mut world = World::new(4);
        world.file("job.yaml", "kind: job\ncommand: a\nrestart: never").settle();
        world.exit_code("job", code);
        world.file("job.yaml", "kind: job\ncommand: b\nrestart: never");
        let shown = world.settle();
        assert!(shown.contains("job: start"), "{shown}");
        assert_eq!(world.records[&"job".parse().unwrap()].last_exit.as_ref().unwrap().outcome.code(), code);
    }
}

#[test]
fn a_job_is_tried_again_as_often_as_it_says_and_then_has_failed() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 2").settle();
    let mut shown = String::new();
    for _ in 0..3 {
        world.exit_code("job", 3);
        shown += &world.settle();
        // A run of a day is no forgiveness: what counts is how often it failed.
        if world.plan().wake_at.is_some() {
            world.sleep();
        }
        shown += &world.pass();
        world.after(86_400_000);
    }
    insta::assert_snapshot!(shown, @"
    job: clear (exited with code 3)
      job Pending Ready=false Ended: exited with code 3
    job: start (its last run: exited with code 3; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: clear (exited with code 3)
      job Pending Ready=false Ended: exited with code 3
    job: start (its last run: exited with code 3; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: clear (exited with code 3)
      job Failed Ready=false Ended: exited with code 3
      job Failed Ready=false Finished: exited with code 3; 3 failed, retries is 2
    ");
    assert_eq!(world.plan().work, []);
    // More tries are another chance, a label is none.
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 2\nlabels: {a: b}").settle();
    assert_eq!(world.observed.values().next().unwrap().instance, None);
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 3");
    insta::assert_snapshot!(world.settle(), @"
    job: start (its last run: exited with code 3; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_job_that_takes_too_long_is_stopped_and_has_failed() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\ntimeout: 1h\nretries: 0\nstop: {grace: 5s}").settle();
    assert_eq!(world.plan().wake_at, Some(world.now.plus(std::time::Duration::from_hours(1))));
    insta::assert_snapshot!(world.after(3_599_999).pass(), @"  job Running Ready=true Running: pid 100");
    insta::assert_snapshot!(world.after(1).pass(), @"
    job: stop { signal: signal(15) } (it took longer than 1h)
      job Stopping Ready=false Stopping: it took longer than 1h
    ");
    insta::assert_snapshot!(world.after(5000).settle(), @"
    job: kill (its grace period is over)
      job Stopping Ready=false Killed: it took longer than 1h; still there after the grace period
    job: clear (timed out after 1h)
      job Failed Ready=false Ended: timed out after 1h
    ");
    let last = world.records.values().next().unwrap().last_exit.clone().unwrap();
    assert_eq!(last.outcome.code(), 124);
}

#[test]
fn a_job_that_ends_well_after_its_timeout_was_still_too_late() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\ntimeout: 1m").settle();
    world.after(60_000).pass();
    world.exit_code("job", 0);
    insta::assert_snapshot!(world.settle(), @"
    job: clear (timed out after 1m)
      job Pending Ready=false Ended: timed out after 1m
    ");
    world.after(60_000);
    insta::assert_snapshot!(world.settle(), @"
    job: start (its last run: timed out after 1m; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    ");
}

#[test]
fn a_scheduled_job_runs_at_its_times_and_only_then() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T00:00:30Z");
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: '*/5 * * * *'");
    let mut shown = world.pass();
    assert_eq!(world.plan().work, [], "waiting is no work");
    for _ in 0..2 {
        world.sleep();
        shown += &world.settle();
        shown += &world.after(1000).pass();
        world.exit_code("job", 0);
        shown += &world.settle();
        shown += &world.pass();
    }
    insta::assert_snapshot!(shown, @"
    job: remember (next run at 2026-03-01T00:05:00.000Z)
      job Pending Ready=false Scheduled: next run at 2026-03-01T00:05:00.000Z
    job: start (new; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
      job Running Ready=true Running: pid 100
    job: clear (exited with code 0)
      job Pending Ready=false Ended: exited with code 0
      job Pending Ready=false Scheduled: next run at 2026-03-01T00:10:00.000Z; the last one: exited with code 0
    job: start (its last run ended; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
      job Running Ready=true Running: pid 100
    job: clear (exited with code 0)
      job Pending Ready=false Ended: exited with code 0
      job Pending Ready=false Scheduled: next run at 2026-03-01T00:15:00.000Z; the last one: exited with code 0
    ");
}

#[test]
fn a_run_that_fails_is_tried_again_until_the_next_one_is_due() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T00:00:30Z");
    world
        .file("job.yaml", "kind: job\ncommand: a\nschedule: '* * * * *'\nrestart: {initialDelay: 40s}\nretries: 1")
        .settle();
    let mut shown = String::new();
    for _ in 0..3 {
        world.sleep();
        shown += &world.settle();
        world.exit_code("job", 1);
        shown += &world.settle();
        shown += &world.pass();
    }
    insta::assert_snapshot!(shown, @"
    job: start (new; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: clear (exited with code 1)
      job Pending Ready=false Ended: exited with code 1
      job Pending Ready=false BackOff: exited with code 1; next try at 2026-03-01T00:01:44.163Z
    job: start (its last run: exited with code 1; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: clear (exited with code 1)
      job Pending Ready=false Ended: exited with code 1
      job Pending Ready=false Scheduled: next run at 2026-03-01T00:02:00.000Z; the last one: exited with code 1
    job: start (its last run: exited with code 1; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: clear (exited with code 1)
      job Pending Ready=false Ended: exited with code 1
      job Pending Ready=false BackOff: exited with code 1; next try at 2026-03-01T00:02:44.163Z
    ");
}

#[test]
fn downtime_makes_one_run_or_none_as_the_manifest_says() {
    for (missed, expected) in [("run-once", 1), ("skip", 0), ("run-once, startingDeadline: 10m", 0)] {
        let mut world = World::new(4);
        at(&mut world, "2026-03-01T12:00:00Z");
        world.file("job.yaml", &format!("kind: job\ncommand: a\nschedule: {{cron: '0 3 * * *', missed: {missed}}}"));
        world.settle();
        // A week without power.
        at(&mut world, "2026-03-08T12:00:00Z");
        let mut runs = 0;
        while world.settle().contains("job: start") {
            runs += 1;
            world.exit_code("job", 0);
        }
        assert_eq!(runs, expected, "{missed}");
        assert_eq!(world.plan().wake_at, Timestamp::parse("2026-03-09T03:00:00Z"), "{missed}");
    }
}

#[test]
fn a_crash_between_planning_and_starting_neither_loses_a_run_nor_repeats_it() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T12:00:00Z");
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: '0 3 * * *'").settle();
    at(&mut world, "2026-03-02T03:00:00Z");
    // The record was put, the step not taken: the next controller starts it.
    let start = world.plan().work.remove(0);
    world.records.insert(start.name, start.record.unwrap());
    insta::assert_snapshot!(world.after(5000).settle(), @"
    job: start (new; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    ");
    // It ran and its end is recorded; nothing of it is left: the day is over.
    world.exit_code("job", 0);
    world.settle();
    assert!(!world.after(5000).settle().contains("job: start"));
    assert_eq!(world.plan().wake_at, Timestamp::parse("2026-03-03T03:00:00Z"));
}

#[test]
fn a_reboot_in_the_middle_of_a_run_is_a_failure_of_that_run() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T12:00:00Z");
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: '0 3 * * *'").settle();
    at(&mut world, "2026-03-02T03:00:00Z");
    world.settle();
    world.exit("job", crate::model::exit::Outcome::Lost);
    world.settle();
    world.after(2000);
    insta::assert_snapshot!(world.settle(), @"
    job: start (its last run: gone without an exit status; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    ");
}

#[test]
fn what_happens_while_the_run_before_goes_on_is_the_manifests_choice() {
    let mut shown = String::new();
    for concurrency in ["forbid", "replace"] {
        let mut world = World::new(4);
        at(&mut world, "2026-03-01T00:00:30Z");
        world.file(
            "job.yaml",
            &format!("kind: job\ncommand: a\nschedule: {{cron: '* * * * *', concurrency: {concurrency}}}"),
        );
        world.settle();
        shown += &format!("# {concurrency}\n");
        for _ in 0..2 {
            world.sleep();
            shown += &world.settle();
        }
        world.exit_code("job", 0);
        shown += &world.settle();
        shown += &world.pass();
    }
    insta::assert_snapshot!(shown, @"
    # forbid
    job: start (new; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: remember (as it should be)
      job Running Ready=true Running: pid 100
    job: clear (exited with code 0)
      job Pending Ready=false Ended: exited with code 0
      job Pending Ready=false Scheduled: next run at 2026-03-01T00:03:00.000Z; the last one: exited with code 0; the run of 2026-03-01T00:02:00.000Z was left out: the run before still went on
    # replace
    job: start (new; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
    job: stop { signal: signal(15) } (its next run is due)
      job Stopping Ready=false Stopping: its next run is due
    job: clear (exited with code 0)
      job Pending Ready=false Ended: exited with code 0
    job: start (its last run ended; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
      job Running Ready=true Running: pid 100
    ");
}

#[test]
fn a_leap_of_the_clock_makes_no_burst_and_a_small_step_back_repeats_nothing() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T12:00:00Z");
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: '* * * * *'").settle();
    let runs = |world: &mut World| {
        let mut runs = 0;
        while world.settle().contains("job: start") {
            runs += 1;
            world.exit_code("job", 0);
        }
        runs
    };
    set_clock(&mut world, "2031-03-01T12:00:00Z");
    assert_eq!(runs(&mut world), 1, "five years ahead");
    set_clock(&mut world, "2031-03-01T11:59:58Z");
    assert_eq!(runs(&mut world), 0, "two seconds back");
    set_clock(&mut world, "2031-03-01T12:00:00Z");
    assert_eq!(runs(&mut world), 0, "that minute has had its run");
    set_clock(&mut world, "2026-03-01T12:00:30Z");
    assert_eq!(runs(&mut world), 0, "five years back");
    assert_eq!(world.plan().wake_at, Timestamp::parse("2026-03-01T12:01:00Z"), "nobody waits for 2031");
}

#[test]
fn a_suspended_schedule_makes_up_for_nothing_and_an_edited_one_begins_anew() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T12:00:00Z");
    world.file("job.yaml", "kind: job\ncommand: a\nsuspend: true\nschedule: '0 3 * * *'").settle();
    at(&mut world, "2026-03-03T12:00:00Z");
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: '0 3 * * *'").settle();
    assert_eq!(world.plan().wake_at, Timestamp::parse("2026-03-04T03:00:00Z"));
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: '0 11 * * *'").settle();
    assert_eq!(world.plan().wake_at, Timestamp::parse("2026-03-04T11:00:00Z"), "11:00 of today is not missed");
    // Without a schedule it is a job like any other, which has not been done yet.
    world.file("job.yaml", "kind: job\ncommand: a");
    assert!(world.settle().contains("job: start"));
}

#[test]
fn a_run_is_over_when_nothing_follows_it_before_the_next_time() {
    let is_over = |world: &World| world.records.values().next().unwrap().is_over();
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T12:00:00Z");
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 1\nschedule: '0 3 * * *'").settle();
    world.sleep().settle();
    assert!(!is_over(&world), "it runs");
    world.exit_code("job", 1);
    world.settle();
    assert!(!is_over(&world), "it is tried again");
    world.sleep().settle();
    world.exit_code("job", 0);
    world.pass();
    assert!(is_over(&world), "it is done, although another time will come");
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a").settle();
    assert!(!is_over(&world));
    world.exit_code("job", 0);
    world.pass();
    assert!(is_over(&world));
}

#[test]
fn a_scheduled_run_that_a_busy_host_keeps_waiting_says_so_and_is_left_out_at_its_deadline() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T12:00:00Z");
    let text = "kind: job\ncommand: a\nschedule: {cron: '0 3 * * *', startingDeadline: 10m}";
    world.file("job.yaml", text).settle();
    world.utilisation_percent = Some(97);
    insta::assert_snapshot!(world.sleep().settle(), @"
    job: remember (host CPUs are 97 % busy, jobs start at 85 % or less (controller --job-cpu-threshold))
      job Pending Ready=false HostBusy: host CPUs are 97 % busy, jobs start at 85 % or less (controller --job-cpu-threshold)
    ");
    insta::assert_snapshot!(world.after(600_000).pass(), @"  job Pending Ready=false HostBusy: host CPUs are 97 % busy, jobs start at 85 % or less (controller --job-cpu-threshold)");
    insta::assert_snapshot!(world.after(1).settle(), @"
    job: remember (next run at 2026-03-03T03:00:00.000Z; the run of 2026-03-02T03:00:00.000Z was left out: it could not start in time: host CPUs are 97 % busy, jobs start at 85 % or less (controller --job-cpu-threshold))
      job Pending Ready=false Scheduled: next run at 2026-03-03T03:00:00.000Z; the run of 2026-03-02T03:00:00.000Z was left out: it could not start in time: host CPUs are 97 % busy, jobs start at 85 % or less (controller --job-cpu-threshold)
    ");
    world.utilisation_percent = Some(10);
    assert_eq!(world.plan().work, [], "the next day is another time");
}

#[test]
fn a_job_that_yields_to_everybody_does_not_wait_for_a_quieter_host() {
    let mut world = World::new(4);
    world.utilisation_percent = Some(100);
    world.file("job.yaml", "kind: job\ncommand: a\ncpu: {class: idle}").settle();
    world.file("other.yaml", "kind: job\ncommand: a");
    let work = world.plan().work;
    assert!(work.iter().all(|work| work.name.as_str() == "other"), "{work:?}");
    assert!(world.pass().contains("job Running") || world.pass().contains("job Starting"), "{}", world.pass());
    assert!(world.pass().contains("other Pending Ready=false HostBusy"), "{}", world.pass());
}
