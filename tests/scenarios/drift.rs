//! Somebody else's hands in our cgroups, and workloads at their limits: put back, and told with numbers.

use super::kernel;
use super::world::{World, eventually_or, in_repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const OFTEN: [&str; 2] = ["--resync", "300ms"];

/// A world whose controller looks at everything several times a second, and one workload with a limit of every kind.
fn world() -> (World, u32) {
    let mut world = World::new();
    world.start(&OFTEN);
    world.put(
        "web.yaml",
        "command: [sh, -c, 'sleep 1000 & exec sleep 1000']\ncpu: {limit: 500m, weight: 200, burst: 10ms}\nmemory: {limit: 64Mi, high: 48Mi}\npids: 40\n",
    );
    let pid = world.wait_running("web");
    (world, pid)
}

fn events(world: &World, name: &str) -> Vec<Value> {
    let said = world.ctl(&["events", name, "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for an event with this reason whose message has these words.
fn told_of(world: &World, name: &str, reason: &str, words: &str) {
    let is = |event: &Value| event["reason"] == reason && event["message"].as_str().unwrap().contains(words);
    eventually_or(
        || events(world, name).iter().any(is),
        || format!("no event {reason} with {words:?}: {:#?}", events(world, name)),
    );
}

fn told(world: &World, reason: &str, words: &str) {
    told_of(world, "web", reason, words);
}

fn limits(world: &World) -> BTreeMap<String, String> {
    serde_json::from_value(world.status("web")["limits"].clone()).unwrap()
}

/// Where a control file of the workload is.
fn path(world: &World, file: &str) -> PathBuf {
    let directories = kernel::directories(&world.group("web"));
    directories.into_iter().map(|directory| directory.join(file)).find(|path| path.exists()).unwrap()
}

/// How often the controller looks where it is measured how soon it puts something back.
const RESYNC: Duration = Duration::from_secs(1);

/// What a busy host may take on top of that; a processor emulated in software is some ten times as slow.
fn margin() -> Duration {
    let emulated = fs::read_to_string("/proc/cpuinfo").unwrap().contains("QEMU");
    Duration::from_millis(if emulated { 10_000 } else { 1500 })
}

/// Another value that the kernel accepts, by file; what is not held here, or held at that value, is passed over.
fn others(wanted: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
    let mut others: Vec<(&str, String)> = [
        ("cpu.max", "max 100000"),
        ("cpu.max.burst", "0"),
        ("cpu.weight", "7"),
        ("cpu.idle", "1"),
        ("cpu.cfs_quota_us", "-1"),
        ("cpu.cfs_burst_us", "0"),
        ("cpu.cfs_period_us", "200000"),
        ("cpu.shares", "77"),
        ("cpuset.cpus", "1"),
        ("cpuset.cpus", "0"),
        // All nodes are wanted: another value there is where there are two.
        ("cpuset.mems", "0"),
        ("memory.min", "4096"),
        ("memory.low", "4096"),
        ("memory.high", "max"),
        ("memory.max", "max"),
        ("memory.swap.max", "4096"),
        ("memory.oom.group", "1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "60000000"),
        ("pids.max", "7"),
        ("hugetlb.2MB.max", "2097152"),
        ("hugetlb.1GB.max", "1073741824"),
        ("hugetlb.2MB.limit_in_bytes", "2097152"),
        ("hugetlb.1GB.limit_in_bytes", "1073741824"),
        ("io.weight", "default 33"),
        ("io.bfq.weight", "default 33"),
        ("blkio.bfq.weight", "33"),
    ]
    .map(|(file, value)| (file, value.to_owned()))
    .into();
    for (file, value) in [
        ("io.max", "rbps=7000000"),
        ("blkio.throttle.read_bps_device", "7000000"),
        ("blkio.throttle.write_bps_device", "7000000"),
        ("blkio.throttle.read_iops_device", "70"),
        ("blkio.throttle.write_iops_device", "70"),
    ] {
        let device = wanted.get(file).and_then(|lines| lines.split(' ').next()).unwrap_or_default();
        others.push((file, format!("{device} {value}")));
    }
    others.retain(|(file, value)| wanted.get(*file).is_some_and(|wanted| wanted != value));
    others
}

#[test]
fn each_control_file_changed_by_hand_is_put_back_within_a_resync_and_told() {
    let mut world = World::new();
    world.start(&["--resync", &format!("{}ms", RESYNC.as_millis())]);
    let disk = super::resources::disk();
    let io = format!("{{device: {disk}, readBps: 50M, writeBps: 50M, readIops: 500, writeIops: 500}}");
    world.put(
        "web.yaml",
        &format!("command: sleep 1000\ncpu: {{limit: 500m, weight: 200, burst: 10ms}}\nmemory: {{limit: 64Mi, high: 48Mi}}\npids: 40\nio: {{limits: [{io}]}}\n"),
    );
    let pid = world.wait_running("web");
    let wanted = limits(&world);
    let mut tried = Vec::new();
    for (file, value) in others(&wanted) {
        let path = path(&world, file);
        fs::write(&path, &value).unwrap_or_else(|error| panic!("{value} to {}: {error}", path.display()));
        let changed = Instant::now();
        let held = || fs::read_to_string(&path).unwrap().trim().to_owned();
        eventually_or(|| held() == wanted[file], || format!("{file} stays {}", held()));
        let took = changed.elapsed();
        assert!(took <= RESYNC + margin(), "{file} was put back only after {took:?}, looked at every {RESYNC:?}");
        told(&world, "Drift", &format!("somebody has changed {file} from"));
        tried.push(file);
    }
    let disks = if kernel::is_unified() { "io.max" } else { "blkio.throttle.write_iops_device" };
    assert!(tried.len() >= 12 && tried.contains(&"cpu.idle") && tried.contains(&disks), "only {tried:?} of {wanted:?}");
    assert_eq!(world.wait_running("web"), pid);
}

#[test]
fn processes_moved_out_are_moved_back_and_told() {
    let (world, pid) = world();
    let all = kernel::processes(&world.group("web"));
    let child = *all.iter().max().unwrap();
    for directory in kernel::directories(&world.group("web")) {
        // Out of this hierarchy alone where there are several, the command and a child of it.
        let outside = directory.parent().unwrap().parent().unwrap().join("cgroup.procs");
        for moved in [pid, child] {
            fs::write(&outside, moved.to_string()).unwrap();
        }
        let inside = || fs::read_to_string(directory.join("cgroup.procs")).unwrap();
        let back = || [pid, child].iter().all(|moved| inside().lines().any(|line| line == moved.to_string()));
        eventually_or(back, || format!("{} has only {:?}", directory.display(), inside()));
    }
    told(&world, "Drift", "out of its cgroup");
    assert_eq!(world.wait_running("web"), pid);
    assert_eq!(kernel::processes(&world.group("web")), all);
}

#[test]
fn a_frozen_group_is_thawed_and_told() {
    let (world, pid) = world();
    let freeze = path(&world, "cgroup.freeze");
    fs::write(&freeze, "1").unwrap();
    eventually_or(|| fs::read_to_string(&freeze).unwrap().trim() == "0", || "it stays frozen".to_owned());
    told(&world, "Drift", "somebody has frozen it");
    // Frozen while it is asked to end: it ends all the same.
    assert_eq!(world.wait_running("web"), pid);
    fs::write(&freeze, "1").unwrap();
    world.delete("web.yaml");
    world.wait_gone("web");
}

#[test]
fn a_removed_group_is_made_again_with_its_limits_and_told() {
    let (world, pid) = world();
    let (wanted, all) = (limits(&world), kernel::processes(&world.group("web")));
    let directories = kernel::directories(&world.group("web"));
    for directory in &directories {
        let outside = directory.parent().unwrap().parent().unwrap().join("cgroup.procs");
        // A resync may be putting them back meanwhile.
        while fs::remove_dir(directory).is_err() && directory.exists() {
            for moved in &all {
                fs::write(&outside, moved.to_string()).unwrap();
            }
        }
    }
    let back =
        || directories.iter().all(|directory| directory.exists()) && kernel::processes(&world.group("web")) == all;
    eventually_or(back, || format!("{:?} of {all:?}: {}", kernel::processes(&world.group("web")), world.log()));
    eventually_or(|| limits(&world) == wanted, || format!("{:?}", limits(&world)));
    told(&world, "Drift", "somebody has");
    assert_eq!(world.wait_running("web"), pid);
    assert_eq!(world.status("web")["restarts"], 0);
}

#[test]
fn running_into_limits_is_told_with_numbers() {
    let mut world = World::new();
    world.start(&["--resync", "2s"]);
    // A loop that gets a twentieth of a CPU, children that outgrow the memory, and forks that are refused.
    world.put("slow.yaml", "command: [bash, -c, 'while :; do :; done']\ncpu: 50m");
    let script = "while :; do head -c 200000000 /dev/zero | tail >/dev/null; sleep 0.2; done";
    world.put("fat.yaml", &format!("command: [bash, -c, '{script}']\nmemory: 24Mi"));
    let script = "trap : CHLD; while :; do for i in 1 2 3 4 5 6 7 8 9; do (sleep 1 &); done 2>/dev/null; sleep 1; done";
    world.put(
        "many.yaml",
        &format!("command: [bash, -c, '{script}']\npids: 6\nrestart: {{initialDelay: 100ms, maxDelay: 1s}}"),
    );
    told_of(&world, "slow", "Throttled", "cpu.limit is 50m");
    told_of(&world, "fat", "OomKilled", "memory.limit is 24Mi");
    told_of(&world, "many", "PidsExhausted", "forks were refused; pids is 6");
    let usage = &world.status("slow")["usage"];
    assert!(usage["throttledPeriods"].as_u64().unwrap() > 0 && usage["cpuUs"].as_u64().unwrap() > 0, "{usage:#}");
    let described = world.ctl(&["describe", "slow"]).out;
    assert!(described.contains("throttled"), "{described}");
}

#[test]
fn a_run_that_ends_at_a_limit_is_told_with_its_numbers_long_before_the_next_resync() {
    let mut world = World::new();
    world.start(&["--resync", "1h"]);
    world.put("hog.yaml", "memory: 32Mi\nrestart: never\ncommand: [sh, -c, 'x=x; while :; do x=$x$x; done']");
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done 2>/dev/null; exit 3";
    world.put("many.yaml", &format!("pids: 6\nrestart: never\ncommand: [bash, -c, '{script}']"));
    let script = "end=$((SECONDS + 3)); while [ $SECONDS -lt $end ]; do :; done";
    world.put("slow.yaml", &format!("cpu: 100m\nrestart: never\ncommand: [bash, -c, '{script}']"));
    told_of(&world, "hog", "OomKilled", "memory.limit is 32Mi");
    told_of(&world, "many", "PidsExhausted", "forks were refused; pids is 6");
    told_of(&world, "slow", "Throttled", "cpu.limit is 100m");
}

#[test]
fn what_was_told_is_not_told_again_after_a_restart_of_the_controller() {
    let mut world = World::new();
    world.start(&OFTEN);
    let script = "head -c 200000000 /dev/zero | tail >/dev/null; sleep 1000";
    world.put("web.yaml", &format!("command: [bash, -c, '{script}']\nmemory: 24Mi"));
    told(&world, "OomKilled", "memory.limit is 24Mi");
    let count = |world: &World| events(world, "web").iter().filter(|event| event["reason"] == "OomKilled").count();
    let before = count(&world);
    let pid = world.wait_running("web");
    assert_eq!(world.stop_controller(), 0);
    world.start(&OFTEN);
    // A sweep has passed once there are figures, and two once they have grown older by what is told of a meddling hand.
    world.wait_status("web", |status| status["usage"]["oomKills"].as_u64().is_some_and(|kills| kills > 0));
    fs::write(path(&world, "cgroup.freeze"), "1").unwrap();
    told(&world, "Drift", "somebody has frozen it");
    assert_eq!((count(&world), world.wait_running("web")), (before, pid));
}

/// Whether the kernel measures who waits for what. Where it does not, the figures are none, which is seen to.
fn has_pressure(world: &World) -> bool {
    let has = fs::read_to_string("/proc/pressure/cpu").is_ok();
    let status = world.wait_status("web", |status| !status["usage"]["cpuUs"].is_null());
    for figure in ["cpuStalledUs", "memoryStalledUs", "ioStalledUs"] {
        assert_eq!(status["usage"][figure].is_u64(), has, "{figure} in {status:#}");
    }
    if !has {
        println!("NOT MEASURED on this kernel: it has no PSI, and no figure is made up");
    }
    has
}

#[test]
fn waiting_for_a_cpu_is_told_where_the_kernel_measures_it() {
    let mut world = World::new();
    world.start(&["--resync", "2s"]);
    // Four loops for a twentieth of a CPU: most of the time somebody waits.
    world.put(
        "web.yaml",
        "command: [bash, -c, 'for i in 1 2 3; do while :; do :; done & done; while :; do :; done']\ncpu: 50m",
    );
    if has_pressure(&world) {
        told(&world, "CpuPressure", "waited for a CPU");
    }
}

#[test]
fn thrashing_within_the_memory_limit_is_told_where_the_kernel_measures_it() {
    let mut world = World::new();
    world.start(&["--resync", "2s"]);
    // On a disk: a tmpfs would not be read again, but end it. Read over and over, three times what the limit lets stay in memory.
    let place = tempfile::tempdir_in(in_repository("target")).unwrap();
    let script = "head -c 72M /dev/zero >/mnt/file; while :; do cat /mnt/file /mnt/file >/dev/null; done";
    world.put(
        "web.yaml",
        &format!(
            "command: [sh, -c, '{script}']\nmemory: 24Mi\nvolumes: [{{source: {}, target: /mnt}}]",
            place.path().display()
        ),
    );
    if has_pressure(&world) {
        told(&world, "MemoryPressure", "waited for memory");
    }
}

#[test]
fn events_are_followed_and_outlive_the_controller() {
    let (mut world, _) = world();
    let socket = world.socket();
    let mut follower = std::process::Command::new(super::world::PROGRAM)
        .args(["events", "web", "--follow", "-o", "json", "--socket"])
        .arg(&socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap()));
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert!(lines.any(|event| event["reason"] == "Started"));
    world.put("web.yaml", "command: sleep 2000");
    assert!(lines.any(|event| event["reason"] == "Stopping"));
    assert!(lines.any(|event| event["reason"] == "Started"), "the new process");
    follower.kill().unwrap();
    follower.wait().unwrap();
    told(&world, "Accepted", "generation 2");
    assert_eq!(world.stop_controller(), 0);
    world.start(&OFTEN);
    told(&world, "Accepted", "generation 1 of web.yaml");
    let said = world.ctl(&["events"]);
    assert!(said.out.contains("Started") && said.out.starts_with("LAST"), "{}", said.out);
}
