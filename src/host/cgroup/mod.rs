//! Cgroups: one trait, two backends, chosen by looking at the host.
//!
//! Owns the directories `<parent>/<name>.workload` of every hierarchy in use. Decides nothing about values: the planner spells them, a
//! backend writes and reads them as text.
//!
//! Guarantees: [`Backend::create`] fails if the group exists, so the directory is the lock that keeps a second instance of a name from
//! starting; nothing here sleeps; an error names the file, the value and the kernel's answer.

mod counters;
mod hierarchies;
mod legacy;
mod partition;
mod probe;
mod refill;
mod unified;

pub use counters::{Counter, Counters};
pub use unified::{read_at, write_at};

pub use probe::{Opened, is_below, membership, open, remove_parent};

use crate::host::lock::Holder;
use crate::model::cgroup::{PARTITION, Support, Write};
use crate::model::cpuset::NodeSet;
use crate::model::name::Name;
use crate::model::observed::Group;
use crate::model::usage::Usage;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Behind every group's name: no control file ends like this, so a workload may be called `tasks` or `memory.max`.
const SUFFIX: &str = ".workload";

/// Groups inside a workload's in the v2 tree that exec probes run in, so that one can be ended with all it has started.
pub const PROBE_GROUPS: [&str; 3] = ["probe-startup", "probe-readiness", "probe-liveness"];

/// The control files a workload's group is made of, over both generations. Which of them exist is probed.
pub const FILES: [&str; 35] = [
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.idle",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.cfs_burst_us",
    "cpu.shares",
    "cpuset.cpus",
    "cpuset.mems",
    PARTITION,
    "memory.min",
    "memory.low",
    "memory.oom.group",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "pids.max",
    "io.max",
    "io.weight",
    "io.bfq.weight",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
    "blkio.bfq.weight",
    "hugetlb.2MB.max",
    "hugetlb.1GB.max",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.1GB.limit_in_bytes",
    "cgroup.events",
    "memory.events",
    "memory.oom_control",
];

/// The cgroups of one host, below one parent.
pub trait Backend: Send + Sync {
    fn support(&self) -> &Support;

    /// Makes the group of a workload, with the kernel's defaults.
    fn create(&self, name: &Name) -> Result<(), CgroupError>;

    /// The group's directory in a v2 tree, for `CLONE_INTO_CGROUP`.
    fn directory(&self, name: &Name) -> Result<Option<OwnedFd>, CgroupError>;

    /// v1 files that a new process writes `0` to, which moves the writer.
    fn tasks(&self, name: &Name) -> Vec<PathBuf>;

    /// Writes one control file. The kernel may round the value; [`Backend::read`] tells.
    fn write(&self, name: &Name, write: &Write) -> Result<(), CgroupError>;

    /// Asks again for the partitions that were not granted, where there are any.
    fn ask_again(&self) {}

    /// Before a memory limit is lowered: has what it no longer allows reclaimed, or fails. Where the kernel does so itself there is
    /// nothing to do.
    fn make_room(&self, name: &Name, write: &Write) -> Result<(), CgroupError>;

    /// What the group holds, `None` if there is no such group.
    fn read(&self, name: &Name) -> Result<Option<Group>, CgroupError>;

    /// Processes the kernel killed in the group for want of memory.
    fn oom_kills(&self, name: &Name) -> u64;

    /// What the group has used and run into, as far as it is counted here; all zero where there is no group.
    fn usage(&self, name: &Name) -> Usage;

    /// Where that is counted, for those who read it often.
    fn counters(&self) -> Counters;

    /// Makes what is missing of the group again, and thaws it.
    fn restore(&self, name: &Name) -> Result<(), CgroupError>;

    /// Moves a process, with all its threads, into the group. One that has ended is fine.
    fn attach(&self, name: &Name, pid: u32) -> Result<(), CgroupError>;

    /// The workload in whose group a process is in every hierarchy that counts, told by its `/proc/PID/cgroup`.
    fn home(&self, memberships: &str) -> Option<Name>;

    /// Pids in the group, as this process sees them.
    fn processes(&self, name: &Name) -> Result<Vec<u32>, CgroupError>;

    /// Kills every process of the group, those that fork meanwhile included.
    fn kill(&self, name: &Name) -> Result<(), CgroupError>;

    /// Removes an empty group. None to remove is fine.
    fn remove(&self, name: &Name) -> Result<(), CgroupError>;

    /// The workloads that have a group.
    fn list(&self) -> Result<Vec<Name>, CgroupError>;

    /// The group's path below the hierarchies' roots, for people.
    fn path(&self, name: &Name) -> String;

    /// The kernel told of a CPU or a node that came or went.
    fn expect_refill(&self) {}

    /// Gives the parent back what the kernel has taken from it with a CPU or a node that is there again.
    fn refill(&self) -> Result<(), CgroupError> {
        Ok(())
    }

    /// NUMA nodes with memory that groups below the parent may use, where that can be asked.
    fn usable_nodes(&self) -> Option<NodeSet>;

    /// CPUs that groups below the parent may use.
    fn usable_cpus(&self) -> Result<String, CgroupError>;
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {path}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("cannot make the cgroup {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot remove the cgroup {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("cannot open the cgroup {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "{path} cannot become {wanted}: {used} bytes are in use and no more can be reclaimed\n  help: free memory in it, raise the limit, or write `force: true` under `memory` to have it ended if need be"
    )]
    InUse { path: PathBuf, wanted: u64, used: u64 },
    #[error(
        "{path} cannot become {wanted}: more is in use and no more can be reclaimed\n  help: free memory in it, raise the limit, or restart it: legacy cgroups force no limit"
    )]
    InUseLegacy { path: PathBuf, wanted: String },
    #[error("{file} is not among this host's control files")]
    NoSuchFile { file: String },
    #[error(
        "the cgroup {path} is used by another controller{holder}\n  help: stop it, or give this one another --cgroup-parent"
    )]
    Locked { path: PathBuf, holder: Holder },
    #[error(
        "this host has no usable cgroups: neither a v2 tree nor v1 hierarchies with cpu, memory and pids are mounted\n  help: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoHierarchy,
}

/// Where no cpuset can be asked: the CPUs this process may run on.
fn cpus_of_this_process() -> Result<String, CgroupError> {
    let path = PathBuf::from("/proc/self/status");
    let failed = |source| CgroupError::Read { path: path.clone(), source };
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map(|list| list.trim().to_owned()).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

fn directory_name(name: &Name) -> String {
    format!("{name}{SUFFIX}")
}

/// The workload whose group a directory is.
fn workload_of(directory: &str) -> Option<Name> {
    directory.strip_suffix(SUFFIX)?.parse().ok()
}

fn list_directories(parent: &Path) -> Result<Vec<Name>, CgroupError> {
    let failed = |source| CgroupError::Read { path: parent.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.extend(entry.file_name().to_str().and_then(workload_of));
    }
    names.sort();
    Ok(names)
}

/// A counter such as `oom_kill 3` in a file of `key value` lines.
fn counter(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(found, _)| *found == key).and_then(|(_, value)| value.trim().parse().ok())
}

/// The workload whose group below `parent` a path of `/proc/PID/cgroup` names. Where the kernel's root is not ours (a container's), the path
/// begins with more than we know of.
fn workload_at(path: &str, parent: &str) -> Option<Name> {
    let (mut above, mut directory) = path.rsplit_once('/')?;
    if PROBE_GROUPS.contains(&directory) {
        (above, directory) = above.rsplit_once('/')?;
    }
    let parent = parent.trim_matches('/');
    let below_parent = above.strip_suffix(parent).is_some_and(|rest| rest.ends_with('/'));
    below_parent.then(|| workload_of(directory)).flatten()
}

/// Microseconds for which some task waited, of a PSI file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`.
pub fn stalled_us(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.rsplit_once("total=").and_then(|(_, total)| total.trim().parse().ok())
}

fn parse_pids(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_may_be_called_like_a_control_file() {
        let name: Name = "cgroup.procs".parse().unwrap();
        assert_eq!(directory_name(&name), "cgroup.procs.workload");
        assert_eq!(workload_of("cgroup.procs.workload"), Some(name));
        assert_eq!(workload_of("cgroup.procs"), None);
    }

    #[test]
    fn a_process_is_at_home_below_our_parent_only() {
        let web: Option<Name> = "web".parse().ok();
        assert_eq!(workload_at("/ctl/web.workload", "/ctl/"), web);
        assert_eq!(workload_at("/docker/0123/ctl/web.workload", "ctl"), web);
        assert_eq!(workload_at("/a/b/web.workload", "a/b"), web);
        assert_eq!(workload_at("/ctl/web.workload/probe-liveness", "ctl"), web);
        for elsewhere in ["/web.workload", "/notctl/web.workload", "/ctl", "/ctl/web", "/ctl/web.workload/sub", "/"] {
            assert_eq!(workload_at(elsewhere, "ctl"), None, "{elsewhere}");
        }
    }

    #[test]
    fn stalls_are_read_in_microseconds() {
        let text =
            "some avg10=0.00 avg60=1.50 avg300=0.33 total=204961\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!((stalled_us(text), stalled_us("")), (Some(204_961), None));
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let events = "low 0\noom 2\noom_kill 3\n";
        assert_eq!(
            (counter(events, "oom"), counter(events, "oom_kill"), counter(events, "max")),
            (Some(2), Some(3), None)
        );
    }
}
