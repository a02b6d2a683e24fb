//! The life of one workload, decided one step at a time from where it is seen to be.
//!
//! `decide` says what should happen; `settle` turns it into work and a verdict once every workload's grant is known, because the cpuset
//! of one depends on the exclusive CPUs of all.

use super::kernel;
use super::{Act, Finding, Input, Plan, Verdict, Work, backoff, ceilings};
use crate::model::cgroup::{Shrink, Write};
use crate::model::desired::Wanted;
use crate::model::exit::{Exit, Outcome};
use crate::model::gpu::{SHARE_BYTES, Share, VISIBLE_DEVICES};
use crate::model::name::Name;
use crate::model::observed::{Instance, Life, Observed};
use crate::model::record::{Grant, Record, Stopping};
use crate::model::spec::{Kind, Process, RestartPolicy, Signal, Spec, Stop};
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use crate::place::{self, Ask, Holding, Ledger};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a killed cgroup may take to be empty before it is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// How often a job that waits for a quieter host looks again.
const UTILISATION_AGAIN: Duration = Duration::from_secs(1);
/// Where programs are looked for if the manifest's `env` has no PATH: Debian's default for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What should happen to one workload, short of its cpuset.
pub(super) struct Decision {
    /// The record as it should be from now on; none if there is nothing to remember.
    record: Option<Record>,
    next: Next,
    phase: Phase,
    findings: Vec<Finding>,
    wake_at: Option<Timestamp>,
}

enum Next {
    /// Nothing, or nothing but the record.
    Rest {
        reason: String,
    },
    /// Let it run, with its limits as they should be.
    Keep,
    Start,
    Do {
        act: Act,
        reason: String,
    },
}

/// Where a workload should get to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Run,
    Suspended,
    Gone,
}

pub(super) fn decide(input: &Input<'_>, ledger: &mut Ledger, name: &Name) -> Decision {
    let nothing = Observed::default();
    let seen = input.observed.get(name).unwrap_or(&nothing);
    let wanted = input.desired.wanted.get(name);
    let held = input.desired.held.get(name);
    if input.blind.contains(name) {
        return unexplained("it cannot be looked at");
    }
    let Some((record, changed)) = accept(input.records.get(name), wanted, seen) else {
        return if held.is_some() { unexplained("its manifest cannot be read yet") } else { leftovers(seen) };
    };
    let target = match (wanted, held) {
        (None, None) => Target::Gone,
        _ if record.spec.suspend => Target::Suspended,
        _ => Target::Run,
    };
    let mut case = Case { input, ledger, record, target, findings: Vec::new() };
    case.findings.push(accepted(&case.record, wanted, held, changed));
    match &seen.instance {
        Some(Instance { life: Life::Ended(exit), started, .. }) => case.ended(seen, exit, *started),
        Some(instance) => case.alive(instance),
        None => case.absent(seen),
    }
}

/// The record this pass works from: the stored one, or a newer one that a run was started from, brought up to the manifest. With it,
/// whether the manifest has changed.
fn accept(record: Option<&Record>, wanted: Option<&Wanted>, seen: &Observed) -> Option<(Record, bool)> {
    // A run the database has not heard of yet: the controller was killed between starting it and writing that down.
    let started_as = seen.instance.as_ref().and_then(|instance| instance.record.as_ref());
    let newer = started_as.filter(|started| record.is_none_or(|record| record.instance < started.instance));
    let Some(mut record) = newer.or(record).cloned() else {
        let Wanted { spec, origin } = wanted?;
        return Some((Record::new(Arc::clone(spec), origin.clone()), true));
    };
    let Some(Wanted { spec, origin }) = wanted else { return Some((record, false)) };
    let changed = record.spec != *spec;
    if changed {
        record.generation += 1;
        if !replacement_reasons(&record.spec, spec).is_empty() {
            // Another process: what became of the old one says nothing about it.
            (record.failures, record.retry_at, record.finished) = (0, None, false);
        }
        record.spec = Arc::clone(spec);
    }
    record.origin = origin.clone();
    Some((record, changed))
}

/// What of a changed spec needs a new process, by field.
fn replacement_reasons(from: &Arc<Spec>, to: &Arc<Spec>) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if Arc::ptr_eq(from, to) {
        return fields;
    }
    let (old, new) = (&from.process, &to.process);
    for (field, same) in [
        ("kind", from.kind == to.kind),
        ("command", old.command == new.command),
        ("env", old.env == new.env),
        ("workdir", old.workdir == new.workdir),
        ("user", old.user == new.user),
        ("volumes", old.volumes == new.volumes),
        ("network", old.network == new.network),
        ("security", old.security == new.security),
        ("rlimits", old.rlimits == new.rlimits),
        ("oomScoreAdj", old.oom_score_adj == new.oom_score_adj),
        ("gpu", from.gpu == to.gpu),
    ] {
        if !same {
            fields.push(field);
        }
    }
    fields
}

fn accepted(record: &Record, wanted: Option<&Wanted>, held: Option<&String>, changed: bool) -> Finding {
    let (status, reason, message) = match (wanted, held) {
        (Some(_), _) if changed => (true, "Current", format!("generation {} accepted", record.generation)),
        (Some(_), _) => (true, "Current", format!("{}:{} is what runs", record.origin.path, record.origin.line)),
        (None, Some(path)) => {
            let message = format!("{path} cannot be accepted; generation {} goes on as it was", record.generation);
            (false, "Refused", message)
        }
        (None, None) => (false, "Deleted", format!("{} is gone", record.origin.path)),
    };
    Finding { kind: ConditionKind::Accepted, status, reason, message }
}

/// Too little is known to do anything about it.
fn unexplained(reason: &str) -> Decision {
    let ready = Finding { kind: ConditionKind::Ready, status: false, reason: "Unknown", message: reason.to_owned() };
    let next = Next::Rest { reason: reason.to_owned() };
    Decision { record: None, next, phase: Phase::Pending, findings: vec![ready], wake_at: None }
}

/// Nothing is known about it but what lies around: a crash came between making a cgroup and starting something in it.
fn leftovers(seen: &Observed) -> Decision {
    let populated = seen.group.as_ref().is_some_and(|group| group.populated);
    let act = if populated { Act::Kill } else { Act::Forget };
    Decision {
        record: None,
        next: Next::Do { act, reason: "a leftover that no record and no manifest explains".to_owned() },
        phase: Phase::Stopping,
        findings: Vec::new(),
        wake_at: None,
    }
}

/// One workload being decided.
struct Case<'a, 'b> {
    input: &'a Input<'a>,
    ledger: &'b mut Ledger,
    record: Record,
    target: Target,
    findings: Vec<Finding>,
}

impl Case<'_, '_> {
    fn decision(self, phase: Phase, next: Next, wake_at: Option<Timestamp>) -> Decision {
        Decision { record: Some(self.record), next, phase, findings: self.findings, wake_at }
    }

    fn find(&mut self, kind: ConditionKind, status: bool, reason: &'static str, message: impl Into<String>) {
        self.findings.push(Finding { kind, status, reason, message: message.into() });
    }

    fn act(self, phase: Phase, act: Act, reason: impl Into<String>) -> Decision {
        self.decision(phase, Next::Do { act, reason: reason.into() }, None)
    }

    fn rest(self, phase: Phase, reason: impl Into<String>, wake_at: Option<Timestamp>) -> Decision {
        self.decision(phase, Next::Rest { reason: reason.into() }, wake_at)
    }

    /// It runs, or is about to.
    fn alive(mut self, instance: &Instance) -> Decision {
        if self.record.stopping.is_some() {
            return self.stopping(instance);
        }
        let fields = match &instance.record {
            Some(started_as) => replacement_reasons(&started_as.spec, &self.record.spec),
            None => self.untold(),
        };
        let reason = match self.target {
            Target::Gone => Some(format!("{} was deleted", self.record.origin.path)),
            Target::Suspended => Some("its manifest says suspend".to_owned()),
            Target::Run if !fields.is_empty() => Some(format!("a new {} needs a new process", fields.join(", "))),
            Target::Run => None,
        };
        if let Some(reason) = reason {
            self.find(ConditionKind::Ready, false, "Stopping", reason.clone());
            self.record.stopping = Some(Stopping { since: self.input.now, killed: None, reason: reason.clone() });
            let signal = self.stop_of(instance).signal;
            return self.act(Phase::Stopping, Act::Stop { signal }, reason);
        }
        self.replace_cpus();
        match instance.life {
            Life::Running { pid } => {
                self.find(ConditionKind::Ready, true, "Running", format!("pid {pid}"));
                self.decision(Phase::Running, Next::Keep, None)
            }
            Life::Starting | Life::Ended(_) => {
                self.find(ConditionKind::Ready, false, "Starting", "being set up");
                self.decision(Phase::Starting, Next::Keep, None)
            }
        }
    }

    /// What of a run that nothing tells of cannot be taken for what the record says: devices that nobody knows it by.
    fn untold(&mut self) -> Vec<&'static str> {
        let message = "the traces of its start are lost or unreadable; it is taken for what its record says";
        self.find(ConditionKind::Degraded, true, "TracesLost", message);
        let unleased = self.record.spec.gpu.is_some() && self.record.grant.is_none();
        if unleased { vec!["gpu lease"] } else { Vec::new() }
    }

    /// How to end it: as its manifest says now, unless that speaks of another process already.
    fn stop_of(&self, instance: &Instance) -> Stop {
        let now = &self.record.spec;
        match &instance.record {
            Some(started_as) if started_as.spec.process != now.process => started_as.spec.stop,
            _ => now.stop,
        }
    }

    /// It has been asked to end; when the grace is over its cgroup is killed.
    fn stopping(mut self, instance: &Instance) -> Decision {
        let now = self.input.now;
        let grace = self.stop_of(instance).grace;
        let Some(stopping) = &mut self.record.stopping else { return self.decision(Phase::Running, Next::Keep, None) };
        // A clock that was set back must not make the wait longer than it was meant to be.
        stopping.since = stopping.since.min(now);
        let reason = stopping.reason.clone();
        let deadline = match stopping.killed {
            None => stopping.since.plus(grace),
            Some(killed) => killed.min(now).plus(KILL_AGAIN),
        };
        if now < deadline {
            self.find(ConditionKind::Ready, false, "Stopping", reason);
            // Its limits are kept until the end: a neighbour may be waiting for it to leave exclusive CPUs.
            return self.decision(Phase::Stopping, Next::Keep, Some(deadline));
        }
        stopping.killed = Some(now);
        self.find(ConditionKind::Ready, false, "Killed", format!("{reason}; still there after the grace period"));
        self.act(Phase::Stopping, Act::Kill, "its grace period is over")
    }

    /// Its last run is over: remember how, decide whether there is a next, clear away what is left.
    fn ended(mut self, seen: &Observed, exit: &Exit, started: Option<Timestamp>) -> Decision {
        let recorded = self.record.last_exit.as_ref().is_some_and(|last| last.instance >= exit.instance);
        if !recorded {
            self.conclude(exit, started);
        }
        self.record.instance = self.record.instance.max(exit.instance);
        let outcome = self.last_outcome();
        self.find(ConditionKind::Ready, false, "Ended", outcome.clone());
        let phase = if self.record.finished { self.finished_phase() } else { Phase::Pending };
        // What init started is gone with it. What is there when clearing away has failed was put there by somebody else.
        let stuck = self.input.setbacks.contains_key(&self.record.spec.name);
        if seen.group.as_ref().is_some_and(|group| group.populated) && stuck && self.may_kill("it has ended") {
            return self.act(phase, Act::Kill, "processes that are not its own keep its cgroup");
        }
        self.act(phase, Act::Clear, outcome)
    }

    /// Whether the last kill is long enough ago for another; if so, notes that there is one now.
    fn may_kill(&mut self, reason: &str) -> bool {
        let now = self.input.now;
        let killed = self.record.stopping.as_ref().and_then(|stopping| stopping.killed);
        if killed.is_some_and(|killed| now < killed.min(now).plus(KILL_AGAIN)) {
            return false;
        }
        self.record.stopping = Some(Stopping { since: now, killed: Some(now), reason: reason.to_owned() });
        true
    }

    fn conclude(&mut self, exit: &Exit, started: Option<Timestamp>) {
        let stopping = self.record.stopping.take();
        let mut exit = exit.clone();
        if stopping.as_ref().is_some_and(|stopping| stopping.killed.is_some())
            && matches!(exit.outcome, Outcome::Lost | Outcome::OutOfMemory)
        {
            // Killed by us with its init, which could not say so any more.
            exit.outcome = Outcome::Killed { signal: Signal::KILL };
        }
        self.record.last_exit = Some(exit.clone());
        if stopping.is_some() {
            (self.record.failures, self.record.retry_at) = (0, None);
            return;
        }
        let restart = self.record.spec.restart;
        if started.is_some_and(|started| exit.at.since(started) >= restart.reset_after) {
            self.record.failures = 0;
        }
        let success = exit.outcome.is_success();
        let done = match restart.policy {
            RestartPolicy::Never => true,
            RestartPolicy::OnFailure => success,
            RestartPolicy::Always => success && self.record.spec.kind == Kind::Job,
        };
        if done {
            (self.record.finished, self.record.grant) = (true, None);
            self.ledger.remove(&self.record.spec.name);
            return;
        }
        self.record.failures = self.record.failures.saturating_add(1);
        let delay = if matches!(exit.outcome, Outcome::NotFound { .. }) {
            // Nothing but an edit or an installation changes it.
            restart.max_delay
        } else {
            backoff::delay(&restart, self.record.failures, &self.record.spec.name, self.input.entropy)
        };
        self.record.retry_at = Some(exit.at.min(self.input.now).plus(delay));
    }

    fn finished_phase(&self) -> Phase {
        let success = self.record.last_exit.as_ref().is_some_and(|exit| exit.outcome.is_success());
        if success { Phase::Completed } else { Phase::Failed }
    }

    /// No run of it is seen.
    fn absent(mut self, seen: &Observed) -> Decision {
        if let Some(group) = &seen.group {
            // Never start beside something that may still run: the empty cgroup of this name is the proof that nothing does.
            let (act, reason) = if group.populated && self.may_kill("no run of it is known") {
                (Act::Kill, "processes without a run of their own are in its cgroup")
            } else if group.populated {
                (Act::Clear, "its cgroup is being emptied")
            } else {
                (Act::Clear, "an empty cgroup is left from before")
            };
            self.find(ConditionKind::Ready, false, "Leftovers", reason);
            return self.act(Phase::Pending, act, reason);
        }
        self.record.stopping = None;
        match self.target {
            Target::Gone => self.act(Phase::Stopping, Act::Forget, "its manifest was deleted and nothing of it runs"),
            Target::Suspended => {
                self.release();
                self.find(ConditionKind::Ready, false, "Suspended", "its manifest says suspend");
                self.rest(Phase::Suspended, "suspended", None)
            }
            Target::Run if self.record.finished => {
                self.release();
                let message = self.last_outcome();
                self.find(ConditionKind::Ready, false, "Finished", message);
                let phase = self.finished_phase();
                self.rest(phase, "it is not to be run again", None)
            }
            Target::Run => self.next_run(),
        }
    }

    fn last_outcome(&self) -> String {
        self.record.last_exit.as_ref().map_or_else(|| "never run".to_owned(), |exit| exit.outcome.to_string())
    }

    fn release(&mut self) {
        self.record.grant = None;
        self.ledger.remove(&self.record.spec.name);
    }

    /// Start it, or say what it waits for.
    fn next_run(mut self) -> Decision {
        let now = self.input.now;
        if let Some(retry_at) = self.record.retry_at {
            // A clock that was set back must not make the wait longer than the longest delay.
            let retry_at = retry_at.min(now.plus(self.record.spec.restart.max_delay));
            if now < retry_at {
                let message = format!("{}; next try at {retry_at}", self.last_outcome());
                let never_ran = self.record.last_exit.as_ref().is_some_and(|exit| exit.outcome.never_ran());
                let (phase, reason) =
                    if never_ran { (Phase::Failed, "NotStarted") } else { (Phase::Pending, "BackOff") };
                self.find(ConditionKind::Ready, false, reason, message.clone());
                return self.rest(phase, message, Some(retry_at));
            }
        }
        if let Some(wait) = self.too_busy() {
            self.find(ConditionKind::Ready, false, "HostBusy", wait.clone());
            return self.rest(Phase::Pending, wait, Some(now.plus(UTILISATION_AGAIN)));
        }
        let grant = match self.placed() {
            Ok(grant) => grant,
            Err(refusal) => {
                self.release();
                self.find(ConditionKind::Placed, false, refusal.reason, refusal.message.clone());
                self.find(ConditionKind::Ready, false, "NotPlaced", "waits for room");
                return self.rest(Phase::Pending, refusal.message, None);
            }
        };
        if self.record.spec.process.security.user_namespace && self.record.ids.is_none() {
            match place::ids::choose(self.ledger, &self.record.spec.name) {
                Ok(ids) => {
                    self.ledger.put_ids(ids);
                    self.record.ids = Some(ids);
                }
                Err(refusal) => {
                    self.find(ConditionKind::Ready, false, refusal.reason, refusal.message.clone());
                    return self.rest(Phase::Pending, refusal.message, None);
                }
            }
        }
        self.record.grant = Some(grant.clone());
        let holding = Holding { resources: self.record.spec.resources.clone(), grant: grant.clone() };
        self.ledger.put(self.record.spec.name.clone(), holding);
        if let Some(neighbour) = self.still_on_fenced(&grant) {
            let message = format!("waits for {neighbour} to leave CPUs {}", grant.fenced);
            self.find(ConditionKind::Ready, false, "CpusOccupied", message.clone());
            return self.rest(Phase::Pending, message, None);
        }
        if self.record.retry_at.take().is_some() {
            self.record.restarts = self.record.restarts.saturating_add(1);
        }
        self.record.instance += 1;
        self.find(ConditionKind::Ready, false, "Starting", "being set up");
        self.decision(Phase::Starting, Next::Start, None)
    }

    /// Jobs start when the host is quiet enough.
    fn too_busy(&self) -> Option<String> {
        let Input { utilisation_percent, job_threshold_percent, .. } = self.input;
        match (self.record.spec.kind, utilisation_percent) {
            (Kind::Job, Some(used)) if used > job_threshold_percent => {
                Some(format!("host CPUs are {used} % busy, jobs start below {job_threshold_percent} %"))
            }
            _ => None,
        }
    }

    fn placed(&self) -> Result<Grant, place::Refusal> {
        place::place(self.input.machine, self.ledger, &Ask::of(&self.record.spec, self.record.grant.as_ref()))
    }

    /// Moves a running workload if its CPUs no longer serve: its class or number has changed, or an exclusive neighbour took them.
    fn replace_cpus(&mut self) {
        let grant = self.record.grant.clone().unwrap_or_default();
        let ask = Ask::of(&self.record.spec, Some(&grant));
        match place::replace_cpus(self.input.machine, self.ledger, &ask, &grant) {
            Ok(grant) => {
                let holding = Holding { resources: self.record.spec.resources.clone(), grant: grant.clone() };
                self.ledger.put(self.record.spec.name.clone(), holding);
                self.record.grant = Some(grant);
            }
            // It runs and goes on running where it is; what it asks for now cannot be had.
            Err(refusal) => self.find(ConditionKind::Degraded, true, refusal.reason, refusal.message),
        }
    }

    /// A neighbour that is still on CPUs this workload is to have alone: by the kernel's word, or, while it is being acted on and so may
    /// be about to be seen there, by its grant.
    fn still_on_fenced(&self, grant: &Grant) -> Option<Name> {
        if grant.fenced.is_empty() {
            return None;
        }
        let Input { observed, busy, .. } = self.input;
        let seen_there = |name: &Name| {
            let group = observed.get(name).and_then(|seen| seen.group.as_ref());
            let held = group.and_then(|group| group.settings.get("cpuset.cpus"));
            held.is_some_and(|cpus| cpus.parse().is_ok_and(|cpus| !grant.fenced.is_disjoint(&cpus)))
        };
        let on_its_way = |(name, holding): &(&Name, &Holding)| {
            busy.contains(*name) && !holding.grant.cpus.is_disjoint(&grant.fenced)
        };
        let own = &self.record.spec.name;
        let seen = observed.keys().find(|name| *name != own && seen_there(name));
        seen.or_else(|| self.ledger.others(own).find(on_its_way).map(|(name, _)| name)).cloned()
    }
}

/// Turns a decision into work, now that every grant is known.
pub(super) fn settle(input: &Input<'_>, ledger: &Ledger, name: Name, decision: Decision, plan: &mut Plan) {
    let Decision { record, next, mut phase, mut findings, mut wake_at } = decision;
    let mut observed_generation = 0;
    let starts = matches!(next, Next::Start);
    let mut work = match (next, &record) {
        (Next::Do { act, reason }, _) => Some((act, reason)),
        (Next::Start, Some(record)) => Some(start(input, ledger, record, &mut findings)),
        (Next::Keep, Some(record)) => {
            let writes = resize(input, ledger, record, &mut findings);
            if writes.is_none() {
                observed_generation = record.generation;
            }
            Some(writes.unwrap_or((Act::Remember, "as it should be".to_owned())))
        }
        (Next::Rest { reason }, _) => Some((Act::Remember, reason)),
        (Next::Start | Next::Keep, None) => None,
    };
    if let Some(setback) = input.setbacks.get(&name) {
        let message = setback.message.clone();
        findings.push(Finding { kind: ConditionKind::Degraded, status: true, reason: "StepFailed", message });
        if input.now < setback.retry_at {
            work = None;
            phase = if starts { Phase::Failed } else { phase };
            wake_at = earliest(wake_at, Some(setback.retry_at));
        }
    }
    plan.wake_at = earliest(plan.wake_at, wake_at);
    let last_exit = record.as_ref().and_then(|record| record.last_exit.clone());
    if let (Some((act, reason)), false) = (work, input.busy.contains(&name)) {
        let record = record.filter(|record| input.records.get(&name) != Some(record) && act != Act::Forget);
        if record.is_some() || act != Act::Remember {
            plan.work.push(Work { name: name.clone(), record, act, reason });
        }
    }
    plan.verdicts.insert(name, Verdict { phase, observed_generation, last_exit, findings });
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

fn start(input: &Input<'_>, ledger: &Ledger, record: &Record, findings: &mut Vec<Finding>) -> (Act, String) {
    let wanted = wanted(input, ledger, record, findings);
    let writes = kernel::first_writes(&wanted.settings, input.machine.cgroup.generation);
    let reason = match &record.last_exit {
        None => "new".to_owned(),
        Some(Exit { outcome: Outcome::Exited { code: 0 }, .. }) => "its last run ended".to_owned(),
        Some(exit) => format!("its last run: {}", exit.outcome),
    };
    let placed = record.grant.as_ref().map_or("", |grant| grant.reason.as_str());
    (Act::Start { writes, env: environment(record) }, format!("{reason}; {placed}"))
}

fn resize(input: &Input<'_>, ledger: &Ledger, record: &Record, findings: &mut Vec<Finding>) -> Option<(Act, String)> {
    let wanted = wanted(input, ledger, record, findings);
    let group = input.observed.get(&record.spec.name).and_then(|seen| seen.group.as_ref())?;
    let writes = kernel::writes(&group.settings, &wanted.settings);
    if writes.is_empty() {
        return None;
    }
    let change = |write: &Write| {
        format!("{} {} -> {}", write.file, group.settings.get(&write.file).unwrap_or("unset"), write.value)
    };
    let reason = writes.iter().map(change).collect::<Vec<_>>().join(", ");
    let shrink = if record.spec.resources.memory.force { Shrink::Anyhow } else { Shrink::IfItFits };
    Some((Act::Resize { writes, shrink }, reason))
}

fn wanted(input: &Input<'_>, ledger: &Ledger, record: &Record, findings: &mut Vec<Finding>) -> kernel::Wanted {
    let machine = input.machine;
    let mut find = |kind, reason, message: &str| {
        findings.push(Finding { kind, status: true, reason, message: message.to_owned() });
    };
    let cpus = match &record.grant {
        Some(grant) => {
            find(ConditionKind::Placed, "Placed", &grant.reason);
            place::cpus_in_force(machine, ledger, &record.spec.name, grant)
        }
        None => machine.topology.usable.difference(&ledger.fenced_by_others(&record.spec.name)),
    };
    // Protection goes as far as admission did: an edit that asks for more than there is keeps what it had.
    let mut resources = record.spec.resources.clone();
    if let Some(grant) = &record.grant {
        resources.memory.request = grant.requested.memory;
    }
    let wanted = kernel::wanted(&resources, &cpus, machine);
    for unhonoured in wanted.unhonoured.iter().chain(&ceilings::unhonoured(&record.spec.process, &machine.ceilings)) {
        find(ConditionKind::Degraded, "NotHonoured", unhonoured);
    }
    wanted
}

/// The command's environment: the manifest's on top of a few defaults, and its GPUs on top of that.
pub fn environment(record: &Record) -> BTreeMap<String, String> {
    let Process { user, security, .. } = &record.spec.process;
    // Root inside a user namespace is a stranger to the host's /root.
    let home = if user.uid == 0 && !security.user_namespace { "/root" } else { "/" };
    let defaults = [("PATH", PATH), ("HOME", home), ("LANG", "C.UTF-8")];
    let mut env: BTreeMap<String, String> = defaults.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    env.extend(record.spec.process.env.clone());
    let leases = record.grant.as_ref().map_or(&[][..], |grant| &grant.gpus);
    if let Some(first) = leases.first() {
        let devices: Vec<&str> = leases.iter().map(|lease| lease.gpu.0.as_str()).collect();
        env.insert(VISIBLE_DEVICES.to_owned(), devices.join(","));
        if let Share::Memory(bytes) = first.share {
            env.insert(SHARE_BYTES.to_owned(), bytes.0.to_string());
        }
    }
    env
}
