//! The rungs of the ladder: who could go where.
//!
//! Each gives its candidates sorted by promise, counted roughly, and only those that their own past, their manifest and the machine allow;
//! whether one is worth it is found out by trying it.

use super::{Candidate, Ladder, TRIALS_MAX};
use crate::model::balance::Rung;
use crate::model::cpuset::CpuSet;
use crate::model::spec::{Align, CpuClass, Smt};
use crate::model::topology::Topology;
use crate::model::units::MilliCpu;
use crate::place::rebalance::groups::{Group, Place};
use std::cmp::Reverse;

/// The emptiest groups that are considered for a move: a fuller one would gain less.
const TARGETS_MAX: usize = 3;
/// What a move costs, in thousandths of a CPU. A gain below it is within what demand wobbles by: with 8 CPUs in a group, 2 % of its load.
const COST_NEAR: u64 = 30;
/// Two caches to warm.
const COST_SWAP: u64 = 2 * COST_NEAR;
/// Widened within a cache nothing gets cold; across two, each holds half of it from then on (DESIGN section 8: 50 for a split).
const COST_WITHIN: u64 = 10;
const COST_SPLIT: u64 = 50;
/// Every page is far until it is copied.
const COST_FAR: u64 = 200;
/// Squeezed or let go, idle work loses nothing that anybody waits for.
const COST_IDLE: u64 = 10;
/// A workload of at least this part of its group is too large to be moved without crowding the other end.
const BOULDER: u64 = 4;

impl Ladder<'_> {
    /// The emptiest groups that work of this one may go to.
    fn targets(&self, hot: usize, rung: Rung) -> Vec<usize> {
        let here = &self.groups.list()[hot];
        let fits = |(at, group): &(usize, &Group)| {
            *at != hot && group.kind == here.kind && (group.node == here.node) == (rung != Rung::Far)
        };
        let mut targets: Vec<usize> = self.groups.list().iter().enumerate().filter(fits).map(|(at, _)| at).collect();
        targets.sort_by_key(|group| (self.picture.loads[*group].level(), *group));
        targets.truncate(TARGETS_MAX);
        targets
    }

    /// Whether a workload may have these CPUs, by what it asks for and by its own past.
    fn allows(&self, at: usize, to: &CpuSet) -> bool {
        let (track, (_, member)) = (&self.tracks[at], self.members[at]);
        let wanted = match member.cpu.class {
            CpuClass::Pinned => member.cpus.len(),
            _ => member.cpu.limit.at().map_or(usize::MAX, MilliCpu::cpus_ceil).min(member.cpus.len()),
        };
        !to.is_empty()
            && to.len() >= wanted.max(1)
            && member.within.as_ref().is_none_or(|within| to.is_subset(within))
            && track.may_take(to, &self.clock)
    }

    /// Where it would sit in another group: on all of it, or on as many CPUs as now, the emptiest.
    fn seat_in(&self, at: usize, group: usize) -> CpuSet {
        let (track, (_, member)) = (&self.tracks[at], self.members[at]);
        match (member.cpu.class, &track.place) {
            (CpuClass::Shared, Some(Place::Whole(_))) => self.groups.list()[group].cpus.clone(),
            (CpuClass::Shared, _) => self.seats(at, group, Smt::FullCore),
            _ => self.seats(at, group, member.cpu.smt()),
        }
    }

    /// As many CPUs of a group as it has now, the emptiest, sitting on cores as asked; none if they cannot.
    fn seats(&self, at: usize, group: usize, smt: Smt) -> CpuSet {
        let (track, (_, member)) = (&self.tracks[at], self.members[at]);
        let count = member.cpus.len();
        let own = track.demand() / count.max(1) as u64;
        let load = |cpu: u32| {
            let own = if member.cpus.contains(cpu) { own } else { 0 };
            self.picture.seat_of(cpu).saturating_sub(own)
        };
        take(self.groups.topology(), &self.groups.list()[group].cpus, count, smt, load)
    }

    pub(super) fn squeezes(&self, hot: usize) -> Vec<Candidate> {
        let mut found: Vec<(u64, Candidate)> = Vec::new();
        for &at in &self.idle {
            let (track, (_, member)) = (&self.tracks[at], self.members[at]);
            let Some(Place::Several(list)) = &track.place else { continue };
            if !list.contains(&hot) || list.len() < 2 || member.cpu.align == Align::Required {
                continue;
            }
            let to = member.cpus.difference(&self.groups.list()[hot].cpus);
            if self.allows_idle(at, &to) {
                let step = Candidate {
                    rung: Rung::Squeeze,
                    cost: COST_IDLE,
                    steps: vec![(at, to)],
                    to: list[usize::from(list[0] == hot)],
                };
                found.push((track.demand(), step));
            }
        }
        promising(found)
    }

    /// The same for who is happy with any number of CPUs, as idle work is.
    pub(super) fn allows_idle(&self, at: usize, to: &CpuSet) -> bool {
        let (track, (_, member)) = (&self.tracks[at], self.members[at]);
        !to.is_empty()
            && member.within.as_ref().is_none_or(|within| to.is_subset(within))
            && track.may_take(to, &self.clock)
    }

    pub(super) fn widenings(&self, hot: usize) -> Vec<Candidate> {
        let near = self.targets(hot, Rung::Near);
        let mut found: Vec<(u64, Candidate)> = Vec::new();
        for &at in &self.residents[hot] {
            let (track, (_, member)) = (&self.tracks[at], self.members[at]);
            if member.cpu.class != CpuClass::Shared {
                continue;
            }
            let demand = track.demand();
            let (Some(Place::Whole(_)), Some(&to)) = (&track.place, near.first()) else { continue };
            if demand * BOULDER < self.picture.loads[hot].capacity {
                continue;
            }
            let wide = self.groups.list()[hot].cpus.union(&self.groups.list()[to].cpus);
            if self.allows(at, &wide) {
                let step = Candidate { rung: Rung::Widen, cost: COST_SPLIT, steps: vec![(at, wide)], to };
                found.push((demand, step));
            }
        }
        promising(found)
    }

    pub(super) fn transfers(&self, hot: usize, rung: Rung) -> Vec<Candidate> {
        let cost = if rung == Rung::Far { COST_FAR } else { COST_NEAR };
        let mut found: Vec<(u64, Candidate)> = Vec::new();
        let mut rough: Vec<(u64, i32, usize, usize)> = Vec::new();
        for to in self.targets(hot, rung) {
            for &at in &self.residents[hot] {
                let gain = self.rough_gain(hot, to, self.tracks[at].demand()) + self.seat_relief(at);
                if gain > cost && self.may_leave(at, rung) {
                    rough.push((gain, self.members[at].1.priority, at, to));
                }
            }
        }
        rough.sort_unstable_by_key(|(gain, priority, at, to)| (Reverse(*gain), *priority, *at, *to));
        for (gain, _, at, to) in rough {
            if found.len() == TRIALS_MAX {
                break;
            }
            let cpus = self.seat_in(at, to);
            if self.allows(at, &cpus) {
                found.push((gain, Candidate { rung, cost, steps: vec![(at, cpus)], to }));
            }
        }
        promising(found)
    }

    /// Whether a workload may go to another node, if that is what is asked.
    fn may_leave(&self, at: usize, rung: Rung) -> bool {
        let member = self.members[at].1;
        let is_small = || member.resident.is_some_and(|resident| resident <= self.clock.settings.far_resident_max);
        rung != Rung::Far || member.cpu.align != Align::Required && is_small()
    }

    /// By how much load^2/capacity falls in both groups together, if this demand changes over and nothing else flows.
    fn rough_gain(&self, from: usize, to: usize, demand: u64) -> u64 {
        let (from, to) = (&self.picture.loads[from], &self.picture.loads[to]);
        let square = |load: u64, capacity: u64| load * load / capacity.max(1);
        let before = square(from.all(), from.capacity) + square(to.all(), to.capacity);
        let left = from.all().saturating_sub(demand);
        before.saturating_sub(square(left, from.capacity) + square(to.all() + demand, to.capacity))
    }

    /// By how much load^2/capacity falls, CPU by CPU, for those it shares its CPUs with and itself, if it gets some that nobody is kept to: with
    /// `d` of its demand beside `r` of others, (d + r)^2 becomes d^2 and r^2. Two that want a whole CPU each are worth parting even where their
    /// groups stand all but level.
    fn seat_relief(&self, at: usize) -> u64 {
        let (track, (_, member)) = (&self.tracks[at], self.members[at]);
        if !matches!(track.place, Some(Place::Seats(_))) {
            return 0;
        }
        let share = track.demand() / member.cpus.len().max(1) as u64;
        member.cpus.iter().map(|cpu| 2 * share * self.picture.seat_of(cpu).saturating_sub(share) / 1000).sum()
    }

    pub(super) fn swaps(&self, hot: usize) -> Vec<Candidate> {
        let mut rough: Vec<(u64, usize, usize, usize)> = Vec::new();
        for to in self.targets(hot, Rung::Near) {
            let mut there: Vec<(u64, usize)> =
                self.residents[to].iter().map(|at| (self.tracks[*at].demand(), *at)).collect();
            there.sort_unstable();
            let (from_load, to_load) = (&self.picture.loads[hot], &self.picture.loads[to]);
            // What should change over for both to stand level.
            let ideal = (from_load.all() * to_load.capacity).saturating_sub(to_load.all() * from_load.capacity)
                / (from_load.capacity + to_load.capacity).max(1);
            for &at in &self.residents[hot] {
                let demand = self.tracks[at].demand();
                let wanted = demand.saturating_sub(ideal);
                let index = there.partition_point(|(other, _)| *other < wanted);
                for (other, partner) in there.iter().skip(index.saturating_sub(1)).take(3) {
                    let gain = self.rough_gain(hot, to, demand.saturating_sub(*other));
                    if *other < demand && gain > COST_SWAP && self.are_alike(at, *partner) {
                        rough.push((gain, at, *partner, to));
                    }
                }
            }
        }
        rough.sort_unstable_by_key(|(gain, at, partner, _)| (Reverse(*gain), *at, *partner));
        let mut found: Vec<(u64, Candidate)> = Vec::new();
        for (gain, at, partner, to) in rough {
            if found.len() == TRIALS_MAX {
                break;
            }
            let (mine, theirs) = (self.members[at].1.cpus.clone(), self.members[partner].1.cpus.clone());
            if self.allows(at, &theirs) && self.allows(partner, &mine) {
                let steps = vec![(at, theirs), (partner, mine)];
                found.push((gain, Candidate { rung: Rung::Swap, cost: COST_SWAP, steps, to }));
            }
        }
        promising(found)
    }

    /// Whether each could sit where the other does.
    fn are_alike(&self, one: usize, other: usize) -> bool {
        let (a, b) = (self.members[one].1, self.members[other].1);
        let is_whole = |at: usize| matches!(self.tracks[at].place, Some(Place::Whole(_)));
        a.cpu.class == b.cpu.class
            && is_whole(one) == is_whole(other)
            && (is_whole(one) || a.cpus.len() == b.cpus.len())
            && a.cpu.smt() == b.cpu.smt()
    }

    /// Work kept to single CPUs of a group, of which one stands out: shared work may have all of the group, pinned work other CPUs.
    pub(super) fn reseat(&self, group: usize) -> Option<(Candidate, u64)> {
        let fullest =
            self.groups.list()[group].cpus.iter().max_by_key(|cpu| (self.picture.seat_of(*cpu), Reverse(*cpu)))?;
        let mut widened: Vec<(u64, Candidate)> = Vec::new();
        let mut moved: Vec<(u64, Candidate)> = Vec::new();
        for &at in self.residents[group].iter().filter(|at| self.members[**at].1.cpus.contains(fullest)) {
            let (demand, member) = (self.tracks[at].demand(), self.members[at].1);
            let (list, rung, cost, cpus) = match member.cpu.class {
                CpuClass::Shared => (&mut widened, Rung::Widen, COST_WITHIN, self.groups.list()[group].cpus.clone()),
                _ => (&mut moved, Rung::Near, COST_NEAR, self.seats(at, group, member.cpu.smt())),
            };
            if cpus != member.cpus && self.allows(at, &cpus) {
                list.push((demand, Candidate { rung, cost, steps: vec![(at, cpus)], to: group }));
            }
        }
        self.best(promising(widened)).or_else(|| self.best(promising(moved)))
    }
}
/// The best first; equal ones as they came, which is by name.
fn promising(mut found: Vec<(u64, Candidate)>) -> Vec<Candidate> {
    found.sort_by_key(|(promise, _)| Reverse(*promise));
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The `count` emptiest CPUs of a group, on cores as `smt` says; none where the group has not as many, or not so.
fn take(topology: &Topology, open: &CpuSet, count: usize, smt: Smt, load: impl Fn(u32) -> u64) -> CpuSet {
    let mut cores: Vec<Vec<u32>> = Vec::new();
    let mut rest = open.clone();
    for cpu in open.iter() {
        let core = match smt {
            Smt::Any => CpuSet::from_iter([cpu]),
            Smt::FullCore | Smt::Spread => topology.core_of(cpu).intersection(&rest),
        };
        rest = rest.difference(&core);
        if !core.is_empty() {
            cores.push(core.iter().collect());
        }
    }
    cores.sort_by_key(|core| (core.iter().map(|cpu| load(*cpu)).sum::<u64>(), core.first().copied()));
    let taken: CpuSet = match smt {
        Smt::Spread => {
            cores.iter().filter_map(|core| core.iter().copied().min_by_key(|cpu| load(*cpu))).take(count).collect()
        }
        Smt::Any | Smt::FullCore => cores.iter().flatten().copied().take(count).collect(),
    };
    if taken.len() == count { taken } else { CpuSet::new() }
}
