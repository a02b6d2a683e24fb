//! Started, resized, replaced, stopped: what a change of a file does.

use super::kernel;
use super::world::{World, eventually, signal};
use nix::sys::signal::Signal;
use std::fs;

/// The teaching runtime's example, as it is.
const EXAMPLE: &str = "cpu: 2\nmemory: 512M\ngpu: true\ncommand: stress --cpu 2\n";

#[test]
fn the_teaching_example_runs_in_namespaces_and_a_cgroup_of_its_own() {
    let world = World::running();
    world.put("basic.yaml", EXAMPLE);
    let pid = world.wait_running("basic");
    let group = world.group("basic");
    assert_eq!(world.status("basic")["cgroup"], group);
    assert!(kernel::processes(&group).contains(&pid), "pid {pid} is not in {group}");
    for kind in ["pid", "mnt", "uts", "ipc", "cgroup"] {
        assert_ne!(kernel::namespace(&pid.to_string(), kind), kernel::namespace("self", kind), "{kind} is the host's");
    }
    assert_eq!(kernel::cpu_milli(&group), Some(2000));
    assert_eq!(kernel::memory_bytes(&group), 512_000_000);
    assert_eq!(kernel::read(&group, &["pids.max"]), "512");
    let environment = kernel::environment(pid);
    let devices = world.status("basic")["gpus"][0]["gpu"].as_str().unwrap().to_owned();
    assert!(environment.contains(&format!("CUDA_VISIBLE_DEVICES={devices}")), "{environment:?}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(), "stress\0--cpu\x002\0");
    eventually("stress has its two workers", || kernel::processes(&group).len() == 4);
}

#[test]
fn a_command_that_does_not_exist_fails_and_nothing_else_suffers() {
    let world = World::running();
    world.put("good.yaml", "command: sleep infinity");
    let good = world.wait_running("good");
    world.put("bad.yaml", "command: no-such-program --cpu 2");
    let status = world.wait_phase("bad", "Failed");
    assert_eq!(status["lastExit"]["message"], "command not found: no-such-program");
    assert_eq!(status["lastExit"]["code"], 127);
    let shown = world.ctl(&["ps"]).out;
    assert!(shown.contains("command not found: no-such-program"), "{shown}");
    eventually("its cgroup is gone", || kernel::directories(&world.group("bad")).is_empty());
    assert_eq!(world.wait_running("good"), good);
    // Mended, it runs.
    world.put("bad.yaml", "command: sleep 1000");
    world.wait_running("bad");
}

#[test]
fn new_limits_resize_the_running_process() {
    let world = World::running();
    world.put("web.yaml", "cpu: 500m\nmemory: 256Mi\ncommand: sleep infinity");
    let pid = world.wait_running("web");
    let (group, began) = (world.group("web"), kernel::start_ticks(pid));
    for (manifest, cpu, memory, pids) in [
        ("cpu: 250m\nmemory: 128Mi\n", Some(250), 128 << 20, "512"),
        ("cpu: 2\nmemory: 1Gi\npids: 64\n", Some(2000), 1 << 30, "64"),
        ("pids: max\n", None, u64::MAX, "max"),
        ("cpu: 1\nmemory: 64Mi\n", Some(1000), 64 << 20, "512"),
    ] {
        world.put("web.yaml", &format!("{manifest}command: sleep infinity"));
        eventually("the new generation is in force", || {
            let status = world.status("web");
            status["generation"] == status["observedGeneration"] && kernel::cpu_milli(&group) == cpu
        });
        let held = kernel::memory_bytes(&group);
        assert!(held == memory || memory == u64::MAX && held > 1 << 60, "{manifest}: memory {held}");
        assert_eq!(kernel::read(&group, &["pids.max"]), pids);
        assert_eq!(world.wait_running("web"), pid, "{manifest} replaced the process");
        assert_eq!(kernel::start_ticks(pid), began);
    }
    assert_eq!(world.status("web")["restarts"], 0);
    assert_eq!(world.status("web")["generation"], 5);
}

#[test]
fn a_new_command_replaces_the_process_gracefully() {
    let world = World::running();
    world.put("web.yaml", "command: [sh, -c, 'trap \"echo bye; exit 0\" TERM; echo hello; sleep infinity & wait']");
    let first = world.wait_running("web");
    eventually("it has said hello", || world.logs("web") == "hello\n");
    world.put("web.yaml", "command: [sh, -c, 'echo again; exec sleep infinity']");
    world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != first);
    assert!(!kernel::is_alive(first));
    eventually("both have been heard", || world.logs("web") == "hello\nbye\nagain\n");
    assert_eq!(world.status("web")["restarts"], 0, "a replacement is no restart");
}

#[test]
fn who_ignores_the_signal_is_killed_with_everything_it_started() {
    let world = World::running();
    world.put(
        "web.yaml",
        "stop: {grace: 1s}\ncommand: [sh, -c, 'trap \"\" TERM; (trap \"\" TERM; sleep 1000; sleep 1000) & sleep 1000; sleep 1000']",
    );
    world.wait_running("web");
    let group = world.group("web");
    eventually("init, two shells and two sleeps run", || kernel::processes(&group).len() == 5);
    let pids = kernel::processes(&group);
    world.delete("web.yaml");
    world.wait_gone("web");
    assert!(pids.iter().all(|pid| !kernel::is_alive(*pid)), "something of {pids:?} lives");
    assert!(kernel::directories(&group).is_empty());
    assert!(world.log().contains("its grace period is over"), "{}", world.log());
}

#[test]
fn who_could_not_be_asked_at_first_is_asked_again_and_only_until_it_was() {
    let mut world = World::new();
    let inject = "inject=pidfd_send_signal:error=EPERM:when=1";
    // Not the workloads: what is executed is let go of.
    let strace = ["-f", "--detach-on=execve", "-e", "trace=pidfd_send_signal", "-e", inject];
    world.start_traced(&strace, &[]);
    let script = "trap 'echo asked' TERM; echo begun; while [ ! -e /mnt/go ]; do sleep 0.05; done; exit 3";
    let go = world.path("scratch");
    fs::create_dir(&go).unwrap();
    let text = format!(
        "stop: {{grace: 50s}}\nvolumes: [{{source: {}, target: /mnt}}]\ncommand: [sh, -c, \"{script}\"]",
        go.display()
    );
    world.put("web.yaml", &text);
    world.wait_running("web");
    eventually("its trap is set", || world.logs("web").contains("begun"));
    world.put("web.yaml", &format!("{text}\nsuspend: true"));
    eventually("it is asked", || world.logs("web") == "begun\nasked\n");
    assert!(world.log().contains("Operation not permitted"), "{}", world.log());
    // Neither the next pass nor the next controller asks again.
    world.kill_controller();
    world.start(&[]);
    world.wait_phase("web", "Stopping");
    std::thread::sleep(std::time::Duration::from_millis(500));
    fs::write(go.join("go"), "").unwrap();
    assert_eq!(world.wait_phase("web", "Suspended")["lastExit"]["code"], 3);
    assert_eq!(world.logs("web"), "begun\nasked\n");
}

#[test]
fn deleting_the_file_stops_the_workload_and_removes_its_cgroup() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    world.put("team/db.yaml", "command: sleep infinity");
    let (web, db) = (world.wait_running("web"), world.wait_running("db"));
    assert_eq!(world.status("db")["group"], "team");
    world.delete("web.yaml");
    world.wait_gone("web");
    assert!(!kernel::is_alive(web));
    assert!(kernel::directories(&world.group("web")).is_empty());
    assert!(!world.path("state/logs/web").exists());
    assert_eq!(world.wait_running("db"), db);
}

#[test]
fn a_workload_that_dies_is_started_again_later_and_later_and_its_exit_code_is_shown() {
    let world = World::running();
    world.put("web.yaml", "restart: {initialDelay: 100ms, maxDelay: 1s}\ncommand: [sh, -c, 'sleep 0.1; exit 3']");
    let status = world.wait_status("web", |status| status["restarts"].as_u64() >= Some(3));
    assert_eq!(status["lastExit"]["code"], 3);
    assert_eq!(status["lastExit"]["message"], "exited with code 3");
    world.put("web.yaml", "restart: {initialDelay: 100ms, maxDelay: 1s}\ncommand: sleep infinity");
    let pid = world.wait_running("web");
    signal(pid, Signal::SIGKILL);
    let status = world.wait_status("web", |status| status["lastExit"]["code"] == 137 && status["phase"] == "Running");
    assert_eq!(status["lastExit"]["message"], "killed by SIGKILL");
    assert_ne!(status["pid"], pid);
}

#[test]
fn killing_its_init_is_noticed_like_any_other_death() {
    let world = World::running();
    world.put("web.yaml", "restart: {initialDelay: 0s}\ncommand: sleep infinity");
    let pid = world.wait_running("web");
    signal(kernel::parent(pid), Signal::SIGKILL);
    let status = world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != pid);
    assert_eq!(status["lastExit"]["code"], 137);
    assert_eq!(status["restarts"], 1);
}

#[test]
fn jobs_complete_once_and_stay_completed() {
    let mut world = World::running();
    world.put("job.yaml", "kind: job\ncommand: [sh, -c, 'echo ran']");
    world.wait_phase("job", "Completed");
    assert_eq!(world.ctl(&["wait", "job", "--for", "completed"]).code, 0);
    world.kill_controller();
    world.start(&[]);
    world.put("other.yaml", "command: sleep infinity");
    world.wait_running("other");
    assert_eq!(world.phase("job"), "Completed");
    assert_eq!(world.logs("job"), "ran\n");
}

#[test]
fn a_suspended_workload_stops_and_resumes() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    world.put("web.yaml", "command: sleep infinity\nsuspend: true");
    world.wait_phase("web", "Suspended");
    assert!(kernel::directories(&world.group("web")).is_empty());
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
}

#[test]
fn gpus_are_leased_best_fit_and_come_back() {
    let world = World::running();
    world.put("whole.yaml", "gpu: true\ncommand: sleep infinity");
    world.wait_running("whole");
    world.put("share.yaml", "gpu: {memory: 4Gi}\ncommand: sleep infinity");
    let share = world.wait_running("share");
    assert!(kernel::environment(share).contains("CONTAINERCTL_GPU_MEMORY_BYTES=4294967296"));
    world.put("late.yaml", "gpu: true\ncommand: sleep infinity");
    let status = world.wait_phase("late", "Pending");
    assert!(status["conditions"].to_string().contains("held by share, whole"), "{status:#}");
    world.delete("whole.yaml");
    world.wait_running("late");
    let device = |name: &str| world.status(name)["gpus"][0]["gpu"].clone();
    assert_ne!(device("late"), device("share"));
}
