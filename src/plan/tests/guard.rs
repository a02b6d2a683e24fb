//! What a folder that loses many manifests at once does, and does not do.

use super::World;

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
    w0 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not stopped before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
    w1 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not stopped before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
    w2 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not stopped before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
    w3 Running Accepted=false DeletionHeld: too many manifests have gone at once (4 of 4 that run, at most 3 may): it is not stopped before its manifest is back or `containerctl approve` consents; Ready=true Running: pid 100
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
    assert_eq!(world.plan().work, []);
    assert!(world.plan().guarded.is_empty());
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
    world.approved = world.plan().guarded;
    assert_eq!(world.approved.len(), 6);
    assert_eq!(stopped(&mut world), 6);
    lose(&mut world, 10);
    assert_eq!(stopped(&mut world), 0);
    assert_eq!(world.plan().guarded.len(), 4);
}

#[test]
fn the_guard_can_be_off_and_does_not_count_what_does_not_run() {
    let mut world = running(4);
    world.prune_guard = false;
    world.files.clear();
    assert_eq!(stopped(&mut world), 4);
    let mut world = running(2);
    for number in 0..9 {
        world.file(&format!("s{number}.yaml"), "command: a\nsuspend: true");
    }
    world.settle();
    world.files.clear();
    assert_eq!(stopped(&mut world), 2);
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
