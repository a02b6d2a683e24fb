//! The groups of CPUs that load is levelled between.
//!
//! A group is what shares a last-level cache, within one NUMA node and of one kind of core: inside it a thread that moves loses little,
//! and the kernel moves it by itself. A cache that spans nodes is several groups, as memory is near to one node only. Caches of a single
//! core are no groups: whoever is kept to one is pinned, and the kernel levels better. Where a machine tells no caches its nodes are the
//! groups, else its packages, else it is one.

use crate::model::cpuset::CpuSet;
use crate::model::topology::Topology;
use std::collections::BTreeMap;

/// Groups by number, each of open CPUs, disjoint, sorted by lowest CPU.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// What they were made from, to see whether they still hold.
    topology: Topology,
    fenced: CpuSet,
    list: Vec<Group>,
    /// By CPU number; CPUs that are not open belong to none.
    of_cpu: Vec<Option<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub cpus: CpuSet,
    /// None where the machine tells no nodes: then nothing is far.
    pub node: Option<u32>,
    /// Efficiency of its cores; work of one kind of core stays on it.
    pub kind: u32,
}

impl Group {
    /// Its lowest CPU: what it is remembered by.
    pub fn id(&self) -> u32 {
        self.cpus.iter().next().unwrap_or(0)
    }
}

/// Where a set of CPUs lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// All CPUs of one group.
    Whole(usize),
    /// Some CPUs of one group.
    Seats(usize),
    /// CPUs of several groups, in ascending order.
    Several(Vec<usize>),
    /// No open CPU: nothing can be said of it.
    Nowhere,
}

impl Groups {
    /// The groups of a machine, without what is fenced off.
    pub fn of(topology: &Topology, fenced: &CpuSet) -> Groups {
        let open = topology.usable.difference(fenced);
        let highest = open.iter().last().map_or(0, |cpu| cpu as usize + 1);
        let caches = numbered(boundaries(topology), highest);
        let nodes = numbered(topology.nodes.iter().map(|(number, cpus)| (*number, cpus)), highest);
        let kinds = numbered(topology.kinds.iter().map(|kind| (kind.efficiency, &kind.cpus)), highest);
        let mut by_key: BTreeMap<_, CpuSet> = BTreeMap::new();
        for cpu in open.iter() {
            let at = cpu as usize;
            by_key.entry((caches[at], nodes[at], kinds[at])).or_default().insert(cpu);
        }
        let made = by_key.into_iter().map(|((_, node, kind), cpus)| Group { cpus, node, kind: kind.unwrap_or(0) });
        let mut list: Vec<Group> = made.collect();
        list.sort_by_key(|group| group.cpus.iter().next());
        let of_cpu = numbered((0..).zip(list.iter().map(|group| &group.cpus)), highest);
        let of_cpu = of_cpu.into_iter().map(|number| number.map(|number: u32| number as usize)).collect();
        Groups { topology: topology.clone(), fenced: fenced.clone(), list, of_cpu }
    }

    /// Whether these are the groups of that machine.
    pub fn hold_for(&self, topology: &Topology, fenced: &CpuSet) -> bool {
        self.fenced == *fenced && self.topology == *topology
    }

    pub fn list(&self) -> &[Group] {
        &self.list
    }

    pub fn count(&self) -> usize {
        self.list.len()
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The group of an open CPU.
    pub fn of_cpu(&self, cpu: u32) -> Option<usize> {
        self.of_cpu.get(cpu as usize).copied().flatten()
    }

    /// Whether all of these CPUs are still anybody's.
    pub fn are_open(&self, cpus: &CpuSet) -> bool {
        cpus.iter().all(|cpu| self.of_cpu(cpu).is_some())
    }

    /// Where these CPUs lie, those of them that are open.
    pub fn place(&self, cpus: &CpuSet) -> Place {
        let Some(first) = cpus.iter().find_map(|cpu| self.of_cpu(cpu)) else { return Place::Nowhere };
        let group = &self.list[first].cpus;
        if group == cpus {
            return Place::Whole(first);
        }
        let mut groups: Vec<usize> = Vec::new();
        let mut rest = cpus.clone();
        loop {
            let next = rest.iter().find_map(|cpu| self.of_cpu(cpu));
            let Some(next) = next else { break };
            rest = rest.difference(&self.list[next].cpus);
            groups.push(next);
        }
        match groups.as_slice() {
            [one] if self.list[*one].cpus.is_subset(cpus) => Place::Whole(*one),
            [one] => Place::Seats(*one),
            _ => Place::Several(groups),
        }
    }
}

/// The sets that part groups, numbered.
fn boundaries(topology: &Topology) -> impl Iterator<Item = (u32, &CpuSet)> {
    let within_a_core = |cache: &CpuSet| {
        let usable = cache.intersection(&topology.usable);
        usable.iter().next().is_none_or(|cpu| usable.is_subset(&topology.core_of(cpu)))
    };
    let sets = match (&topology.llcs, &topology.packages) {
        (caches, _) if !caches.iter().all(within_a_core) => caches,
        (_, packages) => packages,
    };
    (0..).zip(sets)
}

/// The number of each CPU's set.
fn numbered<'a>(sets: impl Iterator<Item = (u32, &'a CpuSet)>, highest: usize) -> Vec<Option<u32>> {
    let mut numbers = vec![None; highest];
    for (number, cpus) in sets {
        for cpu in cpus.iter() {
            if let Some(slot) = numbers.get_mut(cpu as usize) {
                *slot = Some(number);
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topology::Kind;
    use crate::model::topology::tests::{flat, two_sockets};

    fn shown(topology: &Topology, fenced: &str) -> Vec<String> {
        let groups = Groups::of(topology, &fenced.parse().unwrap());
        groups.list().iter().map(|group| group.cpus.to_string()).collect()
    }

    #[test]
    fn caches_are_the_groups_without_what_is_fenced() {
        assert_eq!(shown(&two_sockets(), "1,9"), ["0,8", "2-3,10-11", "4-5,12-13", "6-7,14-15"]);
    }

    #[test]
    fn a_cache_that_spans_nodes_is_several_groups() {
        let mut machine = flat(8);
        machine.nodes = [(0, "0-3".parse().unwrap()), (1, "4-7".parse().unwrap())].into();
        assert_eq!(shown(&machine, ""), ["0-3", "4-7"]);
    }

    #[test]
    fn caches_of_single_cores_part_nothing() {
        let mut machine = flat(4);
        machine.llcs = (0..4).map(|cpu| CpuSet::from_iter([cpu])).collect();
        assert_eq!(shown(&machine, ""), ["0-3"]);
        machine.packages.clear();
        machine.llcs.clear();
        assert_eq!(shown(&machine, ""), ["0-3"]);
    }

    #[test]
    fn kinds_of_core_are_apart() {
        let mut machine = flat(6);
        let kind = |list: &str, efficiency| Kind { cpus: list.parse().unwrap(), efficiency, ..Kind::default() };
        machine.kinds = vec![kind("4-5", 0), kind("0-3", 1)];
        assert_eq!(shown(&machine, ""), ["0-3", "4-5"]);
    }

    #[test]
    fn a_set_lies_in_one_group_or_in_several() {
        let groups = Groups::of(&two_sockets(), &CpuSet::new());
        let place = |list: &str| groups.place(&list.parse().unwrap());
        assert_eq!(place("0-1,8-9"), Place::Whole(0));
        assert_eq!(place("0,8"), Place::Seats(0));
        assert_eq!(place("0-3,8-11"), Place::Several(vec![0, 1]));
        assert_eq!(place("40"), Place::Nowhere);
    }
}
