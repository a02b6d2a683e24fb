//! Output without end, a full disk, and readers of both: what logging costs and what it keeps.

use super::kernel;
use super::world::{PROGRAM, World, eventually, eventually_or};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What one gathered write may put beyond the bound of a file: what is read at once, and 32 heads and newlines.
const WRITE_BYTES_MAX: u64 = 8 * 1024 + 32 * 41;

fn bytes_in(folder: &Path) -> u64 {
    // One that is renamed while we look is counted under its other name, or not at all.
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|m| m.len())
        .sum()
}

/// The median time of asking for something unrelated.
fn ps_time(world: &World) -> Duration {
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            world.ps();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[4]
}

#[test]
fn output_without_end_stays_within_its_bound_and_slows_nobody() {
    let world = World::running();
    world.put("other.yaml", "cpu: 500m\ncommand: sleep 1000");
    world.wait_running("other");
    let quiet = ps_time(&world);
    world.put("chatty.yaml", "logs: {maxSize: 64Ki, maxFiles: 3}\ncommand: 'yes'");
    let init = kernel::parent(world.wait_running("chatty"));
    let folder = world.path("state/logs/chatty");
    eventually("it turns over", || folder.join("log.2").exists());
    let (before_kib, ticks) = (kernel::smaps_kib(init, "Pss"), kernel::cpu_ticks(world.controller_pid()));
    let (begun, mut largest) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(3) {
        largest = largest.max(bytes_in(&folder));
        sleep(Duration::from_millis(5));
    }
    let spent = kernel::cpu_ticks(world.controller_pid()) - ticks;
    assert!(largest <= 3 * ((64 << 10) + WRITE_BYTES_MAX), "{largest} bytes");
    assert!(spent <= 30, "the controller took {spent}0 ms of 3 s");
    let after_kib = kernel::smaps_kib(init, "Pss");
    assert!(after_kib <= before_kib + 16, "init grew from {before_kib} to {after_kib} KiB");
    // `yes` and its init may take a CPU each; beside them an answer takes its turn, no more.
    let busy = ps_time(&world);
    assert!(busy <= 4 * quiet + Duration::from_millis(100), "ps takes {busy:?}, {quiet:?} when it is quiet");
    world.put("other.yaml", "cpu: 250m\ncommand: sleep 1000");
    let edited = Instant::now();
    eventually("the edit is in force", || kernel::cpu_milli(&world.group("other")) == Some(250));
    assert!(edited.elapsed() < Duration::from_secs(5), "an edit takes {:?}", edited.elapsed());
}

#[test]
fn a_full_disk_blocks_nobody_and_the_log_owns_up() {
    let mut world = World::new();
    let folder = world.path("state/logs");
    // In a mount namespace of the controller's own, which ends with it and its workloads.
    let script = format!(
        "exec unshare -m sh -c 'mkdir -p {0}; mount -t tmpfs -o size=256k none {0}; exec \"$@\"' sh \"$@\"",
        folder.display()
    );
    world.start_after_with(&script, &["--resync", "300ms"]);
    let inside = |pid: u32, path: &Path| Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap());
    let filler = inside(world.controller_pid(), &folder).join("filler");
    let script = "i=0; while :; do i=$((i+1)); echo line $i; echo $i >/tmp/now; mv /tmp/now /tmp/count; done";
    world.put("web.yaml", &format!("logs: {{maxSize: 32Ki, maxFiles: 2}}\ncommand: [sh, -c, '{script}']"));
    let pid = world.wait_running("web");
    eventually("it is heard", || world.logs("web").contains("line 3\n"));
    // Full: the file that is written may not grow any more.
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    let count = || -> u64 {
        let text = fs::read_to_string(inside(pid, Path::new("/tmp/count"))).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let keeps_counting = || {
        let from = count();
        eventually("it goes on", || count() > from + 300);
    };
    for _ in 0..3 {
        let _ = fs::write(filler.with_extension("more"), vec![0; 1 << 20]);
        keeps_counting();
    }
    assert!(kernel::is_alive(pid));
    let refused =
        |status: &serde_json::Value| status["conditions"].to_string().contains("on a file system that is full");
    world.wait_status("web", refused);
    for file in [filler.with_extension("more"), filler] {
        let _ = fs::remove_file(file);
    }
    let owned_up = || world.ctl(&["logs", "web"]).err.contains("the log disk refused about ");
    eventually_or(owned_up, || world.ctl(&["logs", "web", "--tail", "5"]).err);
    keeps_counting();
    world.wait_status("web", |status| !refused(status));
    assert_eq!(world.wait_running("web"), pid);
}

#[test]
fn a_follower_misses_nothing_when_files_turn_over() {
    let world = World::running();
    let script = "i=1; while :; do seq $i $((i+499)); i=$((i+500)); sleep 0.05; done";
    world.put("web.yaml", &format!("logs: {{maxSize: 64Ki, maxFiles: 9}}\ncommand: [sh, -c, '{script}']"));
    world.wait_running("web");
    let before_kib = kernel::status(world.controller_pid(), "VmRSS");
    let mut child = Command::new(PROGRAM)
        .args(["logs", "web", "-f", "--tail", "1", "--socket"])
        .arg(world.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // 8000 lines of 45 bytes: five files and more.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap().parse::<u64>().unwrap());
    let seen: Vec<u64> = lines.take(8000).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let skipped: Vec<_> = seen.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(skipped.is_empty() && seen.len() == 8000, "{skipped:?} of {}", seen.len());
    let tail = world.ctl(&["logs", "web", "--tail", "1000"]).out;
    let tail: Vec<u64> = tail.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!((tail.len(), tail[999] - tail[0]), (1000, 999));
    assert_eq!(world.ctl(&["logs", "web", "--since", "2099-01-01T00:00:00Z"]).out, "");
    // A time before all of it shows the oldest line there is, and what follows without a gap.
    let past = world.ctl(&["logs", "web", "--since", "2020-01-01T00:00:00Z"]).out;
    let past: Vec<u64> = past.lines().map(|line| line.parse().unwrap()).collect();
    assert!(past.len() > 1000 && past.windows(2).all(|pair| pair[1] == pair[0] + 1), "{} lines", past.len());
    let kib = |text: &str| text.trim_end_matches(" kB").parse::<u64>().unwrap();
    let after_kib = kernel::status(world.controller_pid(), "VmRSS");
    assert!(kib(&after_kib) < kib(&before_kib) + 8 * 1024, "{before_kib} -> {after_kib}");
}

#[test]
fn a_line_without_end_binary_output_and_a_closed_stream_are_no_trouble() {
    let world = World::running();
    let script = "head -c 300000 /dev/zero | tr \"\\0\" a; head -c 5000 /dev/urandom; exec >&- 2>&-; exec sleep 1000";
    world.put("web.yaml", &format!("command: [sh, -c, {}]", serde_json::to_string(script).unwrap()));
    let init = kernel::parent(world.wait_running("web"));
    eventually("all of the line is there", || world.logs("web").starts_with(&"a".repeat(300_000)));
    eventually("the streams are closed", || kernel::processes(&world.group("web")).len() == 2);
    let ticks = kernel::cpu_ticks(init);
    sleep(Duration::from_secs(1));
    assert!(kernel::cpu_ticks(init) <= ticks + 1, "init is busy with a stream that has ended");
    assert_eq!(world.phase("web"), "Running");
}

#[test]
fn new_bounds_come_into_force_with_the_next_start() {
    let world = World::running();
    let put = |files: u32| {
        let script = "yes | head -c 100000; exec sleep 1000";
        world.put("web.yaml", &format!("logs: {{maxSize: 4Ki, maxFiles: {files}}}\ncommand: [sh, -c, '{script}']\nrestart: {{policy: always, initialDelay: 1s}}"));
        world.wait_running("web")
    };
    let pid = put(2);
    let folder = world.path("state/logs/web");
    eventually("it turns over", || folder.join("log.1").exists());
    assert_eq!(put(4), pid, "an edit does not restart it");
    let shown = |world: &World| world.status("web")["conditions"].to_string();
    eventually_or(|| shown(&world).contains("until its next start"), || shown(&world));
    assert!(!folder.join("log.2").exists());
    super::world::signal(pid, nix::sys::signal::Signal::SIGKILL);
    eventually("the next run has them", || folder.join("log.3").exists());
    assert!(!shown(&world).contains("until its next start"));
}

#[test]
fn a_log_folder_that_was_deleted_is_told_until_the_next_start_makes_it_anew() {
    let mut world = World::new();
    world.start(&["--resync", "300ms"]);
    world.put("web.yaml", "restart: {initialDelay: 10ms}\ncommand: [sh, -c, 'while echo tick; do sleep 0.05; done']");
    let pid = world.wait_running("web");
    eventually("it has said something", || world.logs("web").contains("tick"));
    let lost = |status: &serde_json::Value| status["conditions"].to_string().contains("LogLost");
    assert!(!lost(&world.status("web")));

    fs::remove_dir_all(world.path("state")).unwrap();
    let sentence = format!(
        "its log folder {} is gone; its output is lost until its next start",
        world.path("state/logs/web").display()
    );
    let said = world.ctl(&["logs", "web"]);
    assert!(said.code == 1 && said.err.contains(&sentence) && said.err.contains("help: "), "{said:?}");
    let status = world.wait_status("web", lost);
    assert!(status["pid"] == pid && status["conditions"].to_string().contains(&sentence), "{status}");
    let told = || world.ctl(&["events", "web"]).out;
    eventually_or(|| told().contains(&format!("LogLost: {sentence}")), told);
    // A folder that somebody puts there is not the one that init writes to.
    fs::create_dir_all(world.path("state/logs/web")).unwrap();
    sleep(Duration::from_secs(1));
    assert!(lost(&world.status("web")));
    assert_eq!(world.ctl(&["logs", "web"]).code, 1);

    super::world::signal(pid, nix::sys::signal::Signal::SIGKILL);
    world.wait_status("web", |status| status["phase"] == "Running" && status["pid"] != pid && !lost(status));
    eventually("the new run is heard", || world.logs("web").contains("tick"));
}
