//! CPUs that are counted out one by one: those of pinned and of exclusive workloads.
//!
//! Problem: find `count` CPUs that sit on cores as `cpu.smt` asks, in a domain as small as possible, disturbing as few others as possible.
//! Approach: take the best CPUs of every domain that has enough, and of these choices the best one. Strong cores come first where a
//! machine has several kinds: whoever counts CPUs wants what one CPU can do, and sharers find room on the others.
//! Terms: *fenced*, what nobody else may use: an exclusive workload's CPUs, with the idle threads of their cores unless `smt: any` leaves
//! these to others.

use super::{CpuGrant, Search, number};
use crate::model::cpuset::CpuSet;
use crate::model::machine::Machine;
use crate::model::record::Grant;
use crate::model::spec::{Align, Cpu, CpuClass, Smt};
use crate::model::topology::{Domain, Topology};
use crate::place::Refusal;
use std::cmp::Reverse;

/// What could be taken of one domain.
struct Choice {
    domain: Domain,
    cpus: CpuSet,
    fenced: CpuSet,
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
        let count = self.ask.resources.cpu.request.cpus_ceil();
        let smt = self.ask.resources.cpu.smt();
        let choices = self.domains().filter(|domain| domain.cpus.len() >= count).map(|domain| {
            let cpus = self.take(&domain.cpus, count, smt);
            (domain, cpus)
        });
        // Loads compare per CPU, in thousandths, so that a large domain does not look busier for being large.
        let best = choices.min_by_key(|(domain, cpus)| {
            let load = self.load(&domain.cpus) / domain.cpus.len() as u64;
            (self.misplaced(cpus, smt), self.weakness(cpus), domain.cpus.len(), load, domain.cpus.iter().next())
        });
        let Some((domain, cpus)) = best else { return Err(self.too_few(count)) };
        let how = if smt == Smt::Any { "least loaded".to_owned() } else { format!("{smt}, least loaded") };
        let reason = format!("class pinned: {count} {how} CPUs of {} {}", domain.level, domain.cpus);
        Ok(CpuGrant { cpus, fenced: CpuSet::new(), reason })
    }

    pub(super) fn exclusive(&self) -> Result<CpuGrant, Refusal> {
        let count = self.ask.resources.cpu.request.cpus_ceil();
        let (smt, staying) = (self.ask.resources.cpu.smt(), self.staying());
        let best = self.choices(count).min_by_key(|Choice { domain, cpus, fenced }| {
            let moved = self.ask.previous.map_or(0, |grant| grant.cpus.difference(fenced).len());
            let disturbed = self.ledger.wear.pinned(fenced) - self.own_pinned(fenced);
            (disturbed, self.weakness(cpus), domain.cpus.len(), moved, fenced.iter().next())
        });
        let Some(Choice { domain, cpus, fenced }) = best else {
            let whole = if smt == Smt::Any { "" } else { ", on whole cores" };
            let aligned = if self.ask.resources.cpu.align == Align::Required { " of one NUMA node" } else { "" };
            let message = format!(
                "{}{aligned} asked for exclusively{whole}; {} open ({}), of which {staying} must stay shared{}",
                number(count),
                number(self.pool.len()),
                self.pool,
                self.nearest(count, |search, count| search.choices(count).next().is_some())
            );
            return Err(Refusal { reason: "InsufficientCpu", message });
        };
        let reason = format!("class exclusive: {cpus} of {} {}, fenced {fenced}", domain.level, domain.cpus);
        Ok(CpuGrant { cpus, fenced, reason })
    }

    /// What could be had alone, of each domain that has so many, with enough left for the others.
    fn choices(&self, count: usize) -> impl Iterator<Item = Choice> {
        let (smt, staying) = (self.ask.resources.cpu.smt(), self.staying());
        let of_each = self.domains().filter_map(move |domain| self.choice(domain, count, smt));
        of_each.filter(move |choice| choice.fenced.len() + staying <= self.pool.len())
    }

    /// The best `count` CPUs of a domain to have alone, if it has them.
    fn choice(&self, domain: Domain, count: usize, smt: Smt) -> Option<Choice> {
        let topology = &self.machine.topology;
        // A core of which a thread is fenced would be shared with an exclusive neighbour.
        let is_open =
            |cpu: &u32| smt == Smt::Any || whole_cores(topology, &CpuSet::from_iter([*cpu])).is_subset(&domain.cpus);
        let open: CpuSet = domain.cpus.iter().filter(is_open).collect();
        if open.len() < count {
            return None;
        }
        let cpus = self.take(&open, count, smt);
        if self.misplaced(&cpus, smt) > 0 {
            return None;
        }
        let fenced = if smt == Smt::Any { cpus.clone() } else { whole_cores(topology, &cpus) };
        Some(Choice { domain, cpus, fenced })
    }

    /// The best `count` of these CPUs, of which there are enough: strong cores first, then those held before, then without pinned
    /// neighbours, then the least loaded; by whole cores, by one thread of each, or one by one.
    fn take(&self, open: &CpuSet, count: usize, smt: Smt) -> CpuSet {
        let topology = &self.machine.topology;
        let held = |cpus: &CpuSet| self.ask.previous.map_or(0, |grant| grant.cpus.intersection(cpus).len());
        let rank = |cpus: &CpuSet| {
            let pinned = self.ledger.wear.pinned(cpus) - self.own_pinned(cpus);
            let matters = if self.ask.resources.cpu.class == CpuClass::Exclusive { pinned } else { 0 };
            (self.weakness(cpus), matters, Reverse(held(cpus)), self.load(cpus), cpus.iter().next())
        };
        let mut seats: Vec<CpuSet> = Vec::new();
        let mut rest = open.clone();
        for cpu in open.iter() {
            let seat = match smt {
                Smt::Any => CpuSet::from_iter([cpu]),
                Smt::FullCore | Smt::Spread => topology.core_of(cpu).intersection(&rest),
            };
            rest = rest.difference(&seat);
            if !seat.is_empty() {
                seats.push(seat);
            }
        }
        seats.sort_by_cached_key(rank);
        let in_core = |core: &CpuSet| -> Vec<u32> {
            let mut threads: Vec<u32> = core.iter().collect();
            threads.sort_by_key(|cpu| (Reverse(held(&CpuSet::from_iter([*cpu]))), *cpu));
            threads
        };
        let threads: Vec<Vec<u32>> = seats.iter().map(in_core).collect();
        let mut taken = CpuSet::new();
        if smt == Smt::Spread {
            // One thread of each core, then, where cores are too few, the second ones.
            let deepest = threads.iter().map(Vec::len).max().unwrap_or(0);
            let in_turn = (0..deepest).flat_map(|depth| threads.iter().filter_map(move |core| core.get(depth)));
            in_turn.take(count).for_each(|cpu| taken.insert(*cpu));
        } else {
            threads.iter().flatten().take(count).for_each(|cpu| taken.insert(*cpu));
        }
        taken
    }

    /// How many of these CPUs do not sit as asked: beside another on their core, or on a core that could be left.
    fn misplaced(&self, cpus: &CpuSet, smt: Smt) -> usize {
        let topology = &self.machine.topology;
        match smt {
            Smt::Any => 0,
            Smt::Spread => cpus.iter().filter(|cpu| !one_of(topology, *cpu, cpus)).count(),
            Smt::FullCore => usize::from(!packs(topology, cpus)),
        }
    }

    /// 0 for CPUs of the strongest kind alone, more the weaker the weakest of them is.
    fn weakness(&self, cpus: &CpuSet) -> u32 {
        let kinds = &self.machine.topology.kinds;
        let strongest = kinds.last().map_or(0, |kind| kind.efficiency);
        let weakest = kinds.iter().find(|kind| !kind.cpus.is_disjoint(cpus)).map_or(strongest, |kind| kind.efficiency);
        strongest - weakest
    }

    /// Somebody has to run everything else, the controller included, and what others were promised of the pool has to stay in it.
    fn staying(&self) -> usize {
        let others = self.ledger.others(self.ask.name);
        let pinned = others.filter(|(_, holding)| holding.resources.cpu.class == CpuClass::Pinned);
        let widest_pinned = pinned.map(|(_, holding)| holding.grant.requested.cpu.cpus_ceil()).max().unwrap_or(0);
        let promised = self.ledger.pool_requested_by_others(self.ask.name);
        let promised = self.machine.admission.overcommit.cpu.needed_for(promised).div_ceil(1000);
        widest_pinned.max(usize::try_from(promised).unwrap_or(usize::MAX)).max(1)
    }

    /// CPUs among these that the workload itself holds as a pinned one.
    fn own_pinned(&self, cpus: &CpuSet) -> u32 {
        let own = self.ledger.get(self.ask.name).filter(|own| own.resources.cpu.class == CpuClass::Pinned);
        own.map_or(0, |own| u32::try_from(own.grant.cpus.intersection(cpus).len()).unwrap_or(u32::MAX))
    }

    fn too_few(&self, count: usize) -> Refusal {
        let aligned = if self.ask.resources.cpu.align == Align::Required { " of one NUMA node" } else { "" };
        let message = format!(
            "{}{aligned} asked for, {} open to sharing ({}){}",
            number(count),
            number(self.pool.len()),
            self.pool,
            self.nearest(count, |search, count| search.domains().any(|domain| domain.cpus.len() >= count))
        );
        Refusal { reason: "InsufficientCpu", message }
    }
}
