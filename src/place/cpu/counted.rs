//! CPUs that are counted out one by one: those of pinned and of exclusive workloads.
//!
//! Problem: of all sets of `count` CPUs that sit on cores as `cpu.smt` asks, find the one that adds least to the objective.
//! Approach: what a set costs is a sum over blocks ([`super::super::objective`]), so the CPUs of each block are put in the order they
//! would be taken in (`row`), which says what the first one, two, three of a block cost; then one block is chosen, or, where that is
//! cheaper, how many to take of which (`several`, a table over blocks and counts). Blocks are tried from the lowest price they could
//! have upwards, and most are not looked into at all.
//! Terms: *fenced*, what nobody else may use: an exclusive workload's CPUs, with the idle threads of their cores unless `smt: any` leaves
//! these to others; *misplaced*, CPUs that do not sit as asked, a wish of pinned workloads and a condition of exclusive ones.

use super::{CpuGrant, Search, number};
use crate::model::cpuset::CpuSet;
use crate::model::machine::Machine;
use crate::model::record::Grant;
use crate::model::spec::{Align, Cpu, CpuClass, Smt};
use crate::model::topology::Topology;
use crate::place::Refusal;
use crate::place::objective::{CACHE_SPLIT, NODE_SPLIT};
use crate::place::wear::claim;
use row::{Price, Row};

mod row;
mod several;
mod spared;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
struct Demand {
    count: usize,
    smt: Smt,
    class: CpuClass,
    /// In thousandths of a CPU, over all of them.
    claim: u64,
    thrift: Thrift,
}

/// What matters first of two sets that sit as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thrift {
    /// The objective.
    None,
    /// How many CPUs are fenced: few are left.
    Fence,
}

/// A set of CPUs and its price.
struct Choice {
    cpus: CpuSet,
    price: Price,
}

/// Whether a grant's CPUs sit on cores as the workload asks now.
pub fn sits_as_asked(machine: &Machine, cpu: &Cpu, grant: &Grant) -> bool {
    if cpu.class != CpuClass::Exclusive {
        return true;
    }
    let topology = &machine.topology;
    let cores = whole_cores(topology, &grant.cpus);
    match cpu.smt() {
        Smt::Any => grant.fenced == grant.cpus,
        // On as few cores as will do: with one thread fewer on each, one core would be too many.
        Smt::FullCore => grant.fenced == cores && packs(topology, &grant.cpus),
        Smt::Spread => grant.fenced == cores && grant.cpus.iter().all(|cpu| one_of(topology, cpu, &grant.cpus)),
    }
}

fn one_of(topology: &Topology, cpu: u32, cpus: &CpuSet) -> bool {
    topology.core_of(cpu).intersection(cpus).len() == 1
}

/// Whether at most one core is used in part.
fn packs(topology: &Topology, cpus: &CpuSet) -> bool {
    let in_part = |core: &CpuSet| {
        let used = core.intersection(cpus).len();
        used > 0 && used < core.intersection(&topology.usable).len()
    };
    topology.cores.iter().filter(|core| in_part(core)).count() <= 1
}

/// These CPUs with the other usable threads of their cores.
fn whole_cores(topology: &Topology, cpus: &CpuSet) -> CpuSet {
    cpus.iter().fold(CpuSet::new(), |all, cpu| all.union(&topology.core_of(cpu).intersection(&topology.usable)))
}

impl Search<'_> {
    pub(super) fn pinned(&self) -> Result<CpuGrant, Refusal> {
        let demand = self.demand(Thrift::None);
        let Some(Choice { cpus, .. }) = self.cheapest(&demand) else { return Err(self.too_few(&demand)) };
        let how = if demand.smt == Smt::Any { String::new() } else { format!(" {}", demand.smt) };
        let reason = format!("class pinned{how}: {}", self.described(&cpus, &cpus));
        Ok(CpuGrant { cpus, fenced: CpuSet::new(), reason })
    }

    pub(super) fn exclusive(&self) -> Result<CpuGrant, Refusal> {
        let count = self.ask.resources.cpu.request.cpus_ceil();
        let Some((cpus, fenced)) = self.alone(count) else { return Err(self.none_to_fence(count)) };
        let reason = format!("class exclusive: {}, fenced {fenced}", self.described(&cpus, &fenced));
        Ok(CpuGrant { cpus, fenced, reason })
    }

    /// So many CPUs to have alone, and what is fenced with them, if enough is left for the others.
    fn alone(&self, count: usize) -> Option<(CpuSet, CpuSet)> {
        let aligned = self.ledger.widest_aligned_of_others(self.ask.name);
        let (choice, fenced) = self.alone_anywhere(count)?;
        if self.leaves_a_node(&fenced, aligned) {
            return Some((choice.cpus, fenced));
        }
        let sparing = self.sparing(aligned).filter_map(|search| search.alone_anywhere(count));
        sparing.min_by_key(|(choice, _)| choice.price).map(|(choice, fenced)| (choice.cpus, fenced))
    }

    /// The same, whatever is left of single nodes.
    fn alone_anywhere(&self, count: usize) -> Option<(Choice, CpuSet)> {
        let staying = self.staying();
        [Thrift::None, Thrift::Fence].into_iter().find_map(|thrift| {
            let choice = self.cheapest(&Demand { count, ..self.demand(thrift) })?;
            let fenced = self.fence_of(&choice.cpus);
            (choice.price.misplaced == 0 && fenced.len() + staying <= self.pool.len()).then_some((choice, fenced))
        })
    }

    /// Somebody has to run everything else, the controller included, and what others were promised of the pool has to stay in it.
    fn staying(&self) -> usize {
        let promised = self.ledger.pool_requested_by_others(self.ask.name);
        let promised = self.machine.admission.overcommit.cpu.needed_for(promised).div_ceil(1000);
        let widest_pinned = self.ledger.widest_pinned_of_others(self.ask.name);
        widest_pinned.max(usize::try_from(promised).unwrap_or(usize::MAX)).max(1)
    }

    fn demand(&self, thrift: Thrift) -> Demand {
        let cpu = &self.ask.resources.cpu;
        let count = cpu.request.cpus_ceil();
        Demand { count, smt: cpu.smt(), class: cpu.class, claim: claim(self.ask.resources), thrift }
    }

    /// The set that costs least: of one block if that is as good as several, of one node if that has enough.
    fn cheapest(&self, demand: &Demand) -> Option<Choice> {
        let layout = &self.wear.layout;
        let is_thrifty = demand.thrift == Thrift::Fence;
        let mut best = if is_thrifty { None } else { self.one_block(demand) };
        let better = |best: &mut Option<Choice>, other: Option<Choice>| {
            if let Some(other) = other.filter(|other| best.as_ref().is_none_or(|best| other.price < best.price)) {
                *best = Some(other);
            }
        };
        for blocks in layout.nodes.iter().filter(|blocks| blocks.len() > 1 || is_thrifty) {
            if self.may_better(demand, best.as_ref(), blocks, CACHE_SPLIT) {
                better(&mut best, self.several(demand, blocks, 0));
            }
        }
        if self.ask.resources.cpu.align == Align::Preferred && layout.nodes.len() > 1 {
            let all: Vec<usize> = (0..layout.blocks.len()).collect();
            if self.may_better(demand, best.as_ref(), &all, NODE_SPLIT) {
                better(&mut best, self.several(demand, &all, NODE_SPLIT));
            }
        }
        best
    }

    /// Whether several blocks, a split of which costs so much, are worth a look: where few CPUs are left, or there is nothing yet, or nothing
    /// that sits as asked, or they have more calm CPUs than what there is made do with. Which of the cores that others count CPUs of would be
    /// cheapest is not asked beyond one block: on a full machine that would be asked every time, for points in hundreds.
    fn may_better(&self, demand: &Demand, best: Option<&Choice>, blocks: &[usize], split: u64) -> bool {
        let is_thrifty = demand.thrift == Thrift::Fence;
        let Some(best) = best.filter(|best| best.price.misplaced == 0 && !is_thrifty) else { return true };
        let layout = &self.wear.layout;
        let held = best.cpus.iter().next().and_then(|cpu| layout.home(cpu)).map(|home| home.block);
        let calm =
            |blocks: &[usize]| blocks.iter().map(|at| self.wear.calm_of_block(*at)).sum::<usize>().min(demand.count);
        let has_kinds = self.machine.topology.kinds.len() > 1;
        best.price > Price::of(split) && (has_kinds || calm(blocks) > calm(held.as_slice()))
    }

    /// The cheapest block; of equals the one that could have been cheaper by its calm CPUs, then the first.
    fn one_block(&self, demand: &Demand) -> Option<Choice> {
        let blocks = 0..self.wear.layout.blocks.len();
        let large_enough = blocks.filter(|at| self.wear.open_of_block(*at) >= demand.count);
        let by_hope = large_enough.map(|at| {
            let calm = self.at_least(demand, at);
            let hope = if demand.class == CpuClass::Exclusive { self.at_least_alone(demand, at) } else { calm };
            (hope, calm, at)
        });
        let mut by_hope: Vec<(Price, Price, usize)> = by_hope.collect();
        by_hope.sort_unstable();
        let mut best: Option<((Price, Price, usize), Row)> = None;
        for (hope, calm, at) in by_hope {
            if best.as_ref().is_some_and(|(best, _)| *best <= (hope, calm, at)) {
                break;
            }
            let row = self.row(demand, at);
            let rank = row.price(demand.count).map(|price| (price, calm, at));
            if let Some(rank) = rank.filter(|rank| best.as_ref().is_none_or(|(best, _)| rank < best)) {
                best = Some((rank, row));
            }
        }
        best.map(|((price, ..), row)| Choice { cpus: row.first(demand.count).collect(), price })
    }

    /// What an exclusive workload on these CPUs has alone.
    fn fence_of(&self, cpus: &CpuSet) -> CpuSet {
        if self.ask.resources.cpu.smt() == Smt::Any { cpus.clone() } else { whole_cores(&self.machine.topology, cpus) }
    }

    /// Where CPUs are and what is not as one would wish, for people.
    fn described(&self, cpus: &CpuSet, taken: &CpuSet) -> String {
        let layout = &self.wear.layout;
        let homes = || cpus.iter().filter_map(|cpu| layout.home(cpu));
        let distinct = |mut all: Vec<usize>| {
            all.sort_unstable();
            all.dedup();
            all
        };
        let cores = distinct(homes().map(|home| home.core).collect());
        let blocks = distinct(homes().map(|home| home.block).collect());
        let mut text = match layout.around(cpus) {
            Some(domain) => format!("{cpus} of {} {}", domain.level, domain.cpus.intersection(&self.pool)),
            None => cpus.to_string(),
        };
        let mut add = |count: usize, what: &str| {
            if count > 0 {
                text.push_str(&format!(", {what}: {count}"));
            }
        };
        if self.ask.resources.cpu.class == CpuClass::Pinned || self.ask.resources.cpu.smt() == Smt::Any {
            let shared = cores.iter().filter(|core| self.wear.counted(**core) > 0).count();
            add(shared, "cores shared with counted CPUs of others");
        }
        if self.ask.resources.cpu.class == CpuClass::Exclusive {
            let driven = taken.iter().filter(|cpu| self.wear.pinned(*cpu) > 0).count();
            add(driven, "CPUs that pinned workloads have to leave");
        }
        add(if blocks.len() > 1 { blocks.len() } else { 0 }, "last-level caches");
        text
    }

    fn none_to_fence(&self, count: usize) -> Refusal {
        let cpu = &self.ask.resources.cpu;
        let whole = if cpu.smt() == Smt::Any { "" } else { ", on whole cores" };
        let aligned = if cpu.align == Align::Required { " of one NUMA node" } else { "" };
        let together = match self.ledger.widest_aligned_of_others(self.ask.name) {
            aligned if aligned > 1 && self.machine.topology.nodes.len() > 1 => {
                format!(", {aligned} of them on one NUMA node")
            }
            _ => String::new(),
        };
        let message = format!(
            "{}{aligned} asked for exclusively{whole}; {} open ({}), of which {} must stay shared{together}{}",
            number(count),
            number(self.pool.len()),
            self.pool,
            self.staying(),
            self.nearest(count, |search, count| search.alone(count).is_some())
        );
        Refusal { reason: "InsufficientCpu", message }
    }

    fn too_few(&self, demand: &Demand) -> Refusal {
        let aligned = if self.ask.resources.cpu.align == Align::Required { " of one NUMA node" } else { "" };
        let message = format!(
            "{}{aligned} asked for, {} open to sharing ({}){}",
            number(demand.count),
            number(self.pool.len()),
            self.pool,
            self.nearest(demand.count, |search, count| search.cheapest(&Demand { count, ..*demand }).is_some())
        );
        Refusal { reason: "InsufficientCpu", message }
    }
}
