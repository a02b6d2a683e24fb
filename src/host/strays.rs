//! Processes of workloads that somebody has moved out of their cgroups, where no limit holds them and no kill reaches them.
//!
//! Approach: what belongs together is told by the pid namespace, which nobody leaves. One walk over `/proc`: whoever is wholly in a group of
//! ours is at home and costs one read; of the others the pid namespace is looked at, one more call. The walk asks nothing of the workloads
//! and takes 10 us a process.

use crate::model::name::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Pids that are out of their workload's groups, by workload. `inits` are the PID 1s of what runs, by the host's number; `home` tells whose
/// groups a `/proc/PID/cgroup` speaks of.
pub fn find(inits: &[(Name, u32)], home: impl Fn(&str) -> Option<Name>) -> BTreeMap<Name, BTreeSet<u32>> {
    let namespaces: BTreeMap<u64, &Name> =
        inits.iter().filter_map(|(name, pid)| Some((pid_namespace(*pid)?, name))).collect();
    let running: BTreeSet<&Name> = inits.iter().map(|(name, _)| name).collect();
    let mut strays: BTreeMap<Name, BTreeSet<u32>> = BTreeMap::new();
    // What cannot be read has ended meanwhile.
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(memberships) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        if home(&memberships).is_some_and(|name| running.contains(&name)) {
            continue;
        }
        let Some(name) = pid_namespace(pid).and_then(|namespace| namespaces.get(&namespace)) else { continue };
        if !is_ending(pid) {
            strays.entry((*name).clone()).or_default().insert(pid);
        }
    }
    strays
}

/// The inode of its pid namespace.
fn pid_namespace(pid: u32) -> Option<u64> {
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

    #[test]
    fn whoever_shares_the_pid_namespace_and_is_not_at_home_is_found() {
        let web: Name = "web".parse().unwrap();
        let own = std::process::id();
        // This process stands in for an init: everybody in its pid namespace is a stray, unless at home.
        let all = find(&[(web.clone(), own)], |_| None);
        assert!(all[&web].contains(&own), "{all:?}");
        assert_eq!(find(&[(web.clone(), own)], |_| Some(web.clone())), BTreeMap::new());
        assert_eq!(find(&[], |_| None), BTreeMap::new());
    }

    #[test]
    fn a_zombie_is_no_stray() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        while !is_ending(pid) {
            std::thread::yield_now();
        }
        let web: Name = "web".parse().unwrap();
        assert!(!find(&[(web.clone(), std::process::id())], |_| None)[&web].contains(&pid));
        child.wait().unwrap();
    }
}
