//! What the kernel says, asked without the program under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where each hierarchy with a controller, or the v2 tree, is mounted.
fn mounts() -> Vec<(PathBuf, String, String)> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        (PathBuf::from(fields[1]), fields[2].to_owned(), fields[3].to_owned())
    };
    text.lines().map(mount).filter(|(_, fstype, _)| fstype.starts_with("cgroup")).collect()
}

/// Whether controllers are on v2 here.
pub fn is_unified() -> bool {
    let has = |mount: &PathBuf| {
        fs::read_to_string(mount.join("cgroup.controllers")).is_ok_and(|text| text.contains("memory"))
    };
    mounts().iter().any(|(mount, fstype, _)| fstype == "cgroup2" && has(mount))
}

/// A group's directory in every hierarchy that has it.
pub fn directories(group: &str) -> Vec<PathBuf> {
    let path = |mount: &Path| mount.join(group.trim_start_matches('/'));
    mounts().iter().map(|(mount, ..)| path(mount)).filter(|path| path.exists()).collect()
}

/// A control file of a group: the first of `files` that exists in any hierarchy.
pub fn read(group: &str, files: &[&str]) -> String {
    let mut paths = directories(group)
        .into_iter()
        .flat_map(|directory| files.iter().map(move |file| directory.join(file)).collect::<Vec<_>>());
    let text = paths.find_map(|path| fs::read_to_string(path).ok());
    text.unwrap_or_else(|| panic!("{group} has none of {files:?}")).trim().to_owned()
}

/// Writes a control file by hand.
pub fn write(group: &str, files: &[&str], value: &str) {
    for directory in directories(group) {
        for file in files.iter().filter(|file| directory.join(file).exists()) {
            fs::write(directory.join(file), value).unwrap();
        }
    }
}

/// The CPU limit in thousandths of a CPU, none for no limit.
pub fn cpu_milli(group: &str) -> Option<u64> {
    let text = read(group, &["cpu.max", "cpu.cfs_quota_us"]);
    let quota = text.split(' ').next().unwrap().to_owned();
    quota.parse::<u64>().ok().map(|quota| quota / 100)
}

pub fn memory_bytes(group: &str) -> u64 {
    read(group, &["memory.max", "memory.limit_in_bytes"]).parse().unwrap_or(u64::MAX)
}

pub fn cpus(group: &str) -> String {
    read(group, &["cpuset.cpus"])
}

/// The processes of a group.
pub fn processes(group: &str) -> BTreeSet<u32> {
    let files = directories(group).into_iter().map(|directory| directory.join("cgroup.procs"));
    files
        .flat_map(|file| {
            fs::read_to_string(file).unwrap_or_default().lines().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

/// A field of `/proc/PID/status`.
pub fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line =
        text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")).map(|value| value.trim().to_owned()));
    line.unwrap_or_default()
}

pub fn is_alive(pid: u32) -> bool {
    let state = status(pid, "State");
    !state.is_empty() && !state.starts_with('Z')
}

pub fn parent(pid: u32) -> u32 {
    status(pid, "PPid").parse().unwrap_or(0)
}

/// The start time in ticks, which with the pid names a process for ever.
pub fn start_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

pub fn environment(pid: u32) -> BTreeSet<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8_lossy(&bytes).split('\0').filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

pub fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

/// A figure in KiB of `/proc/PID/smaps_rollup`.
pub fn smaps_kib(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// The kernel's version, as far as it tells features apart.
pub fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(['.', '-']).map(|part| part.trim().parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// CPU time of a process, in ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    rest.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
