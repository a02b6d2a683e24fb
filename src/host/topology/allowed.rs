//! Which CPUs the cpuset of a process allows it, from `proc` and the cgroup file systems below any root.

use super::list;
use crate::model::cpuset::CpuSet;
use std::fs;
use std::path::Path;

/// What the cpuset of the process `self` allows, where the tree below `root` tells; none is no bound.
///
/// The kernel's effective set counts before the one that was asked for: of a set that names CPUs the machine has not, only the rest is
/// given (cgroup-v2.rst, `cpuset.cpus.effective`; the v1 file beside `cpuset.cpus`).
pub fn allowed(root: &Path) -> Option<CpuSet> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (mounts, groups) = (read("proc/mounts"), read("proc/self/cgroup"));
    let own = read("proc/self/cpuset");
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (folder, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let is_v1 = kind == "cpuset" || kind == "cgroup" && options.split(',').any(|option| option == "cpuset");
        let (group, files): (_, &[&str]) = match kind {
            "cgroup2" => (group_of(&groups, ""), &["cpuset.cpus.effective"]),
            _ if is_v1 => (group_of(&groups, "cpuset"), &["cpuset.effective_cpus", "cpuset.cpus", "cpus"]),
            _ => return None,
        };
        let group = group.unwrap_or(own.trim());
        let folder = root.join(folder.trim_start_matches('/')).join(group.trim_start_matches('/'));
        files.iter().find_map(|file| list(&folder.join(file)))
    })
}

/// Where a process is in the hierarchy of a controller; `` is that of v2 (cgroups(7), `/proc/pid/cgroup`).
fn group_of<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(group)
    })
}
