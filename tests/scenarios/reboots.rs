//! A restart of the host, as far as a controller can tell: another boot id, an empty runtime directory, nothing that ran.

use super::world::{World, clear_cgroups};
use serde_json::Value;
use std::fs;

const LOST: &str = "ended by a restart of the host";

/// Everything that runs is gone at once, and so is what is in memory. The controller that comes up reads another boot id, in a mount
/// namespace of its own.
fn reboot(world: &mut World, boot: u32) {
    world.kill_controller();
    clear_cgroups(&world.parent);
    fs::remove_dir_all(world.path("run")).unwrap();
    come_up(world, boot);
}

fn come_up(world: &mut World, boot: u32) {
    let id = world.path("boot-id");
    fs::write(&id, format!("00000000-0000-4000-8000-00000000000{boot}\n")).unwrap();
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id", id.display());
    world.start_in_own_mounts(&script, &[]);
}

fn ends(status: &Value) -> Vec<&str> {
    let earlier = status["earlierExits"].as_array().unwrap();
    earlier.iter().chain([&status["lastExit"]]).filter_map(|exit| exit["message"].as_str()).collect()
}

#[test]
fn what_ran_is_remembered_to_have_ended_and_its_policy_holds() {
    let mut world = World::running();
    let sleeper = "command: sleep infinity\n";
    world.put("web.yaml", sleeper);
    world.put("once.yaml", &format!("{sleeper}restart: never"));
    world.put("job.yaml", &format!("{sleeper}kind: job\nretries: 1"));
    world.put("done.yaml", "kind: job\ncommand: 'true'");
    let before = ["web", "once", "job"].map(|name| world.wait_running(name));
    world.wait_phase("done", "Completed");

    reboot(&mut world, 1);
    assert_ne!(world.wait_running("web"), before[0]);
    world.wait_running("job");
    world.wait_phase("once", "Failed");
    for (name, restarts) in [("web", 1), ("once", 0), ("job", 1)] {
        let status = world.status(name);
        assert_eq!((ends(&status), &status["restarts"]), (vec![LOST], &Value::from(restarts)), "{name}");
        assert_eq!(status["lastExit"]["code"], 137);
        assert!(status["lastExit"]["started"].is_string(), "{status:#}");
        let events = world.ctl(&["events", name]).out;
        assert!(events.lines().any(|line| line.contains("Ended") && line.contains(LOST)), "{events}");
    }
    assert_eq!(ends(&world.status("done")), ["exited with code 0"]);

    // Another controller in the same boot finds what runs, and nothing to tell.
    let now = [world.wait_running("web"), world.wait_running("job")];
    world.kill_controller();
    come_up(&mut world, 1);
    assert_eq!([world.wait_running("web"), world.wait_running("job")], now);
    assert_eq!(ends(&world.status("web")), [LOST]);

    reboot(&mut world, 2);
    world.wait_running("web");
    world.wait_phase("job", "Failed");
    for (name, count) in [("web", 2), ("job", 2), ("once", 1)] {
        assert_eq!(ends(&world.status(name)), vec![LOST; count], "{name}");
    }
    assert_eq!(world.phase("once"), "Failed");
    assert_eq!(world.phase("done"), "Completed");
}
