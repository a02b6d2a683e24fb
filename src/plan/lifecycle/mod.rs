//! The life of one workload, decided one step at a time from where it is seen to be.
//!
//! `decide` says what should happen; `settle` turns it into work and a verdict once every workload's grant is known, because the cpuset
//! of one depends on the exclusive CPUs of all.
//!
//! | file | what it decides |
//! |---|---|
//! | `accept` | which record a pass works from, and what of an edit needs a new process |
//! | here | where the workload should get to, and what that means for one that runs and for one that does not |
//! | `start` | the next run, or what it waits for |
//! | `room` | who waits for room since when, who has to leave for whom, who may not pass |
//! | `order` | who starts after whom, and who is stopped before whom |
//! | `schedule` | which times of a scheduled job have come, and what becomes of those that could not be kept |
//! | `end` | a stop that is under way, and what the end of a run means, one by a reboot included |
//! | `fitness` | whether a run that should go on may, by its probes |
//! | `gpus` | whether it may stay on its GPUs |
//! | `moves` | whether it takes the CPUs that the rebalancer proposes |
//! | `work` | the step and the verdict, once all is decided |

mod accept;
mod end;
mod fitness;
mod gpus;
mod moves;
mod order;
mod room;
mod schedule;
mod start;
mod unknown;
mod work;

pub(super) use accept::replacement_reasons;
pub(super) use end::began;
pub use room::PREEMPTED;
pub(super) use room::{Claim, REFUSED_MAX};
pub use start::HOST_BUSY;
pub use work::environment;
pub(super) use work::settle;

use super::queue::Head;
use super::rollout::Course;
use super::{Act, Finding, Input, Shutdown};
use crate::model::balance::Move;
use crate::model::name::Name;
use crate::model::observed::{Instance, Life, Observed};
use crate::model::record::{Deletion, Record, Stopping};
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use crate::model::units::format_duration;
use crate::place::Ledger;
use accept::{accept, accepted, fewer};
use std::collections::{BTreeMap, BTreeSet};
use unknown::{leftovers, unexplained};

/// Why a workload is stopped with its controller.
const SHUTDOWN: &str = "the controller ends, and was told to stop its workloads";

/// What should happen to one workload, short of its cpuset.
pub(super) struct Decision {
    /// The record as it should be from now on; none if there is nothing to remember.
    record: Option<Record>,
    next: Next,
    phase: Phase,
    findings: Vec<Finding>,
    wake_at: Option<Timestamp>,
    /// Whether it is stopped to leave a draining GPU.
    pub(super) leaves_gpu: bool,
    /// Whether there is no room for it, and who is to be stopped for that.
    is_refused: bool,
    preempts: BTreeSet<Name>,
}

impl Decision {
    fn blank(record: Option<Record>, next: Next, phase: Phase) -> Decision {
        let (findings, wake_at, preempts) = (Vec::new(), None, BTreeSet::new());
        Decision { record, next, phase, findings, wake_at, leaves_gpu: false, is_refused: false, preempts }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.findings.iter().any(|finding| finding.kind == ConditionKind::Ready && finding.status)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// The record of one that was refused, and who is to be stopped for it.
    pub(super) fn newcomer(&self) -> Option<(&Record, &BTreeSet<Name>)> {
        Some((self.record.as_ref()?, &self.preempts))
    }
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

/// What is known of others as one workload is decided about.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Those that were found to be ready, as far as they have been decided about.
    pub ready: BTreeSet<Name>,
    /// What updates mean for those that do not simply take what is wanted.
    pub courses: BTreeMap<Name, Course>,
    /// CPUs that are proposed for running workloads, those that fit.
    pub moves: BTreeMap<Name, Move>,
    /// Those that are stopped in this pass to leave a draining GPU.
    pub leaving: BTreeSet<Name>,
    /// How many there was no room for, as far as they have been looked for.
    pub refused: usize,
    /// Those for whom room is kept, the first in the queue first.
    pub heads: Vec<Head>,
    /// Those that are stopped in this pass to make room, and for whom.
    pub preempted: BTreeMap<Name, Claim>,
}

/// Where a workload should get to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Run,
    Suspended,
    /// The controller takes it with it as it ends.
    Down,
    Gone,
}

/// Decides about one workload.
pub(super) fn decide(input: &Input<'_>, ledger: &mut Ledger, round: &Round, name: &Name) -> Decision {
    let nothing = Observed::default();
    let seen = input.observed.get(name).unwrap_or(&nothing);
    let wanted = input.desired.wanted.get(name);
    let held = input.desired.held.get(name);
    if input.blind.contains(name) {
        // A kill needs no look.
        return match input.shutdown {
            Some(Shutdown::AtOnce) => {
                let next = Next::Do { act: Act::Kill, reason: format!("{SHUTDOWN}, and it cannot be looked at") };
                Decision::blank(None, next, Phase::Stopping)
            }
            _ => unexplained("it cannot be looked at", seen),
        };
    }
    let course = round.courses.get(name);
    let Some((mut record, changed)) = accept(input.records.get(name), wanted, seen, course, &input.clock) else {
        return match held {
            Some(held) => unexplained(&held.finding, seen),
            None => leftovers(seen),
        };
    };
    let target = match (wanted, held) {
        (None, None) => Target::Gone,
        _ if input.shutdown.is_some() => Target::Down,
        _ if record.spec.suspend => Target::Suspended,
        _ => Target::Run,
    };
    if input.desired.guarded.contains(name) {
        record.deletion = Some(Deletion::Held);
    }
    let Round { ready, courses: _, moves, leaving, refused, heads, preempted } = round;
    let refused_before = *refused;
    let findings = Vec::new();
    let mut case = Case {
        input,
        ledger,
        ready,
        leaving,
        moves,
        refused_before,
        heads,
        preempted,
        record,
        target,
        findings,
        leaves_gpu: false,
    };
    case.findings.push(accepted(&case.record, input.desired, course, changed));
    if seen.instance.is_none() && seen.group.is_none() {
        case.nothing_is_left();
    }
    case.follow_schedule(seen);
    match &seen.instance {
        Some(instance) => match &instance.life {
            Life::Ended(exit) => case.ended(seen, exit),
            Life::Starting | Life::Running { .. } => case.alive(instance),
        },
        None => case.absent(seen),
    }
}

/// What a run that is being stopped is told to be, in one word.
fn word_for(stopping: &Stopping) -> &'static str {
    match (stopping.failed, &stopping.preempted_for) {
        (Some(probe), _) => probe.failure(),
        (None, Some(_)) => PREEMPTED,
        (None, None) => "Stopping",
    }
}

/// One workload being decided.
struct Case<'a, 'b> {
    input: &'a Input<'a>,
    ledger: &'b mut Ledger,
    ready: &'b BTreeSet<Name>,
    leaving: &'b BTreeSet<Name>,
    moves: &'b BTreeMap<Name, Move>,
    refused_before: usize,
    heads: &'b [Head],
    preempted: &'b BTreeMap<Name, Claim>,
    record: Record,
    target: Target,
    findings: Vec<Finding>,
    leaves_gpu: bool,
}

impl Case<'_, '_> {
    fn decision(mut self, phase: Phase, next: Next, wake_at: Option<Timestamp>) -> Decision {
        // What a job had before its last try ended, and others may have been given since: if it does not wait for another any more, after an
        // edit or because its next time has come, that would be taken for held.
        if self.record.retry_at.is_none() && self.ledger.get(&self.record.spec.name).is_none() {
            self.record.grant = None;
        }
        let Case { record, findings, leaves_gpu, .. } = self;
        Decision { findings, wake_at, leaves_gpu, ..Decision::blank(Some(record), next, phase) }
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
        // A controller may have been killed between making it and remembering that.
        self.record.made = self.record.begun.is_some();
        if self.record.stopping.is_some() {
            return self.stopping(instance);
        }
        let fields = match &instance.record {
            Some(started_as) => replacement_reasons(&started_as.spec, &self.record.spec),
            None => self.untold(),
        };
        let timeout_at = self.timeout_at(instance);
        let timed_out = fields.is_empty() && timeout_at.is_some_and(|at| at <= self.input.clock.steady);
        let makes_room = self.makes_room();
        let reason = match self.target {
            Target::Gone => Some(self.gone()),
            Target::Suspended => Some("its manifest says suspend".to_owned()),
            Target::Down => Some(SHUTDOWN.to_owned()),
            Target::Run if !fields.is_empty() => Some(format!("a new {} needs a new process", fields.join(", "))),
            Target::Run if self.is_superseded() => Some("its next run is due".to_owned()),
            Target::Run if timed_out => {
                self.record.spec.job.timeout.map(|timeout| format!("it took longer than {}", format_duration(timeout)))
            }
            Target::Run => {
                let reason = self.leaves_its_gpu();
                self.leaves_gpu = reason.is_some();
                reason.or_else(|| makes_room.as_ref().map(|(_, why)| why.clone()))
            }
        };
        if let Some(reason) = reason {
            let at_once = self.input.shutdown == Some(Shutdown::AtOnce);
            if at_once && self.may_kill(SHUTDOWN) {
                self.find(ConditionKind::Ready, false, "Killed", SHUTDOWN);
                return self.act(Phase::Stopping, Act::Kill, SHUTDOWN);
            }
            let together = matches!(self.target, Target::Gone | Target::Down);
            if let Some(other) = self.leaves_before().filter(|_| together) {
                let message = format!("{reason}; waits for {other}, which comes after it, to end");
                self.find(ConditionKind::Ready, false, "Stopping", message);
                return self.decision(Phase::Stopping, Next::Keep, None);
            }
            if self.target == Target::Gone && self.record.deletion != Some(Deletion::Approved) {
                self.record.deletion = Some(Deletion::Begun);
            }
            let preempted_for = makes_room.filter(|(_, why)| *why == reason).map(|(newcomer, _)| newcomer);
            let timeout = self.record.spec.job.timeout.filter(|_| timed_out);
            let stopping = Stopping::by_asking(self.input.clock.now(), reason.clone());
            let stopping = Stopping { timed_out, timeout, preempted_for, ..stopping };
            self.find(ConditionKind::Ready, false, word_for(&stopping), reason);
            return self.ask(instance, stopping);
        }
        if let Some(started_as) = instance.record.as_ref().filter(|was| was.spec.logs != self.record.spec.logs) {
            let message = format!("logs stay at {} until its next start", started_as.spec.logs);
            self.find(ConditionKind::Degraded, true, "NextStart", message);
        }
        self.replace_cpus();
        self.take_move();
        match instance.life {
            Life::Running { pid } => {
                let timeout_at = timeout_at.map(|at| self.input.clock.wall_at(at));
                let wake_at = timeout_at.into_iter().chain(self.next_time()).min();
                self.running(instance, pid, wake_at)
            }
            Life::Starting | Life::Ended(_) => {
                self.find(ConditionKind::Ready, false, "Starting", "being set up");
                self.decision(Phase::Starting, Next::Keep, None)
            }
        }
    }

    /// Why it is not wanted here any more.
    fn gone(&self) -> String {
        let elsewhere = self.input.desired.elsewhere.get(&self.record.spec.name);
        let fewer = || fewer(&self.record.spec, self.input.desired);
        elsewhere.cloned().or_else(fewer).unwrap_or_else(|| format!("{} was deleted", self.record.origin.path))
    }

    /// What of a run that nothing tells of is not as it is to be. It is what the record says that was stored before this pass, but for
    /// devices that nobody knows it by.
    fn untold(&mut self) -> Vec<&'static str> {
        let message = "the traces of its start are lost or unreadable; it is taken for what its record says";
        self.find(ConditionKind::Degraded, true, "TracesLost", message);
        let stored = self.input.records.get(&self.record.spec.name);
        let mut fields = stored.map_or_else(Vec::new, |stored| replacement_reasons(&stored.spec, &self.record.spec));
        if fields.is_empty() && self.record.spec.gpu.is_some() && self.record.grant.is_none() {
            fields.push("gpu lease");
        }
        fields
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
        if self.target == Target::Run && !self.record.finished && self.is_out_of_tries() {
            // Its manifest allows fewer tries than it has made by now.
            self.record.retry_at = None;
            self.finish();
        }
        match self.target {
            Target::Gone => {
                let reason = format!("{} and nothing of it runs", self.gone());
                self.act(Phase::Stopping, Act::Forget, reason)
            }
            Target::Suspended => {
                self.leave_queue();
                self.find(ConditionKind::Ready, false, "Suspended", "its manifest says suspend");
                self.rest(Phase::Suspended, "suspended", None)
            }
            Target::Down => {
                self.release();
                self.find(ConditionKind::Ready, false, "Shutdown", SHUTDOWN);
                self.rest(Phase::Pending, SHUTDOWN, None)
            }
            Target::Run if self.is_away() => {
                let message = "its manifest was not there when the controller began to look; it is waited for";
                self.find(ConditionKind::Ready, false, "ManifestAway", message);
                self.rest(Phase::Pending, message, None)
            }
            Target::Run if self.awaits_its_time() => self.await_time(),
            Target::Run if self.record.finished => {
                self.leave_queue();
                let message = self.last_words();
                self.find(ConditionKind::Ready, false, "Finished", message);
                let phase = self.finished_phase();
                self.rest(phase, "it is not to be run again", None)
            }
            Target::Run => self.next_run(),
        }
    }

    /// Whether it may turn out in a moment that nobody wants it: then it need not be started before.
    fn is_away(&self) -> bool {
        self.input.desired.away.contains(&self.record.spec.name) && !self.record.finished
    }

    fn last_outcome(&self) -> String {
        self.record.last_exit.as_ref().map_or_else(|| "never run".to_owned(), |exit| exit.outcome.to_string())
    }

    /// It does not want to start any more, for now.
    fn leave_queue(&mut self) {
        self.release();
        (self.record.queued, self.record.preempting) = (None, None);
    }

    fn release(&mut self) {
        self.record.grant = None;
        self.ledger.remove(&self.record.spec.name);
    }
}
