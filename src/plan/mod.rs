//! What to do next, and why: the difference between what is desired, what is recorded and what is seen.
//!
//! Owns every decision of the controller. Never acts: a [`Plan`] is a list of [`Work`], each with its reason, that the shell carries out
//! without choosing.
//!
//! Approach: level-triggered. Each workload gets at most one step a pass, the next one from where it is *seen* to be; waiting (a grace
//! period, a backoff, CPUs that have to be vacated first) is no step but a time or an event to look again. So a plan is the same after a
//! crash as before it, and no step has to remember how far a sequence had come.
//!
//! Guarantees:
//! * a successor is started only when nothing of its predecessor is seen any more: no instance, no process, no cgroup;
//! * a record is written before the step it describes ([`Work::record`] first, then [`Work::act`]), but for a start, whose record lies
//!   beside the run before anything runs; what only the step itself can make true is written after it ([`Work::done`], [`Work::failed`]);
//! * CPUs are fenced for an exclusive workload before it starts, and it starts when no neighbour's cpuset holds them any more;
//! * a workload whose manifest is unreadable is never stopped, resized or replaced because of that;
//! * a pass over a host that is as it should be has no work.

pub mod backoff;
pub mod balance;
mod ceilings;
pub mod fence;
pub mod gpu;
mod guard;
pub mod kernel;
mod lifecycle;
mod mend;
pub mod probe;
mod queue;
mod rollout;
pub mod strain;

pub use crate::place::Ledger;
pub use lifecycle::{HOST_BUSY, PREEMPTED, environment};

use crate::model::balance::Move;
use crate::model::cgroup::{Shrink, Write};
use crate::model::clock::{Clock, Reading, Steady, Time};
use crate::model::desired::{Desired, Wanted};
use crate::model::exit::Exit;
use crate::model::fence::Fence;
use crate::model::isolation::Changes;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::model::probe::Standing;
use crate::model::record::{Grant, Record};
use crate::model::spec::Signal;
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use crate::place::{self, Ask, Holding, Refusal};
use std::collections::{BTreeMap, BTreeSet};

/// Everything a decision may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub desired: &'a Desired,
    pub records: &'a BTreeMap<Name, Record>,
    pub observed: &'a BTreeMap<Name, Observed>,
    /// Workloads whose last step is still being carried out: they get none.
    pub busy: &'a BTreeSet<Name>,
    /// Workloads that could not be looked at yet: nothing is known, so nothing is done.
    pub blind: &'a BTreeSet<Name>,
    /// Workloads whose last step failed.
    pub setbacks: &'a BTreeMap<Name, Setback>,
    /// Whether deleting most of what there is waits for consent.
    pub prune_guard: bool,
    /// Processes of running workloads that are outside their cgroups.
    pub strays: &'a BTreeMap<Name, BTreeSet<u32>>,
    /// What the probes of runs have come to.
    pub standings: &'a BTreeMap<Name, Standing>,
    pub machine: &'a Machine,
    /// The ledger of this machine before anybody has anything of it. Kept between passes: to work out how its CPUs belong together takes
    /// longer than to plan for a few workloads.
    pub bare: &'a Ledger,
    /// Host CPU utilisation in percent, where it has been measured.
    pub utilisation_percent: Option<u8>,
    /// Jobs wait while the host is busier than this.
    pub job_threshold_percent: u8,
    /// Whether the controller is ending and takes its workloads with it.
    pub shutdown: Option<Shutdown>,
    /// How far the host's own processes are kept off exclusive CPUs.
    pub fence: &'a Fence,
    /// What the rebalancer proposes; none where nothing is to be rebalanced.
    pub moves: Option<&'a [Move]>,
    /// The time on the wall is for schedules and for people; whatever waits goes by the other.
    pub clock: Clock<'a>,
    /// When this controller began: before that nobody took a step.
    pub since: Steady,
    /// Drawn once for each controller, for jitter.
    pub entropy: u64,
}

/// How workloads end with their controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Each as its manifest says, those that come after others first.
    Graceful,
    /// All of them killed.
    AtOnce,
}

/// A step that failed, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    pub message: String,
    pub failures: u32,
    pub retry_at: Steady,
}

/// What to do, and how things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order to begin them; each is about another workload.
    pub work: Vec<Work>,
    pub verdicts: BTreeMap<Name, Verdict>,
    /// Workloads whose deletion waits for consent.
    pub guarded: BTreeSet<Name>,
    /// When to look again if nothing happens before, nobody setting the clock included.
    pub wake_at: Option<Timestamp>,
}

/// One step for one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    pub name: Name,
    /// What to remember from now on, if that changes. To be stored before `act`.
    pub record: Option<Record>,
    pub act: Act,
    pub reason: String,
    /// What to remember instead once `act` has been done, and if it has failed.
    pub done: Option<Record>,
    pub failed: Option<Record>,
}

impl Work {
    /// What to remember instead, once it is known whether `act` was done.
    pub fn afterwards(&self, was_done: bool) -> Option<&Record> {
        if was_done { self.done.as_ref() } else { self.failed.as_ref() }
    }

    /// It is done or tried now, and not when it was decided: it may have waited for a thread, or for a disk to take its record. A grace counts
    /// from when its run was asked, or from when that was first tried, or it would be over before the run knows.
    pub fn is_done_at(&mut self, now: Time) {
        let asks = matches!(self.act, Act::Stop { .. });
        for record in [&mut self.done, &mut self.failed].into_iter().flatten().filter(|_| asks) {
            begin_stopping_at(record, now);
        }
    }

    /// It was not even tried: what is to be remembered was refused. Whoever was to be asked has its whole grace from the next try.
    pub fn is_refused_at(&mut self, now: Time) {
        if let (Act::Stop { .. }, Some(record)) = (&self.act, &self.record) {
            let mut record = record.clone();
            begin_stopping_at(&mut record, now);
            self.failed = Some(record);
        }
    }
}

fn begin_stopping_at(record: &mut Record, now: Time) {
    let Some(stopping) = &mut record.stopping else { return };
    if let Some(Reading { boot, .. }) = stopping.since.reading.take() {
        stopping.since = now.of_boot(&boot).now();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing but the record.
    Remember,
    /// Make the cgroup, write the limits, start the command in it.
    Start { writes: Vec<Write>, env: BTreeMap<String, String> },
    /// Write limits to the running workload's cgroup.
    Resize { writes: Vec<Write>, shrink: Shrink },
    /// Make the running workload's cgroup again where it is gone, thaw it, write limits, move its processes back in.
    Restore { writes: Vec<Write>, shrink: Shrink },
    /// Ask the command to end.
    Stop { signal: Signal },
    /// End every process of the cgroup.
    Kill,
    /// Clear away what is left of a run that has ended: cgroup and runtime files.
    Clear,
    /// The same, then its logs and its record.
    Forget,
}

/// How a workload stands after the pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub phase: Phase,
    /// The generation that is accepted. Known here before it is recorded: that waits while a step is under way.
    pub generation: u64,
    /// The generation that is in force.
    pub observed_generation: u64,
    /// How its last run ended. Known here before it is recorded: that waits while a step is under way.
    pub last_exit: Option<Exit>,
    pub findings: Vec<Finding>,
}

/// One condition, without its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: ConditionKind,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Decides a pass.
pub fn plan(input: &Input<'_>) -> Plan {
    let held = guard::hold(input);
    let input = &Input { desired: held.as_ref().unwrap_or(input.desired), ..*input };
    let names = names(input);
    let mut ledger = ledger(input, &names);
    let (courses, moves) = (rollout::courses(input), balance::acceptable(input, &ledger));
    let mut round = lifecycle::Round { courses, moves, ..lifecycle::Round::default() };
    let mut decisions: Vec<(Name, lifecycle::Decision)> = Vec::new();
    let mut queue = queue::Queue::of(input, &ledger, names);
    while let Some(name) = queue.pop() {
        let decision = lifecycle::decide(input, &mut ledger, &round, &name);
        keep_leases(input, &mut ledger, &name);
        if decision.is_ready() {
            round.ready.insert(name.clone());
        }
        if decision.leaves_gpu {
            round.leaving.insert(name.clone());
        }
        queue.count(&ledger, &name);
        if decision.is_refused() && round.refused < lifecycle::REFUSED_MAX {
            round.refused += 1;
            make_room(input, &mut ledger, &mut round, &mut decisions, &decision);
        }
        decisions.push((name, decision));
    }
    // CPUs are settled last, when everyone's grant is known: an exclusive newcomer narrows its neighbours in the same pass.
    let wake_at = roll(input, &mut ledger, &mut round, &mut decisions);
    let mut plan = Plan { guarded: input.desired.guarded.clone(), wake_at, ..Plan::default() };
    for (name, decision) in decisions {
        lifecycle::settle(input, &ledger, name, decision, &mut plan);
    }
    plan
}

/// Stops those who leave for one that was refused, and keeps what it waits for from those behind it.
fn make_room(
    input: &Input<'_>,
    ledger: &mut Ledger,
    round: &mut lifecycle::Round,
    decisions: &mut [(Name, lifecycle::Decision)],
    refused: &lifecycle::Decision,
) {
    let Some((newcomer, victims)) = refused.newcomer() else { return };
    for victim in victims {
        round.preempted.insert(victim.clone(), lifecycle::Claim::of(newcomer));
        if let Some((_, decision)) = decisions.iter_mut().find(|(name, _)| name == victim) {
            *decision = lifecycle::decide(input, ledger, round, victim);
        }
    }
    if round.heads.is_empty() || newcomer.preempting.is_some() {
        let leaving = round.preempted.keys().cloned().collect();
        round.heads.extend(queue::head(input, ledger, newcomer, &leaving));
    }
}

/// A step that is under way was decided on the grant that is recorded: its GPUs are not free, whatever this pass would rather give.
fn keep_leases(input: &Input<'_>, ledger: &mut Ledger, name: &Name) {
    let record = input.records.get(name).filter(|_| input.busy.contains(name));
    let Some((record, grant)) = record.and_then(|record| Some((record, held(input, name, record)?))) else { return };
    if grant.gpus.is_empty() {
        return;
    }
    let recorded = || Holding { resources: record.spec.resources.clone(), grant: grant.clone() };
    let mut holding = ledger.get(name).cloned().unwrap_or_else(recorded);
    for lease in &grant.gpus {
        if !holding.grant.gpus.contains(lease) {
            holding.grant.gpus.push(lease.clone());
        }
    }
    ledger.put(name.clone(), holding);
}

/// Decides again about those whose turn in an update it is, now that it is known who is ready. Answers when to look again.
fn roll(
    input: &Input<'_>,
    ledger: &mut Ledger,
    round: &mut lifecycle::Round,
    decisions: &mut [(Name, lifecycle::Decision)],
) -> Option<Timestamp> {
    if input.shutdown.is_some() {
        return None;
    }
    let (turns, wake_at) = rollout::turns(input, &round.ready);
    for (name, course) in turns {
        round.courses.insert(name.clone(), course);
        if let Some((_, decision)) = decisions.iter_mut().find(|(known, _)| *known == name) {
            *decision = lifecycle::decide(input, ledger, round, &name);
        }
    }
    wake_at
}

/// A run in the foreground, without a controller, and placed without regard to one that may be running beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreground {
    pub record: Record,
    pub writes: Vec<Write>,
    pub env: BTreeMap<String, String>,
    /// What this host cannot do, in sentences.
    pub unhonoured: Vec<String>,
}

/// Decides a foreground run, on behalf of the process `pid`.
pub fn foreground(machine: &Machine, wanted: Wanted, pid: u32) -> Result<Foreground, Refusal> {
    let ledger = Ledger::of(&machine.topology);
    let grant = place::place(machine, &ledger, &Ask::of(&wanted.spec, None))?;
    let kernel::Wanted { settings, mut unhonoured } = kernel::wanted(&wanted.spec.resources, &grant.cpus, machine);
    unhonoured.extend(grant.gpus.iter().flat_map(|lease| lease.exposure.unhonoured.clone()));
    unhonoured.extend(ceilings::unhonoured(&wanted.spec.process, &machine.ceilings));
    if wanted.spec.job.timeout.is_some() {
        unhonoured.push("timeout is kept by the controller, not by a run in the foreground".to_owned());
    }
    if let Some((_, Changes::Kept)) = wanted.spec.process.rootfs.directory() {
        let message = "rootfs.persist: a run in the foreground keeps nothing, its changes end with it";
        unhonoured.push(message.to_owned());
    }
    if !wanted.spec.probes.is_empty() {
        unhonoured.push("probes are asked by a controller only, not of a run in the foreground".to_owned());
    }
    let ids = wanted.spec.process.security.user_namespace.then(|| place::ids::foreground(pid));
    let record = Record { grant: Some(grant), ids, instance: 1, ..Record::new(wanted.spec, wanted.origin) };
    let writes = kernel::first_writes(&settings, machine.cgroup.generation);
    Ok(Foreground { env: environment(&record), record, writes, unhonoured })
}

/// What every workload holds as the pass begins.
fn ledger(input: &Input<'_>, names: &BTreeSet<&Name>) -> Ledger {
    let mut ledger = input.bare.clone();
    for name in names {
        let started_as = input.observed.get(*name).and_then(Observed::started_as);
        let Some(record) = Record::in_force(input.records.get(*name), started_as, &input.clock) else { continue };
        if let Some(ids) = record.ids {
            ledger.put_ids(ids);
        }
        if let Some(grant) = held(input, name, record) {
            let holding = Holding { resources: record.spec.resources.clone(), grant: grant.clone() };
            ledger.put((*name).clone(), holding);
        }
    }
    ledger
}

/// What of a record's grant nobody else may have: all of it for as long as anything of its last run is there or could be. A start that is under
/// way is no wait for another try any more, for its record says so before anything is done; and where the database is behind, the run does.
fn held<'r>(input: &Input<'_>, name: &Name, record: &'r Record) -> Option<&'r Grant> {
    let seen = input.observed.get(name).is_some_and(|seen| seen.instance.is_some() || seen.group.is_some());
    if seen || input.blind.contains(name) { record.grant.as_ref() } else { record.held() }
}

fn names<'a>(input: &Input<'a>) -> BTreeSet<&'a Name> {
    let Input { desired, records, observed, blind, .. } = *input;
    desired.wanted.keys().chain(records.keys()).chain(observed.keys()).chain(blind).collect()
}

#[cfg(test)]
mod tests;
