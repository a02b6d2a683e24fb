//! Limits and CPUs: what the kernel holds is what the manifest says.

use super::kernel;
use super::world::{World, eventually};
use std::fs;
use std::path::PathBuf;

#[test]
fn every_cpu_and_memory_field_is_in_force_or_said_not_to_be() {
    let world = World::running();
    world.put(
        "web.yaml",
        "command: sleep infinity\ncpu: {request: 100m, limit: 500m, weight: 250, burst: 20ms}\n\
         memory: {request: 16Mi, high: 100Mi, limit: 128Mi, swap: 16Mi}\npids: 99\n",
    );
    world.wait_running("web");
    let group = world.group("web");
    assert_eq!(kernel::cpu_milli(&group), Some(500));
    assert_eq!(kernel::read(&group, &["cpu.max.burst", "cpu.cfs_burst_us"]), "20000");
    assert_eq!(kernel::memory_bytes(&group), 128 << 20);
    assert_eq!(kernel::read(&group, &["pids.max"]), "99");
    let degraded = world.status("web")["conditions"].to_string();
    if kernel::is_unified() {
        assert_eq!(kernel::read(&group, &["cpu.weight"]), "250");
        assert_eq!(kernel::read(&group, &["memory.high"]), (100u64 << 20).to_string());
        assert_eq!(kernel::read(&group, &["memory.low"]), (16u64 << 20).to_string());
        assert_eq!(kernel::read(&group, &["memory.swap.max"]), (16u64 << 20).to_string());
        assert!(!degraded.contains("Degraded"), "{degraded}");
    } else {
        assert_eq!(kernel::read(&group, &["cpu.shares"]), "2560");
        assert_eq!(kernel::read(&group, &["memory.memsw.limit_in_bytes"]), (144u64 << 20).to_string());
        assert!(degraded.contains("memory.high"), "v1 has no memory.high, and nobody said so: {degraded}");
    }
}

#[test]
fn a_memory_limit_brings_no_swap_unless_asked() {
    let world = World::running();
    for (name, memory) in [("short", "64Mi"), ("long", "{limit: 64Mi, high: 48Mi}")] {
        world.put(&format!("{name}.yaml"), &format!("command: sleep infinity\nmemory: {memory}"));
        world.wait_running(name);
        let group = world.group(name);
        assert_eq!(kernel::memory_bytes(&group), 64 << 20);
        if kernel::is_unified() {
            assert_eq!(kernel::read(&group, &["memory.swap.max"]), "0");
        } else {
            // v1 bounds both together: as much as the memory alone leaves none for swap.
            assert_eq!(kernel::read(&group, &["memory.memsw.limit_in_bytes"]), (64 << 20).to_string());
        }
    }
}

#[test]
fn idle_workloads_yield_to_everybody() {
    let world = World::running();
    world.put("idle.yaml", "command: sleep infinity\ncpu: {class: idle}");
    world.wait_running("idle");
    assert_eq!(kernel::read(&world.group("idle"), &["cpu.idle"]), "1");
    world.put("idle.yaml", "command: sleep infinity\ncpu: {weight: 50}");
    eventually("it is an ordinary workload again", || kernel::read(&world.group("idle"), &["cpu.idle"]) == "0");
    let weight = if kernel::is_unified() { "50" } else { "512" };
    eventually("with its weight", || kernel::read(&world.group("idle"), &["cpu.weight", "cpu.shares"]) == weight);
}

#[test]
fn exclusive_cpus_belong_to_one_workload_alone() {
    let world = World::running();
    let all = world_cpus(&world);
    world.put("a.yaml", "command: sleep infinity");
    let a = world.wait_running("a");
    world.put("x.yaml", "command: sleep infinity\ncpu: {class: exclusive, request: 1}");
    world.wait_running("x");
    let own = kernel::cpus(&world.group("x"));
    assert!(own.parse::<u32>().is_ok(), "one CPU, not {own}");
    let others = set(&kernel::cpus(&world.group("a")));
    assert!(others.is_disjoint(&set(&own)), "a may run on {others:?}, x has {own}");
    // Those who come later stay off it too, and no process of theirs is allowed on it.
    world.put("b.yaml", "command: sleep infinity\ncpu: {class: idle}");
    let b = world.wait_running("b");
    for pid in [a, b] {
        let allowed = set(&kernel::status(pid, "Cpus_allowed_list"));
        assert!(allowed.is_disjoint(&set(&own)), "pid {pid} is allowed on {allowed:?}");
    }
    // More than there is waits, with a reason.
    world.put("y.yaml", &format!("command: sleep infinity\ncpu: {{class: exclusive, request: {}}}", all.len()));
    let status = world.wait_phase("y", "Pending");
    assert!(status["conditions"].to_string().contains("must stay shared"), "{status:#}");
    // When it goes, everybody gets its CPUs back.
    world.delete("y.yaml");
    world.delete("x.yaml");
    eventually("a has all CPUs again", || set(&kernel::cpus(&world.group("a"))) == all);
    assert_eq!(world.wait_running("a"), a);
}

#[test]
fn reserved_cpus_are_given_to_nobody() {
    let mut world = World::new();
    let online: containerctl::model::cpuset::CpuSet =
        fs::read_to_string("/sys/devices/system/cpu/online").unwrap().parse().unwrap();
    let first = online.iter().next().unwrap();
    let all = world.command(&["--reserved-cpus", &online.to_string()]).output().unwrap();
    let said = String::from_utf8_lossy(&all.stderr).into_owned();
    assert!(!all.status.success() && said.contains("no CPU is left for workloads"), "{said}");
    world.start(&["--reserved-cpus", &first.to_string()]);
    world.put("web.yaml", "command: sleep infinity");
    let pid = world.wait_running("web");
    for cpus in [kernel::cpus(&world.group("web")), kernel::status(pid, "Cpus_allowed_list")] {
        assert!(!set(&cpus).is_empty() && !set(&cpus).contains(&first), "{cpus}");
    }
}

#[test]
fn memory_comes_from_the_node_of_the_cpus_where_that_is_required() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity\ncpu: {limit: 1, align: required}");
    let pid = world.wait_running("web");
    let nodes: serde_json::Value = serde_json::from_str(&world.ctl(&["topology", "-o", "json"]).out).unwrap();
    let cpus = set(&kernel::cpus(&world.group("web")));
    let nodes = nodes["numa"].as_object().unwrap();
    let (node, _) = nodes.iter().find(|(_, own)| cpus.is_subset(&set(own.as_str().unwrap()))).unwrap();
    assert_eq!(kernel::read(&world.group("web"), &["cpuset.mems"]), *node);
    assert_eq!(kernel::status(pid, "Mems_allowed_list"), *node);
}

#[test]
fn limits_changed_by_hand_are_put_back_within_a_resync() {
    let mut world = World::new();
    world.start(&["--resync", "500ms"]);
    world.put("web.yaml", "command: sleep infinity\ncpu: 500m\nmemory: 64Mi\n");
    let pid = world.wait_running("web");
    let group = world.group("web");
    kernel::write(&group, &["pids.max"], "7");
    kernel::write(&group, &["cpu.max"], "max 100000");
    kernel::write(&group, &["cpu.cfs_quota_us"], "-1");
    eventually("both are as the manifest says", || {
        kernel::cpu_milli(&group) == Some(500) && kernel::read(&group, &["pids.max"]) == "512"
    });
    assert_eq!(world.wait_running("web"), pid);
    assert!(world.log().contains("pids.max 7 -> 512"), "{}", world.log());
}

#[test]
fn memory_beyond_the_limit_kills_the_workload_and_says_so() {
    let world = World::running();
    // The shell grows by a gigabyte; its limit is a twentieth of that.
    world.put(
        "hog.yaml",
        "memory: 48Mi\nrestart: never\ncommand: [sh, -c, 'x=$(head -c 1000000000 /dev/zero | tr \"\\\\0\" a); echo ${#x}']",
    );
    let status = world.wait_phase("hog", "Failed");
    assert_eq!(status["lastExit"]["message"], "killed: out of memory within its limit");
    assert_eq!(status["lastExit"]["code"], 137);
}

#[test]
fn a_fork_bomb_is_felt_by_nobody_else() {
    let world = World::running();
    world
        .put("bomb.yaml", "pids: 30\nrestart: never\ncommand: [bash, -c, 'while :; do sleep 1000 & done 2>/dev/null']");
    world.wait_running("bomb");
    let group = world.group("bomb");
    eventually("it has all the processes it may have", || kernel::processes(&group).len() == 30);
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    world.delete("bomb.yaml");
    world.wait_gone("bomb");
}

/// A whole disk of this machine, by its node.
pub fn disk() -> String {
    let mut names: Vec<String> =
        fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !["loop", "ram", "zram"].iter().any(|other| name.starts_with(other)));
    format!("/dev/{}", names.first().unwrap())
}

#[test]
fn disks_are_limited_and_let_go_of_without_a_restart() {
    let world = World::running();
    let (disk, files) = (disk(), ["io.max", "blkio.throttle.read_bps_device"]);
    world.put("reader.yaml", &format!("command: sleep 1000\nio: {{limits: [{{device: {disk}, readBps: 50M}}]}}"));
    let pid = world.wait_running("reader");
    let held = || kernel::read(&world.group("reader"), &files);
    assert!(held().contains("50000000"), "{}", held());
    world.put("reader.yaml", &format!("command: sleep 1000\nio: {{limits: [{{device: {disk}, readBps: 70M}}]}}"));
    eventually("the limit is raised", || held().contains("70000000"));
    world.put("reader.yaml", "command: sleep 1000");
    eventually("the limit is gone", || held().is_empty());
    assert_eq!(world.wait_running("reader"), pid);
    // One that is limited only later is caught with everything it runs.
    world.put("late.yaml", "command: sleep 1000");
    let late = world.wait_running("late");
    world.put("late.yaml", &format!("command: sleep 1000\nio: {{limits: [{{device: {disk}, readBps: 30M}}]}}"));
    let holds = |directory: PathBuf| {
        files.iter().any(|file| fs::read_to_string(directory.join(file)).is_ok_and(|text| text.contains("30000000")))
    };
    eventually("the limit is there", || kernel::directories(&world.group("late")).into_iter().any(holds));
    let groups = fs::read_to_string(format!("/proc/{late}/cgroup")).unwrap();
    let held = |line: &str| line.ends_with("/late.workload") && (line.contains(":blkio:") || line.starts_with("0::"));
    assert!(groups.lines().any(held), "{groups}");
    assert!(kernel::is_unified() || groups.lines().any(|line| line.contains("blkio") && held(line)), "{groups}");
    world.put("elsewhere.yaml", "command: sleep 1000\nio: {limits: [{device: /dev/nowhere, readBps: 50M}]}");
    world.wait_running("elsewhere");
    let told = world.status("elsewhere")["conditions"].to_string();
    assert!(told.contains("/dev/nowhere is no disk of this host"), "{told}");
}

#[test]
fn a_memory_limit_below_what_is_used_ends_nothing_unless_forced() {
    let world = World::running();
    let manifest = |memory: &str| {
        format!(
            "restart: never\nmemory: {memory}\ncommand: [sh, -c, 'head -c 40M /dev/zero | tail -c 39M | (read -r x; sleep 1000); sleep 1000']"
        )
    };
    world.put("big.yaml", &manifest("{limit: 200M}"));
    let pid = world.wait_running("big");
    let used = || {
        kernel::read(&world.group("big"), &["memory.current", "memory.usage_in_bytes"]).trim().parse::<u64>().unwrap()
    };
    eventually("it uses its memory", || used() > 39_000_000);
    world.put("big.yaml", &manifest("{limit: 20M}"));
    let status = world.wait_status("big", |status| status["conditions"].to_string().contains("StepFailed"));
    assert_eq!((status["phase"].as_str(), status["pid"].as_u64()), (Some("Running"), Some(u64::from(pid))));
    assert_eq!(kernel::memory_bytes(&world.group("big")) / 1_000_000, 199, "the limit is what it was");
    let help = if kernel::is_unified() { "force: true" } else { "legacy cgroups force no limit" };
    assert!(status["conditions"].to_string().contains(help), "{status:#}");
    world.put("big.yaml", &manifest("{limit: 20M, force: true}"));
    if kernel::is_unified() {
        eventually("the kernel has ended something", || used() < 20_000_000);
    } else {
        world.wait_status("big", |status| status["conditions"].to_string().contains("memory.force: legacy cgroups"));
    }
}

fn set(list: &str) -> std::collections::BTreeSet<u32> {
    let list: containerctl::model::cpuset::CpuSet = list.parse().unwrap();
    list.iter().collect()
}

/// The CPUs the controller may give away.
fn world_cpus(world: &World) -> std::collections::BTreeSet<u32> {
    world.put("probe-cpus.yaml", "command: sleep infinity");
    world.wait_running("probe-cpus");
    let cpus = set(&kernel::cpus(&world.group("probe-cpus")));
    world.delete("probe-cpus.yaml");
    world.wait_gone("probe-cpus");
    cpus
}
