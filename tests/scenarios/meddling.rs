//! Somebody else's hands above our groups, and in the wrong one of them.

use super::kernel;
use super::world::{World, eventually_or};
use std::fs;
use std::path::PathBuf;

fn running(names: &[&str]) -> (World, Vec<u32>) {
    let mut world = World::new();
    world.start(&["--resync", "300ms"]);
    for name in names {
        world.put(&format!("{name}.yaml"), "command: sleep infinity\npids: 40");
    }
    let pids = names.iter().map(|name| world.wait_running(name)).collect();
    (world, pids)
}

/// The parent's directory in the v2 tree.
fn unified(world: &World) -> PathBuf {
    let directories = kernel::directories(&world.parent);
    directories.into_iter().find(|directory| directory.join("cgroup.freeze").exists()).unwrap()
}

fn told(world: &World, words: &str) {
    eventually_or(|| world.ctl(&["events"]).out.contains(words), || world.ctl(&["events"]).out);
}

#[test]
fn a_process_in_another_workloads_group_is_brought_home() {
    let (world, pids) = running(&["web", "db"]);
    for directory in kernel::directories(&world.group("db")) {
        fs::write(directory.join("cgroup.procs"), pids[0].to_string()).unwrap();
    }
    let home = || {
        kernel::processes(&world.group("web")).contains(&pids[0])
            && !kernel::processes(&world.group("db")).contains(&pids[0])
    };
    eventually_or(home, || format!("web has {:?}", kernel::processes(&world.group("web"))));
    told(&world, &format!("somebody has moved pid {} out of its cgroup", pids[0]));
    assert_eq!((world.wait_running("web"), world.wait_running("db")), (pids[0], pids[1]));
}

#[test]
fn a_frozen_parent_is_thawed() {
    let (world, pids) = running(&["web"]);
    let freeze = unified(&world).join("cgroup.freeze");
    fs::write(&freeze, "1").unwrap();
    eventually_or(|| fs::read_to_string(&freeze).unwrap().trim() == "0", || world.log());
    let events = unified(&world).join("web.workload/cgroup.events");
    eventually_or(|| fs::read_to_string(&events).unwrap().contains("frozen 0"), || world.log());
    told(&world, "somebody has frozen it");
    assert_eq!(world.wait_running("web"), pids[0]);
}

#[test]
fn what_cannot_be_thawed_is_told_and_not_tried_for_ever() {
    let mut world = World::new();
    // A group above our parent that is not ours to thaw.
    let above = world.parent.clone();
    world.parent = format!("{above}/inner");
    world.start(&["--resync", "300ms"]);
    world.put("web.yaml", "command: sleep infinity");
    let pid = world.wait_running("web");
    let freeze = unified(&world).parent().unwrap().join("cgroup.freeze");
    fs::write(&freeze, "1").unwrap();
    let says = |words: &str| world.status("web")["conditions"].to_string().contains(words);
    eventually_or(|| says("is frozen although it was put right"), || world.log());
    let tries = || world.log().matches("step=\"restore\"").count();
    let before = tries();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(tries() - before <= 20, "{} tries in two seconds", tries() - before);
    fs::write(&freeze, "0").unwrap();
    eventually_or(|| !says("Degraded"), || world.log());
    assert_eq!(world.wait_running("web"), pid);
    drop(world);
    super::world::clear_cgroups(&above);
}

#[test]
fn a_controller_taken_from_the_parent_is_passed_on_again() {
    let (world, pids) = running(&["web"]);
    if !kernel::is_unified() {
        // Controllers are hierarchies of their own on v1: there is nothing to take away.
        assert!(!unified(&world).join("web.workload/pids.max").exists());
        return;
    }
    fs::write(unified(&world).join("cgroup.subtree_control"), "-pids").unwrap();
    let held = || fs::read_to_string(unified(&world).join("web.workload/pids.max")).unwrap_or_default();
    eventually_or(|| held().trim() == "40", || format!("pids.max is {:?}\n{}", held(), world.log()));
    told(&world, "somebody has removed the cgroup that has its pids.max");
    assert_eq!(world.wait_running("web"), pids[0]);
}
