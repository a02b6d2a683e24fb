//! What a folder that loses many manifests at once does, and does not do.

use super::World;
use crate::model::record::Deletion;
use crate::plan::Act;

/// `count` services that run, in files `w0.yaml` and on.
fn running(count: usize) -> World {
    let mut world = World::new(4);
    for number in 0..count {
        world.file(&format!("w{number}.yaml"), "command: a");
    }
    world.settle();
    world
}

fn lose(world: &mut World, count: usize) {
    for number in 0..count {
        world.files.remove(&format!("w{number}.yaml"));
    }
}

/// Consents to what is held, as the controller does; answers how many that are.
fn approve(world: &mut World) -> usize {
    let held = world.records.values_mut().filter(|record| record.deletion == Some(Deletion::Held));
    held.map(|record| record.deletion = Some(Deletion::Approved)).count()
}

/// The workloads that are asked to end by the next pass.
fn stopped(world: &mut World) -> usize {
    world.pass().matches(": stop {").count()
}

#[test]
fn up_to_three_or_half_are_stopped_and_more_are_not() {
    for (running_count, lost, expected) in
        [(3, 3, 3), (4, 4, 0), (6, 3, 3), (7, 4, 0), (10, 5, 5), (10, 6, 0), (1, 1, 1)]
    {
        let mut world = running(running_count);
        lose(&mut world, lost);
        assert_eq!(stopped(&mut world), expected, "{lost} of {running_count}");
    }
}

#[test]
fn what_is_held_goes_on_and_says_why() {
    let mut world = running(4);
    world.files.clear();
    insta::assert_snapshot!(world.pass(), @"
    w0: remember (as it should be)
    w1: remember (as it should be)
    w2: remember (as it should be)
    w3: remember (as it should be)
      w0 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
      w1 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
      w2 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
      w3 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
    ");
    assert_eq!(world.plan().guarded.len(), 4);
    assert_eq!(world.plan().work, []);
    // File by file they come back; those that are not there yet are held all the same.
    world.file("w0.yaml", "command: a").settle();
    assert_eq!(world.plan().guarded.len(), 3);
    world.files.clear();
    // One that ends meanwhile is started again, as its record says.
    world.exit_code("w0", 1);
    world.settle();
    let shown = world.after(600_000).settle();
    assert!(shown.contains("w0: start"), "{shown}");
}

#[test]
fn manifests_that_come_back_are_as_if_nothing_had_happened() {
    let mut world = running(4);
    let files = world.files.clone();
    world.files.clear();
    world.settle();
    world.files = files;
    assert!(world.plan().work.iter().all(|work| work.act == Act::Remember));
    world.settle();
    assert!(world.plan().guarded.is_empty());
    // Nothing is left of it: another loss is judged by itself.
    assert!(world.records.values().all(|record| record.deletion.is_none()));
}

#[test]
fn a_folder_that_empties_in_small_steps_does_not_get_past() {
    let mut world = running(8);
    lose(&mut world, 4);
    assert_eq!(stopped(&mut world), 4);
    // The first four are still ending.
    lose(&mut world, 8);
    assert_eq!(stopped(&mut world), 0);
    assert_eq!(world.plan().guarded.len(), 4);
}

#[test]
fn consent_is_for_those_it_was_given_for() {
    let mut world = running(10);
    lose(&mut world, 6);
    world.pass();
    assert_eq!(approve(&mut world), 6);
    assert_eq!(stopped(&mut world), 6);
    lose(&mut world, 10);
    assert_eq!(stopped(&mut world), 0);
    assert_eq!(world.plan().guarded.len(), 4);
}

#[test]
fn the_guard_can_be_off() {
    let mut world = running(4);
    world.prune_guard = false;
    world.files.clear();
    assert_eq!(stopped(&mut world), 4);
}

/// As many services that run, and as many of those that only have something to lose: done jobs and suspended services in turn.
fn running_and_at_rest(runs: usize, at_rest: usize) -> World {
    let mut world = running(runs);
    for number in 0..at_rest {
        let text = if number % 2 == 0 { "kind: job\ncommand: a" } else { "command: a\nsuspend: true" };
        world.file(&format!("r{number}.yaml"), text);
    }
    world.settle();
    for number in (0..at_rest).step_by(2) {
        world.exit_code(&format!("r{number}"), 0);
    }
    world.settle();
    world
}

#[test]
fn what_is_done_or_suspended_counts_by_itself() {
    for (runs, at_rest, lost, forgotten) in [(9, 3, 3, 3), (9, 4, 4, 0), (9, 8, 4, 4), (9, 8, 5, 0), (0, 8, 5, 0)] {
        let mut world = running_and_at_rest(runs, at_rest);
        for number in 0..lost {
            world.files.remove(&format!("r{number}.yaml"));
        }
        let shown = world.pass();
        let held = if forgotten == 0 { lost } else { 0 };
        assert_eq!(shown.matches(": forget (").count(), forgotten, "{lost} of {at_rest}: {shown}");
        assert_eq!(world.plan().guarded.len(), held, "{lost} of {at_rest}");
    }
}

#[test]
fn the_two_kinds_do_not_open_the_way_for_each_other() {
    // Those that run are few enough to be stopped; those at rest are not few enough to be forgotten.
    let mut world = running_and_at_rest(1, 4);
    world.files.clear();
    insta::assert_snapshot!(world.pass(), @"
    w0: stop { signal: signal(15) } (w0.yaml was deleted)
    r1: remember (suspended)
    r3: remember (suspended)
    r0: remember (it is not to be run again)
    r2: remember (it is not to be run again)
      r0 Completed Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that are done or suspended, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=false Finished: exited with code 0
      r1 Suspended Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that are done or suspended, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=false Suspended: its manifest says suspend
      r2 Completed Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that are done or suspended, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=false Finished: exited with code 0
      r3 Suspended Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that are done or suspended, at most 3 may): it is not deleted before its manifest is back or `containerctl approve` consents; Ready=false Suspended: its manifest says suspend
      w0 Stopping Accepted=false Deleted: w0.yaml is gone; Ready=false Stopping: w0.yaml was deleted
    ");
    // Too many of those that run hold everything, however few are at rest.
    let mut world = running_and_at_rest(4, 1);
    world.files.clear();
    world.pass();
    assert_eq!((world.plan().guarded.len(), world.plan().work), (5, Vec::new()));
}

#[test]
fn what_is_held_and_for_whom_consent_was_given_is_in_the_records() {
    let mut world = running(10);
    lose(&mut world, 6);
    world.pass();
    let all = world.records.clone();
    // Another controller, to which four of the six came back: two are not many, and held all the same.
    for number in 0..4 {
        world.file(&format!("w{number}.yaml"), "command: a");
    }
    world.settle();
    assert_eq!((world.plan().guarded.len(), world.plan().work), (2, Vec::new()));
    // One of them does not wait for the others to be consented to.
    world.records = all;
    lose(&mut world, 6);
    world.records.get_mut(&"w0".parse().unwrap()).unwrap().deletion = Some(Deletion::Approved);
    assert_eq!(stopped(&mut world), 1);
    assert_eq!(world.plan().guarded.len(), 5);
}

#[test]
fn a_manifest_that_comes_back_takes_the_consent_with_it() {
    let mut world = running(4);
    lose(&mut world, 4);
    world.pass();
    assert_eq!(approve(&mut world), 4);
    for number in 0..4 {
        world.file(&format!("w{number}.yaml"), "command: a");
    }
    assert_eq!(world.settle().matches(": stop {").count(), 0);
    lose(&mut world, 4);
    assert_eq!(stopped(&mut world), 0);
}

#[test]
fn a_deletion_that_has_begun_is_seen_through_wherever_it_is() {
    let mut world = running(8);
    lose(&mut world, 4);
    assert_eq!(stopped(&mut world), 4);
    // Two have ended, one of them is cleared away, as the rest of the folder goes.
    for name in ["w0", "w1"] {
        world.exit_code(name, 0);
        world.observed.get_mut(&name.parse().unwrap()).unwrap().group = None;
    }
    let plan = world.plan();
    let cleared = plan.work.iter().find(|work| work.name.as_str() == "w0").unwrap().clone();
    world.carry_out(&cleared.name, cleared.record, &cleared.act);
    lose(&mut world, 8);
    let shown = world.pass() + &world.settle();
    assert!(shown.contains("w0: forget (") && shown.contains("w1: forget ("), "{shown}");
    assert!(!shown.contains(": start"), "{shown}");
    assert_eq!(world.plan().guarded.len(), 4);
}

#[test]
fn a_completed_job_is_not_forgotten_with_a_folder_that_is_held() {
    let mut world = running(4);
    world.file("job.yaml", "kind: job\ncommand: a").settle();
    world.exit_code("job", 0);
    world.settle();
    let files = std::mem::take(&mut world.files);
    world.settle();
    world.files = files;
    let shown = world.settle();
    assert!(!shown.contains("job: start"), "{shown}");
}
