//! The machine's CPUs from sysfs, under any root.
//!
//! Reads what is there and leaves empty what is not: virtual machines have no caches, old kernels no lists of siblings.

use crate::model::cpuset::CpuSet;
use crate::model::topology::Topology;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The one file that has to be there.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no list of CPUs")]
    List { path: PathBuf, source: crate::model::cpuset::InvalidCpuList },
}

/// Reads the tree below `root` (`/sys`). `allowed` is what our own cgroup may use.
pub fn read(root: &Path, allowed: &CpuSet) -> Result<Topology, TopologyError> {
    let cpus = root.join("devices/system/cpu");
    let path = cpus.join("online");
    let text = fs::read_to_string(&path).map_err(|source| TopologyError::Read { path: path.clone(), source })?;
    let online: CpuSet = text.parse().map_err(|source| TopologyError::List { path, source })?;
    let isolated = list(&cpus.join("isolated")).unwrap_or_default();
    let usable = online.intersection(allowed).difference(&isolated);
    let mut topology = Topology { online, usable, ..Topology::default() };
    for cpu in topology.online.iter() {
        let folder = cpus.join(format!("cpu{cpu}"));
        let siblings = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| list(&folder.join("topology").join(name)))
                .map(|set| set.intersection(&topology.online))
        };
        // The second names are those of kernels before 5.x.
        let core = siblings(&["core_cpus_list", "thread_siblings_list"]);
        let package = siblings(&["package_cpus_list", "core_siblings_list"]);
        let llc = last_level_cache(&folder.join("cache")).map(|set| set.intersection(&topology.online));
        for (group, groups) in
            [(core, &mut topology.cores), (package, &mut topology.packages), (llc, &mut topology.llcs)]
        {
            if let Some(group) = group.filter(|group| !group.is_empty() && !groups.contains(group)) {
                groups.push(group);
            }
        }
    }
    topology.nodes = nodes(&root.join("devices/system/node"), &topology.online);
    Ok(topology)
}

fn list(path: &Path) -> Option<CpuSet> {
    fs::read_to_string(path).ok()?.parse().ok()
}

/// The CPUs that share the highest level of cache with the one whose `cache` folder this is.
fn last_level_cache(folder: &Path) -> Option<CpuSet> {
    let indexes = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let caches = indexes.filter_map(|path| {
        let level: u32 = fs::read_to_string(path.join("level")).ok()?.trim().parse().ok()?;
        let kind = fs::read_to_string(path.join("type")).ok()?;
        (kind.trim() != "Instruction").then_some((level, path))
    });
    let (_, path) = caches.max()?;
    list(&path.join("shared_cpu_list"))
}

fn nodes(folder: &Path, online: &CpuSet) -> BTreeMap<u32, CpuSet> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let nodes = entries.flatten().filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, list(&entry.path().join("cpulist"))?.intersection(online)))
    });
    nodes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join("devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_tree_of_threads_caches_and_nodes_is_read() {
        let mut files = vec![
            ("cpu/online", "0-3\n"),
            ("cpu/isolated", "3\n"),
            ("node/node0/cpulist", "0-3\n"),
            ("node/node1/cpulist", "\n"),
        ];
        for (cpu, core) in [("cpu/cpu0", "0,2"), ("cpu/cpu1", "1,3"), ("cpu/cpu2", "0,2"), ("cpu/cpu3", "1,3")] {
            for (file, text) in [
                ("topology/core_cpus_list", core),
                ("topology/core_siblings_list", "0-3"),
                ("cache/index0/level", "1"),
                ("cache/index0/type", "Data"),
                ("cache/index0/shared_cpu_list", core),
                ("cache/index3/level", "3"),
                ("cache/index3/type", "Unified"),
                ("cache/index3/shared_cpu_list", "0-3"),
            ] {
                files.push((Box::leak(format!("{cpu}/{file}").into_boxed_str()), text));
            }
        }
        let topology = read(tree(&files).path(), &"0-15".parse().unwrap()).unwrap();
        insta::assert_snapshot!(serde_json::to_string(&topology).unwrap(), @r#"{"online":"0-3","usable":"0-2","cores":["0,2","1,3"],"llcs":["0-3"],"nodes":{"0":"0-3","1":""},"packages":["0-3"]}"#);
    }

    #[test]
    fn what_a_machine_does_not_tell_is_left_empty() {
        let topology = read(tree(&[("cpu/online", "0-1")]).path(), &"0".parse().unwrap()).unwrap();
        assert_eq!(topology.usable.to_string(), "0");
        assert_eq!((topology.cores.len(), topology.llcs.len(), topology.nodes.len()), (0, 0, 0));
        let missing = read(Path::new("/nonexistent"), &CpuSet::new()).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /nonexistent/devices/system/cpu/online");
    }

    #[test]
    fn this_machine_can_be_read() {
        let topology = read(Path::new("/sys"), &(0..4096).collect()).unwrap();
        assert!(!topology.online.is_empty());
        for groups in [&topology.cores, &topology.packages] {
            assert!(groups.iter().all(|group| group.is_subset(&topology.online)));
        }
    }
}
