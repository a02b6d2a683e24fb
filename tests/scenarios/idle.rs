//! What an idle host costs: no write, no fork, few wake-ups.

use super::kernel;
use super::world::World;
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// The system calls of all the controller's threads over a while in which it looks at everything several times.
fn trace(world: &World, time: Duration) -> Vec<String> {
    // Nowhere near the watched folder: what strace writes must not wake what it watches.
    let elsewhere = tempfile::tempdir().unwrap();
    let out = elsewhere.path().join("calls");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-y", "-s", "80", "-o"])
        .arg(&out)
        .args(["-p", &world.controller_pid().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is needed: tests/run installs it");
    sleep(time);
    super::world::signal(strace.id(), nix::sys::signal::Signal::SIGINT);
    strace.wait().unwrap();
    fs::read_to_string(out).unwrap().lines().map(str::to_owned).collect()
}

/// Calls that change something outside the process: files, processes, sockets.
fn changes(calls: &[String]) -> Vec<&String> {
    let names = [
        "write",
        "pwrite64",
        "writev",
        "pwritev",
        "mkdir",
        "mkdirat",
        "rmdir",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "symlink",
        "fsync",
        "fdatasync",
        "sync_file_range",
        "ftruncate",
        "fallocate",
        "fork",
        "vfork",
        "clone",
        "execve",
        "execveat",
        "kill",
        "sendto",
        "sendmsg",
        "mount",
        "umount2",
        "mknodat",
        "chmod",
        "fchmodat",
        "chown",
        "setxattr",
    ];
    let changes = |line: &&String| {
        let call = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
        let name = call.split('(').next().unwrap_or("");
        // A wake-up between its own threads is a write to an eventfd, and is none of the host's business.
        let own = call.contains("eventfd");
        // A thread is no process: clone3 of one shares everything.
        let process = name == "clone3" && !call.contains("CLONE_THREAD");
        let creates = name.starts_with("open")
            && (call.contains("O_WRONLY") || call.contains("O_RDWR") || call.contains("O_CREAT"));
        (names.contains(&name) && !own) || process || creates
    };
    calls.iter().filter(changes).collect()
}

#[test]
fn an_idle_controller_writes_nothing_and_starts_nothing() {
    let mut world = World::new();
    // The job is not to wait for whatever else this host does.
    world.start(&["--resync", "1s", "--job-cpu-threshold", "100"]);
    for n in 0..10 {
        world.put(&format!("w{n}.yaml"), "command: sleep infinity\ncpu: 1\nmemory: 64Mi");
    }
    world.put("done.yaml", "kind: job\ncommand: 'true'");
    world.put("broken.yaml", "command: [");
    for n in 0..10 {
        world.wait_running(&format!("w{n}"));
    }
    world.wait_phase("done", "Completed");
    // What has just happened is synced, and threads that were needed for it go.
    sleep(Duration::from_secs(4));
    let logged = world.log().len();
    let calls = trace(&world, Duration::from_secs(6));
    let resyncs = calls.iter().filter(|line| line.contains("/manifests") && line.contains("O_DIRECTORY")).count();
    assert!(resyncs >= 3, "the trace saw only {resyncs} resyncs among {} calls", calls.len());
    let changes = changes(&calls);
    assert!(changes.is_empty(), "an idle pass changed something:\n{changes:#?}");
    assert_eq!(world.log().len(), logged, "an idle pass logged something");
}

#[test]
fn between_two_looks_an_idle_controller_sleeps() {
    let mut world = World::new();
    world.start(&["--resync", "1h"]);
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    sleep(Duration::from_secs(4));
    let calls = trace(&world, Duration::from_secs(5));
    // The database's own threads look up from their beds once a second, and there is no telling them not to; nothing else may.
    let (sled, ours): (Vec<String>, Vec<String>) = calls.into_iter().partition(|line| {
        let thread = line.split(' ').next().unwrap();
        let name = fs::read_to_string(format!("/proc/{}/task/{thread}/comm", world.controller_pid()));
        name.is_ok_and(|name| name.starts_with("sled-io"))
    });
    assert!(
        sled.iter().all(|line| ["futex", "restart_syscall", "sched_yield"].iter().any(|call| line.contains(call))),
        "{sled:#?}"
    );
    // The calls that strace found under way when it came, one a thread.
    assert!(ours.len() <= 8, "an idle controller made {} calls in 5 s:\n{ours:#?}", ours.len());
    assert!(kernel::is_alive(web));
    let init = kernel::parent(web);
    let switches = || kernel::status(init, "voluntary_ctxt_switches").parse::<u64>().unwrap();
    let before = switches();
    sleep(Duration::from_secs(2));
    assert_eq!(switches(), before, "an idle init woke up");
}
