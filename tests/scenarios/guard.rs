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

fn held(world: &World) {
    let says = || world.ctl(&["ps"]).out.matches("containerctl approve").count();
    eventually_or(|| says() == NAMES.len(), || world.ctl(&["ps"]).out);
}

fn pids(world: &World) -> Vec<u32> {
    NAMES.iter().map(|name| u32::try_from(world.status(name)["pid"].as_u64().unwrap_or(0)).unwrap()).collect()
}

#[test]
fn most_of_the_manifests_gone_stops_nothing_until_approved() {
    let (world, before) = world();
    lose_all(&world);
    held(&world);
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
    held(&world);
    // Not even a new controller that has never seen the manifests stops anything.
    world.kill_controller();
    world.start(&["--resync", "500ms"]);
    held(&world);
    for name in NAMES {
        world.put(&format!("{name}.yaml"), "command: sleep infinity");
    }
    let said = world.ctl(&["wait", "--for", "converged", "--timeout", "30s"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(pids(&world), before);
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
