//! The rebalancer on a real machine. The host of the developer has one group of CPUs, where there is nothing to even out, and that is said.

use super::world::{World, eventually_or};
use serde_json::Value;
use std::fs;

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

#[test]
fn a_machine_of_one_group_is_left_alone_and_says_so() {
    if nodes().len() > 1 {
        println!("this machine has several groups: the other test is for it");
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
