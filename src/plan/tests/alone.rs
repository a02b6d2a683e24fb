//! What is told of CPUs that a workload is to have alone: what the kernel grants, what the host is kept off, and what neither holds.

use super::World;
use crate::model::cgroup::PARTITION;
use crate::model::status::ConditionKind;
use crate::plan::fence::exclusive;
use crate::plan::{Act, Shutdown};

/// Two CPUs of a core of its own each, or the second thread of a core left idle.
fn world(smt: bool) -> World {
    let mut world = World::new(if smt { 16 } else { 4 });
    world.machine.cgroup.files.insert(PARTITION.to_owned());
    let request = if smt { "cpu: {class: exclusive, request: 1}" } else { "cpu: {class: exclusive, request: 2}" };
    world.file("x.yaml", &format!("command: x\n{request}")).file("web.yaml", "command: web");
    world.settle();
    world
}

/// What the kernel says of the wish.
fn answer(world: &mut World, held: &str) {
    let group = world.observed.get_mut(&"x".parse().unwrap()).unwrap().group.as_mut().unwrap();
    group.settings.set(PARTITION, held);
}

fn told(world: &World) -> String {
    let plan = world.plan();
    assert!(plan.work.is_empty(), "{:?}", plan.work);
    let mut all = plan.verdicts.values().flat_map(|verdict| &verdict.findings);
    let found = all.find(|finding| finding.kind == ConditionKind::Exclusive).unwrap();
    format!("{} {}: {}", found.status, found.reason, found.message)
}

#[test]
fn a_partition_is_wished_for_and_what_the_kernel_says_is_told() {
    let mut world = world(false);
    insta::assert_snapshot!(told(&world), @"true Partition: CPUs 0-1 are a partition: no process of the host runs there; kernel threads and interrupts that are bound to them may");
    answer(&mut world, "root invalid (Parent is not a partition root)");
    insta::assert_snapshot!(told(&world), @r#"false HostMayRun: no other workload runs on CPUs 0-1, but the host's own processes may: cpuset.cpus.partition is "root invalid (Parent is not a partition root)"; controller --fence-system keeps them off"#);
    world.fence.cpus = "0-1".parse().unwrap();
    world.fence.interrupts = vec!["24, 25 (Input/output error)".to_owned()];
    insta::assert_snapshot!(told(&world), @"true Fenced: the host's processes are kept off CPUs 0-1; kernel threads that are bound to them may, and interrupts 24, 25 (Input/output error)");
    world.fence.left = vec!["processes of the root group, which has no cpuset".to_owned()];
    insta::assert_snapshot!(told(&world), @"false PartlyFenced: the host is kept off CPUs 0-1, but for processes of the root group, which has no cpuset; kernel threads that are bound to them may, and interrupts 24, 25 (Input/output error)");
}

#[test]
fn a_host_without_partitions_says_so() {
    let mut world = World::new(4);
    world.file("x.yaml", "command: x\ncpu: {class: exclusive, request: 2}").settle();
    insta::assert_snapshot!(told(&world), @"false HostMayRun: no other workload runs on CPUs 0-1, but the host's own processes may: this kernel has no cpuset.cpus.partition; controller --fence-system keeps them off");
}

#[test]
fn idle_threads_of_its_cores_are_outside_the_partition_and_that_is_told() {
    let mut world = world(true);
    insta::assert_snapshot!(told(&world), @"false HostMayRun: no other workload runs on CPUs 8, but the host's own processes may: they are idle threads of its cores, outside the partition; controller --fence-system keeps them off");
    world.fence.cpus = exclusive_cpus(&world);
    assert!(told(&world).starts_with("true Fenced"), "{}", told(&world));
    answer(&mut world, "member");
    let plan = world.plan();
    let writes = plan.work.iter().filter_map(|work| match &work.act {
        Act::Resize { writes, .. } => Some(writes),
        _ => None,
    });
    let writes: Vec<String> = writes.flatten().map(ToString::to_string).collect();
    assert_eq!(writes, ["cpuset.cpus.partition = root"], "a wish that somebody took back is made again");
}

fn exclusive_cpus(world: &World) -> crate::model::cpuset::CpuSet {
    world.with_input(exclusive)
}

#[test]
fn the_host_is_kept_off_for_as_long_as_the_cpus_are_held() {
    let mut world = world(false);
    assert_eq!(exclusive_cpus(&world).to_string(), "0-1");
    world.exit_code("x", 1);
    world.settle();
    assert_eq!(exclusive_cpus(&world).to_string(), "0-1", "between two tries of a service");
    world.sleep().settle();
    world.shutdown = Some(Shutdown::Graceful);
    world.pass();
    assert_eq!(exclusive_cpus(&world).to_string(), "0-1", "it ends, and is still there");
    world.exit_code("x", 0);
    world.exit_code("web", 0);
    world.settle();
    assert_eq!(exclusive_cpus(&world).to_string(), "", "the controller takes it along");
}

#[test]
fn who_has_to_share_because_cpus_went_away_is_told_so_and_goes_on() {
    let mut world = world(false);
    world.machine.topology.usable = "3".parse().unwrap();
    world.machine.topology.online = "3".parse().unwrap();
    world.settle();
    let on = |world: &World, name: &str| {
        let group = world.observed[&name.parse().unwrap()].group.clone().unwrap();
        group.settings.get("cpuset.cpus").unwrap().to_owned()
    };
    assert_eq!((on(&world, "x"), on(&world, "web")), ("3".to_owned(), "3".to_owned()));
    insta::assert_snapshot!(told(&world), @"false Shared: web may run on CPUs 3 as well: too few are left that are switched on");
    world.machine.topology = crate::model::topology::tests::flat(4);
    world.settle();
    assert_eq!((on(&world, "x"), on(&world, "web")), ("0-1".to_owned(), "2-3".to_owned()));
    assert!(told(&world).starts_with("true Partition"), "{}", told(&world));
}
