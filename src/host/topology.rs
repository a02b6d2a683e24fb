//! The machine's CPUs from sysfs, under any root: the running machine's, or a saved tree's.
//!
//! Problem: no two kernels show the same files. Virtual machines have no caches, old kernels masks instead of lists, some firmware calls
//! every CPU part of every node.
//! Approach: read what is there, leave empty what is not. A group names its members, so that each file is read once a group, not once a
//! CPU; the first group that claims a CPU has it, which keeps every list disjoint whatever the firmware says.
//! Guarantees: never fails for a file that is missing, empty or nonsense, but for a machine that does not say which CPUs it has.

mod allowed;
mod kinds;

use crate::model::cpuset::{CPU_MAX, CpuSet};
use crate::model::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use allowed::allowed;

/// No list of CPUs and no folder of any.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no list of CPUs")]
    List { path: PathBuf, source: crate::model::cpuset::InvalidCpuList },
    #[error("{path} shows no CPU that is online")]
    Empty { path: PathBuf },
}

/// The names of a file that tells of a set of CPUs, newest first (Documentation/admin-guide/cputopology.rst). Those that end like a list
/// hold one, the others a mask.
type Names<'a> = &'a [&'static str];
const CORE: Names<'_> = &["core_cpus_list", "core_cpus", "thread_siblings_list", "thread_siblings"];
const DIE: Names<'_> = &["die_cpus_list", "die_cpus"];
const PACKAGE: Names<'_> = &["package_cpus_list", "package_cpus", "core_siblings_list", "core_siblings"];
const CACHE: Names<'_> = &["shared_cpu_list", "shared_cpu_map"];
const NODE: Names<'_> = &["cpulist", "cpumap"];

/// Enough for what most files of sysfs say, and for a mask of 8192 CPUs; a longer one costs a second read.
const READ_BYTES: usize = 4096;

/// Reads the machine whose `sys` and `proc` are below `root`: `/`, or a saved tree. `allowed` is what our own cgroup may use, if that is
/// bounded.
pub fn read(root: &Path, allowed: Option<&CpuSet>) -> Result<Topology, TopologyError> {
    let system = root.join("sys/devices/system");
    let cpus = system.join("cpu");
    let (online, offline) = online(&cpus)?;
    let isolated = list(&cpus.join("isolated")).unwrap_or_default();
    let usable = allowed.map_or_else(|| online.clone(), |allowed| online.intersection(allowed)).difference(&isolated);
    let topology_of = |cpu: u32| cpus.join(format!("cpu{cpu}/topology"));
    let witnesses = witnesses(&online);
    let told = |names: Names<'_>| {
        let is_shown = |name: &&str| witnesses.iter().any(|cpu| topology_of(*cpu).join(name).exists());
        let names: Vec<&str> = names.iter().copied().filter(is_shown).collect();
        if names.is_empty() { Vec::new() } else { groups(&online, |cpu| set(&topology_of(cpu), &names)) }
    };
    let cores = one_by_one(&cpus, told(CORE));
    let packages = told(PACKAGE);
    let mut dies = told(DIE);
    if dies == packages || dies.iter().all(|die| die.len() == 1 || cores.contains(die)) {
        dies.clear();
    }
    let cache_of = |cpu: u32| cpus.join(format!("cpu{cpu}/cache"));
    let has_caches = witnesses.iter().any(|cpu| cache_of(*cpu).is_dir());
    let llcs = if has_caches { groups(&online, |cpu| last_level_cache(&cache_of(cpu), &online)) } else { Vec::new() };
    let nodes = nodes(&system.join("node"), &gpu_nodes(&root.join("proc/driver/nvidia/gpus")), &online);
    let kinds = kinds::read(root, &online);
    Ok(Topology { packages, dies, nodes, llcs, cores, online, offline, usable, kinds })
}

/// A few CPUs that stand for all: a kernel that shows a file for one shows it for nearly all, so that what none of these has is not looked for
/// 255 times more. The first alone is not enough: of a saved tree, or while it comes or goes, some files of one CPU may be missing.
fn witnesses(online: &CpuSet) -> Vec<u32> {
    const WITNESSES: usize = 4;
    let cpus: Vec<u32> = online.iter().collect();
    let mut chosen: Vec<u32> = (0..WITNESSES)
        .filter_map(|at| cpus.get(at * cpus.len().saturating_sub(1) / (WITNESSES - 1)).copied())
        .collect();
    chosen.dedup();
    chosen
}

/// The CPUs that are online, and those that are there and are not.
fn online(cpus: &Path) -> Result<(CpuSet, CpuSet), TopologyError> {
    let entries = || fs::read_dir(cpus).map_err(|source| TopologyError::Read { path: cpus.to_owned(), source });
    let number = |name: &str| name.strip_prefix("cpu")?.parse().ok().filter(|cpu| *cpu <= CPU_MAX);
    let folders = || -> Result<CpuSet, TopologyError> {
        Ok(entries()?.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect())
    };
    let online = match list(&cpus.join("online")) {
        Some(online) => online,
        // Kernels before 2.6.26 have no list; a CPU without a switch of its own cannot be off.
        None => {
            let is_on = |cpu: &u32| number_in(&cpus.join(format!("cpu{cpu}/online"))) != Some(0);
            folders()?.iter().filter(is_on).collect()
        }
    };
    if online.is_empty() {
        return Err(TopologyError::Empty { path: cpus.to_owned() });
    }
    let present = match list(&cpus.join("present")) {
        Some(present) => present,
        None => folders()?,
    };
    let offline = present.difference(&online);
    Ok((online, offline))
}

/// The groups that `of` tells of some CPU, each once; a CPU belongs to the first that claims it.
fn groups(online: &CpuSet, of: impl Fn(u32) -> Option<CpuSet>) -> Vec<CpuSet> {
    let mut open = online.clone();
    let mut groups = Vec::new();
    for cpu in online.iter() {
        let group = if open.contains(cpu) { of(cpu) } else { None };
        // One that does not claim even the CPU it is told of says nothing.
        if let Some(group) = group.filter(|group| group.contains(cpu)) {
            let group = group.intersection(&open);
            open = open.difference(&group);
            groups.push(group);
        }
    }
    groups
}

/// Threads of one core have one `core_id`; where they have several, as AMD's modules of two cores have, each is a core of its own.
fn one_by_one(cpus: &Path, cores: Vec<CpuSet>) -> Vec<CpuSet> {
    let mut split: Vec<CpuSet> = Vec::with_capacity(cores.len());
    for core in cores {
        let mut by_id: BTreeMap<Option<u32>, CpuSet> = BTreeMap::new();
        for cpu in core.iter().filter(|_| core.len() > 1) {
            by_id.entry(number_in(&cpus.join(format!("cpu{cpu}/topology/core_id")))).or_default().insert(cpu);
        }
        if by_id.len() > 1 { split.extend(by_id.into_values()) } else { split.push(core) }
    }
    split.sort_by_key(|core| core.iter().next());
    split
}

/// The CPUs that share the highest level of cache with the one whose `cache` folder this is.
fn last_level_cache(folder: &Path, online: &CpuSet) -> Option<CpuSet> {
    let indexes = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let mut caches: Vec<(u32, PathBuf)> =
        indexes.filter_map(|path| Some((number_in(&path.join("level"))?, path))).collect();
    caches.sort();
    caches.into_iter().rev().find_map(|(_, path)| {
        let holds_data = text(&path.join("type")).is_none_or(|kind| kind != "Instruction");
        // Some kernels show a cache and share it with nobody at all.
        set(&path, CACHE).filter(|shared| holds_data && !shared.is_disjoint(online))
    })
}

/// Nodes that are disjoint; a machine that shows none is one.
fn nodes(folder: &Path, hidden: &BTreeSet<u32>, online: &CpuSet) -> BTreeMap<u32, CpuSet> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix("node")?.parse::<u32>().ok();
    let told: BTreeMap<u32, CpuSet> = entries
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, set(&entry.path(), NODE).unwrap_or_default())))
        .filter(|(number, _)| !hidden.contains(number))
        .collect();
    let mut open = online.clone();
    let mut nodes = BTreeMap::new();
    for (number, cpus) in told {
        let cpus = cpus.intersection(online);
        // A node that claims CPUs of an earlier one is a firmware's mistake, and its memory is nearest to nobody knows which.
        if cpus.is_subset(&open) {
            open = open.difference(&cpus);
            nodes.insert(number, cpus);
        }
    }
    if nodes.is_empty() {
        nodes.insert(0, online.clone());
    }
    nodes
}

/// Nodes that are the memory of an NVIDIA GPU: the driver's, not for workloads to be placed near.
fn gpu_nodes(folder: &Path) -> BTreeSet<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |text: String| text.lines().find_map(|line| line.strip_prefix("Node:")?.trim().parse().ok());
    entries.filter_map(|entry| number(text(&entry.path().join("numa_status"))?)).collect()
}

/// A set of CPUs by the first of these names that holds one.
fn set(folder: &Path, names: Names<'_>) -> Option<CpuSet> {
    names.iter().find_map(|name| {
        let path = folder.join(name);
        if name.ends_with("list") { list(&path) } else { CpuSet::from_mask(&text(&path)?) }
    })
}

fn list(path: &Path) -> Option<CpuSet> {
    text(path)?.parse().ok()
}

/// What a file says, unless that is nothing. Bytes that are no text, as some recorded trees have, are left out.
fn text(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut first = [0; READ_BYTES];
    let length = file.read(&mut first).ok()?;
    let mut rest = Vec::new();
    // Less than was asked for is all there is (sysfs(5) gives an attribute whole).
    if length == READ_BYTES {
        file.read_to_end(&mut rest).ok()?;
    }
    rest.splice(..0, first.into_iter().take(length));
    let text = String::from_utf8_lossy(&rest);
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| text.to_owned())
}

fn number_in(path: &Path) -> Option<u32> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests;
