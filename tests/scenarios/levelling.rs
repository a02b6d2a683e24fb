//! The rebalancer on a real machine: a crowd on one NUMA node is spread, and then nothing moves any more.
//!
//! The host of the developer has one group of CPUs, where there is nothing to even out and that is said; the virtual machine has two nodes.

use super::kernel;
use super::world::{World, eventually_or, program};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

const HOGS: usize = 8;
/// As the issue asks, from when the controller that may move them knows that they run. It takes two looks, two turns of two moves, and five seconds
/// between any two of those.
const LEVEL_WITHIN: Duration = Duration::from_secs(20);
const MOVES_MAX: usize = 4;
/// How long it is watched to stay still; `STILL_SECONDS=300` watches for as long as the issue asks.
const STILL: Duration = Duration::from_mins(1);

/// The CPUs of each NUMA node that has some.
fn nodes() -> Vec<String> {
    let folders = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let lists = folders.filter_map(|folder| fs::read_to_string(folder.path().join("cpulist")).ok());
    let mut lists: Vec<String> = lists.map(|list| list.trim().to_owned()).filter(|list| !list.is_empty()).collect();
    lists.sort();
    lists
}

fn report(world: &World) -> Value {
    let said = world.ctl(&["rebalance", "--dry-run", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    serde_json::from_str(&said.out).unwrap()
}

/// The CPUs of each hog, by the kernel.
fn places(world: &World) -> Vec<String> {
    (0..HOGS).map(|n| kernel::cpus(&world.group(&format!("hog{n}")))).collect()
}

fn moves(world: &World) -> usize {
    let said = world.ctl(&["events", "-o", "json"]);
    said.out.lines().filter(|line| line.contains("\"Moved\"")).count()
}

#[test]
fn a_machine_of_one_group_is_left_alone_and_says_so() {
    if nodes().len() > 1 {
        println!("this machine has several groups: the crowd below is for it");
        return;
    }
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    let says = |report: &Value| report["resting"].as_str().is_some_and(|why| why.contains("one group"));
    eventually_or(|| says(&report(&world)), || report(&world).to_string());
    let said = world.ctl(&["rebalance", "--dry-run"]);
    assert!(said.out.contains("it rests: all CPUs are of one group"), "{said:?}");
    let said = world.ctl(&["rebalance"]);
    assert!(said.code == 1 && said.err.contains("--dry-run"), "{said:?}");
}

#[test]
fn a_crowd_of_pinned_hogs_is_levelled_and_then_left_alone() {
    let nodes = nodes();
    if nodes != ["0-3", "4-7"] {
        println!(
            "nodes {nodes:?}: eight hogs are a crowd where two nodes have four CPUs each, as in the virtual machine"
        );
        return;
    }
    let mut world = World::new();
    world.start(&["--reserved-cpus", "4-7"]);
    for n in 0..HOGS {
        let hog = "command: [sh, -c, 'while :; do :; done']\ncpu: {class: pinned, request: 500m}\nstop: {grace: 1s}";
        world.put(&format!("hog{n}.yaml"), hog);
    }
    let pids: Vec<u32> = (0..HOGS).map(|n| world.wait_running(&format!("hog{n}"))).collect();
    let crowd: BTreeSet<String> = places(&world).into_iter().collect();
    assert!(crowd.len() * 2 <= HOGS, "they are not crowded to begin with: {crowd:?}");
    world.kill_controller();

    let recording = world.path("balance.jsonl");
    world.start(&["--record-balance", recording.to_str().unwrap()]);
    let knows_them = || {
        let known = world.ask("/v1/workloads").unwrap_or_default();
        known.as_array().is_some_and(|list| list.iter().filter(|status| status["phase"] == "Running").count() == HOGS)
    };
    eventually_or(knows_them, || world.log());
    let begun = Instant::now();
    let level = || {
        // What the test itself uses is load as well.
        sleep(Duration::from_millis(200));
        places(&world).into_iter().collect::<BTreeSet<_>>().len() == HOGS
    };
    eventually_or(level, || format!("{:?}\n{}\n{}", places(&world), report(&world), world.log()));
    let (took, moved) = (begun.elapsed(), moves(&world));
    println!("levelled in {:.1} s with {moved} moves: {:?}", took.as_secs_f64(), places(&world));
    assert!(took <= LEVEL_WITHIN, "levelled only after {took:?}: {}", report(&world));
    let told = || moves(&world) >= MOVES_MAX;
    eventually_or(told, || format!("moves that nobody tells of: {}", world.ctl(&["events"]).out));
    assert_eq!(moves(&world), MOVES_MAX, "{}", world.ctl(&["events"]).out);

    // P7: why, where, when; by describe, in the table, and in the events.
    let status = (0..HOGS).map(|n| world.status(&format!("hog{n}"))).find(|status| !status["moved"].is_null()).unwrap();
    assert_eq!(status["moved"]["to"], status["cpus"], "{status:#}");
    let said = world.ctl(&["describe", status["name"].as_str().unwrap()]);
    assert!(said.out.contains("Moved:"), "{said:?}");
    assert_eq!(report(&world)["recent"].as_array().unwrap().len(), MOVES_MAX, "{}", report(&world));

    let placed = places(&world);
    let still =
        std::env::var("STILL_SECONDS").ok().and_then(|text| text.parse().ok()).map_or(STILL, Duration::from_secs);
    let begun = Instant::now();
    while begun.elapsed() < still {
        assert_eq!(places(&world), placed, "moved again after {:?}: {}", begun.elapsed(), report(&world));
        sleep(Duration::from_secs(1));
    }
    assert_eq!(moves(&world), MOVES_MAX);
    println!("still for {still:?}");
    let after: Vec<u32> = (0..HOGS).map(|n| world.wait_running(&format!("hog{n}"))).collect();
    assert_eq!(after, pids, "somebody was restarted");

    let said = program(&["replay", recording.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    println!("{}", said.out);
    let text = fs::read_to_string(&recording).unwrap();
    let changed = text.replace(&format!("\"to\":\"{}\"", status["moved"]["to"].as_str().unwrap()), "\"to\":\"0-3\"");
    fs::write(&recording, changed).unwrap();
    let said = program(&["replay", recording.to_str().unwrap()]);
    assert_eq!(said.code, 2, "a recording of other decisions is told apart: {said:?}");
}
