//! Which manifest counts: the last good one, the one whose workload runs, the one for this host.

use super::{kernel, running, sleeper, soon, soon_cpu, soon_running, watching};
use crate::world::{World, clear_cgroups, program};
use serde_json::Value;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

fn accepted(status: &Value) -> Value {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == "Accepted").unwrap_or_default()
}

/// Puts a broken manifest in place of `web`'s, waits until it is refused, and checks what is said of that.
fn break_web(world: &World) {
    let runs = world.status("web")["revision"].as_str().unwrap().to_owned();
    world.put("web.yaml", "command: sleep 7\ncpu:\n  limt: 2\n");
    soon(world, "it is refused", || accepted(&world.status("web"))["reason"] == "Refused");
    let status = world.status("web");
    let message = accepted(&status)["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("web.yaml cannot be accepted (revision "), "{message}");
    assert!(message.contains(": web.yaml:3:3: unknown field cpu.limt; generation 1 (revision "), "{message}");
    assert!(message.contains(&format!("(revision {runs}) goes on")), "{message}");
    assert!(!message.contains(&format!("accepted (revision {runs})")), "{message}");
    assert_eq!((&status["revision"], &status["generation"]), (&Value::from(runs), &Value::from(1)));
}

/// What a reboot does: every process is gone, and what is in memory. Traces may be on a disk; those are of another boot.
fn reboot(world: &mut World, keeps_traces: bool) {
    world.kill_controller();
    clear_cgroups(&world.parent);
    if keeps_traces {
        let traces = world.path("run/workloads/web/1/box");
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let bytes = fs::read(&traces).unwrap();
        let other = "00000000-0000-4000-8000-000000000000";
        assert!(bytes.starts_with(boot_id.trim_end().as_bytes()), "{bytes:?}");
        fs::write(&traces, [other.as_bytes(), &bytes[other.len()..]].concat()).unwrap();
    } else {
        fs::remove_dir_all(world.path("run")).unwrap();
    }
}

#[test]
fn the_last_good_manifest_counts_after_a_reboot_too() {
    for keeps_traces in [false, true] {
        // Jobs are not to wait for whatever else this host does.
        let settings = ["--resync", "1h", "--job-cpu-threshold", "100"];
        let mut world = World::new();
        world.start(&settings);
        world.put("web.yaml", &sleeper(300));
        world.put("done.yaml", "kind: job\ncommand: 'true'\n");
        let before = soon_running(&world, "it runs", &["web"]);
        soon(&world, "a job is done", || world.phase("done") == "Completed");
        break_web(&world);
        assert_eq!(running(&world), before);
        reboot(&mut world, keeps_traces);
        world.start(&settings);
        soon(&world, "it runs again", || running(&world).contains_key("web"));
        assert_ne!(running(&world)["web"].0, before["web"].0);
        let pid = u32::try_from(running(&world)["web"].0).unwrap();
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(), "sleep\0infinity\0");
        soon_cpu(&world, "web", 300);
        soon(&world, "it is refused", || accepted(&world.status("web"))["reason"] == "Refused");
        assert_eq!(world.phase("done"), "Completed", "a job that was done is not run again");
        let after = running(&world);
        world.put("web.yaml", &sleeper(400));
        soon_cpu(&world, "web", 400);
        assert_eq!(running(&world), after, "the mended file resizes it");
    }
}

#[test]
fn a_folder_that_is_not_mounted_yet_after_a_reboot_stops_and_forgets_nothing() {
    let settings = ["--resync", "1h", "--job-cpu-threshold", "100"];
    let mut world = World::new();
    world.start(&settings);
    world.put("web.yaml", &sleeper(300));
    world.put("done.yaml", "kind: job\ncommand: 'true'\n");
    soon_running(&world, "it runs", &["web"]);
    soon(&world, "a job is done", || world.phase("done") == "Completed");
    reboot(&mut world, false);
    fs::rename(world.manifests(), world.path("away")).unwrap();
    // Where it will be mounted.
    fs::create_dir(world.manifests()).unwrap();
    world.start(&settings);
    let after = soon_running(&world, "it runs again", &["web"]);
    soon(&world, "it is told", || world.log().contains("is another one than before, and holds no manifest"));
    sleep(Duration::from_millis(1500));
    assert_eq!(running(&world), after);
    fs::remove_dir(world.manifests()).unwrap();
    fs::rename(world.path("away"), world.manifests()).unwrap();
    world.put("web.yaml", &sleeper(400));
    soon_cpu(&world, "web", 400);
    assert_eq!(running(&world), after);
    assert_eq!((world.phase("done"), &world.status("done")["restarts"]), ("Completed".to_owned(), &Value::from(0)));
    // The same folder, emptied while no controller lived, is a wish.
    world.kill_controller();
    world.delete("web.yaml");
    world.delete("done.yaml");
    world.start(&settings);
    soon(&world, "everything is gone", || world.ps().is_empty());
}

#[test]
fn of_two_files_with_one_name_the_one_that_runs_keeps_it() {
    let mut world = watching();
    world.put("b.yaml", &format!("name: web\n{}", sleeper(500)));
    let before = soon_running(&world, "it runs", &["web"]);
    // First in order, for another command, and again after a restart of the controller.
    world.put("a.yaml", "name: web\ncommand: sleep 1000\n");
    let refusal = "a.yaml:1:1: name web is taken by b.yaml:1";
    let refused = |world: &World| world.ctl(&["plan"]).out.contains(refusal);
    soon(&world, "the newcomer is refused", || refused(&world));
    world.kill_controller();
    world.start(&["--resync", "1h"]);
    soon(&world, "and again", || refused(&world));
    // Broken, the owner keeps its name still.
    world.put("b.yaml", "name: web\ncommand: [");
    soon(&world, "the owner is refused", || accepted(&world.status("web"))["reason"] == "Refused");
    sleep(Duration::from_millis(1500));
    assert_eq!(running(&world), before);
    let plan = world.ctl(&["plan"]).out;
    assert!(plan.contains("a.yaml:1:1: name web is taken by b.yaml\n"), "{plan}");
    // Gone, it leaves it to the other.
    world.delete("b.yaml");
    soon(&world, "the newcomer has the name", || world.status("web")["manifest"] == "a.yaml");
    soon(&world, "another command runs", || running(&world).get("web").is_some_and(|run| *run != before["web"]));
}

#[test]
fn a_renamed_file_with_a_name_changes_nothing_however_it_is_renamed() {
    let world = watching();
    let text = format!("name: web\n{}", sleeper(500));
    world.put("a.yaml", &text);
    let before = soon_running(&world, "it runs", &["web"]);
    let steps: [(&str, &str, u64); 4] = [
        ("a.yaml", "team/b.yaml", 0),
        ("team/b.yaml", "ops/b.yaml", 300),
        ("ops/b.yaml", "c.yml", 700),
        ("c.yml", "a.yaml", 0),
    ];
    for (from, to, pause_ms) in steps {
        // Removed, and written anew a while later.
        world.delete(from);
        sleep(Duration::from_millis(pause_ms));
        world.put(to, &text);
        soon(&world, &format!("{from} became {to}"), || world.status("web")["manifest"] == to);
        sleep(Duration::from_millis(1500));
        assert_eq!(running(&world), before);
        assert_eq!(world.status("web")["group"], to.rsplit_once('/').map_or("", |(group, _)| group));
    }
    // Both are there for a moment, the new one first.
    world.put("team/web.yaml", &text);
    sleep(Duration::from_millis(300));
    world.delete("a.yaml");
    soon(&world, "the copy has the name", || world.status("web")["manifest"] == "team/web.yaml");
    sleep(Duration::from_millis(1500));
    assert_eq!(running(&world), before);
}

#[test]
fn a_manifest_for_other_hosts_is_as_if_it_were_not_there() {
    let mut world = World::new();
    world.start(&["--resync", "1h", "--label", "role=cpu", "--label", "site=lab"]);
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    world.put("here.yaml", &format!("hosts: {{role: cpu, hostname: \"{}\"}}\n{}", hostname.trim_end(), sleeper(500)));
    world.put("gpu.yaml", &format!("hosts: {{role: gpu}}\n{}", sleeper(500)));
    // One name, one manifest for each kind of host.
    world.put("web-1.yaml", &format!("name: web\nhosts: {{role: gpu}}\n{}", sleeper(500)));
    world.put("web-2.yaml", &format!("name: web\nhosts: {{site: lab, arch: x86_64}}\n{}", sleeper(300)));
    soon_running(&world, "those for this host", &["here", "web"]);
    assert_eq!(kernel::cpu_milli(&world.group("web")), Some(300));
    assert!(world.status("gpu").is_null());
    let said = world.ctl(&["wait", "--for", "converged"]);
    assert_eq!(said.code, 0, "it is no error: {said:?}");
    let note = "gpu.yaml:1:1: note: gpu is for hosts with role=gpu; this one has role=cpu";
    let plan = world.ctl(&["plan"]);
    assert!(plan.code == 0 && plan.out.contains(note), "{plan:?}");
    let path = world.manifests().display().to_string();
    let said = program(&["validate", &path, "--label", "role=gpu"]);
    assert!(said.code == 0 && said.out.ends_with("2 workloads accepted, 2 for other hosts, 0 errors\n"), "{said:?}");
    // An edit of the labels alone touches nothing; one that leads away stops it.
    let before = running(&world);
    world.put("here.yaml", &format!("hosts: {{role: cpu}}\n{}", sleeper(500)));
    soon(&world, "the edit is accepted", || world.status("here")["generation"] == 2);
    assert_eq!(running(&world), before);
    world.put("here.yaml", &format!("hosts: {{role: gpu}}\n{}", sleeper(500)));
    soon_running(&world, "what left this host", &["web"]);
    assert!(world.log().contains("here.yaml is for hosts with role=gpu; this one has role=cpu"), "{}", world.log());
    let bad = world.command(&["--label", "ro le=gpu"]).output().unwrap();
    let error = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(bad.status.code() == Some(64) && error.contains("has the key `ro le`"), "{error}");
}
