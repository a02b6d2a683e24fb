//! How late somebody wakes beside three others who never sleep, by what keeps them apart. `cargo bench --bench wakeup`, as root.
//!
//! Problem: a workload that answers within a millisecond shares two CPUs with one that computes. Which tool keeps its answers fast, and what does that
//! take from the other?
//! Approach: three processes that only compute, and one that sleeps a millisecond at a time and notes how late it wakes, each side in a
//! cgroup of its own. All cases are tried in turn, eleven rounds of them, and the median of the rounds counts: whatever else the machine
//! does falls on all cases alike.
//! What follows from it: the weights of the classes (`model::spec::CpuClass::weight`, docs/decisions/0020-class-weights.md), and that a
//! cpuset or a quota is never the rebalancer's first answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on fails, and prints"
)]

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, id};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// As the first measurement had it: an odd number has a middle, and eleven of each case are over in three minutes.
const ROUNDS: usize = 11;
const PERIOD: Duration = Duration::from_millis(1);
/// Of one case in one round: a thousand wake-ups, ten of them above the 99th percentile.
const MEASURED: Duration = Duration::from_secs(1);
/// Until the kernel has spread three over two CPUs.
const SETTLING: Duration = Duration::from_millis(300);
const HOGS: usize = 3;

/// What is done to keep the sleeper from waiting.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    sleeper_weight: u32,
    hogs_weight: u32,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The weights of the groups, nothing else.
    Weights,
    /// The computing group runs only where nobody else wants to.
    Idle,
    /// All of them in one group, the computing ones with the lowest priority there is.
    Nice,
    /// A CPU for each group.
    Fence,
    /// The computing group has the time of one CPU.
    Quota,
}

const fn weights(name: &'static str, sleeper_weight: u32, hogs_weight: u32) -> Case {
    Case { name, sleeper_weight, hogs_weight, how: How::Weights }
}

const fn otherwise(name: &'static str, how: How) -> Case {
    Case { name, sleeper_weight: 100, hogs_weight: 100, how }
}

const CASES: [Case; 12] = [
    weights("equal weights", 100, 100),
    weights("weights 2:1", 200, 100),
    weights("weights 3:1", 300, 100),
    weights("weights 5:1", 500, 100),
    weights("weights 10:1", 1000, 100),
    weights("weights 1:2", 100, 200),
    weights("weights 1:5", 100, 500),
    weights("weights 1:10", 100, 1000),
    otherwise("hogs in cpu.idle", How::Idle),
    otherwise("hogs nice 19, one group", How::Nice),
    otherwise("a cpuset for each", How::Fence),
    otherwise("a quota of one CPU for the hogs", How::Quota),
];

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("hog") => loop {
            black_box((0..1_000_000u64).fold(0, |sum, n| black_box(sum ^ n)));
        },
        Some("sleeper") => sleeper(),
        rounds => measure(rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS)),
    }
}

/// Prints how late each wake-up was, in microseconds, sorted.
fn sleeper() {
    // The kernel may otherwise wake it 50 us late on purpose (prctl(2), PR_SET_TIMERSLACK).
    nix::sys::prctl::set_timerslack(1).unwrap();
    let begun = Instant::now();
    let mut due = begun + PERIOD;
    let mut late = Vec::new();
    while begun.elapsed() < MEASURED {
        sleep(due.saturating_duration_since(Instant::now()));
        let woke = Instant::now();
        late.push(woke.saturating_duration_since(due).as_micros());
        // One that overslept several periods has been late once.
        due = (due + PERIOD).max(woke);
    }
    late.sort_unstable();
    println!("{} {}", late[late.len() / 2], late[late.len() * 99 / 100]);
}

/// What one case came to in one round.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    median_us: u64,
    p99_us: u64,
    /// CPU time of all that compute, in percent of one CPU.
    hogs_percent: u64,
}

fn measure(rounds: usize) {
    let cpus = two_cpus();
    let groups = Groups::make();
    let mut outcomes = vec![Vec::new(); CASES.len()];
    for round in 0..rounds {
        for (case, outcomes) in CASES.iter().zip(&mut outcomes) {
            outcomes.push(groups.try_case(case, cpus));
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    groups.remove();
    println!("{:<34}{:>12}{:>12}{:>12}", format!("medians of {rounds} rounds"), "p50 us", "p99 us", "hogs' CPU %");
    for (case, outcomes) in CASES.iter().zip(outcomes) {
        let of = |value: fn(&Outcome) -> u64| median(outcomes.iter().map(value).collect());
        let (p50, p99, hogs) = (of(|o| o.median_us), of(|o| o.p99_us), of(|o| o.hogs_percent));
        println!("{:<34}{p50:>12}{p99:>12}{hogs:>12}", case.name);
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// The first two CPUs this process may use; it and its children are kept to them.
fn two_cpus() -> [usize; 2] {
    let allowed = sched_getaffinity(None).unwrap();
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let cpus = [usable.next().unwrap(), usable.next().expect("two CPUs are needed")];
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).unwrap();
    cpus
}

/// The most there is, for both sides together: what else the machine does hardly gets between them.
const WEIGHT_OF_ALL: u32 = 10_000;

/// A cgroup for each side, in every hierarchy that is needed.
struct Groups {
    unified: bool,
    /// Where groups are made: the v2 tree, or the v1 hierarchies of `cpu` and `cpuset`.
    roots: Vec<PathBuf>,
}

impl Groups {
    fn make() -> Groups {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        let tree = mounts.iter().find(|mount| mount[2] == "cgroup2").map(|mount| PathBuf::from(mount[1]));
        let has_cpu = |tree: &PathBuf| {
            fs::read_to_string(tree.join("cgroup.controllers")).unwrap().split_whitespace().any(|one| one == "cpu")
        };
        let (unified, parents) = match tree.filter(has_cpu) {
            Some(tree) => {
                fs::write(tree.join("cgroup.subtree_control"), "+cpu +cpuset").unwrap();
                (true, vec![tree])
            }
            None => {
                let of = |controller: &str| {
                    let holds = |mount: &&Vec<&str>| {
                        mount[2] == "cgroup" && mount[3].split(',').any(|option| option == controller)
                    };
                    PathBuf::from(mounts.iter().find(holds).expect("the controllers cpu and cpuset are needed")[1])
                };
                let mut parents = vec![of("cpu"), of("cpuset")];
                parents.dedup();
                (false, parents)
            }
        };
        let roots: Vec<PathBuf> = parents.iter().map(|parent| parent.join(format!("wakeup-{}", id()))).collect();
        let groups = Groups { unified, roots };
        for (root, parent) in groups.roots.iter().zip(&parents) {
            fs::create_dir(root).expect("root is needed");
            if unified {
                fs::write(root.join("cgroup.subtree_control"), "+cpu +cpuset").unwrap();
            }
            for group in [root.clone(), root.join("sleeper"), root.join("hogs")] {
                if !group.exists() {
                    fs::create_dir(&group).unwrap();
                }
                // Empty in a new group of v1, and nobody may enter before they are set (cpuset(7)).
                for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|_| !unified) {
                    if group.join(file).exists() {
                        fs::copy(parent.join(file), group.join(file)).unwrap();
                    }
                }
            }
        }
        groups.set_weight("", WEIGHT_OF_ALL);
        groups
    }

    fn set(&self, group: &str, file: &str, value: &str) {
        let paths = self.roots.iter().map(|root| root.join(group).join(file));
        let path = paths.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {file} here"));
        fs::write(&path, value).unwrap_or_else(|error| panic!("{} = {value}: {error}", path.display()));
    }

    fn set_weight(&self, group: &str, weight: u32) {
        if self.unified {
            self.set(group, "cpu.weight", &weight.to_string());
        } else {
            self.set(group, "cpu.shares", &(weight * 1024 / 100).to_string());
        }
    }

    fn set_quota(&self, group: &str, us: Option<u64>) {
        match (self.unified, us) {
            (true, us) => self.set(group, "cpu.max", &us.map_or("max".to_owned(), |us| us.to_string())),
            (false, us) => self.set(group, "cpu.cfs_quota_us", &us.map_or("-1".to_owned(), |us| us.to_string())),
        }
    }

    /// Starts this program in a group.
    fn start(&self, group: &str, role: &str) -> Child {
        let child = Command::new(env::current_exe().unwrap()).arg(role).stdout(Stdio::piped()).spawn().unwrap();
        for root in &self.roots {
            fs::write(root.join(group).join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child
    }

    fn try_case(&self, case: &Case, [first, second]: [usize; 2]) -> Outcome {
        let Case { name: _, sleeper_weight, hogs_weight, how } = *case;
        let both = format!("{first},{second}");
        let cpus = |one: usize| if how == How::Fence { one.to_string() } else { both.clone() };
        self.set("sleeper", "cpuset.cpus", &cpus(first));
        self.set("hogs", "cpuset.cpus", &cpus(second));
        // An idle group takes no weight.
        self.set("hogs", "cpu.idle", "0");
        self.set_weight("sleeper", sleeper_weight);
        self.set_weight("hogs", hogs_weight);
        self.set_quota("hogs", (how == How::Quota).then_some(100_000));
        if how == How::Idle {
            self.set("hogs", "cpu.idle", "1");
        }
        let mut hogs: Vec<Child> = (0..HOGS).map(|_| self.start("hogs", "hog")).collect();
        if how == How::Nice {
            for hog in &hogs {
                renice(hog.id());
            }
        }
        sleep(SETTLING);
        let before = spent_ns(&hogs);
        let begun = Instant::now();
        let mut sleeper = self.start(if how == How::Nice { "hogs" } else { "sleeper" }, "sleeper");
        let mut line = String::new();
        BufReader::new(sleeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (spent, elapsed) = (spent_ns(&hogs) - before, u64::try_from(begun.elapsed().as_nanos()).unwrap());
        sleeper.wait().unwrap();
        for hog in &mut hogs {
            hog.kill().unwrap();
            hog.wait().unwrap();
        }
        let (median_us, p99_us) = line.trim().split_once(' ').expect("the sleeper's figures");
        Outcome {
            median_us: median_us.parse().unwrap(),
            p99_us: p99_us.parse().unwrap(),
            hogs_percent: 100 * spent / elapsed,
        }
    }

    fn remove(&self) {
        for root in &self.roots {
            for group in [root.join("sleeper"), root.join("hogs"), root.clone()] {
                remove(&group);
            }
        }
    }
}

/// CPU time in nanoseconds, the first number of `/proc/PID/schedstat` (Documentation/scheduler/sched-stats.rst).
fn spent_ns(processes: &[Child]) -> u64 {
    let spent = |child: &Child| {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", child.id())).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    processes.iter().map(spent).sum()
}

fn renice(pid: u32) {
    let status = Command::new("renice").args(["-n", "19", "-p", &pid.to_string()]).stdout(Stdio::null()).status();
    assert!(status.unwrap().success(), "renice is needed");
}

/// The last process of a group takes a moment to leave it.
fn remove(group: &Path) {
    for _ in 0..100 {
        if fs::remove_dir(group).is_ok() {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    eprintln!("{} is left", group.display());
}
