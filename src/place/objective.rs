//! What a placement costs: the one place that spells out the objective of the design, and its weights.
//!
//! Problem: say of two placements which is the better one, so that choosing can be held to an exact solver (`tests/exact`), and so that
//! everything which chooses (placement, rebalancing) chooses alike.
//! Terms: *block*, the CPUs of one last-level cache and one NUMA node: what load is summed over. A machine that tells no caches has one
//! block a node. *Counted*, class pinned or exclusive. *Placed*, a workload that expects CPU time of some CPUs but not of all.
//! Points are counted in millionths, as integers, so that equal placements cost the same on every machine.
//!
//! Why blocks and not cores carry the load term, and where this differs from the design's wording: docs/decisions/0017-objective.md.

use crate::model::cpuset::CpuSet;
use crate::model::spec::CpuClass;
use crate::model::topology::Topology;
use std::collections::BTreeSet;

/// One point, in the unit of [`Terms::micropoints`].
pub const POINT: u64 = 1_000_000;
/// A workload split across NUMA nodes: more than everything else together on any machine that could have avoided it.
pub const NODE_SPLIT: u64 = 10_000 * POINT;
/// A workload more on a core that another one has counted CPUs of: two threads of one core give 1.2 to 1.3 cores' work, and each feels
/// every pause of the other. An exclusive newcomer pays it too for a core that it takes from a pinned neighbour.
pub const SHARED_CORE: u64 = 250 * POINT;
/// A CPU of a weaker kind than the machine's strongest, given to a workload that counts its CPUs; twice for the next weaker kind. Below a
/// shared core (an idle efficiency core beats half a busy one), above a cache split.
pub const WEAK_CPU: u64 = 100 * POINT;
/// A last-level cache more than one, for each workload.
pub const CACHE_SPLIT: u64 = 50 * POINT;
/// A CPU that a pinned neighbour has to leave to an exclusive newcomer: its move, and the free block it most likely breaks elsewhere.
pub const DISPLACED: u64 = MOVE + BROKEN_BLOCK;
/// A block that nobody was placed in, and now somebody is: the next large workload will not find it.
pub const BROKEN_BLOCK: u64 = 20 * POINT;
/// A counted CPU left for another, or another group of CPUs for a sharer.
pub const MOVE: u64 = 10 * POINT;

/// CPUs that load is summed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cpus: CpuSet,
    /// None where no node claims them.
    pub node: Option<u32>,
}

/// The blocks of the CPUs we may use, disjoint, by their lowest CPU.
pub fn blocks(topology: &Topology) -> Vec<Block> {
    let mut rest = topology.usable.clone();
    let mut groups: Vec<CpuSet> = Vec::new();
    // What no cache claims falls to its node, and what no node claims is a block of its own.
    for group in topology.llcs.iter().chain(topology.nodes.values()).chain([&topology.usable]) {
        groups.push(group.intersection(&rest));
        rest = rest.difference(group);
    }
    let mut blocks = Vec::new();
    for group in groups {
        let mut open = group;
        for (node, cpus) in &topology.nodes {
            let part = open.intersection(cpus);
            open = open.difference(cpus);
            blocks.push(Block { cpus: part, node: Some(*node) });
        }
        blocks.push(Block { cpus: open, node: None });
    }
    blocks.retain(|block| !block.cpus.is_empty());
    blocks.sort_by_key(|block| block.cpus.iter().next());
    blocks
}

/// How many kinds of core are stronger than this CPU's.
pub fn weakness(topology: &Topology, cpu: u32) -> u32 {
    let strongest = topology.kinds.last().map_or(0, |kind| kind.efficiency);
    let own = topology.kinds.iter().find(|kind| kind.cpus.contains(cpu)).map_or(strongest, |kind| kind.efficiency);
    strongest - own
}

/// `load^2 / capacity` in millionths of a point, of a load in thousandths of a CPU on so many CPUs.
pub fn load_cost(load_milli: u64, capacity: usize) -> u64 {
    let square = u128::from(load_milli) * u128::from(load_milli);
    u64::try_from(square / (capacity.max(1) as u128)).unwrap_or(u64::MAX)
}

/// What one placement of a whole machine costs, term by term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Workloads that have CPUs of several NUMA nodes.
    pub node_splits: u64,
    /// Workloads beyond the first that have counted CPUs of a core, over all cores.
    pub shared_cores: u64,
    /// Kinds of core above that of each counted CPU.
    pub weak_cpus: u64,
    /// Blocks beyond the first, over all workloads.
    pub cache_splits: u64,
    /// CPUs of pinned workloads that somebody else has fenced.
    pub displaced: u64,
    /// Blocks in which somebody is placed, by what was granted.
    pub broken_blocks: u64,
    pub moves: u64,
    /// The sum of [`load_cost`] over all blocks.
    pub load_micropoints: u64,
}

impl Terms {
    pub fn micropoints(&self) -> u64 {
        let Terms {
            node_splits,
            shared_cores,
            weak_cpus,
            cache_splits,
            displaced,
            broken_blocks,
            moves,
            load_micropoints,
        } = self;
        let weighted = [
            (node_splits, NODE_SPLIT),
            (shared_cores, SHARED_CORE),
            (weak_cpus, WEAK_CPU),
            (cache_splits, CACHE_SPLIT),
            (displaced, DISPLACED),
            (broken_blocks, BROKEN_BLOCK),
            (moves, MOVE),
        ];
        weighted.iter().fold(*load_micropoints, |sum, (count, weight)| sum.saturating_add(*count * weight))
    }
}

/// A workload and its CPUs.
#[derive(Clone, Debug)]
pub struct Seated {
    pub class: CpuClass,
    /// What it is expected to use, in thousandths of a CPU.
    pub claim: u64,
    pub cpus: CpuSet,
    pub fenced: CpuSet,
    /// What it held before, if it ran.
    pub previous: Option<CpuSet>,
}

impl Seated {
    fn is_counted(&self) -> bool {
        super::is_counted(self.class)
    }

    /// Idle work yields to everyone, so it is no load and is placed nowhere.
    pub fn load(&self) -> u64 {
        if self.class == CpuClass::Idle { 0 } else { self.claim }
    }

    fn moves(&self) -> u64 {
        match &self.previous {
            None => 0,
            Some(previous) if self.is_counted() => previous.difference(&self.cpus).len() as u64,
            Some(previous) => u64::from(*previous != self.cpus),
        }
    }
}

/// By block, its claims in thousandths of a CPU, each spread evenly over the CPUs it was granted. Whom a fence has cut short since stays on
/// the rest of its domain, so its claim stays where it is.
pub fn loads(blocks: &[Block], workloads: &[Seated]) -> Vec<u64> {
    let mut loads = vec![0; blocks.len()];
    for workload in workloads {
        for (load, block) in loads.iter_mut().zip(blocks) {
            let here = block.cpus.intersection(&workload.cpus).len() as u64;
            *load += workload.load() * here / (workload.cpus.len() as u64).max(1);
        }
    }
    loads
}

/// Adds everything up from nothing. Everything but `displaced` goes by what was granted: a fence that cuts a neighbour short makes nothing
/// cheaper, because the neighbour has to go somewhere.
pub fn of(topology: &Topology, workloads: &[Seated]) -> Terms {
    let blocks = blocks(topology);
    let mut placed = vec![false; blocks.len()];
    let mut holders = vec![0u64; topology.cores.len()];
    let mut terms = Terms::default();
    for (index, workload) in workloads.iter().enumerate() {
        let cpus = workload.cpus.intersection(&topology.usable);
        let touched: Vec<usize> = (0..blocks.len()).filter(|at| !blocks[*at].cpus.is_disjoint(&cpus)).collect();
        let nodes: BTreeSet<Option<u32>> = touched.iter().map(|at| blocks[*at].node).collect();
        terms.node_splits += u64::from(nodes.len() > 1);
        terms.cache_splits += touched.len().saturating_sub(1) as u64;
        terms.moves += workload.moves();
        for at in touched {
            placed[at] |= workload.load() > 0 && workload.cpus != topology.usable;
        }
        if workload.is_counted() {
            terms.weak_cpus += cpus.iter().map(|cpu| u64::from(weakness(topology, cpu))).sum::<u64>();
            let cores = topology.cores.iter().zip(&mut holders).filter(|(core, _)| !core.is_disjoint(&cpus));
            cores.for_each(|(_, holders)| *holders += 1);
            terms.shared_cores += cores_alone(topology, workloads, index, &cpus);
        }
        if workload.class == CpuClass::Pinned {
            terms.displaced += cpus.intersection(&fenced_by_others(workloads, index)).len() as u64;
        }
    }
    let loads = loads(&blocks, workloads);
    terms.shared_cores += holders.iter().map(|holders| holders.saturating_sub(1)).sum::<u64>();
    terms.broken_blocks = placed.iter().filter(|placed| **placed).count() as u64;
    terms.load_micropoints = loads.iter().zip(&blocks).map(|(load, block)| load_cost(*load, block.cpus.len())).sum();
    terms
}

fn fenced_by_others(workloads: &[Seated], index: usize) -> CpuSet {
    let others = workloads.iter().enumerate().filter(|(other, _)| *other != index);
    others.fold(CpuSet::new(), |all, (_, other)| all.union(&other.fenced))
}

/// CPUs of no known core are cores of their own: those of them that an earlier workload has counted too.
fn cores_alone(topology: &Topology, workloads: &[Seated], index: usize, cpus: &CpuSet) -> u64 {
    let known = topology.cores.iter().fold(CpuSet::new(), |all, core| all.union(core));
    let alone = cpus.difference(&known);
    let earlier = workloads[..index].iter().filter(|other| other.is_counted());
    let held = earlier.fold(CpuSet::new(), |all, other| all.union(&other.cpus));
    alone.intersection(&held).len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topology::tests::{flat, two_sockets};

    fn seated(class: CpuClass, claim: u64, cpus: &str) -> Seated {
        Seated { class, claim, cpus: cpus.parse().unwrap(), fenced: CpuSet::new(), previous: None }
    }

    #[test]
    fn each_term_counts_what_it_says() {
        let machine = two_sockets();
        assert_eq!(of(&machine, &[]).micropoints(), 0);
        // Two threads of one core and two cores of one cache cost the same: the load term knows no cores.
        let one_core = of(&machine, &[seated(CpuClass::Pinned, 2000, "0,8")]);
        assert_eq!(one_core, of(&machine, &[seated(CpuClass::Pinned, 2000, "0-1")]));
        assert_eq!(one_core, Terms { broken_blocks: 1, load_micropoints: POINT, ..Terms::default() });
        let split = of(&machine, &[seated(CpuClass::Pinned, 2000, "0,4")]);
        assert_eq!((split.node_splits, split.cache_splits, split.broken_blocks), (1, 1, 2));
        let both = [seated(CpuClass::Pinned, 1000, "0"), seated(CpuClass::Pinned, 1000, "8")];
        assert_eq!(of(&machine, &both).shared_cores, 1);
        let fenced = Seated { fenced: "0,8".parse().unwrap(), ..seated(CpuClass::Exclusive, 1000, "0") };
        let driven_out = of(&machine, &[both[0].clone(), fenced]);
        assert_eq!((driven_out.displaced, driven_out.broken_blocks), (1, 1));
        let moved = Seated { previous: Some("1-2".parse().unwrap()), ..seated(CpuClass::Pinned, 2000, "0-1") };
        assert_eq!(of(&machine, &[moved]).moves, 1);
        assert_eq!(of(&machine, &[seated(CpuClass::Idle, 5000, "0-15")]).load_micropoints, 0);
        assert_eq!(of(&machine, &[seated(CpuClass::Shared, 5000, "0-15")]).broken_blocks, 0, "it is placed nowhere");
    }

    #[test]
    fn cpus_of_no_known_core_are_shared_by_those_who_both_have_them() {
        let mut bare = flat(4);
        bare.cores.clear();
        let both = [seated(CpuClass::Pinned, 1000, "0-1"), seated(CpuClass::Pinned, 1000, "1-2")];
        assert_eq!(of(&bare, &both).shared_cores, 1);
    }

    #[test]
    fn blocks_lie_in_one_node_and_hold_every_usable_cpu_once() {
        let shown = |topology: &Topology| -> Vec<String> {
            blocks(topology).iter().map(|block| format!("{} of {:?}", block.cpus, block.node)).collect()
        };
        assert_eq!(shown(&flat(4)), ["0-3 of Some(0)"]);
        let mut odd = flat(6);
        // A cache over two nodes, one CPU in no cache, one in no node.
        odd.llcs = vec!["0-3".parse().unwrap()];
        odd.nodes = [(0, "0-1".parse().unwrap()), (1, "2-4".parse().unwrap())].into();
        assert_eq!(shown(&odd), ["0-1 of Some(0)", "2-3 of Some(1)", "4 of Some(1)", "5 of None"]);
    }
}
