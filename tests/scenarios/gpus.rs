//! GPUs as workloads meet them. The devices are simulated; their nodes are real ones of the kernel, under other names.

use crate::kernel;
use crate::world::{World, eventually_or};
use serde_json::Value;
use std::fs;
use std::process::Command;

/// Nodes that tell which they are by what is read from them: nothing, and zeros.
const NODES: [(&str, &str); 2] = [("sim0", "3"), ("sim1", "5")];

/// A controller of two devices with a node each, and a CDI spec of the first.
fn with_devices() -> World {
    let mut world = World::new();
    for (name, minor) in NODES {
        let made = Command::new("mknod").arg(world.path(name)).args(["c", "1", minor]).status().unwrap();
        assert!(made.success());
    }
    let node = |name| world.path(name).display().to_string();
    let inventory = format!(
        "devices:\n- {{id: GPU-0, memory: 16Gi, deviceNodes: [{}]}}\n- {{id: GPU-1, memory: 80Gi, deviceNodes: [{}]}}\nevents:\n\
         - {{at: 1h, device: GPU-0, recovered: true}}\n",
        node("sim0"),
        node("sim1")
    );
    fs::write(world.path("gpus.yaml"), inventory).unwrap();
    fs::create_dir(world.path("cdi")).unwrap();
    fs::write(world.path("driver.conf"), "a driver's file\n").unwrap();
    let spec = format!(
        "cdiVersion: 0.6.0\nkind: example.com/gpu\ndevices:\n- name: GPU-0\n  containerEdits:\n    env: [DRIVER=made-up]\n    \
         deviceNodes: [{{path: /dev/sub/folder/extra, hostPath: /dev/zero}}]\n    mounts: [{{hostPath: {}, containerPath: /run/driver.conf}}]\n    \
         hooks: [{{hookName: createContainer, path: /bin/false}}]\n",
        world.path("driver.conf").display()
    );
    fs::write(world.path("cdi/sim.yaml"), spec).unwrap();
    let (inventory, cdi) = (node("gpus.yaml"), node("cdi"));
    world.start(&["--simulate-gpus", &inventory, "--cdi-spec-dir", &cdi, "--resync", "1s"]);
    world
}

fn gpus(world: &World) -> Vec<Value> {
    let said = world.ctl(&["gpus", "-o", "json"]);
    assert_eq!(said.code, 0, "{}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

fn event(world: &World, text: &str) {
    let path = world.path("gpus.yaml");
    let before = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{before}- {{at: 0s, {text}}}\n")).unwrap();
}

#[test]
fn a_box_has_the_nodes_of_its_own_devices_and_of_no_other() {
    let world = with_devices();
    let script = "ls /dev; head -c 2 /dev/sub/folder/extra | wc -c; cat /run/driver.conf; (echo x > /run/driver.conf) 2>&1; exec sleep infinity";
    world.put("one.yaml", &format!("gpu: true\ncommand: [sh, -c, '{script}']"));
    let pid = world.wait_running("one");
    world.put(
        "two.yaml",
        "gpu: {memory: 4Gi}\ncommand: [sh, -c, 'ls /dev; head -c 2 /dev/sim1 | wc -c; exec sleep infinity']",
    );
    world.wait_running("two");
    world.put("none.yaml", "command: [sh, -c, 'ls /dev; exec sleep infinity']");
    world.wait_running("none");
    let said = |name: &str| {
        eventually_or(|| world.logs(name).contains("zero"), || world.logs(name));
        world.logs(name)
    };
    eventually_or(|| world.logs("one").contains("ead-only"), || world.logs("one"));
    let one = said("one");
    assert!(one.contains("sim0") && !one.contains("sim1") && one.contains("\n2\n"), "{one}");
    assert!(
        one.contains("a driver's file")
            && fs::read_to_string(world.path("driver.conf")).unwrap().starts_with("a driver")
    );
    let two = said("two");
    assert!(two.contains("sim1") && !two.contains("sim0"), "{two}");
    let none = said("none");
    assert!(!none.contains("sim"), "{none}");
    let environment = kernel::environment(pid);
    assert!(
        environment.contains("CUDA_VISIBLE_DEVICES=GPU-0") && environment.contains("DRIVER=made-up"),
        "{environment:?}"
    );
    // What the spec asks for and is not done is said.
    let status = world.status("one");
    assert!(status["conditions"].to_string().contains("CDI hook createContainer /bin/false"), "{status:#}");
    let devices = gpus(&world);
    let lease =
        |at: usize| (devices[at]["leases"][0]["workload"].clone(), devices[at]["leases"][0]["enforced"].clone());
    assert_eq!(lease(0), ("one".into(), "device nodes".into()));
    assert_eq!(lease(1), ("two".into(), "device nodes; memory cooperative".into()));
    let shown = world.ctl(&["gpus"]).out;
    assert!(shown.contains("GPU-1") && shown.contains("4Gi") && shown.contains("not done: CDI hook"), "{shown}");
    // Its folder of nodes goes with it.
    assert!(world.path("run/dev/of/one").exists());
    world.delete("one.yaml");
    world.wait_gone("one");
    assert!(!world.path("run/dev/of/one").exists());
}

#[test]
fn a_workload_leaves_a_device_that_is_gone_and_memory_of_strangers_is_not_given() {
    let world = with_devices();
    world.put("web.yaml", "gpu: true\ncommand: sleep infinity");
    world.wait_running("web");
    assert_eq!(world.status("web")["gpus"][0]["gpu"], "GPU-0");
    event(&world, "device: GPU-1, usedByOthers: 70Gi");
    let used = || gpus(&world)[1]["usedByOthers"] == 70u64 << 30;
    eventually_or(used, || format!("{:#?}", gpus(&world)));
    world.put("big.yaml", "gpu: {memory: 20Gi}\ncommand: sleep infinity");
    let status = world.wait_phase("big", "Pending");
    assert!(status["conditions"].to_string().contains("others use 70Gi of GPU-1"), "{status:#}");
    world.delete("big.yaml");
    event(&world, "device: GPU-1, usedByOthers: 0Gi");
    event(&world, "device: GPU-0, present: false");
    // Suspect at first: it runs on.
    eventually_or(|| gpus(&world)[0]["health"]["state"] == "suspect", || format!("{:#?}", gpus(&world)));
    assert_eq!(world.status("web")["gpus"][0]["gpu"], "GPU-0");
    let moved = || world.status("web")["gpus"][0]["gpu"] == "GPU-1" && world.phase("web") == "Running";
    eventually_or(moved, || format!("{:#}", world.status("web")));
    assert_eq!(world.status("web")["restarts"], 0);
}
