//! How a machine's CPUs belong together, as sets: cores of threads, last-level caches of cores, NUMA nodes, dies, packages; and which
//! kinds of core it has.
//!
//! What a machine does not tell is an empty list, never a guess: a machine without cache files has no `llcs`.

use super::cpuset::CpuSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The CPUs of one machine. Each list is disjoint and sorted by lowest CPU; only online CPUs appear. Written as JSON, sets are lists in
/// the kernel's notation (cpuset(7)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Sockets.
    pub packages: Vec<CpuSet>,
    /// Pieces of silicon, where they are neither whole packages nor single cores.
    pub dies: Vec<CpuSet>,
    /// NUMA nodes by number; a node may have no CPU.
    #[serde(rename = "numa")]
    pub nodes: BTreeMap<u32, CpuSet>,
    /// CPUs that share a last-level cache.
    #[serde(rename = "llc")]
    pub llcs: Vec<CpuSet>,
    /// Hardware threads that share a core.
    pub cores: Vec<CpuSet>,
    pub online: CpuSet,
    /// CPUs that are there and switched off.
    pub offline: CpuSet,
    /// The online CPUs that workloads may be given: those our own cgroup may use, less those isolated from the scheduler.
    pub usable: CpuSet,
    /// From the least to the most performance; of a machine that says nothing of it, none.
    pub kinds: Vec<Kind>,
}

/// CPUs of one make, on a machine that may have several (performance and efficiency cores).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    pub cpus: CpuSet,
    /// 0 for the kind of least performance, one more for each above it.
    pub efficiency: u32,
    pub infos: KindInfos,
}

/// What sysfs tells CPUs of different kinds apart by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KindInfos {
    /// Relative to the strongest of the machine, 1024 (`cpu_capacity`).
    #[serde(rename = "LinuxCapacity", skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    #[serde(rename = "FrequencyMaxMHz", skip_serializing_if = "Option::is_none")]
    pub max_mhz: Option<u32>,
    #[serde(rename = "FrequencyBaseMHz", skip_serializing_if = "Option::is_none")]
    pub base_mhz: Option<u32>,
    /// The performance-monitoring unit that drives them (`cpu_core`, `cpu_atom`).
    #[serde(rename = "CoreType", skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// The kinds of group a workload can be placed in, from smallest to largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Core,
    Cache,
    Node,
    Die,
    Package,
    Machine,
}

/// One group of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain {
    pub level: Level,
    pub cpus: CpuSet,
}

impl Topology {
    /// The core `cpu` belongs to; itself alone where cores are unknown.
    pub fn core_of(&self, cpu: u32) -> CpuSet {
        let found = self.cores.iter().find(|core| core.contains(cpu));
        found.cloned().unwrap_or_else(|| CpuSet::from_iter([cpu]))
    }

    /// Every distinct group of usable CPUs, smallest level first, the whole machine last. Where two levels are the same set (one cache a
    /// package, one node a machine), the larger level names it.
    pub fn domains(&self) -> Vec<Domain> {
        let levels: [(Level, Vec<&CpuSet>); 6] = [
            (Level::Machine, vec![&self.usable]),
            (Level::Package, self.packages.iter().collect()),
            (Level::Die, self.dies.iter().collect()),
            (Level::Node, self.nodes.values().collect()),
            (Level::Cache, self.llcs.iter().collect()),
            (Level::Core, self.cores.iter().collect()),
        ];
        let mut by_cpus: BTreeMap<CpuSet, Level> = BTreeMap::new();
        for (level, groups) in levels {
            for group in groups {
                let cpus = group.intersection(&self.usable);
                if !cpus.is_empty() {
                    by_cpus.entry(cpus).or_insert(level);
                }
            }
        }
        let mut domains: Vec<Domain> = by_cpus.into_iter().map(|(cpus, level)| Domain { level, cpus }).collect();
        domains.sort_by_key(|domain| (domain.level, domain.cpus.iter().next()));
        domains
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Core => "core",
            Level::Cache => "last-level cache",
            Level::Node => "NUMA node",
            Level::Die => "die",
            Level::Package => "package",
            Level::Machine => "machine",
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn sets(lists: &[&str]) -> Vec<CpuSet> {
        lists.iter().map(|list| list.parse().unwrap()).collect()
    }

    /// Two packages, a node each, of two caches of two cores of two threads: 16 CPUs, threads numbered as Linux does on x86.
    pub(crate) fn two_sockets() -> Topology {
        Topology {
            online: "0-15".parse().unwrap(),
            usable: "0-15".parse().unwrap(),
            cores: sets(&["0,8", "1,9", "2,10", "3,11", "4,12", "5,13", "6,14", "7,15"]),
            llcs: sets(&["0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15"]),
            nodes: [(0, "0-3,8-11".parse().unwrap()), (1, "4-7,12-15".parse().unwrap())].into(),
            packages: sets(&["0-3,8-11", "4-7,12-15"]),
            ..Topology::default()
        }
    }

    /// One package of `cpus` single-threaded cores.
    pub(crate) fn flat(cpus: u32) -> Topology {
        let all: CpuSet = (0..cpus).collect();
        Topology {
            online: all.clone(),
            usable: all.clone(),
            cores: (0..cpus).map(|cpu| CpuSet::from_iter([cpu])).collect(),
            llcs: vec![all.clone()],
            nodes: [(0, all.clone())].into(),
            packages: vec![all],
            ..Topology::default()
        }
    }

    #[test]
    fn domains_run_from_cores_to_the_machine_and_name_each_set_once() {
        let shown: Vec<String> =
            two_sockets().domains().iter().map(|domain| format!("{} {}", domain.level, domain.cpus)).collect();
        assert_eq!(shown[0], "core 0,8");
        assert_eq!(
            shown[8..12],
            [
                "last-level cache 0-1,8-9",
                "last-level cache 2-3,10-11",
                "last-level cache 4-5,12-13",
                "last-level cache 6-7,14-15"
            ]
        );
        assert_eq!(shown[12..], ["package 0-3,8-11", "package 4-7,12-15", "machine 0-15"]);
    }

    #[test]
    fn cpus_we_may_not_use_are_in_no_domain() {
        let mut topology = flat(4);
        topology.usable = "1-2".parse().unwrap();
        let shown: Vec<String> = topology.domains().iter().map(|domain| domain.cpus.to_string()).collect();
        assert_eq!(shown, ["1", "2", "1-2"]);
    }
}
