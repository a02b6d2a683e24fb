//! The controller killed, restarted, robbed of its database: what runs goes on.

use super::kernel;
use super::world::{World, eventually, eventually_or, signal};
use nix::sys::signal::Signal;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

#[test]
fn a_killed_controller_finds_the_same_processes_again() {
    let mut world = World::running();
    world.put("crasher.yaml", "restart: {initialDelay: 10ms}\ncommand: [sh, -c, '[ -e /mnt/done ] && exec sleep infinity; : > /mnt/done; exit 5']\nvolumes: [{source: /tmp/PLACE, target: /mnt}]".replace("/tmp/PLACE", &scratch(&world)).as_str());
    world.put("web.yaml", "command: sleep infinity\ncpu: 1\ngpu: true");
    world.put("x.yaml", "command: sleep infinity\ncpu: {class: exclusive, request: 1}");
    let names = ["crasher", "web", "x"];
    world.wait_status("crasher", |status| status["restarts"] == 1 && status["phase"] == "Running");
    let before: Vec<_> = names.map(|name| (world.wait_running(name), world.status(name))).into();
    let ticks: Vec<u64> = before.iter().map(|(pid, _)| kernel::start_ticks(*pid)).collect();
    for round in 0..3 {
        world.kill_controller();
        assert!(
            before.iter().all(|(pid, _)| kernel::is_alive(*pid)),
            "round {round}: a workload died with the controller"
        );
        world.start(&[]);
        for ((name, (pid, status)), ticks) in names.iter().zip(&before).zip(&ticks) {
            assert_eq!(world.wait_running(name), *pid, "round {round}: {name} was started again");
            assert_eq!(kernel::start_ticks(*pid), *ticks);
            let now = world.status(name);
            for field in ["restarts", "lastExit", "gpus", "cpus", "generation", "started", "cgroup"] {
                assert_eq!(now[field], status[field], "round {round}: {name} has another {field}");
            }
            assert_eq!(kernel::processes(&world.group(name)).len(), 2, "init and command, and nothing twice");
        }
    }
}

#[test]
fn what_ends_while_no_controller_lives_is_not_forgotten() {
    let mut world = World::running();
    world.put("a.yaml", "restart: never\ncommand: [sh, -c, 'while [ ! -e /mnt/go ]; do sleep 0.05; done; exit 7']\nvolumes: [{source: PLACE, target: /mnt}]".replace("PLACE", &scratch(&world)).as_str());
    world.put("b.yaml", "restart: {initialDelay: 0s}\ncommand: sleep infinity");
    let (a, b) = (world.wait_running("a"), world.wait_running("b"));
    world.kill_controller();
    fs::write(world.path("scratch/go"), "").unwrap();
    signal(b, Signal::SIGKILL);
    eventually("both have ended", || !kernel::is_alive(a) && !kernel::is_alive(b));
    world.start(&[]);
    let status = world.wait_phase("a", "Failed");
    assert_eq!(status["lastExit"]["code"], 7);
    let status = world.wait_status("b", |status| status["phase"] == "Running" && status["pid"] != b);
    assert_eq!((&status["lastExit"]["code"], &status["restarts"]), (&137.into(), &1.into()));
}

#[test]
fn files_that_changed_while_no_controller_lived_are_applied() {
    let mut world = World::running();
    world.put("gone.yaml", "command: sleep infinity");
    world.put("resized.yaml", "command: sleep infinity\ncpu: 1");
    let (gone, resized) = (world.wait_running("gone"), world.wait_running("resized"));
    world.kill_controller();
    world.delete("gone.yaml");
    world.put("resized.yaml", "command: sleep infinity\ncpu: 300m");
    world.put("new.yaml", "command: sleep infinity");
    world.start(&[]);
    world.wait_running("new");
    assert_eq!(world.wait_running("resized"), resized);
    assert_eq!(kernel::cpu_milli(&world.group("resized")), Some(300));
    world.wait_gone("gone");
    assert!(!kernel::is_alive(gone));
}

#[test]
fn losing_the_database_costs_history_and_no_process() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity\ngpu: true");
    // Broken from the start, so only what runs tells whose it is.
    world.put("held.yaml", "command: sleep infinity");
    let (web, held) = (world.wait_running("web"), world.wait_running("held"));
    world.kill_controller();
    fs::remove_dir_all(world.path("state/db")).unwrap();
    world.put("held.yaml", "command: [");
    world.start(&[]);
    assert_eq!(world.wait_running("web"), web);
    assert_eq!(world.wait_running("held"), held);
    let told = world.ctl(&["events"]).out;
    assert!(told.contains("StateLost") && told.contains("has lost its contents"), "{told}");
    for name in ["web", "held"] {
        world.wait_status(name, |status| status["conditions"].to_string().contains("StateLost"));
    }
    // Its device is still its own.
    world.put("two.yaml", "gpu: 2\ncommand: sleep infinity");
    world.wait_phase("two", "Pending");
}

#[test]
fn a_damaged_database_is_set_aside_and_said() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    world.kill_controller();
    fs::write(world.path("state/db/db"), vec![0xAA; 200_000]).unwrap();
    fs::write(world.path("state/db/conf"), "garbage").unwrap();
    world.start(&[]);
    assert_eq!(world.wait_running("web"), web);
    assert!(world.log().contains("has lost its contents") || world.log().contains("set aside"), "{}", world.log());
}

#[test]
fn traces_that_are_damaged_or_lost_cost_no_process() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity\ncpu: 1");
    let web = world.wait_running("web");
    // As a later version might write it, and as a bad disk would.
    for damage in ["\u{9}a later version", ""] {
        world.kill_controller();
        let path = world.path("run/workloads/web/1/box");
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(path, format!("{boot_id}{damage}")).unwrap();
        world.start(&[]);
        assert_eq!(world.wait_running("web"), web);
    }
    world.kill_controller();
    fs::remove_dir_all(world.path("run/workloads")).unwrap();
    fs::create_dir(world.path("run/workloads")).unwrap();
    // A stray file there keeps nothing from starting.
    fs::write(world.path("run/workloads/stray"), "").unwrap();
    world.start(&[]);
    assert_eq!(world.wait_running("web"), web);
    world.put("web.yaml", "command: sleep infinity\ncpu: 300m");
    eventually("it is resized", || kernel::cpu_milli(&world.group("web")) == Some(300));
    // Without the database too: the kernel is all there is to tell.
    world.kill_controller();
    fs::remove_dir_all(world.path("run/workloads")).unwrap();
    fs::remove_dir_all(world.path("state/db")).unwrap();
    world.start(&[]);
    assert_eq!(world.wait_running("web"), web);
    signal(web, Signal::SIGKILL);
    world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != web);
}

#[test]
fn what_nothing_is_known_of_lives_while_a_file_cannot_be_read_and_ends_once_no_file_has_it() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    world.kill_controller();
    fs::remove_dir_all(world.path("run/workloads")).unwrap();
    fs::remove_dir_all(world.path("state/db")).unwrap();
    fs::write(world.manifests().join("web.yaml"), "command: [").unwrap();
    world.start(&["--resync", "300ms"]);
    eventually("the file is complained of", || world.log().contains("web.yaml:1"));
    // Some resyncs later.
    sleep(Duration::from_secs(2));
    assert!(kernel::is_alive(web), "{}", world.log());
    world.put("web.yaml", "command: sleep infinity");
    assert_eq!(world.wait_running("web"), web);
    world.kill_controller();
    fs::remove_dir_all(world.path("run/workloads")).unwrap();
    fs::remove_dir_all(world.path("state/db")).unwrap();
    fs::remove_file(world.manifests().join("web.yaml")).unwrap();
    world.start(&[]);
    eventually("it is ended", || !kernel::is_alive(web) && kernel::directories(&world.group("web")).is_empty());
}

#[test]
fn a_foreign_process_in_its_cgroup_does_not_keep_a_workload_down() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity\nrestart: {initialDelay: 10ms}");
    let web = world.wait_running("web");
    for directory in kernel::directories(&world.group("web")) {
        // Alone in one hierarchy, where killing the v2 group does not reach it.
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let before = world.wait_running("web");
        fs::write(directory.join("cgroup.procs"), stranger.id().to_string()).unwrap();
        signal(before, Signal::SIGKILL);
        world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != before);
        assert!(!stranger.wait().unwrap().success(), "it was in the way and has been killed");
    }
    assert_ne!(world.wait_running("web"), web);
}

#[test]
fn a_stopped_controller_leaves_workloads_running_and_no_socket() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    assert_eq!(world.stop_controller(), 0);
    assert!(kernel::is_alive(web));
    assert!(!world.socket().exists());
    world.start(&[]);
    assert_eq!(world.wait_running("web"), web);
}

#[test]
fn two_controllers_share_nothing() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    let other = tempfile::tempdir().unwrap();
    let path = |name: &str| other.path().join(name).display().to_string();
    let (state, run) = (path("state"), path("run"));
    for (more, word) in [
        (vec![], "runtime directory"),
        (vec!["--runtime-dir", &run], "state folder"),
        (vec!["--runtime-dir", &run, "--state", &state], "cgroup"),
    ] {
        let output = world.command(&more).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(word) && error.contains("used by another controller") && error.contains("help:"),
            "{error}"
        );
        assert!(error.contains(&format!("(pid {})", world.controller_pid())), "{error}");
    }
    // One that does not see the v2 tree meets it in the v1 hierarchies, where there are some.
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mounted = |kind: &str| mounts.lines().find(|line| line.split(' ').nth(2) == Some(kind));
    if let (Some(tree), Some(_)) = (mounted("cgroup2"), mounted("cgroup")) {
        let script = format!("umount -l {} && exec \"$@\"", tree.split(' ').nth(1).unwrap());
        let command = world.command(&["--runtime-dir", &run, "--state", &state]);
        let mut alone = std::process::Command::new("unshare");
        alone.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
        let output = alone.arg(command.get_program()).args(command.get_args()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let taken = format!("is used by another controller (pid {})", world.controller_pid());
        assert!(error.contains("the cgroup /") && error.contains(&taken), "{error}");
    } else {
        eprintln!("not tried: this host has no v1 hierarchies beside a v2 tree");
    }
    assert_eq!(world.wait_running("web"), web);
}

#[test]
fn a_folder_that_vanishes_stops_nothing_and_is_read_again_when_it_returns() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    fs::rename(world.manifests(), world.path("away")).unwrap();
    eventually("the loss is told", || world.log().contains("cannot read the manifests folder"));
    assert_eq!(world.ctl(&["wait", "--for", "converged", "--timeout", "1500ms"]).code, 1);
    assert_eq!(world.wait_running("web"), web);
    fs::rename(world.path("away"), world.manifests()).unwrap();
    world.put("new.yaml", "command: sleep infinity");
    world.wait_running("new");
    assert_eq!(world.wait_running("web"), web);
}

#[test]
fn a_runtime_directory_that_is_deleted_is_made_anew_and_what_runs_stays_ours() {
    let mut world = World::new();
    world.start(&["--resync", "300ms"]);
    world.put("web.yaml", "restart: {initialDelay: 10ms}\ncommand: sleep infinity");
    let web = world.wait_running("web");
    // At once: while it is emptied file by file, it is made anew in between.
    let gone = world.path("run-gone");
    fs::rename(world.path("run"), &gone).unwrap();
    fs::remove_dir_all(&gone).unwrap();
    eventually_or(|| world.ctl(&["ps"]).code == 0, || world.log());
    assert_eq!(world.wait_running("web"), web, "it was started again");
    assert!(!PathBuf::from(format!("/proc/{web}/root/dev/null")).exists(), "the message says that it is gone");
    let told = |text: &str| text.matches("was deleted and is made anew; what ran goes on").count();
    eventually_or(|| told(&world.ctl(&["events"]).out) > 0, || world.log());
    sleep(Duration::from_secs(1));
    let events = world.ctl(&["events"]).out;
    for text in [events, world.log()] {
        assert_eq!(told(&text), 1, "{text}");
    }
    assert!(
        world.log().contains("help: keep whatever cleans up") || world.log().contains("help=\"keep"),
        "{}",
        world.log()
    );
    world.put("new.yaml", "command: sleep infinity");
    world.wait_running("new");

    // What runs is still watched, and has a /dev again from its next start on.
    signal(web, Signal::SIGKILL);
    let again = world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != web);
    assert!(PathBuf::from(format!("/proc/{}/root/dev/null", again["pid"])).exists());
    // The directory is held: no other controller gets it.
    let other = world.command(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("is used by another controller"), "{said}");

    fs::remove_file(world.socket()).unwrap();
    eventually_or(|| world.ctl(&["ps"]).code == 0, || world.log());
}

/// A folder of the host to be mounted into a workload.
fn scratch(world: &World) -> String {
    fs::create_dir_all(world.path("scratch")).unwrap();
    world.path("scratch").display().to_string()
}

#[test]
fn what_an_earlier_controller_saw_happen_is_not_told_as_new() {
    let mut world = World::running();
    world.put("web.yaml", "command: sleep infinity\ncpu: 1");
    world.put("once.yaml", "kind: job\ncommand: \"true\"");
    world.wait_running("web");
    world.wait_phase("once", "Completed");
    let since = |world: &World, name: &str| {
        let conditions = world.status(name)["conditions"].as_array().unwrap().clone();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap().clone();
        ready["since"].as_str().unwrap().to_owned()
    };
    let (web, once) = (world.status("web")["started"].clone(), since(&world, "once"));
    world.kill_controller();
    sleep(Duration::from_millis(1100));
    world.start(&[]);
    world.wait_running("web");
    world.wait_phase("once", "Completed");
    assert_eq!(since(&world, "web"), web, "ready since its command began");
    // The controller saw the end a moment after it was; the record says when that was.
    assert!(since(&world, "once") <= once, "{} is later than {once}", since(&world, "once"));
}
