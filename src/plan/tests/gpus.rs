//! Leases of GPUs over crashes, and what becomes of runs whose device is draining.

use super::world::World;
use crate::model::gpu::{GpuLease, Health};
use crate::model::name::Name;
use crate::plan::Act;

fn drain(world: &mut World, gpu: usize) {
    let since = world.now;
    world.machine.gpus[gpu].health = Health::Draining { since, why: "Xid 79".to_owned() };
}

fn leases(world: &World, name: &str) -> Vec<GpuLease> {
    let record = &world.records[&name.parse::<Name>().unwrap()];
    record.grant.as_ref().map(|grant| grant.gpus.clone()).unwrap_or_default()
}

#[test]
fn a_lease_is_in_the_record_before_anything_runs_and_in_every_pass_after() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: true").file("b.yaml", "command: b\ngpu: true");
    world.file("c.yaml", "command: c\ngpu: true");
    let plan = world.plan();
    let starts: Vec<_> = plan.work.iter().filter(|work| matches!(work.act, Act::Start { .. })).collect();
    assert_eq!(starts.len(), 2);
    let leased: Vec<_> =
        starts.iter().map(|work| &work.record.as_ref().unwrap().grant.as_ref().unwrap().gpus[0].gpu).collect();
    assert_ne!(leased[0], leased[1]);
    // A crash right after the records: whoever plans next finds both devices taken, whatever is seen to run.
    for work in &plan.work {
        world.records.insert(work.name.clone(), work.record.clone().unwrap());
    }
    let again = world.plan();
    let of_c = again.work.iter().find(|work| work.name.as_str() == "c" && matches!(work.act, Act::Start { .. }));
    assert_eq!(of_c, None);
}

#[test]
fn what_runs_on_a_draining_device_moves_when_another_is_free() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: true").settle();
    drain(&mut world, 0);
    insta::assert_snapshot!(world.pass(), @"
    a: stop { signal: signal(15) } (GPU-0 is draining: Xid 79, another is free)
      a Stopping Ready=false Stopping: GPU-0 is draining: Xid 79, another is free
    ");
    world.exit_code("a", 0);
    world.settle();
    assert_eq!(leases(&world, "a")[0].gpu.0, "GPU-1");
}

#[test]
fn it_runs_on_while_no_other_is_free() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: true").file("b.yaml", "command: b\ngpu: true").settle();
    drain(&mut world, 0);
    insta::assert_snapshot!(world.pass(), @"
    a Running Degraded=true GpuUnhealthy: GPU-0 is draining: Xid 79; it runs on: no other serves: 1 whole GPU asked for, 0 of 2 suitable are free now; held by b; GPU-0 is draining: Xid 79; stop b; Ready=true Running: pid 100
    b Running Ready=true Running: pid 100
    ");
}

#[test]
fn two_that_see_one_device_free_go_one_after_the_other() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: {memory: 12Gi}").file("b.yaml", "command: b\ngpu: {memory: 4Gi}").settle();
    assert_eq!((leases(&world, "a")[0].gpu.0.as_str(), leases(&world, "b")[0].gpu.0.as_str()), ("GPU-0", "GPU-0"));
    drain(&mut world, 0);
    let stopped = |world: &World| {
        world
            .plan()
            .work
            .into_iter()
            .filter(|work| matches!(work.act, Act::Stop { .. }))
            .map(|work| work.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(stopped(&world), ["a"]);
    world.pass();
    assert_eq!(stopped(&world), [""; 0]);
    world.exit_code("a", 0);
    world.settle();
    world.exit_code("b", 0);
    world.settle();
    assert_eq!((leases(&world, "a")[0].gpu.0.as_str(), leases(&world, "b")[0].gpu.0.as_str()), ("GPU-1", "GPU-1"));
}

#[test]
fn keep_keeps_and_stop_stops() {
    let mut world = World::new(4);
    world
        .file("a.yaml", "command: a\ngpu: {onUnhealthy: keep}")
        .file("b.yaml", "command: b\ngpu: {onUnhealthy: stop}")
        .settle();
    drain(&mut world, 0);
    drain(&mut world, 1);
    insta::assert_snapshot!(world.pass(), @"
    b: stop { signal: signal(15) } (GPU-1 is draining: Xid 79)
      a Running Degraded=true GpuUnhealthy: GPU-0 is draining: Xid 79; it runs on: gpu.onUnhealthy says keep; Ready=true Running: pid 100
      b Stopping Ready=false Stopping: GPU-1 is draining: Xid 79
    ");
    world.exit_code("b", 0);
    let shown = world.settle();
    assert!(shown.contains("b Pending Placed=false GpuBusy"), "{shown}");
    assert_eq!(leases(&world, "b"), []);
    world.machine.gpus[1].health = Health::Healthy;
    world.settle();
    assert_eq!(leases(&world, "b")[0].gpu.0, "GPU-1");
    // An edit of the policy is no reason for a new process.
    world.file("a.yaml", "command: a\ngpu: {onUnhealthy: restart}");
    let stops = world.plan().work.into_iter().filter(|work| matches!(work.act, Act::Stop { .. })).count();
    assert_eq!(stops, 0);
}

#[test]
fn a_start_under_way_keeps_its_device_although_its_manifest_has_changed() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: true");
    let work = world.plan().work.remove(0);
    world.records.insert(work.name.clone(), work.record.unwrap());
    world.busy.insert(work.name);
    world.file("a.yaml", "command: a").file("b.yaml", "command: b\ngpu: 2");
    let starts = world.plan().work.into_iter().filter(|work| matches!(work.act, Act::Start { .. })).count();
    assert_eq!(starts, 0);
}
