//! Processes of workloads that somebody has moved out of their cgroups, where no limit holds them and no kill reaches them.
//!
//! Approach: what belongs together is told by the pid namespace, which nobody leaves. One walk over `/proc`: of each process the namespace
//! is looked at, and of those in a workload's also the groups, which have to be that workload's own and no other's. The walk asks nothing
//! of the workloads and takes 10 us a process.
//! Caveat: a workload with CAP_SYS_ADMIN can make further pid namespaces; what is in those is not found.

use crate::model::name::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Pids that are out of their workload's groups, by workload. `namespaces` are the pid namespaces of what runs; `home` tells whose groups a
/// `/proc/PID/cgroup` speaks of.
pub fn find(namespaces: &BTreeMap<u64, Name>, home: impl Fn(&str) -> Option<Name>) -> BTreeMap<Name, BTreeSet<u32>> {
    let mut strays: BTreeMap<Name, BTreeSet<u32>> = BTreeMap::new();
    let own = pid_namespace(std::process::id());
    // What cannot be read has ended meanwhile.
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        // Nothing in our own namespace is a workload's, whatever else there may be to say.
        let namespace = pid_namespace(pid).filter(|namespace| Some(*namespace) != own);
        let Some(name) = namespace.and_then(|namespace| namespaces.get(&namespace)) else { continue };
        let Ok(memberships) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        if home(&memberships).as_ref() != Some(name) && !is_ending(pid) {
            strays.entry(name.clone()).or_default().insert(pid);
        }
    }
    strays
}

/// The inode of a process's pid namespace.
pub fn pid_namespace(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|found| found.ino())
}

/// A process that has ended and not been reaped is shown in the root group (v1).
fn is_ending(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process alone in a pid namespace.
    #[allow(clippy::zombie_processes, reason = "whoever calls this waits for it")]
    fn elsewhere() -> (Child, u32) {
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sleep", "100"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        loop {
            let found = fs::read_to_string(&children).unwrap().trim().parse::<u32>();
            if let Ok(inside) = found
                && pid_namespace(inside) != pid_namespace(std::process::id())
            {
                return (child, inside);
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn whoever_shares_the_namespace_has_to_be_in_that_workloads_groups() {
        let (mut outside, inside) = elsewhere();
        let (web, db): (Name, Name) = ("web".parse().unwrap(), "db".parse().unwrap());
        let namespaces = BTreeMap::from([(pid_namespace(inside).unwrap(), web.clone())]);
        let stray = BTreeMap::from([(web.clone(), BTreeSet::from([inside]))]);
        assert_eq!(find(&namespaces, |_| None), stray);
        assert_eq!(find(&namespaces, |_| Some(db.clone())), stray, "another workload's groups are not its home");
        assert_eq!(find(&namespaces, |_| Some(web.clone())), BTreeMap::new());
        assert_eq!(find(&BTreeMap::new(), |_| None), BTreeMap::new());
        // A number that was given to somebody of the host's meanwhile takes nobody along.
        let own = BTreeMap::from([(pid_namespace(std::process::id()).unwrap(), web)]);
        assert_eq!(find(&own, |_| None), BTreeMap::new());
        outside.kill().unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_not_reaped_yet_is_ending() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        while !is_ending(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
