//! Runtime and log folders on file systems that are full, or read-only all of a sudden.

use super::{Held, Host, hold};
use crate::kernel;
use crate::world::{World, eventually, signal};
use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// One that is left alone, one that is to be killed, and one that ends with code 7 when it is asked to.
fn three_running(world: &World) -> [u32; 3] {
    for name in ["web", "dies"] {
        world.put(&format!("{name}.yaml"), "restart: {initialDelay: 10ms}\ncommand: sleep infinity");
    }
    world.put(
        "job.yaml",
        "kind: job\nrestart: never\ncommand: [sh, -c, 'trap \"exit 7\" USR1; while :; do sleep 0.05; done']",
    );
    ["web", "dies", "job"].map(|name| world.wait_running(name))
}

fn remount(held: &Held, path: &Path, how: &str) {
    let mut command = Command::new("nsenter");
    command.args(["-t", &held.holder.id().to_string(), "-m", "mount", "-o", &format!("remount,{how}")]).arg(path);
    assert!(command.status().unwrap().success(), "remount,{how}");
}

#[test]
fn a_full_runtime_folder_stops_nothing_and_forgets_no_end() {
    let mut host = Host { world: World::new() };
    let Held { mut holder, inside, join } = hold(&host.world.path("run/workloads"), "1m");
    host.world.start_after(&join);
    let [web, dies, job] = three_running(&host.world);
    let mut filler = fs::File::create(inside.join("filler")).unwrap();
    while filler.write_all(&[b'x'; 4096]).is_ok() {}

    host.world.put("new.yaml", "command: sleep infinity");
    let status = host.world.wait_status("new", |status| status["conditions"].to_string().contains("StepFailed"));
    assert!(status["conditions"].to_string().contains("No space left on device"), "{status:#}");
    // Nobody is there to be told but the folder.
    host.world.kill_controller();
    signal(job, Signal::SIGUSR1);
    signal(dies, Signal::SIGKILL);
    eventually("both have ended", || !kernel::is_alive(job) && !kernel::is_alive(dies));
    host.world.start_after(&join);
    assert_eq!(host.world.wait_phase("job", "Failed")["lastExit"]["code"], 7);
    let status = host.world.wait_status("dies", |status| status["lastExit"]["code"] == 137);
    assert_eq!(status["lastExit"]["message"], "killed by SIGKILL");
    assert_eq!(host.world.wait_running("web"), web);
    fs::remove_file(inside.join("filler")).unwrap();
    host.world.wait_running("dies");
    host.world.wait_running("new");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_runtime_folder_that_turns_read_only_stops_nothing_and_forgets_no_end() {
    let mut host = Host { world: World::new() };
    let folder = host.world.path("run/workloads");
    let mut held = hold(&folder, "4m");
    host.world.start_after(&held.join);
    let [web, dies, job] = three_running(&host.world);
    remount(&held, &folder, "ro");

    host.world.put("new.yaml", "command: sleep infinity");
    let failed = |status: &serde_json::Value| {
        let told = status["conditions"].to_string();
        told.contains("StepFailed") && told.contains("Read-only file system") && told.contains("run/workloads/new")
    };
    host.world.wait_status("new", failed);
    signal(job, Signal::SIGUSR1);
    signal(dies, Signal::SIGKILL);
    // Their inits can leave no word of it: the controller is their parent.
    let status = host.world.wait_status("job", |status| !status["lastExit"].is_null());
    assert_eq!(status["lastExit"]["code"], 7);
    host.world.wait_status("dies", |status| status["lastExit"]["code"] == 137);
    host.world.put("web.yaml", "cpu: 300m\nrestart: {initialDelay: 10ms}\ncommand: sleep infinity");
    eventually("it is resized", || kernel::cpu_milli(&host.world.group("web")) == Some(300));
    assert_eq!(host.world.wait_running("web"), web);

    // The next controller has nothing but what the last one has remembered.
    host.world.kill_controller();
    host.world.start_after(&held.join);
    assert_eq!(host.world.wait_running("web"), web);
    assert_eq!(host.world.wait_phase("job", "Failed")["lastExit"]["code"], 7);
    remount(&held, &folder, "rw");
    host.world.wait_running("dies");
    host.world.wait_running("new");
    held.holder.kill().unwrap();
    held.holder.wait().unwrap();
}

#[test]
fn a_log_folder_that_turns_read_only_blocks_nobody_and_is_mended_by_another() {
    let mut host = Host { world: World::new() };
    let (image, logs) = (host.world.path("image"), host.world.path("state/logs"));
    fs::create_dir_all(&logs).unwrap();
    let disk = host.failing_ext4(&image, &logs);
    let script = "i=0; while :; do i=$((i+1)); echo line $i; echo $i >/tmp/now; mv /tmp/now /tmp/count; done";
    host.world.put("web.yaml", &format!("command: [sh, -c, '{script}']"));
    host.world.put("dies.yaml", "restart: {initialDelay: 10ms}\ncommand: sleep infinity");
    let [web, dies] = ["web", "dies"].map(|name| host.world.wait_running(name));
    eventually("it is heard", || host.world.logs("web").contains("line 3\n"));
    disk.fail();

    let count = || -> u64 {
        let text = fs::read_to_string(format!("/proc/{web}/root/tmp/count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let from = count();
    eventually("it goes on", || count() > from + 300);
    host.world.put("new.yaml", "command: sleep infinity");
    let failed = |status: &serde_json::Value| {
        let told = status["conditions"].to_string();
        told.contains("StepFailed") && told.contains("Read-only file system") && told.contains("state/logs/new")
    };
    host.world.wait_status("new", failed);
    signal(dies, Signal::SIGKILL);
    host.world.wait_status("dies", |status| status["lastExit"]["code"] == 137);
    host.mount_over("state/logs");
    host.world.wait_running("new");
    host.world.wait_running("dies");
    assert_eq!(host.world.wait_running("web"), web);
}
