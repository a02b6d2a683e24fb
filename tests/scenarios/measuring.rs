//! What it costs to look at a thousand workloads every five seconds.

use super::world::clear_cgroups;
use containerctl::host::cgroup;
use containerctl::host::sampler::{Meter, Sampler};
use containerctl::model::name::Name;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

const WORKLOADS: usize = 1000;
const BUSY: usize = 16;
/// Through all that are cold once, and once more.
const READINGS: u32 = 16;
/// Half a per cent of a CPU, of the five seconds between two turns.
const CPU_MAX: Duration = Duration::from_millis(25);

fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Calls of this thread that read (`syscr`, proc_pid_io(5)).
fn reads() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

#[test]
fn a_thousand_workloads_are_measured_for_half_a_percent_of_a_cpu() {
    let parent = format!("measuring-{}", std::process::id());
    let opened = cgroup::open(&parent).unwrap();
    let runs: BTreeMap<Name, u64> = (0..WORKLOADS).map(|n| (format!("w{n:03}").parse().unwrap(), 1)).collect();
    for name in runs.keys() {
        opened.backend.create(name).unwrap();
        for write in [("cpuset.cpus", opened.backend.usable_cpus().unwrap()), ("cpuset.mems", "0".to_owned())] {
            let (file, value) = write;
            if opened.backend.support().files.contains(file) {
                opened
                    .backend
                    .write(name, &containerctl::model::cgroup::Write { file: file.to_owned(), value })
                    .unwrap();
            }
        }
    }
    let hog = |name: &Name| {
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        opened.backend.attach(name, child.id()).unwrap();
        child
    };
    let mut hogs: Vec<Child> = runs.keys().take(BUSY).map(hog).collect();
    let mut sampler = Sampler::new(opened.backend.counters(), PathBuf::from("/proc/stat")).unwrap();
    for _ in 0..READINGS / 2 {
        sampler.read(&runs).unwrap();
    }
    sleep(Duration::from_secs(1));
    sampler.read(&runs).unwrap();
    let (before, calls) = (spent(), reads());
    let readings: Vec<_> = (0..READINGS).map(|_| sampler.read(&runs).unwrap().workloads).collect();
    let (each, calls) = (spent().saturating_sub(before) / READINGS, (reads() - calls) / u64::from(READINGS));
    for hog in &mut hogs {
        hog.kill().unwrap();
        hog.wait().unwrap();
    }
    drop(opened);
    clear_cgroups(&parent);
    let read: usize = readings.iter().map(BTreeMap::len).sum();
    println!("a reading of {} of {WORKLOADS}: {each:?} of a CPU, {calls} calls that read", read / readings.len());
    let all: BTreeMap<&Name, u64> = readings.iter().flatten().map(|(name, count)| (name, count.cpu_us)).collect();
    assert_eq!(all.len(), WORKLOADS, "everyone has a turn");
    let busy = all.values().filter(|spent| **spent > 0).count();
    assert_eq!(busy, BUSY, "those that work were seen to, and nobody else");
    assert!(each <= CPU_MAX, "a reading took {each:?} of a CPU");
}
