//! What a job holds between two tries, and from when on.

use super::World;
use crate::model::exit::Outcome;
use crate::model::name::Name;
use crate::model::record::Record;
use crate::plan::Act;
use std::time::Duration;

fn record<'a>(world: &'a World, name: &str) -> &'a Record {
    &world.records[&name.parse::<Name>().unwrap()]
}

fn device<'a>(world: &'a World, name: &str) -> &'a str {
    &record(world, name).grant.as_ref().unwrap().gpus[0].gpu.0
}

/// A job that has failed and waits for another try.
fn failed(fields: &str) -> World {
    let mut world = World::new(4);
    world.file("job.yaml", &format!("kind: job\ncommand: a\n{fields}")).settle();
    world.exit_code("job", 1);
    world.settle();
    world
}

#[test]
fn a_job_goes_back_to_its_device_if_nobody_has_it() {
    let mut world = World::new(4);
    world.file("job.yaml", "kind: job\ncommand: a\ngpu: {memory: 6Gi, rebalance: never}").settle();
    world.file("beside.yaml", "kind: job\ncommand: a\ngpu: {memory: 5Gi}").settle();
    world.file("other.yaml", "command: a\ngpu: {memory: 8Gi}").settle();
    for (name, code) in [("beside", 0), ("job", 1)] {
        world.exit_code(name, code);
        world.settle();
    }
    assert_eq!([device(&world, "job"), device(&world, "other")], ["GPU-0", "GPU-1"]);
    world.sleep().settle();
    assert_eq!(device(&world, "job"), "GPU-0", "the other is the better fit");
    // And to another where somebody has.
    let mut world = failed("gpu: true");
    world.file("other.yaml", "command: b\ngpu: true").settle();
    assert_eq!(device(&world, "other"), "GPU-0");
    world.sleep().settle();
    assert_eq!(device(&world, "job"), "GPU-1");
}

#[test]
fn a_try_that_is_under_way_holds_what_it_was_given() {
    let mut world = failed("gpu: 2");
    let before = world.records.clone();
    world.sleep();
    let start = world.plan().work.remove(0);
    world.records.insert(start.name.clone(), start.record.clone().unwrap());
    world.busy.insert(start.name.clone());
    world.file("new.yaml", "command: b\ngpu: true");
    let starts = |world: &World| world.plan().work.iter().any(|work| matches!(work.act, Act::Start { .. }));
    assert!(!starts(&world), "nothing of it is seen yet");
    world.busy.clear();
    world.carry_out(&start.name, start.record, &start.act);
    // The controller was killed before the database heard of it.
    world.records = before;
    assert!(!starts(&world), "its run tells");
    world.blind.insert(start.name.clone());
    world.observed.clear();
    assert!(!starts(&world), "nobody knows whether it runs");
}

#[test]
fn a_try_holds_its_room_while_neighbours_leave_it() {
    let mut world = failed("cpu: {class: exclusive, request: 2}");
    world.file("web.yaml", "command: b").settle();
    world.sleep();
    assert!(world.pass().contains("CpusOccupied"));
    world.file("new.yaml", "command: c\ncpu: {class: exclusive, request: 2}");
    let shown = world.settle();
    assert!(shown.contains("job: start") && !shown.contains("new: start"), "{shown}");
}

#[test]
fn a_job_that_is_edited_between_two_tries_has_no_room_before_it_is_given_some() {
    let mut world = failed("gpu: 2");
    world.file("other.yaml", "command: b\ngpu: 2").settle();
    // It is not another try of what failed, and the host is too busy for any.
    world.utilisation_percent = Some(99);
    world.file("job.yaml", "kind: job\ncommand: c\ngpu: 2").settle();
    assert_eq!(record(&world, "job").retry_at, None);
    assert_eq!(record(&world, "job").grant, None);
    assert_eq!(record(&world, "other").held().map(|grant| grant.gpus.len()), Some(2));
}

#[test]
fn what_was_over_in_time_is_told_by_the_manifest_it_was_ended_by() {
    for edit in ["timeout: 30s", ""] {
        let mut world = World::new(4);
        world.file("job.yaml", "kind: job\ncommand: a\ntimeout: 2s\nretries: 3").settle();
        world.after(2000).pass();
        world.file("job.yaml", &format!("kind: job\ncommand: a\nretries: 3\n{edit}")).pass();
        world.after(100).exit_code("job", 0);
        world.settle();
        let record = &world.records[&"job".parse().unwrap()];
        let timed_out = Outcome::TimedOut { after: Duration::from_secs(2) };
        assert_eq!(record.last_exit.as_ref().map(|exit| &exit.outcome), Some(&timed_out), "{edit:?}");
        assert!(!record.finished && record.retry_at.is_some(), "{edit:?}: another try");
    }
}

#[test]
fn a_service_that_becomes_a_job_has_not_taken_too_long() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: serve").settle();
    world.after(60_000).file("a.yaml", "kind: job\ncommand: a\ntimeout: 2s").pass();
    world.after(100).exit_code("a", 0);
    world.settle();
    let record = record(&world, "a");
    assert_eq!(record.last_exit.as_ref().map(|exit| &exit.outcome), Some(&Outcome::Exited { code: 0 }));
    assert!(!record.finished && record.failed_tries == 0);
}
