//! Faults that stories of the simulated host have told of.

use super::World;
use crate::model::exit::Outcome;
use crate::model::observed::Observed;
use crate::model::record::Record;
use crate::model::time::Timestamp;
use std::time::Duration;

fn at(world: &mut World, time: &str) {
    let time = Timestamp::parse(time).unwrap();
    world.after(u64::try_from(time.since(world.now).as_millis()).unwrap());
}

fn record<'a>(world: &'a World, name: &str) -> &'a Record {
    &world.records[&name.parse().unwrap()]
}

/// It has ended a moment ago, which nobody has seen yet.
fn ended_before(world: &mut World, name: &str, outcome: Outcome) {
    let now = world.now;
    world.now = now.minus(Duration::from_millis(5));
    world.exit(name, outcome);
    world.now = now;
}

#[test]
fn an_end_that_came_before_its_stop_was_decided_on_is_its_own() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a").settle();
    world.after(1000).file("job.yaml", "kind: job\ncommand: a\nsuspend: true").pass();
    ended_before(&mut world, "job", Outcome::Exited { code: 0 });
    world.settle();
    world.file("job.yaml", "kind: job\ncommand: a");
    insta::assert_snapshot!(world.settle() + &world.pass(), @"
    job: remember (it is not to be run again)
      job Completed Ready=false Finished: exited with code 0
      job Completed Ready=false Finished: exited with code 0
    ");
    // In time is in time, whenever that was found out.
    world.file("slow.yaml", "kind: job\ncommand: a\ntimeout: 1m").settle();
    world.after(60_000).pass();
    ended_before(&mut world, "slow", Outcome::Exited { code: 0 });
    world.settle();
    assert!(record(&world, "slow").finished);
    // Asked to end, it is not its own, and neither is what lies so far back that the clock must have been set.
    for (name, back) in [("asked", 0), ("set", 3_600_000)] {
        world.file(&format!("{name}.yaml"), "kind: job\ncommand: a").settle();
        world.after(1000).file(&format!("{name}.yaml"), "kind: job\ncommand: a\nsuspend: true").pass();
        let now = world.now;
        world.now = now.minus(Duration::from_millis(back));
        world.exit_code(name, 0);
        world.now = now;
        world.settle();
        assert!(!record(&world, name).finished, "{name}");
    }
}

#[test]
fn a_scheduled_run_whose_start_only_seemed_to_fail_is_no_reason_to_stop_it() {
    for concurrency in ["forbid", "replace"] {
        let mut world = World::new(4);
        at(&mut world, "2026-03-01T00:00:30Z");
        let schedule = format!("schedule: {{cron: '*/5 * * * *', concurrency: {concurrency}}}");
        world.file("job.yaml", &format!("kind: job\ncommand: a\n{schedule}")).settle();
        world.sleep();
        let start = world.plan().work.remove(0);
        world.settle();
        world.records.insert(start.name, start.failed.unwrap());
        world.settle();
        assert_eq!(world.after(1000).settle(), "", "{concurrency}");
        assert!(record(&world, "job").scheduled.as_ref().unwrap().due.as_ref().unwrap().begun);
        // It is over with this run.
        world.exit_code("job", 0);
        world.settle();
        assert_eq!(world.plan().wake_at, Timestamp::parse("2026-03-01T00:10:00Z"));
    }
}

#[test]
fn a_scheduled_run_that_cannot_be_started_in_time_is_left_out() {
    let mut world = World::new(4);
    at(&mut world, "2026-03-01T00:00:30Z");
    world.file("job.yaml", "kind: job\ncommand: a\nschedule: {cron: '*/5 * * * *', startingDeadline: 10s}").settle();
    world.sleep();
    // Tried, and not done, by a start that failed or a controller that was killed.
    let start = world.plan().work.remove(0);
    for tried in [start.failed.unwrap(), start.record.unwrap()] {
        world.records.insert(start.name.clone(), tried);
        let mut late = World { records: world.records.clone(), files: world.files.clone(), ..World::new(4) };
        (late.now, late.steady) = (world.now, world.steady);
        insta::allow_duplicates! {
            insta::assert_snapshot!(late.after(10_001).pass(), @"
            job: remember (next run at 2026-03-01T00:10:00.000Z; the run of 2026-03-01T00:05:00.000Z was left out: it could not start in time)
              job Pending Ready=false Scheduled: next run at 2026-03-01T00:10:00.000Z; the run of 2026-03-01T00:05:00.000Z was left out: it could not start in time
            ");
        }
    }
    assert!(world.after(1000).pass().contains("job: start"));
}

#[test]
fn an_update_is_not_taken_back_for_a_time_without_a_controller() {
    const READY: &str = "probes: {readiness: {tcp: {port: 1}}}";
    let mut world = World::new(4);
    let roll = format!("replicas: 2\nstrategy: {{type: rolling, progressDeadline: 1m}}\n{READY}");
    world.file("web.yaml", &format!("command: old\n{roll}")).settle();
    world.after(5000).file("web.yaml", &format!("command: new\n{roll}")).settle();
    assert!(world.records.values().any(|record| record.rollout.is_some()));
    // An hour later there is one again, and it has heard of no answer yet.
    world.after(3_600_000);
    world.since = world.steady;
    world.settle();
    assert!(world.records.values().all(|record| record.refused.is_none()), "nobody could have heard that it is ready");
    world.after(59_999).settle();
    assert!(world.records.values().all(|record| record.refused.is_none()));
    world.after(1).settle();
    assert!(world.records.values().any(|record| record.refused.is_some()), "it has its time, and no more");
}

#[test]
fn an_update_never_goes_back_to_a_job() {
    let mut world = World::new(4);
    world.file("web.yaml", "kind: job\ncommand: old").settle();
    world.after(5000).file("web.yaml", "command: new\nreplicas: 2\nstrategy: rolling").settle();
    world.exit_code("web", 0);
    world.settle();
    assert!(world.records.values().all(|record| record.rollout.is_none()), "there is nothing to go back to");
    world.exit_code("web", 1);
    world.exit_code("web.1", 1);
    world.settle();
    assert!(world.records.values().all(|record| record.refused.is_none() && record.spec.process.command == ["new"]));
}

#[test]
fn a_job_that_becomes_replicas_does_not_wait_for_them() {
    for before in ["kind: job\ncommand: old\nsuspend: true", "kind: job\ncommand: old"] {
        let mut world = World::new(4);
        world.file("web.yaml", before).settle();
        if world.observed.values().any(|seen| seen.instance.is_some()) {
            world.exit_code("web", 0);
        }
        // None of them is ready before all of them are there.
        let ready = "probes: {readiness: {tcp: {port: 1}}}";
        world.after(5000).settle();
        world.file("web.yaml", &format!("command: new\nreplicas: 3\nstrategy: rolling\n{ready}")).settle();
        let running = world.observed.values().filter(|seen| seen.instance.is_some()).count();
        assert_eq!(running, 3, "{before}");
    }
}

#[test]
fn deleting_traces_does_not_undo_what_a_restart_policy_says() {
    let mut world = World::new(4);
    world.file("once.yaml", "command: a\nrestart: never").file("web.yaml", "command: a").settle();
    world.after(1000).settle();
    for seen in world.observed.values_mut() {
        *seen = Observed::default();
    }
    insta::assert_snapshot!(world.settle(), @"
    once: remember (it is not to be run again)
    web: remember (gone without an exit status; next try at 1970-01-01T00:16:42.165Z)
      once Failed Ready=false Finished: gone without an exit status
      web Pending Ready=false BackOff: gone without an exit status; next try at 1970-01-01T00:16:42.165Z
    ");
    assert_eq!(record(&world, "once").last_exit.as_ref().map(|exit| exit.instance), Some(1));
    // What was only about to be made has not ended.
    let mut world = World::new(4);
    world.file("once.yaml", "command: a\nrestart: never");
    let start = world.plan().work.remove(0);
    world.records.insert(start.name, start.record.unwrap());
    assert!(world.settle().contains("once: start"));
}

#[test]
fn whoever_comes_after_a_service_that_has_ended_well_for_good_starts() {
    let mut world = World::new(4);
    world.file("init.yaml", "command: a\nrestart: on-failure").file("web.yaml", "command: b\nafter: [init]").pass();
    world.exit_code("init", 0);
    let shown = world.settle();
    assert!(shown.contains("web: start"), "{shown}");
    let mut world = World::new(4);
    world.file("init.yaml", "command: a\nrestart: never").file("web.yaml", "command: b\nafter: [init]").pass();
    world.exit_code("init", 1);
    let shown = world.settle();
    assert!(!shown.contains("web: start"), "what has failed for good serves nobody: {shown}");
}

#[test]
fn fewer_retries_than_tries_made_end_it() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 5").settle();
    for _ in 0..3 {
        world.exit_code("job", 1);
        world.settle();
        world.sleep().settle();
    }
    world.exit_code("job", 1);
    world.settle();
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 1");
    insta::assert_snapshot!(world.settle(), @"
    job: remember (it is not to be run again)
      job Failed Ready=false Finished: exited with code 1; 4 failed, retries is 1
    ");
    world.after(3_600_000);
    assert_eq!(world.plan().work, []);
    world.file("job.yaml", "kind: job\ncommand: a\nretries: 4");
    assert!(world.settle().contains("job: start"), "more of them are another chance");
}
