//! What becomes of the rebalancer's proposals.

use super::World;
use crate::model::balance::{Move, Rung};
use crate::model::clock::Steady;
use crate::model::cpuset::CpuSet;
use crate::model::meter::{Count, Reading};
use crate::model::name::Name;
use crate::plan::balance::{Rates, sample};
use crate::plan::{Act, Setback, Shutdown};

fn proposal(name: &str, from: &str, to: &str) -> Move {
    Move {
        name: name.parse().unwrap(),
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        rung: Rung::Near,
        with: None,
        gain: 120,
        cost: 50,
        reason: "4 of 4 CPUs were busy there".to_owned(),
    }
}

/// Two pinned workloads on the two threads of a core, one that may use all of a cache, one idle, one exclusive.
fn world() -> World {
    let mut world = World::new(16);
    world
        .file("a.yaml", "command: x\ncpu: {class: pinned, request: 1}")
        .file("b.yaml", "command: x\ncpu: {class: pinned, request: 1}")
        .file("s.yaml", "command: x\ncpu: 4")
        .file("i.yaml", "command: x\ncpu: {class: idle}")
        .file("x.yaml", "command: x\ncpu: {class: exclusive, request: 2}")
        .settle();
    world.moves = Some(Vec::new());
    world.settle();
    world
}

fn name(name: &str) -> Name {
    name.parse().unwrap()
}

fn cpus(world: &World, of: &str) -> String {
    world.observed[&name(of)].group.as_ref().unwrap().settings.get("cpuset.cpus").unwrap().to_owned()
}

/// A CPU that nobody of the pinned has.
fn elsewhere(world: &World) -> String {
    let held: Vec<CpuSet> = ["a", "b", "x"].iter().map(|name| cpus(world, name).parse().unwrap()).collect();
    (0..16).find(|cpu| held.iter().all(|set| !set.contains(*cpu))).unwrap().to_string()
}

fn propose(world: &mut World, moves: Vec<Move>) {
    world.moves = Some(moves);
}

/// The names of those a pass takes a step for.
fn steps(world: &World) -> Vec<String> {
    world.plan().work.iter().map(|work| work.name.to_string()).collect()
}

#[test]
fn a_proposal_becomes_the_grant_and_is_carried_out_as_a_resize() {
    let mut world = world();
    let (from, to) = (cpus(&world, "a"), elsewhere(&world));
    propose(&mut world, vec![proposal("a", &from, &to)]);
    let plan = world.plan();
    let [work] = plan.work.as_slice() else { panic!("{:?}", plan.work) };
    assert!(matches!(work.act, Act::Resize { .. }), "{:?}", work.act);
    let grant = work.record.as_ref().unwrap().grant.as_ref().unwrap();
    assert_eq!(grant.reason, "move: 4 of 4 CPUs were busy there; gain 120m, cost 50m");
    assert_eq!(grant.moved.as_ref().unwrap().from.to_string(), from);
    world.pass();
    assert_eq!(cpus(&world, "a"), to);
    // It is done: the same proposal is none any more, nor does anything take it back.
    assert_eq!(steps(&world), [""; 0]);
    propose(&mut world, Vec::new());
    assert_eq!(steps(&world), [""; 0]);
    world.moves = None;
    assert_eq!(steps(&world), [""; 0], "a pinned workload stays where it was moved, rebalancer or not");
}

#[test]
fn a_move_that_the_kernel_refuses_is_taken_back_in_the_record() {
    let mut world = world();
    let (from, to) = (cpus(&world, "a"), elsewhere(&world));
    let before = world.records[&name("a")].clone();
    propose(&mut world, vec![proposal("a", &from, &to)]);
    let plan = world.plan();
    assert_eq!(plan.work[0].afterwards(false), Some(&before));
    assert_eq!(plan.work[0].afterwards(true), None);
    // An ordinary resize is tried again instead.
    propose(&mut world, Vec::new());
    world.file("a.yaml", "command: x\ncpu: {class: pinned, request: 1, weight: 7}");
    assert_eq!(world.plan().work[0].afterwards(false), None);
}

#[test]
fn who_is_being_acted_on_stopped_held_or_exclusive_is_left_alone() {
    let world = || {
        let mut world = world();
        let (from, to) = (cpus(&world, "a"), elsewhere(&world));
        propose(&mut world, vec![proposal("a", &from, &to)]);
        assert_eq!(steps(&world), ["a"]);
        world
    };
    let is_moved = |world: &World| {
        world
            .plan()
            .work
            .iter()
            .filter_map(|work| work.record.as_ref()?.grant.as_ref())
            .any(|grant| grant.moved.is_some())
    };
    let check = |what: &str, change: &dyn Fn(&mut World)| {
        let mut world = world();
        change(&mut world);
        assert!(!is_moved(&world), "{what}");
    };
    check("a step under way", &|world| {
        world.busy.insert(name("a"));
    });
    check("nobody can look at it", &|world| {
        world.blind.insert(name("a"));
    });
    check("its last step failed", &|world| {
        let setback = Setback { message: String::new(), failures: 1, retry_at: Steady(0) };
        world.setbacks.insert(name("a"), setback);
    });
    check("its manifest is gone", &|world| {
        world.files.remove("a.yaml");
    });
    check("its manifest cannot be read", &|world| {
        world.file("a.yaml", "command: [");
    });
    check("its manifest says something else", &|world| {
        world.file("a.yaml", "command: y\ncpu: {class: pinned, request: 1}");
    });
    check("the controller takes it along", &|world| world.shutdown = Some(Shutdown::Graceful));
    check("a process of it is outside", &|world| {
        world.strays.insert(name("a"), [7].into());
    });
    check("nothing is to be rebalanced", &|world| world.moves = None);
    check("it is not where it was any more", &|world| {
        let to = elsewhere(world);
        propose(world, vec![proposal("a", "15", &to)]);
    });
    check("the CPUs are somebody's alone", &|world| {
        let (from, to) = (cpus(world, "a"), cpus(world, "x"));
        propose(world, vec![proposal("a", &from, &to)]);
    });
    check("it asks for one CPU", &|world| {
        let from = cpus(world, "a");
        propose(world, vec![proposal("a", &from, "3-4")]);
    });
    check("exclusive", &|world| {
        let from = cpus(world, "x");
        propose(world, vec![proposal("x", &from, "3-4")]);
    });
}

#[test]
fn half_a_swap_is_none() {
    let mut world = world();
    let (a, b) = (cpus(&world, "a"), cpus(&world, "b"));
    let half = |of: &str, from: &str, to: &str, with: &str| Move {
        with: Some(name(with)),
        rung: Rung::Swap,
        ..proposal(of, from, to)
    };
    propose(&mut world, vec![half("a", &a, &b, "b"), half("b", &b, &a, "a")]);
    assert_eq!(steps(&world), ["a", "b"]);
    world.busy.insert(name("b"));
    assert_eq!(steps(&world), [""; 0]);
    world.busy.clear();
    world.pass();
    assert_eq!((cpus(&world, "a"), cpus(&world, "b")), (b, a));
}

#[test]
fn what_widens_is_in_force_before_what_narrows_is_begun() {
    let mut world = world();
    let (s, i) = (cpus(&world, "s"), cpus(&world, "i"));
    let (own, alone): (CpuSet, CpuSet) = (s.parse().unwrap(), cpus(&world, "x").parse().unwrap());
    let more = (0..16).find(|cpu| !own.contains(*cpu) && !alone.contains(*cpu)).unwrap();
    let wider = own.union(&CpuSet::from_iter([more])).to_string();
    let first = proposal("s", &s, &wider);
    propose(&mut world, vec![proposal("i", &i, "15"), first]);
    assert_eq!(steps(&world), ["s"]);
    // Begun, and not seen to be done: its record is ahead of the kernel.
    let work = world.plan().work.remove(0);
    world.records.insert(work.name.clone(), work.record.unwrap());
    world.busy.insert(work.name.clone());
    assert_eq!(steps(&world), [""; 0]);
    world.busy.clear();
    world.settle();
    assert_eq!((cpus(&world, "s"), cpus(&world, "i")), (wider, "15".to_owned()));
}

#[test]
fn squeezed_idle_work_has_its_room_back_where_nobody_rebalances_and_with_its_next_run() {
    let mut squeezed = world();
    let room = cpus(&squeezed, "i");
    propose(&mut squeezed, vec![proposal("i", &room, "15")]);
    squeezed.settle();
    propose(&mut squeezed, Vec::new());
    assert_eq!(steps(&squeezed), [""; 0], "it stays while somebody minds it");
    squeezed.moves = None;
    squeezed.settle();
    assert_eq!(cpus(&squeezed, "i"), room);

    let mut again = world();
    propose(&mut again, vec![proposal("i", &room, "15")]);
    again.settle();
    propose(&mut again, Vec::new());
    again.exit_code("i", 1);
    again.settle();
    again.sleep().settle();
    assert_eq!(cpus(&again, "i"), room);
}

#[test]
fn work_beside_its_devices_is_kept_beside_them() {
    let mut world = World::new(16);
    world.machine.gpus.iter_mut().for_each(|gpu| gpu.node = Some(1));
    let gpu =
        |align: &str| format!("command: x\ncpu: {{class: pinned, request: 1}}\ngpu: {{align: {align}, memory: 1Gi}}");
    world
        .file("any.yaml", &gpu("none"))
        .file("must.yaml", &gpu("required"))
        .file("stays.yaml", &gpu("preferred"))
        // There is no room beside the devices for all it asks for.
        .file("wide.yaml", "command: x\ncpu: {class: pinned, request: 9}\ngpu: {memory: 1Gi}")
        .file("none.yaml", "command: x\ncpu: {class: pinned, request: 1}")
        .settle();
    let within = |world: &World| {
        let mut rates = Rates::default();
        let counts = world.records.keys().map(|name| (name.clone(), Count { run: 1, ..Count::default() })).collect();
        rates.take(Reading { workloads: counts, ..Reading::default() });
        let sample = world.with_input(|input| sample(input, &rates, Steady(0)));
        let shown = |cpus: &Option<CpuSet>| cpus.as_ref().map_or("anywhere".to_owned(), ToString::to_string);
        let members = sample.members.iter().map(|(name, member)| format!("{name}: {}", shown(&member.within)));
        members.collect::<Vec<_>>()
    };
    let node = "4-7,12-15";
    let expected =
        ["any: anywhere", &format!("must: {node}"), "none: anywhere", &format!("stays: {node}"), "wide: anywhere"];
    assert_eq!(within(&world), expected);
    // Devices that are beside nothing any more: what has to be beside them goes nowhere, the rest wherever it likes.
    world.machine.gpus.iter_mut().for_each(|gpu| gpu.node = None);
    let must = format!("must: {}", cpus(&world, "must"));
    assert_eq!(within(&world), ["any: anywhere", &must, "none: anywhere", "stays: anywhere", "wide: anywhere"]);
}
