//! A folder that loses most of its manifests: nothing is stopped before somebody consents.

use super::world::{World, eventually_or};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn world() -> (World, Vec<u32>) {
    let mut world = World::new();
    world.start(&["--resync", "500ms"]);
    for name in NAMES {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    let pids = NAMES.iter().map(|name| world.wait_running(name)).collect();
    (world, pids)
}

fn lose_all(world: &World) {
    for name in NAMES {
        world.delete(&format!("{name}.yaml"));
    }
}

/// Waits until so many are said to wait for consent.
fn held(world: &World, count: usize) {
    let says = || world.ctl(&["ps"]).out.matches("containerctl approve").count();
    eventually_or(|| says() == count, || world.ctl(&["ps"]).out);
}

fn pids(world: &World) -> Vec<u32> {
    NAMES.iter().map(|name| u32::try_from(world.status(name)["pid"].as_u64().unwrap_or(0)).unwrap()).collect()
}

#[test]
fn most_of_the_manifests_gone_stops_nothing_until_approved() {
    let (world, before) = world();
    lose_all(&world);
    held(&world, NAMES.len());
    // Long past the time that a deletion takes to settle, and over several resyncs.
    sleep(Duration::from_secs(2));
    assert_eq!(pids(&world), before);
    assert!(world.ctl(&["plan"]).out.contains("waits for") || world.ctl(&["plan"]).out.contains("approve"));
    let said = world.ctl(&["wait", "--for", "converged", "--timeout", "100ms"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(format!("{}{}", said.out, said.err).contains("the deletion of a, b, c, d, e waits"), "{said:?}");
    let said = world.ctl(&["approve"]);
    assert_eq!((said.code, said.out.lines().count()), (0, NAMES.len()), "{said:?}");
    for name in NAMES {
        world.wait_gone(name);
    }
    assert_eq!(world.ctl(&["approve"]).out, "no deletion waits for consent\n");
}

#[test]
fn a_folder_that_comes_back_finds_everything_as_it_was() {
    let (mut world, before) = world();
    lose_all(&world);
    held(&world, NAMES.len());
    // Not even a new controller that has never seen the manifests stops anything.
    world.kill_controller();
    world.start(&["--resync", "500ms"]);
    held(&world, NAMES.len());
    for name in NAMES {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    let said = world.ctl(&["wait", "--for", "converged", "--timeout", "30s"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(pids(&world), before);
}

#[test]
fn what_is_held_stays_held_over_a_kill_though_others_are_back() {
    let (mut world, before) = world();
    lose_all(&world);
    held(&world, NAMES.len());
    // Records are on the disk a moment after they are put; until then the count alone would hold them.
    sleep(Duration::from_millis(500));
    world.kill_controller();
    // Two that are missing are not many by themselves.
    for name in ["a", "b", "c"] {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    world.start(&["--resync", "500ms"]);
    held(&world, 2);
    sleep(Duration::from_secs(2));
    assert_eq!(pids(&world), before);
    held(&world, 2);
    assert_eq!(world.ctl(&["approve"]).out, "d is deleted\ne is deleted\n");
    world.wait_gone("d");
    world.wait_gone("e");
}

#[test]
fn consent_that_was_answered_outlives_a_kill() {
    let (mut world, _) = world();
    lose_all(&world);
    held(&world, NAMES.len());
    let said = world.ctl(&["approve"]);
    world.kill_controller();
    assert_eq!((said.code, said.out.lines().count()), (0, NAMES.len()), "{said:?}");
    world.start(&["--resync", "500ms"]);
    for name in NAMES {
        world.wait_gone(name);
    }
}

#[test]
fn a_deletion_that_had_begun_is_seen_through_and_opens_no_way_for_others() {
    let mut world = World::new();
    world.start(&["--resync", "500ms"]);
    let stubborn = "command: [sh, -c, 'trap \"\" TERM; while :; do sleep 0.1; done']\nstop: {grace: 4s}\n";
    for name in ["a", "b", "c"] {
        world.put(&format!("{name}.yaml"), stubborn);
    }
    for name in ["d", "e", "f"] {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    let before: Vec<u32> = ["a", "b", "c", "d", "e", "f"].map(|name| world.wait_running(name)).into();
    for name in ["a", "b", "c"] {
        world.delete(&format!("{name}.yaml"));
    }
    for name in ["a", "b", "c"] {
        world.wait_phase(name, "Stopping");
    }
    world.kill_controller();
    for name in ["d", "e", "f"] {
        world.delete(&format!("{name}.yaml"));
    }
    world.start(&["--resync", "500ms"]);
    for name in ["a", "b", "c"] {
        world.wait_gone(name);
    }
    sleep(Duration::from_secs(2));
    let left: Vec<u32> = ["d", "e", "f"].map(|name| world.wait_running(name)).into();
    assert_eq!(left, before[3..], "{}", world.log());
    held(&world, 3);
}

#[test]
fn without_the_guard_they_are_stopped_at_once() {
    let mut world = World::new();
    world.start(&["--prune-guard", "off"]);
    for name in NAMES {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    for name in NAMES {
        world.wait_running(name);
    }
    lose_all(&world);
    for name in NAMES {
        world.wait_gone(name);
    }
    assert!(fs::read_dir(world.manifests()).unwrap().next().is_none());
}

#[test]
fn workloads_that_are_begun_all_the_time_do_not_keep_a_consent_waiting() {
    let world = World::running();
    let looping = ["command: 'false'", "restart: {initialDelay: 1ms, maxDelay: 1s}"].join("\n");
    for n in 0..30 {
        world.put(&format!("loop{n}.yaml"), &looping);
    }
    for n in 0..30 {
        world.wait_status(&format!("loop{n}"), |status| status["restarts"].as_u64() > Some(2));
    }
    for n in 0..30 {
        world.delete(&format!("loop{n}.yaml"));
    }
    let waiting = || world.ctl(&["plan"]).out.matches("`containerctl approve` lets it be deleted").count();
    eventually_or(|| waiting() == 30, || world.ctl(&["plan"]).out);
    let said = world.ctl(&["approve"]);
    assert_eq!((said.code, said.out.lines().count()), (0, 30), "{said:?}");
}
