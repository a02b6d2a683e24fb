//! There is no room: who waits since when, who has to leave for whom, and who may not pass.
//!
//! A workload of a strictly higher priority may have others stopped: jobs, and workloads of class idle, which said that they only want what
//! nobody else does. Where devices are all that is missing, workloads with `gpu.rebalance: restart` are started anew on others first, if that gains
//! more than it costs (`place::movers`) and they have run for a while. They are stopped as their manifests say, with their grace; a run that is stopped so has not failed, and the workload goes back to
//! the queue. Nobody is stopped if that would make no room, or if those that leave anyway will; nobody else is stopped for the same newcomer: it
//! remembers whom it has had stopped until it starts, its manifest changes or [`PREEMPTS_AGAIN`] is over, so that a mistake in this reckoning costs
//! one stop in that time and no loop.

use super::{Case, Decision};
use crate::model::gpu::Rebalance;
use crate::model::name::Name;
use crate::model::observed::{Instance, Life};
use crate::model::record::{Preempting, Record, Requested};
use crate::model::spec::{CpuClass, Kind, Spec};
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use crate::place::{self, Ask, Candidate, Holding, Refusal};
use crate::plan::queue::Head;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a run that makes room for another is told to be.
pub const PREEMPTED: &str = "Preempted";
/// How long a run is left on its devices before it is started anew on others: ten times what loading a large model takes.
const SETTLED_AFTER: Duration = Duration::from_mins(10);

/// How long whoever has had others stopped, and has no room all the same, has nobody else stopped: long past the grace that victims usually
/// have, so that what is reckoned wrongly costs a stop every ten minutes at most; short enough that somebody whose room another took, of a higher
/// priority or while a device was not well, does not wait for ever.
const PREEMPTS_AGAIN: Duration = Duration::from_mins(10);

/// Workloads without room for which a pass looks for whoever is in the way: each costs some placements on a copy of the ledger, and those
/// further behind in the queue have their turn when these have started, or do not ask any more.
pub const REFUSED_MAX: usize = 32;

/// For whom a run is stopped, and by which right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub newcomer: Name,
    pub right: Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// The newcomer's priority is higher.
    Priority(i32),
    /// It said that it may be started anew on other devices.
    Rebalance,
}

/// Whether a workload holds all that its manifest asks for.
fn is_enough(held: &Holding, spec: &Spec) -> bool {
    let Requested { cpu, memory } = held.grant.requested;
    let devices = spec.gpu.as_ref().map_or(0, |request| usize::try_from(request.count).unwrap_or(usize::MAX));
    cpu >= spec.resources.cpu.request && memory >= spec.resources.memory.request && held.grant.gpus.len() >= devices
}

impl Claim {
    /// That of a newcomer which has had others stopped.
    pub fn of(newcomer: &Record) -> Claim {
        let moves = newcomer.preempting.as_ref().is_some_and(|preempting| preempting.moves);
        let right = if moves { Right::Rebalance } else { Right::Priority(newcomer.spec.priority) };
        Claim { newcomer: newcomer.spec.name.clone(), right }
    }
}

impl Case<'_, '_> {
    /// It has to wait for room, and may have others stopped for it.
    pub(super) fn refused(mut self, refusal: Refusal) -> Decision {
        self.release();
        self.begin_to_wait();
        self.forget_victims();
        let preempts = self.choose_victims();
        let leaving: Vec<&str> = self.leaving_for_it().chain(&preempts).map(Name::as_str).collect();
        let message = if leaving.is_empty() {
            "waits for room".to_owned()
        } else {
            format!("waits for {} to leave, which makes room for it", leaving.join(" and "))
        };
        self.find(ConditionKind::Placed, false, refusal.reason, refusal.message.clone());
        self.find(ConditionKind::Ready, false, "NotPlaced", message);
        let again_at = self.preempts_again_at();
        let mut decision = self.rest(Phase::Pending, refusal.message, again_at);
        (decision.is_refused, decision.preempts) = (true, preempts);
        decision
    }

    /// Why it may not start although there is room: somebody before it waits for that.
    pub(super) fn kept_back(&self) -> Option<String> {
        let own = &self.record.spec.name;
        // What it holds already nobody else can be given. What an edit asks for beyond that it would take from those before it.
        if self.ledger.get(own).is_some_and(|held| is_enough(held, &self.record.spec)) {
            return None;
        }
        let mut others = self.heads.iter().filter(|head| head.name != *own);
        others.find_map(|head: &Head| head.keeps_back(self.input, &self.record.spec))
    }

    /// It waits behind another, and holds nothing meanwhile.
    pub(super) fn queued(mut self, why: String) -> Decision {
        self.release();
        self.begin_to_wait();
        self.find(ConditionKind::Placed, false, "Queued", why.clone());
        self.find(ConditionKind::Ready, false, "NotPlaced", "waits for its turn");
        self.rest(Phase::Pending, why, None)
    }

    fn begin_to_wait(&mut self) {
        if self.record.spec.kind == Kind::Job && self.record.queued.is_none() {
            self.record.queued = Some(self.input.clock.now());
        }
    }

    /// Those that are being stopped for it.
    fn leaving_for_it(&self) -> impl Iterator<Item = &Name> {
        let own = &self.record.spec.name;
        let for_it = move |record: &Record| {
            record.stopping.as_ref().is_some_and(|stopping| stopping.preempted_for.as_ref() == Some(own))
        };
        self.input.records.iter().filter(move |(_, record)| for_it(record)).map(|(name, _)| name)
    }

    /// Forgets whom it has had stopped a while ago: that room is another's by now. Not while any of them is still leaving.
    fn forget_victims(&mut self) {
        let clock = self.input.clock;
        let are_leaving = self.leaving_for_it().next().is_some();
        let Some(preempting) = &mut self.record.preempting else { return };
        let since = preempting.since.get_or_insert_with(|| clock.now());
        if clock.left(since, PREEMPTS_AGAIN).is_none() && !are_leaving {
            self.record.preempting = None;
        }
    }

    /// When it may have others stopped again, if it has to wait for that.
    fn preempts_again_at(&self) -> Option<Timestamp> {
        let clock = self.input.clock;
        let since = self.record.preempting.as_ref()?.since.as_ref()?;
        clock.left(since, PREEMPTS_AGAIN).map(|left| clock.wall.plus(left))
    }

    /// Those to stop for it now.
    fn choose_victims(&mut self) -> BTreeSet<Name> {
        let input = self.input;
        if input.busy.contains(&self.record.spec.name) || self.refused_before >= REFUSED_MAX {
            return BTreeSet::new();
        }
        if let Some(Preempting { runs, generation, since: _, moves }) = &self.record.preempting
            && *generation == self.record.generation
        {
            // Chosen before, and a crash or a step under way came between: those, and nobody else.
            let still = |(name, instance): (&Name, &u64)| {
                let run = self.input.records.get(name).filter(|record| record.instance == *instance);
                let may = if *moves { self.may_move(name) } else { self.may_preempt(name) };
                (may && run.is_some()).then(|| name.clone())
            };
            return runs.iter().filter_map(still).collect();
        }
        if self.leaving_for_it().next().is_some() || self.others_leave() {
            return BTreeSet::new();
        }
        let movable = input.records.iter().filter(|(name, _)| self.may_move(name));
        let movable = movable.map(|(name, record)| (name, Ask::of(&record.spec, None))).collect();
        let ask = Ask::of(&self.record.spec, None);
        let to_move = place::movers(input.machine, self.ledger, &ask, &movable);
        let (chosen, moves) = if to_move.is_empty() {
            let candidates = input.records.iter().filter(|(name, _)| self.may_preempt(name));
            let candidates = candidates.map(|(name, record)| Candidate {
                name,
                priority: record.spec.priority,
                age: self.age(name, record),
            });
            (place::victims(input.machine, self.ledger, &ask, candidates.collect()).into_iter().collect(), false)
        } else {
            (to_move, true)
        };
        if chosen.is_empty() {
            return BTreeSet::new();
        }
        let run = |name: &Name| input.records.get(name).map(|record| (name.clone(), record.instance));
        let (runs, generation) = (chosen.iter().filter_map(|name| run(name)).collect(), self.record.generation);
        self.record.preempting = Some(Preempting { runs, generation, since: Some(input.clock.now()), moves });
        chosen.into_iter().cloned().collect()
    }

    /// Whether one may be stopped for this workload: it is worth less, and a job or idle work.
    fn may_preempt(&self, name: &Name) -> bool {
        self.may_go(name).is_some_and(|record| {
            let gives_way = record.spec.kind == Kind::Job || record.spec.resources.cpu.class == CpuClass::Idle;
            gives_way && record.spec.priority < self.record.spec.priority
        })
    }

    /// Whether one may be started anew on other devices for this workload: it said so, is worth no more, and has been where it is for a while.
    fn may_move(&self, name: &Name) -> bool {
        self.may_go(name).is_some_and(|record| {
            let said_so = record.spec.gpu.as_ref().is_some_and(|request| request.rebalance == Rebalance::Restart);
            let settled = said_so && self.age(name, record) >= SETTLED_AFTER;
            settled && record.spec.priority <= self.record.spec.priority
        })
    }

    /// One that runs, that nobody has decided to end yet, and that can be acted on.
    fn may_go(&self, name: &Name) -> Option<&Record> {
        let input = self.input;
        let record = input.records.get(name)?;
        let instance = input.observed.get(name).and_then(|seen| seen.instance.as_ref());
        let runs = matches!(instance, Some(Instance { life: Life::Running { .. }, .. }));
        let stays = input.desired.wanted.contains_key(name) && record.stopping.is_none();
        let free = !input.busy.contains(name) && !self.preempted.contains_key(name);
        (runs && stays && free && *name != self.record.spec.name).then_some(record)
    }

    fn age(&self, name: &Name, record: &Record) -> Duration {
        let instance = self.input.observed.get(name).and_then(|seen| seen.instance.as_ref());
        let began = instance.and_then(|instance| super::began(record, instance, &self.input.clock));
        began.map(|began| self.input.clock.steady.since(began)).unwrap_or_default()
    }

    /// Whether it fits as soon as those have gone that are on their way out.
    fn others_leave(&self) -> bool {
        let input = self.input;
        let is_going = |name: &Name| {
            let stopping = input.records.get(name).is_some_and(|record| record.stopping.is_some());
            let wanted = input.desired.wanted.contains_key(name) || input.desired.held.contains_key(name);
            stopping || !wanted || self.preempted.contains_key(name)
        };
        let own = &self.record.spec.name;
        let going: Vec<Name> =
            self.ledger.others(own).map(|(name, _)| name).filter(|name| is_going(name)).cloned().collect();
        if going.is_empty() {
            return false;
        }
        let mut rest = self.ledger.clone();
        for name in &going {
            rest.remove(name);
        }
        place::place(input.machine, &rest, &Ask::of(&self.record.spec, None).on_trial()).is_ok()
    }

    /// Why a run has to make room, if it has to.
    pub(super) fn makes_room(&self) -> Option<(Name, String)> {
        let Claim { newcomer, right } = self.preempted.get(&self.record.spec.name)?;
        let message = match right {
            Right::Priority(priority) => {
                let own = self.record.spec.priority;
                format!("makes room for {newcomer}, whose priority {priority} is above its {own}")
            }
            Right::Rebalance => format!("moves to other devices so that {newcomer} fits (gpu.rebalance: restart)"),
        };
        Some((newcomer.clone(), message))
    }
}
