//! Who gets room, who waits, and that exclusive CPUs are exclusive at every moment.

use super::World;
use crate::plan::Act;
use std::time::Duration;

#[test]
fn an_exclusive_newcomer_starts_after_its_neighbours_have_left_its_cpus() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a").file("b.yaml", "command: b\ncpu: {class: pinned, request: 1}").settle();
    world.file("x.yaml", "command: x\ncpu: {class: exclusive, request: 2}");
    insta::assert_snapshot!(world.pass(), @"
    a: resize (cpuset.cpus 0-3 -> 0,3)
    x: remember (waits for a to leave CPUs 1-2)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Pending Ready=false CpusOccupied: waits for a to leave CPUs 1-2
    ");
    insta::assert_snapshot!(world.pass(), @"
    x: start (new; class exclusive: 1-2 of machine 0-3, fenced 1-2)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Starting Ready=false Starting: being set up
    ");
    world.files.remove("x.yaml");
    world.pass();
    world.exit_code("x", 0);
    insta::assert_snapshot!(world.settle(), @"
    x: clear (exited with code 0)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Pending Accepted=false Deleted: x.yaml is gone; Ready=false Ended: exited with code 0
    x: forget (x.yaml was deleted and nothing of it runs)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
      x Stopping Accepted=false Deleted: x.yaml is gone
    a: resize (cpuset.cpus 0,3 -> 0-3)
      a Running Ready=true Running: pid 100
      b Running Ready=true Running: pid 100
    ");
}

#[test]
fn what_has_no_room_waits_and_starts_when_there_is() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ngpu: 2").settle();
    world.file("b.yaml", "command: b\ngpu: true\npriority: 5").file("c.yaml", "command: c\ngpu: 2\npriority: 9");
    insta::assert_snapshot!(world.pass(), @"
    c: remember (2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; stop a)
    b: remember (1 whole GPU asked for, 0 of 2 suitable are free now; held by a; stop a)
      a Running Ready=true Running: pid 100
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a; stop a; Ready=false NotPlaced: waits for room
      c Pending Placed=false GpuBusy: 2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; stop a; Ready=false NotPlaced: waits for room
    ");
    world.files.remove("a.yaml");
    world.pass();
    world.exit_code("a", 0);
    insta::assert_snapshot!(world.settle(), @"
    a: clear (exited with code 0)
      a Pending Accepted=false Deleted: a.yaml is gone; Ready=false Ended: exited with code 0
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a; stop a; Ready=false NotPlaced: waits for room
      c Pending Placed=false GpuBusy: 2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; stop a; Ready=false NotPlaced: waits for room
    a: forget (a.yaml was deleted and nothing of it runs)
      a Stopping Accepted=false Deleted: a.yaml is gone
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by a; stop a; Ready=false NotPlaced: waits for room
      c Pending Placed=false GpuBusy: 2 whole GPUs asked for, 0 of 2 suitable are free now; held by a; stop a; Ready=false NotPlaced: waits for room
    c: start with GPU-0,GPU-1 (new; no cpu.limit: all shared CPUs)
      b Pending Placed=false GpuBusy: 1 whole GPU asked for, 0 of 2 suitable are free now; held by c; stop c; Ready=false NotPlaced: waits for room
      c Starting Ready=false Starting: being set up
    ");
}

#[test]
fn jobs_wait_for_a_quieter_host_and_services_do_not() {
    let mut world = World::new(4);
    world.utilisation_percent = Some(90);
    world.file("job.yaml", "kind: job\ncommand: a").file("web.yaml", "command: b");
    insta::assert_snapshot!(world.pass(), @"
    web: start (new; no cpu.limit: all shared CPUs)
    job: remember (host CPUs are 90 % busy, jobs start at 85 % or less (controller --job-cpu-threshold))
      job Pending Ready=false HostBusy: host CPUs are 90 % busy, jobs start at 85 % or less (controller --job-cpu-threshold)
      web Starting Ready=false Starting: being set up
    ");
    assert_eq!(world.plan().wake_at, Some(world.now.plus(Duration::from_secs(1))));
    world.utilisation_percent = Some(85);
    insta::assert_snapshot!(world.pass(), @"
    job: start (new; no cpu.limit: all shared CPUs)
      job Starting Ready=false Starting: being set up
      web Running Ready=true Running: pid 100
    ");
}

#[test]
fn a_request_that_no_longer_fits_is_said_and_the_limits_apply_all_the_same() {
    let mut world = World::new(4);
    world.file("web.yaml", "command: a\nmemory: {request: 1Gi, limit: 2Gi}").settle();
    world.file("web.yaml", "command: a\nmemory: {request: 16383Pi, limit: max}");
    insta::assert_snapshot!(world.pass(), @"
    web: resize (memory.max 2147483648 -> max, memory.swap.max 0 -> max)
      web Running Degraded=true InsufficientMemory: memory.request 16383Pi does not fit: 0 of 16Gi are set aside for others; 16Gi would fit; Ready=true Running: pid 100
    ");
    world.file("db.yaml", "command: a\nmemory: {request: 1Gi}");
    insta::assert_snapshot!(world.pass(), @"
    db: start (new; no cpu.limit: all shared CPUs)
      db Starting Ready=false Starting: being set up
      web Running Degraded=true InsufficientMemory: memory.request 16383Pi does not fit: 0 of 16Gi are set aside for others; 16Gi would fit; Ready=true Running: pid 100
    ");
}

#[test]
fn an_edit_that_does_not_fit_costs_nobody_else_and_starts_no_new_run() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\nmemory: {request: 4Gi}").settle();
    world.file("a.yaml", "command: a\nmemory: {request: 999G}\ncpu: {request: 64}");
    world.file("b.yaml", "command: b").file("c.yaml", "command: c\nmemory: {request: 12Gi}");
    insta::assert_snapshot!(world.settle(), @"
    a: remember (as it should be)
    b: start (new; no cpu.limit: all shared CPUs)
    c: start (new; no cpu.limit: all shared CPUs)
      a Running Degraded=true InsufficientMemory: memory.request 999G does not fit: 0 of 16Gi are set aside for others; 16Gi would fit; Ready=true Running: pid 100
      b Starting Ready=false Starting: being set up
      c Starting Ready=false Starting: being set up
    ");
    world.exit_code("a", 1);
    world.settle();
    world.sleep();
    insta::assert_snapshot!(world.pass(), @"
    a: remember (memory.request 999G does not fit: 12Gi of 16Gi are set aside for others (c 12Gi); 4Gi would fit)
      a Pending Placed=false InsufficientMemory: memory.request 999G does not fit: 12Gi of 16Gi are set aside for others (c 12Gi); 4Gi would fit; Ready=false NotPlaced: waits for room
      b Running Ready=true Running: pid 100
      c Running Ready=true Running: pid 100
    ");
}

#[test]
fn an_exclusive_newcomer_waits_for_neighbours_that_are_being_started() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a").settle();
    // As the loop sees it while a start is under way: the grant is recorded, the group not seen yet.
    let seen = world.observed.remove(&"a".parse().unwrap()).unwrap();
    world.records.values_mut().for_each(|record| record.made = false);
    world.busy.insert("a".parse().unwrap());
    world.file("x.yaml", "command: x\ncpu: {class: exclusive, request: 1}");
    insta::assert_snapshot!(world.pass(), @"
    x: remember (waits for a to leave CPUs 0)
      a Starting Ready=false Starting: being set up
      x Pending Ready=false CpusOccupied: waits for a to leave CPUs 0
    ");
    world.busy.clear();
    world.observed.insert("a".parse().unwrap(), seen);
    insta::assert_snapshot!(world.settle(), @"
    a: resize (cpuset.cpus 0-3 -> 1-3)
      a Running Ready=true Running: pid 100
      x Pending Ready=false CpusOccupied: waits for a to leave CPUs 0
    x: start (new; class exclusive: 0 of core 0, fenced 0)
      a Running Ready=true Running: pid 100
      x Starting Ready=false Starting: being set up
    ");
}

#[test]
fn those_who_take_what_is_shared_return_to_what_an_exclusive_neighbour_leaves() {
    let mut world = World::new(4);
    world.file("x.yaml", "command: x\ncpu: {class: exclusive, request: 2}").settle();
    world.file("late.yaml", "command: late").file("idle.yaml", "command: idle\ncpu: {class: idle}").settle();
    world.files.remove("x.yaml");
    world.pass();
    world.exit_code("x", 0);
    world.settle();
    for name in ["late", "idle"] {
        let settings = &world.observed[&name.parse().unwrap()].group.as_ref().unwrap().settings;
        assert_eq!(settings.get("cpuset.cpus"), Some("0-3"), "{name}");
    }
}

#[test]
fn a_raised_limit_widens_the_cpuset() {
    let mut world = World::new(16);
    world.file("web.yaml", "command: a\ncpu: 1").settle();
    world.file("web.yaml", "command: a\ncpu: 4");
    insta::assert_snapshot!(world.pass(), @"
    web: resize (cpu.max 100000 100000 -> 400000 100000, cpuset.cpus 0,8 -> 0-1,8-9)
      web Running Ready=true Running: pid 100
    ");
}

#[test]
fn an_exclusive_workload_waits_for_a_start_that_is_under_way_on_its_cpus() {
    let mut world = World::new(4);
    world.file("a.yaml", "command: a\ncpu: 250m").settle();
    // Its run has ended and the next one is being started, on the CPUs that are recorded.
    world.observed.clear();
    world.busy.insert("a".parse().unwrap());
    world.file("x.yaml", "command: x\ncpu: {class: exclusive, request: 1}");
    for _ in 0..3 {
        let work = world.plan().work;
        assert!(work.iter().all(|work| matches!(work.act, Act::Remember)), "{work:?}");
        world.records.extend(work.into_iter().filter_map(|work| Some((work.name, work.record?))));
    }
    let grants: Vec<_> = world.records.values().map(|record| record.grant.clone().unwrap().cpus).collect();
    assert!(!grants[0].is_disjoint(&grants[1]), "{grants:?} meet on no CPU, which shows nothing; {:?}", world.records);
}
