//! The rebalancer's place among the planner's decisions: what it is shown of a host, and which of its proposals are taken up.
//!
//! `place::rebalance` decides on measured load alone. Here a proposal meets everything else that is known of a workload: one that is being acted
//! on, stopped, updated or held is left alone, and half a swap is none. What is taken up becomes the workload's grant, in its record like any
//! other, and the ordinary resize carries it out ([`crate::plan::Act::Resize`]); if the kernel refuses, the record goes back to the grant before.
//!
//! Guarantees: pure; a proposal whose workload is no longer where it was when it was made is not taken up; what widens is in force before what
//! narrows is begun.

use super::Input;
use crate::model::balance::{Member, Move, Sample, Settings};
use crate::model::clock::Steady;
use crate::model::cpuset::CpuSet;
use crate::model::meter::{Count, CpuCount, Reading};
use crate::model::name::Name;
use crate::model::observed::{Life, Observed};
use crate::model::record::{Grant, Moved, Record};
use crate::model::spec::CpuClass;
use crate::model::topology::Topology;
use crate::model::units::MilliCpu;
use crate::place::rebalance::groups::Groups;
use crate::place::{self, Ask, Ledger};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use crate::place::rebalance::{Balancer, replay};

/// Two readings closer together than this say little: a hundred clock ticks of each CPU are a per cent each.
const APART_MIN: Duration = Duration::from_secs(1);
const TICKS_APART_MIN: u64 = 100;

/// What the counters came to between their last two readings.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    cpus: BTreeMap<u32, CpuCount>,
    busy: BTreeMap<u32, u32>,
    known: BTreeMap<Name, Rate>,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    count: Count,
    usage: Option<MilliCpu>,
    wait: Option<MilliCpu>,
}

impl Rates {
    /// Takes in a reading. Of a workload that was not read this time, the last rate goes on.
    pub fn take(&mut self, reading: Reading) {
        let Reading { cpus, workloads } = reading;
        self.cpus.retain(|cpu, _| cpus.contains_key(cpu));
        self.busy.retain(|cpu, _| cpus.contains_key(cpu));
        for (cpu, now) in cpus {
            let before = *self.cpus.entry(cpu).or_insert(now);
            let total = now.total.saturating_sub(before.total);
            if total < TICKS_APART_MIN {
                continue;
            }
            let busy = (1000 * now.busy.saturating_sub(before.busy) / total).min(1000);
            self.busy.insert(cpu, u32::try_from(busy).unwrap_or(1000));
            self.cpus.insert(cpu, now);
        }
        for (name, now) in workloads {
            let known = self.known.get(&name).filter(|known| known.count.run == now.run);
            let Some(before) = known.map(|known| known.count) else {
                self.known.insert(name, Rate { count: now, usage: None, wait: None });
                continue;
            };
            let elapsed = now.at.since(before.at);
            if elapsed < APART_MIN {
                continue;
            }
            let wait = match (before.waited_us, now.waited_us) {
                (Some(before), Some(now)) => Some(per_time(before, now, elapsed)),
                _ => None,
            };
            self.known
                .insert(name, Rate { count: now, usage: Some(per_time(before.cpu_us, now.cpu_us, elapsed)), wait });
        }
    }

    /// Forgets workloads that do not run.
    pub fn keep_only<T>(&mut self, runs: &BTreeMap<Name, T>) {
        self.known.retain(|name, _| runs.contains_key(name));
    }

    /// Whether any CPU is at work for more than this, in permille. One that has not been measured may be.
    pub fn is_any_busy(&self, permille: u32) -> bool {
        self.busy.is_empty() || self.busy.values().any(|busy| *busy > permille)
    }
}

/// Microseconds per time, in thousandths of a CPU.
fn per_time(before_us: u64, now_us: u64, elapsed: Duration) -> MilliCpu {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    MilliCpu(u32::try_from(now_us.saturating_sub(before_us) / elapsed_ms).unwrap_or(u32::MAX))
}

/// Groups of CPUs that work can be moved between; of fewer than two there is nothing to even out.
pub fn groups(topology: &Topology) -> usize {
    Groups::of(topology, &CpuSet::new()).count()
}

/// When the rebalancer acts on this machine. Where each node is one group of CPUs there is no nearer way out of a crowd than another node, and
/// waiting for one for a minute is only a minute more of it: then the usual two ticks have to do. What keeps memory from being left behind holds
/// all the same, the larger imbalance and the small resident set.
pub fn settings(topology: &Topology) -> Settings {
    let usual = Settings::default();
    let groups = groups(topology);
    let nodes = topology.nodes.values().filter(|node| !node.is_disjoint(&topology.usable)).count();
    let far_dwell_ms = if groups <= nodes { usual.tick_ms } else { usual.far_dwell_ms };
    Settings { far_dwell_ms, ..usual }
}

/// The runs to be measured, by the number of the run.
pub fn runs(observed: &BTreeMap<Name, Observed>) -> BTreeMap<Name, u64> {
    let running = |(name, seen): (&Name, &Observed)| {
        let instance = seen.instance.as_ref().filter(|instance| matches!(instance.life, Life::Running { .. }))?;
        Some((name.clone(), instance.number))
    };
    observed.iter().filter_map(running).collect()
}

/// Whether there is a workload that could be moved at all.
pub fn is_any_movable(input: &Input<'_>) -> bool {
    let movable = |record: &Record| record.spec.resources.cpu.class != CpuClass::Exclusive;
    runs(input.observed).keys().filter_map(|name| input.records.get(name)).any(movable)
}

/// What the rebalancer is shown.
pub fn sample(input: &Input<'_>, rates: &Rates, at: Steady) -> Sample {
    let member = |(name, seen): (&Name, &Observed)| {
        let record = input.records.get(name)?;
        Some((name.clone(), member(input, rates, name, record, seen)?))
    };
    Sample {
        at_ms: u64::try_from(at.0).unwrap_or(0),
        busy: rates.busy.clone(),
        members: input.observed.iter().filter_map(member).collect(),
    }
}

/// One running workload; none if the kernel does not say which CPUs it has.
fn member(input: &Input<'_>, rates: &Rates, name: &Name, record: &Record, seen: &Observed) -> Option<Member> {
    let rate = rates.known.get(name)?;
    let fenced = record.grant.as_ref().map(|grant| grant.fenced.clone()).unwrap_or_default();
    let cpus = held(seen)?;
    let gpus = record.grant.as_ref().map(|grant| grant.gpus.as_slice()).unwrap_or_default();
    let within = place::kept_to(input.machine, record.spec.gpu.as_ref(), gpus, &cpus);
    Some(Member {
        cpu: record.spec.resources.cpu.clone(),
        cpus,
        fenced,
        within,
        fixed: fixed(input, name, record, seen).map(str::to_owned),
        usage: rate.usage,
        wait: rate.wait,
        resident: rate.count.memory,
        priority: record.spec.priority,
    })
}

fn held(seen: &Observed) -> Option<CpuSet> {
    let held: CpuSet = seen.group.as_ref()?.settings.get("cpuset.cpus")?.parse().ok()?;
    (!held.is_empty()).then_some(held)
}

/// Why a workload is not to be moved now; none if it may be.
fn fixed(input: &Input<'_>, name: &Name, record: &Record, seen: &Observed) -> Option<&'static str> {
    let life = seen.instance.as_ref().map(|instance| &instance.life);
    let wanted = input.desired.wanted.get(name).map(|wanted| &wanted.spec);
    let is_edited = |spec: &Arc<_>| !Arc::ptr_eq(spec, &record.spec) && **spec != *record.spec;
    if input.shutdown.is_some() {
        Some("the controller ends and takes it along")
    } else if input.blind.contains(name) {
        Some("it cannot be looked at")
    } else if input.busy.contains(name) {
        Some("a step is under way")
    } else if !matches!(life, Some(Life::Running { .. })) {
        Some("it is being set up")
    } else if record.stopping.is_some() {
        Some("it is being stopped")
    } else if record.spec.resources.cpu.class == CpuClass::Exclusive {
        Some("exclusive CPUs do not change under a running workload")
    } else if record.rollout.is_some() {
        Some("an update of it is under way")
    } else if record.grant.is_none() {
        Some("nothing is known of its grant")
    } else if input.setbacks.contains_key(name) {
        Some("its last step failed")
    } else if input.strays.contains_key(name) {
        Some("processes of it have to be moved back first")
    } else if wanted.is_none() {
        Some("its manifest is gone, held or unreadable")
    } else if wanted.is_some_and(is_edited) {
        Some("an edit of it is under way")
    } else {
        None
    }
}

/// The proposals that are taken up in this pass.
pub(super) fn acceptable(input: &Input<'_>, ledger: &Ledger) -> BTreeMap<Name, Move> {
    let Some(moves) = input.moves else { return BTreeMap::new() };
    let fits = |proposed: &&Move| fits(input, ledger, proposed);
    let mut taken: BTreeMap<Name, Move> =
        moves.iter().filter(fits).map(|proposed| (proposed.name.clone(), proposed.clone())).collect();
    // What has been begun and is still under way counts as well: its record has the new CPUs.
    let widens = |proposed: &Move| proposed.from.is_subset(&proposed.to);
    let begun = |proposed: &Move| input.busy.contains(&proposed.name);
    if moves.iter().any(|proposed| widens(proposed) && (begun(proposed) || taken.contains_key(&proposed.name))) {
        taken.retain(|_, proposed| !proposed.to.is_subset(&proposed.from) || widens(proposed));
    }
    let names: Vec<Name> = taken.keys().cloned().collect();
    for name in names {
        let partner = taken.get(&name).and_then(|proposed| proposed.with.clone());
        if partner.is_some_and(|partner| !taken.contains_key(&partner)) {
            taken.remove(&name);
        }
    }
    taken
}

/// Whether a proposal still holds.
fn fits(input: &Input<'_>, ledger: &Ledger, proposed: &Move) -> bool {
    let name = &proposed.name;
    let (Some(record), Some(seen)) = (input.records.get(name), input.observed.get(name)) else { return false };
    let Some(grant) = &record.grant else { return false };
    if fixed(input, name, record, seen).is_some() {
        return false;
    }
    let machine = input.machine;
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(name));
    let is_where_it_was = place::cpus_in_force(machine, ledger, name, grant) == proposed.from;
    let ask = Ask::of(&record.spec, Some(grant));
    let moved = moved(grant, proposed, input);
    is_where_it_was
        && !proposed.to.is_empty()
        && proposed.to.is_subset(&pool)
        && place::still_good(machine, ledger, &ask, &moved)
}

/// The grant with the CPUs that are proposed.
pub(super) fn moved(grant: &Grant, proposed: &Move, input: &Input<'_>) -> Grant {
    let Move { name: _, from: _, to, rung, with: _, gain, cost, reason } = proposed;
    let reason = format!("{rung}: {reason}; gain {gain}m, cost {cost}m");
    Grant {
        cpus: to.clone(),
        moved: Some(Moved { from: grant.cpus.clone(), at: input.clock.wall }),
        reason,
        ..grant.clone()
    }
}

/// The record to go back to if the kernel refuses a move; none if the record makes none.
pub(super) fn unmoved(record: &Record, known: Option<&Record>) -> Option<Record> {
    let before = known?.grant.as_ref()?;
    let is_move = record.grant.as_ref().is_some_and(|grant| grant.moved.is_some() && grant.moved != before.moved);
    is_move.then(|| Record { grant: Some(before.clone()), ..record.clone() })
}

#[cfg(test)]
mod tests;
