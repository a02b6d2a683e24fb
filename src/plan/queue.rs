//! Who is decided about first, and who may pass the first that waits for room.
//!
//! Problem: room goes to whoever is looked at first. By name alone a group with many jobs starves the others; whoever needs much waits for ever
//! while small ones slip in before it; whoever may pass nobody leaves half of a machine idle.
//!
//! Order: those that run, so that newcomers find the machine as it is. Then by priority; of one priority services before jobs, since others
//! come after them; jobs by fair share, then by how long they have waited for room, then by name. A group (a sub-folder of the manifests) has as
//! much as its jobs hold of what it holds most of, memory, CPUs or GPUs, in parts of what there is: dominant resource fairness (Ghodsi et al.,
//! NSDI 2011); the group with the least goes next. Since when a job waits is in its record, and so outlives the controller.
//!
//! Backfill ([`Head`]): the first that is refused and that jobs, or those about to leave, stand in the way of is the *head*. Whoever comes after
//! it starts only if it takes nothing of a kind that the head lacks, or ends by its own `timeout` before the head could start by the timeouts of
//! those in its way. That is EASY backfilling (Lifka, 1995) with the timeout as the estimate. A job without a timeout may run for ever: it is
//! in the way without end, and passes nobody it would take from. The rule looks at kinds (memory, CPUs, GPUs), not at amounts: two requests for
//! memory that would fit side by side go one after the other all the same; counting amounts gains little, and a mistake in it starves the head.
//! Services in the way hold back nobody: they do not end, the head waits for an edit, and everyone else would wait with it.
//! A job between two tries is in nobody's way and has no right to pass: its room is given to others, and it comes back like any other.
//! Room that is made by preemption is kept in the same way for whom it is made, or others would move into what its victims leave.
//!
//! Guarantees: where all jobs in its way have timeouts, the head starts no later than it could foresee as it became the head; equal inputs
//! give equal orders.

use super::lifecycle::began;
use super::{Input, Ledger};
use crate::model::clock::Steady;
use crate::model::gpu::Share;
use crate::model::name::Name;
use crate::model::observed::{Instance, Life};
use crate::model::record::Record;
use crate::model::spec::{Kind, Spec};
use crate::place::{self, Ask, Holding, Scarce};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The names of a pass, one after the other. Jobs that wait are put in order as it goes, by what their groups hold by then.
pub struct Queue<'a> {
    input: &'a Input<'a>,
    tiers: VecDeque<Tier>,
    shares: BTreeMap<String, Holdings>,
    /// What is counted of each job in `shares`.
    counted: BTreeMap<Name, (String, Holdings)>,
}

/// Names between which the order is settled, or jobs of one priority by group, those that have waited longest first.
enum Tier {
    Settled(VecDeque<Name>),
    Jobs(BTreeMap<String, VecDeque<Waiting>>),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    /// Longest first.
    waited: Reverse<Duration>,
    name: Name,
}

/// What jobs of a group hold, each in millionths of all there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holdings {
    memory: u64,
    cpu: u64,
    gpus: u64,
    jobs: u64,
}

impl Holdings {
    fn of(input: &Input<'_>, holding: &Holding) -> Holdings {
        let machine = input.machine;
        let part = |held: u64, all: u64| {
            u64::try_from(u128::from(held) * 1_000_000 / u128::from(all.max(1))).unwrap_or(u64::MAX)
        };
        let whole = |share: Share, id| match share {
            Share::Whole => 1_000_000,
            Share::Memory(bytes) => {
                let device = machine.gpus.iter().find(|gpu| gpu.id == id);
                device.map_or(0, |gpu| part(bytes.0, gpu.memory.0))
            }
        };
        let gpus: u64 = holding.grant.gpus.iter().map(|lease| whole(lease.share, lease.gpu.clone())).sum();
        let requested = holding.grant.requested;
        Holdings {
            memory: part(requested.memory.0, machine.admission.memory(machine.memory).0),
            cpu: part(u64::from(requested.cpu.0), machine.admission.cpu_milli(machine.topology.usable.len())),
            gpus: gpus / (machine.gpus.len() as u64).max(1),
            jobs: 1,
        }
    }

    fn plus(self, other: Holdings) -> Holdings {
        let Holdings { memory, cpu, gpus, jobs } = other;
        Holdings { memory: self.memory + memory, cpu: self.cpu + cpu, gpus: self.gpus + gpus, jobs: self.jobs + jobs }
    }

    fn minus(self, other: Holdings) -> Holdings {
        let Holdings { memory, cpu, gpus, jobs } = other;
        Holdings { memory: self.memory - memory, cpu: self.cpu - cpu, gpus: self.gpus - gpus, jobs: self.jobs - jobs }
    }

    /// What is compared: the dominant share; of those that ask for nothing, their number.
    fn weight(self) -> (u64, u64) {
        (self.memory.max(self.cpu).max(self.gpus), self.jobs)
    }
}

impl<'a> Queue<'a> {
    pub fn of(input: &'a Input<'a>, ledger: &Ledger, names: BTreeSet<&Name>) -> Queue<'a> {
        let mut sorted: Vec<_> = names.into_iter().map(|name| rank(input, name)).collect();
        sorted.sort_unstable();
        let mut queue = Queue { input, tiers: VecDeque::new(), shares: BTreeMap::new(), counted: BTreeMap::new() };
        let mut jobs_of = None;
        for (not_running, priority, is_job, _, name) in sorted {
            queue.count(ledger, &name);
            if !(not_running && is_job) {
                match queue.tiers.back_mut() {
                    Some(Tier::Settled(names)) => names.push_back(name),
                    _ => queue.tiers.push_back(Tier::Settled([name].into())),
                }
                continue;
            }
            if jobs_of != Some(priority) {
                queue.tiers.push_back(Tier::Jobs(BTreeMap::new()));
                jobs_of = Some(priority);
            }
            let queued = input.records.get(&name).and_then(|record| record.queued.as_ref());
            let waited = Reverse(queued.map_or(Duration::ZERO, |queued| input.clock.since(queued)));
            if let Some(Tier::Jobs(groups)) = queue.tiers.back_mut() {
                groups.entry(group(input, &name)).or_default().push_back(Waiting { waited, name });
            }
        }
        for tier in &mut queue.tiers {
            if let Tier::Jobs(groups) = tier {
                for waiting in groups.values_mut() {
                    waiting.make_contiguous().sort();
                }
            }
        }
        queue
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<Name> {
        loop {
            match self.tiers.front_mut()? {
                Tier::Settled(names) => {
                    if let Some(name) = names.pop_front() {
                        return Some(name);
                    }
                }
                Tier::Jobs(groups) => {
                    let weight = |group: &String| self.shares.get(group).copied().unwrap_or_default().weight();
                    let waiting = groups.iter().filter_map(|(group, names)| Some((group, names.front()?)));
                    let least = waiting.min_by_key(|(group, first)| (weight(group), *first));
                    if let Some(group) = least.map(|(group, _)| group.clone()) {
                        return groups.get_mut(&group)?.pop_front().map(|first| first.name);
                    }
                }
            }
            self.tiers.pop_front();
        }
    }

    /// Takes in what a workload holds now.
    pub fn count(&mut self, ledger: &Ledger, name: &Name) {
        if let Some((group, held)) = self.counted.remove(name)
            && let Some(share) = self.shares.get_mut(&group)
        {
            *share = share.minus(held);
        }
        let is_job = spec(self.input, name).is_some_and(|spec| spec.kind == Kind::Job);
        if let Some(holding) = ledger.get(name).filter(|_| is_job) {
            let (group, held) = (group(self.input, name), Holdings::of(self.input, holding));
            let share = self.shares.entry(group.clone()).or_default();
            *share = share.plus(held);
            self.counted.insert(name.clone(), (group, held));
        }
    }
}

fn spec<'a>(input: &'a Input<'_>, name: &Name) -> Option<&'a Arc<Spec>> {
    let wanted = input.desired.wanted.get(name).map(|wanted| &wanted.spec);
    wanted.or_else(|| input.records.get(name).map(|record| &record.spec))
}

/// The sub-folder its manifest lies in.
fn group(input: &Input<'_>, name: &Name) -> String {
    let wanted = input.desired.wanted.get(name).map(|wanted| &wanted.origin);
    let origin = wanted.or_else(|| input.records.get(name).map(|record| &record.origin));
    origin.and_then(|origin| origin.path.rsplit_once('/')).map_or("", |(group, _)| group).to_owned()
}

fn runs(input: &Input<'_>, name: &Name) -> bool {
    let life = input.observed.get(name).and_then(|seen| seen.instance.as_ref()).map(|instance| &instance.life);
    matches!(life, Some(Life::Starting | Life::Running { .. }))
}

/// The settled part of the order. Of several replicas that go the highest first, so that fewer of them end there.
fn rank(input: &Input<'_>, name: &Name) -> (bool, Reverse<i32>, bool, Reverse<u32>, Name) {
    let spec = spec(input, name);
    let priority = spec.map_or(0, |spec| spec.priority);
    let going = !input.desired.wanted.contains_key(name);
    let replica = spec.filter(|_| going).and_then(|spec| spec.replica.as_ref());
    let index = replica.map_or(0, |replica| replica.index);
    let not_running = !runs(input, name);
    // Among those that run nobody waits.
    let is_job = not_running && spec.is_some_and(|spec| spec.kind == Kind::Job);
    (not_running, Reverse(priority), is_job, Reverse(index), name.clone())
}

/// Room that is kept for one that waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub name: Name,
    lacks: BTreeSet<Scarce>,
    /// When it can start by the timeouts of those in its way; none if not all of those have one.
    starts: Option<Steady>,
}

impl Head {
    /// Why a workload has to wait although there is room for it, if it has to.
    pub fn keeps_back(&self, input: &Input<'_>, spec: &Spec) -> Option<String> {
        let takes: Vec<&Scarce> = self.lacks.iter().filter(|what| what.is_asked_for(spec)).collect();
        if takes.is_empty() {
            return None;
        }
        let ends = spec.job.timeout.map(|timeout| input.clock.steady.plus(timeout).plus(spec.stop.grace));
        if let (Some(ends), Some(starts)) = (ends, self.starts)
            && ends <= starts
        {
            return None;
        }
        let what = takes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let until = match self.starts {
            Some(starts) => format!(
                "it would start by {} at the latest, and only a job whose timeout ends before may go first",
                input.clock.wall_at(starts)
            ),
            None => "it starts when those in its way end, and not all of them have a timeout".to_owned(),
        };
        Some(format!("there is room, but {} is before it and waits for {what}: {until}", self.name))
    }
}

/// The room to keep for one that has just been refused; none if nothing that ends stands in its way. `leaving` are stopped in this pass.
pub fn head(input: &Input<'_>, ledger: &Ledger, record: &Record, leaving: &BTreeSet<Name>) -> Option<Head> {
    let ask = Ask::of(&record.spec, None).on_trial();
    let lacks = place::lacks(input.machine, ledger, &ask);
    let in_the_way = |(name, holding): (&Name, &Holding)| {
        let takes = holding.takes().any(|what| lacks.contains(&what));
        takes.then(|| ends(input, name, leaving).map(|end| (end, name.clone()))).flatten()
    };
    let mut ends: Vec<(End, Name)> = ledger.others(ask.name).filter_map(in_the_way).collect();
    ends.sort();
    let fits_after = |count: usize| {
        let mut rest = ledger.clone();
        ends.iter().take(count).for_each(|(_, name)| rest.remove(name));
        place::place(input.machine, &rest, &ask).is_ok()
    };
    if ends.is_empty() || !fits_after(ends.len()) {
        return None;
    }
    // By halves: with fewer in the way it fits all the more.
    let (mut bad, mut good) = (0, ends.len());
    while good - bad > 1 {
        let middle = usize::midpoint(bad, good);
        if fits_after(middle) { good = middle } else { bad = middle }
    }
    let starts = match ends.get(good - 1) {
        Some((End::By(end), _)) => Some(*end),
        _ => None,
    };
    Some(Head { name: record.spec.name.clone(), lacks, starts })
}

/// When somebody is out of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    By(Steady),
    /// It ends, nobody knows when.
    Sometime,
}

/// When a workload gives back what it holds; none if it does not mean to end.
fn ends(input: &Input<'_>, name: &Name, leaving: &BTreeSet<Name>) -> Option<End> {
    let spec = spec(input, name)?;
    let now = input.clock.steady;
    let instance = input.observed.get(name).and_then(|seen| seen.instance.as_ref());
    let record = input.records.get(name);
    let is_going = !input.desired.wanted.contains_key(name) && !input.desired.held.contains_key(name);
    if let Some(stopping) = record.and_then(|record| record.stopping.as_ref()) {
        return Some(End::By(now.plus(input.clock.left(&stopping.since, spec.stop.grace).unwrap_or_default())));
    }
    if is_going || leaving.contains(name) {
        return Some(End::By(now.plus(spec.stop.grace)));
    }
    if spec.kind == Kind::Service {
        return None;
    }
    let timeout = spec.job.timeout.map(|timeout| timeout.saturating_add(spec.stop.grace));
    Some(match (timeout, record, instance) {
        (Some(timeout), Some(record), Some(instance @ Instance { life: Life::Running { .. }, .. })) => {
            began(record, instance, &input.clock).map_or(End::Sometime, |began| End::By(began.plus(timeout).max(now)))
        }
        // About to be started, in this pass or by a step that is under way.
        (Some(timeout), ..) => End::By(now.plus(timeout)),
        (None, ..) => End::Sometime,
    })
}
