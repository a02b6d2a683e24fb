//! What an idle host costs: no write, no fork, few wake-ups.

use super::kernel;
use super::world::{PATIENCE, World};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A system call of one of the controller's threads, as strace shows it.
#[derive(Debug)]
struct Call {
    thread: u32,
    text: String,
}

impl Call {
    fn name(&self) -> &str {
        self.text.split('(').next().unwrap_or("")
    }

    /// Whether it slept until something happened, or a time came. One that was still asleep when strace left did not.
    fn is_wake_up(&self) -> bool {
        let waits = match self.name() {
            "futex" => self.text.contains("FUTEX_WAIT") && !self.text.contains("EAGAIN"),
            name => ["epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "nanosleep", "clock_nanosleep"]
                .contains(&name),
        };
        let only_asks = self.text.contains(", 0) = ") || self.text.contains("{tv_sec=0, tv_nsec=0}");
        waits && !only_asks && self.text.contains(") = ")
    }
}

/// The system calls of all the controller's threads over a while in which it looks at everything several times.
fn trace(world: &World, time: Duration) -> Vec<Call> {
    // Nowhere near the watched folder: what strace writes must not wake what it watches. A file a thread, so that each call is one line.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut strace = Command::new("strace")
        .args(["-ff", "-qq", "-y", "-s", "80", "-o"])
        .arg(elsewhere.path().join("calls"))
        .args(["-p", &world.controller_pid().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is needed: tests/run installs it");
    sleep(time);
    super::world::signal(strace.id(), nix::sys::signal::Signal::SIGINT);
    strace.wait().unwrap();
    let mut calls = Vec::new();
    for file in fs::read_dir(elsewhere.path()).unwrap() {
        let path = file.unwrap().path();
        let thread = path.extension().unwrap().to_str().unwrap().parse().unwrap();
        let text = fs::read_to_string(path).unwrap();
        calls.extend(text.lines().map(|line| Call { thread, text: line.to_owned() }));
    }
    calls
}

/// Threads that are still there, by number.
fn threads(world: &World) -> BTreeMap<u32, String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", world.controller_pid())).unwrap();
    let name = |thread: u32| {
        let comm = fs::read_to_string(format!("/proc/{}/task/{thread}/comm", world.controller_pid())).unwrap();
        (thread, comm.trim().to_owned())
    };
    tasks.map(|task| name(task.unwrap().file_name().to_str().unwrap().parse().unwrap())).collect()
}

/// Calls that change something outside the process: files, processes, sockets.
fn changes(calls: &[Call]) -> Vec<&Call> {
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
    let changes = |call: &&Call| {
        let (name, text) = (call.name(), &call.text);
        // A wake-up between its own threads is a write to an eventfd, and is none of the host's business.
        let own = text.contains("eventfd");
        let process = name == "clone3" && !begins_thread(call);
        let creates = name.starts_with("open")
            && (text.contains("O_WRONLY") || text.contains("O_RDWR") || text.contains("O_CREAT"));
        (names.contains(&name) && !own) || process || creates
    };
    calls.iter().filter(changes).collect()
}

/// A thread is no process: clone3 of one shares everything.
fn begins_thread(call: &Call) -> bool {
    call.name() == "clone3" && call.text.contains("CLONE_THREAD")
}

/// How often the manifests folder was looked at: once a resync.
fn resyncs(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.text.contains("/manifests\"") && call.text.contains("O_DIRECTORY")).count()
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
    let resyncs = resyncs(&calls);
    assert!(resyncs >= 3, "the trace saw only {resyncs} resyncs among {} calls", calls.len());
    let changes = changes(&calls);
    assert!(changes.is_empty(), "an idle pass changed something:\n{changes:#?}");
    assert_eq!(world.log().len(), logged, "an idle pass logged something");
}

#[test]
fn between_two_looks_an_idle_controller_sleeps() {
    let mut world = World::new();
    // With it a machine of several groups of CPUs has looks of its own (docs/ARCHITECTURE.md, "What an idle minute costs").
    world.start(&["--resync", "1h", "--rebalance", "off"]);
    world.put("web.yaml", "command: sleep infinity");
    let web = world.wait_running("web");
    sleep(Duration::from_secs(4));
    let calls = trace(&world, Duration::from_secs(5));
    // The calls that strace found under way when it came, one a thread.
    let threads = threads(&world);
    assert!(calls.len() <= threads.len(), "an idle controller made {} calls in 5 s:\n{calls:#?}", calls.len());
    assert!(kernel::is_alive(web));
    let init = kernel::parent(web);
    let switches = || kernel::status(init, "voluntary_ctxt_switches").parse::<u64>().unwrap();
    let before = switches();
    sleep(Duration::from_secs(2));
    assert_eq!(switches(), before, "an idle init woke up");
}

#[test]
fn a_controller_with_its_rebalancer_on_leaves_the_processors_alone() {
    let world = World::running();
    world.put("web.yaml", "command: sleep infinity");
    world.wait_running("web");
    sleep(Duration::from_secs(2));
    // Where CPUs are of several groups the rebalancer looks twice in these six seconds; a loop that does not rest takes all of them.
    let ticks = || kernel::cpu_ticks(world.controller_pid());
    let before = ticks();
    sleep(Duration::from_secs(6));
    let spent = ticks() - before;
    assert!(spent <= 120, "an idle controller took {spent}0 ms of 6 s");
}

/// What docs/ARCHITECTURE.md says of a minute in which the resync falls twice, whatever the number of workloads.
const WAKE_UPS_MAX: usize = 60;
/// Each resync has one for the scan and one for the sweep, and they go when they are done.
const THREADS_BEGUN_MAX: usize = 4;

/// The voluntary switches of an init and of its command: how often they went to sleep, and so woke.
fn switches(pids: &[u32]) -> Vec<(u32, String)> {
    let both = pids.iter().flat_map(|pid| [*pid, kernel::parent(*pid)]);
    both.map(|pid| (pid, kernel::status(pid, "voluntary_ctxt_switches"))).collect()
}

#[test]
fn two_hundred_idle_workloads_cost_no_write_no_fork_and_few_wake_ups_a_minute() {
    let mut world = World::new();
    world.start(&[]);
    for n in 0..200 {
        world.put(&format!("w{n}.yaml"), "command: sleep infinity\nnetwork: host\ncpu: 1\nmemory: 64Mi");
    }
    let patience = format!("{}s", PATIENCE.as_secs());
    let said = world.ctl(&["wait", "--for", "converged", "--timeout", &patience]);
    assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    let pids: Vec<u32> =
        world.ps().iter().map(|status| u32::try_from(status["pid"].as_u64().unwrap()).unwrap()).collect();
    assert_eq!(pids.len(), 200);
    // What has just happened is synced, and threads that were needed for it go.
    sleep(Duration::from_secs(10));
    let (logged, slept) = (world.log().len(), switches(&pids));
    let calls = trace(&world, Duration::from_mins(1));

    assert_eq!(resyncs(&calls), 2, "the resync of 30 s falls twice into a minute");
    let changes = changes(&calls);
    assert!(changes.is_empty(), "an idle minute changed something:\n{changes:#?}");
    let begun = calls.iter().filter(|call| begins_thread(call)).count();
    assert!(begun <= THREADS_BEGUN_MAX, "{begun} threads were begun");
    let names = threads(&world);
    let mut woken: BTreeMap<&str, usize> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.is_wake_up()) {
        *woken.entry(names.get(&call.thread).map_or("a thread that is gone", String::as_str)).or_default() += 1;
    }
    println!("an idle minute with 200 workloads: {} calls, woken {woken:?}", calls.len());
    let all: usize = woken.values().sum();
    assert!(all <= WAKE_UPS_MAX, "{all} wake-ups: {woken:#?}");
    assert_eq!(switches(&pids), slept, "an idle workload's init woke up");
    assert_eq!(world.log().len(), logged, "an idle minute logged something");
}
