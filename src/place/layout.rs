//! The machine as placement counts it: of which core, block and domains each CPU is, worked out once for many placements.

use super::objective::{Block, blocks, weakness};
use crate::model::cpuset::CpuSet;
use crate::model::topology::{Domain, Topology};
use std::collections::BTreeMap;

/// One machine's groups of usable CPUs, each known by its place in a list.
#[derive(Clone, Debug)]
pub struct Layout {
    pub usable: CpuSet,
    pub domains: Vec<Span>,
    pub blocks: Vec<Block>,
    /// By block, its cores; a core in several blocks is in the list of each.
    pub cores_of_block: Vec<Vec<usize>>,
    /// The blocks of each node.
    pub nodes: Vec<Vec<usize>>,
    pub cores: Vec<CpuSet>,
    /// The most threads a core has.
    pub threads_max: usize,
    /// By CPU number; none for those we may not use.
    homes: Vec<Option<Home>>,
}

/// A group that sharers are placed in.
#[derive(Clone, Debug)]
pub struct Span {
    pub domain: Domain,
    pub blocks: Vec<usize>,
    /// Whether it is less than the only block it touches.
    pub is_part: bool,
    pub is_in_one_node: bool,
}

/// Where one CPU belongs.
#[derive(Clone, Debug, Default)]
pub struct Home {
    pub core: usize,
    pub block: usize,
    /// How many kinds of core are stronger.
    pub weakness: u32,
    pub domains: Vec<usize>,
}

impl Layout {
    pub fn of(topology: &Topology) -> Layout {
        let usable = topology.usable.clone();
        let blocks = blocks(topology);
        let mut homes = vec![None; usable.iter().last().map_or(0, |last| last as usize + 1)];
        for (at, block) in blocks.iter().enumerate() {
            for cpu in block.cpus.iter() {
                homes[cpu as usize] = Some(Home { block: at, weakness: weakness(topology, cpu), ..Home::default() });
            }
        }
        let mut rest = usable.clone();
        let mut cores: Vec<CpuSet> = topology.cores.iter().map(|core| core.intersection(&usable)).collect();
        cores.retain(|core| !core.is_empty());
        for core in &cores {
            rest = rest.difference(core);
        }
        // A CPU whose core is not told is one.
        cores.extend(rest.iter().map(|cpu| CpuSet::from_iter([cpu])));
        let mut cores_of_block = vec![Vec::new(); blocks.len()];
        for (at, core) in cores.iter().enumerate() {
            for cpu in core.iter() {
                if let Some(home) = homes.get_mut(cpu as usize).and_then(Option::as_mut) {
                    home.core = at;
                    let in_block: &mut Vec<usize> = &mut cores_of_block[home.block];
                    if !in_block.contains(&at) {
                        in_block.push(at);
                    }
                }
            }
        }
        let mut nodes: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for (at, block) in blocks.iter().enumerate() {
            nodes.entry(block.node).or_default().push(at);
        }
        let threads_max = cores.iter().map(CpuSet::len).max().unwrap_or(1);
        let mut layout = Layout {
            usable,
            domains: Vec::new(),
            blocks,
            cores_of_block,
            nodes: nodes.into_values().collect(),
            cores,
            threads_max,
            homes,
        };
        layout.domains = topology.domains().into_iter().map(|domain| layout.span(domain)).collect();
        for (at, span) in layout.domains.iter().enumerate() {
            for cpu in span.domain.cpus.iter() {
                if let Some(home) = layout.homes.get_mut(cpu as usize).and_then(Option::as_mut) {
                    home.domains.push(at);
                }
            }
        }
        layout
    }

    fn span(&self, domain: Domain) -> Span {
        let mut blocks: Vec<usize> = domain.cpus.iter().filter_map(|cpu| Some(self.home(cpu)?.block)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let first = blocks.first().map(|at| &self.blocks[*at]);
        let is_in_one_node = blocks.iter().all(|at| Some(self.blocks[*at].node) == first.map(|first| first.node));
        let is_part = blocks.len() == 1 && first.is_some_and(|block| block.cpus != domain.cpus);
        Span { domain, blocks, is_part, is_in_one_node }
    }

    pub fn home(&self, cpu: u32) -> Option<&Home> {
        self.homes.get(cpu as usize)?.as_ref()
    }

    /// The smallest group that has all of these.
    pub fn around(&self, cpus: &CpuSet) -> Option<&Domain> {
        let first = cpus.iter().next()?;
        let around = self.home(first)?.domains.iter().map(|at| &self.domains[*at].domain);
        around.filter(|domain| cpus.is_subset(&domain.cpus)).min_by_key(|domain| domain.cpus.len())
    }
}
