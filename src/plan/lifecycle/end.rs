//! Stops that are under way, and what the end of a run means.

use super::accept::replacement_reasons;
use super::{Case, Decision, Next, word_for};
use crate::model::clock::{Clock, Steady};
use crate::model::exit::{Exit, Outcome};
use crate::model::observed::{Instance, Life, Observed};
use crate::model::record::{Record, Stopping};
use crate::model::spec::{Kind, RestartPolicy, Signal, Spec, Stop};
use crate::model::status::{ConditionKind, Phase};
use crate::model::units::Limit;
use crate::plan::{Act, Shutdown, backoff};
use std::time::Duration;

/// How long a killed cgroup may take to be empty before it is killed again.
pub(super) const KILL_AGAIN: Duration = Duration::from_secs(1);

/// Whether nothing follows a run that ended like this, by itself and after so many failures.
pub(super) fn is_last(spec: &Spec, outcome: &Outcome, failed_tries: u32) -> bool {
    let success = outcome.is_success();
    let exhausted = !success && spec.job.retries.at().is_some_and(|retries| failed_tries > retries);
    exhausted
        || match spec.restart.policy {
            RestartPolicy::Never => true,
            RestartPolicy::OnFailure => success,
            RestartPolicy::Always => success && spec.kind == Kind::Job,
        }
}

/// When a run began: as the kernel says, or where nothing tells that, as it is remembered. The kernel counts the time in which the machine was
/// suspended as well, so it is no earlier than that.
pub(in crate::plan) fn began(record: &Record, instance: &Instance, clock: &Clock<'_>) -> Option<Steady> {
    let is_newest = [0, record.instance].contains(&instance.number);
    let begun = record.begun.as_ref().filter(|_| is_newest).and_then(|begun| begun.steady(clock.boot));
    instance.began.max(begun)
}

impl Case<'_, '_> {
    /// How to end it: as its manifest says now, unless that speaks of another process already.
    pub(super) fn stop_of(&self, instance: &Instance) -> Stop {
        let now = &self.record.spec;
        match &instance.record {
            Some(started_as) if started_as.spec.process != now.process => started_as.spec.stop,
            _ => now.stop,
        }
    }

    /// Asks it to end. That it was asked is remembered when it has been, and the grace is reckoned from then; while nobody can ask it, from the
    /// first try.
    pub(super) fn ask(mut self, instance: &Instance, stopping: Stopping) -> Decision {
        let Stop { signal, grace } = self.stop_of(instance);
        let (clock, reason) = (self.input.clock, stopping.reason.clone());
        let wake_at = clock.left(&stopping.since, grace).map(|left| clock.wall.plus(left));
        self.record.stopping = Some(stopping);
        self.decision(Phase::Stopping, Next::Do { act: Act::Stop { signal }, reason }, wake_at)
    }

    /// It is to end; when the grace is over its cgroup is killed.
    pub(super) fn stopping(mut self, instance: &Instance) -> Decision {
        let clock = self.input.clock;
        let grace = self.stop_of(instance).grace;
        let has_failed = self.input.setbacks.contains_key(&self.record.spec.name);
        let Some(stopping) = &mut self.record.stopping else { return self.decision(Phase::Running, Next::Keep, None) };
        let unasked = !stopping.asked && stopping.killed.is_none();
        // The controller that was about to ask was killed first, it may be long ago. What we have tried ourselves counts from the first try.
        stopping.since = if unasked && !has_failed { clock.now() } else { clock.here(&stopping.since) };
        stopping.killed = stopping.killed.as_ref().map(|killed| clock.here(killed));
        let reason = stopping.reason.clone();
        let left = match &stopping.killed {
            None if self.input.shutdown == Some(Shutdown::AtOnce) => None,
            None => clock.left(&stopping.since, grace),
            Some(killed) => clock.left(killed, KILL_AGAIN),
        };
        if let Some(left) = left {
            let word = word_for(stopping);
            self.find(ConditionKind::Ready, false, word, reason);
            if let Some(stopping) = self.record.stopping.take_if(|_| unasked) {
                return self.ask(instance, stopping);
            }
            // Its limits are kept until the end: a neighbour may be waiting for it to leave exclusive CPUs.
            return self.decision(Phase::Stopping, Next::Keep, Some(clock.wall.plus(left)));
        }
        stopping.killed = Some(clock.now());
        self.find(ConditionKind::Ready, false, "Killed", format!("{reason}; still there after the grace period"));
        self.act(Phase::Stopping, Act::Kill, "its grace period is over")
    }

    /// Its last run is over: remember how, decide whether there is a next, clear away what is left.
    pub(super) fn ended(mut self, seen: &Observed, exit: &Exit) -> Decision {
        let recorded = self.record.last_exit.as_ref().is_some_and(|last| last.instance >= exit.instance);
        if !recorded {
            self.conclude(seen, exit);
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
    pub(super) fn may_kill(&mut self, reason: &str) -> bool {
        let clock = self.input.clock;
        if let Some(killed) = self.record.stopping.as_mut().and_then(|stopping| stopping.killed.as_mut()) {
            *killed = clock.here(killed);
            if clock.left(killed, KILL_AGAIN).is_some() {
                return false;
            }
        }
        self.record.stopping = Some(Stopping::by_force(clock.now(), reason.to_owned()));
        true
    }

    /// Neither a process nor a group nor a trace of it is seen. What was begun under another boot has ended with that, and where its traces
    /// were on a tmpfs nothing else tells. What was made under this one has ended too, and somebody has removed its traces: that must not undo
    /// what its restart policy says. What is not known to have been made has left no trace because it never began: a controller was killed
    /// between remembering a start and making it.
    pub(super) fn nothing_is_left(&mut self) {
        let (clock, made) = (self.input.clock, self.record.made);
        let Some(begun) = self.record.begun.take() else { return };
        // When it ended nobody knows; when this boot began it had. No earlier than it began, whatever was done to the clock.
        let (outcome, at) = if begun.is_of_another_boot(clock.boot) {
            (Outcome::HostRestarted, clock.boot().wall.max(begun.wall))
        } else if made {
            (Outcome::Lost, clock.wall.max(begun.wall))
        } else {
            // The time it was for is still to be kept, unless this was another try.
            if let Some(due) = self.record.scheduled.as_mut().and_then(|scheduled| scheduled.due.as_mut()) {
                due.begun = self.record.failed_tries > 0;
            }
            return;
        };
        let exit = Exit { instance: self.record.instance, outcome, started: Some(begun.wall), at };
        if self.record.last_exit.as_ref().is_none_or(|last| last.instance < exit.instance) {
            self.conclude(&Observed::default(), &exit);
        }
    }

    pub(super) fn conclude(&mut self, seen: &Observed, exit: &Exit) {
        let ran = self.ran(seen, exit);
        // What ended before anybody decided on its end has ended by itself.
        let stopping = self.record.stopping.take().filter(|stopping| !stopping.came_late(exit));
        (self.record.begun, self.record.made) = (None, false);
        let mut exit = exit.clone();
        if stopping.as_ref().is_some_and(|stopping| stopping.killed.is_some())
            && matches!(exit.outcome, Outcome::Lost | Outcome::OutOfMemory)
        {
            // Killed by us with its init, which could not say so any more.
            exit.outcome = Outcome::Killed { signal: Signal::KILL };
        }
        // However it ended after that, it was not done in time, whatever its manifest says by now.
        let timed_out = stopping.as_ref().filter(|stopping| stopping.timed_out);
        let timed_out = timed_out.and_then(|stopping| stopping.timeout.or(self.record.spec.job.timeout));
        if let Some(after) = timed_out {
            exit.outcome = Outcome::TimedOut { after };
        }
        let failed = stopping.as_ref().is_some_and(|stopping| stopping.failed.is_some());
        if let (true, Some(Stopping { reason, .. })) = (failed, &stopping) {
            exit.outcome = Outcome::Unhealthy { reason: reason.clone(), code: exit.outcome.code() };
        }
        self.record.note_exit(exit.clone());
        if stopping.as_ref().is_some_and(|stopping| stopping.preempted_for.is_some()) {
            // It was ended for what it held: that is another's from now on, and it waits like one that never ran.
            self.release();
        }
        // What it was ended for by itself counts like an end of its own.
        let asked = stopping.is_some() && timed_out.is_none() && !failed;
        if asked || self.was_another(seen) {
            (self.record.failures, self.record.retry_at) = (0, None);
            return;
        }
        let restart = self.record.spec.restart;
        if ran >= restart.reset_after {
            self.record.failures = 0;
        }
        if !exit.outcome.is_success() {
            self.record.failed_tries = self.record.failed_tries.saturating_add(1);
        }
        if is_last(&self.record.spec, &exit.outcome, self.record.failed_tries) {
            self.finish();
            return;
        }
        self.record.failures = self.record.failures.saturating_add(1);
        let delay = if matches!(exit.outcome, Outcome::NotFound { .. }) {
            // Nothing but an edit or an installation changes it.
            backoff::last(&restart, self.record.failures, &self.record.spec.name, self.input.entropy)
        } else {
            backoff::delay(&restart, self.record.failures, &self.record.spec.name, self.input.entropy)
        };
        self.record.retry_at = Some(match exit.outcome {
            // It has waited for as long as this boot has lasted.
            Outcome::HostRestarted => self.input.clock.boot().plus(delay),
            _ => self.input.clock.after(delay),
        });
    }

    /// For how long a run went on that has just been found to have ended. It may have done so while no controller lived: then that time
    /// counts as well, and its next failure is met with less patience than it could be, which harms nobody.
    fn ran(&self, seen: &Observed, exit: &Exit) -> Duration {
        let began = seen.instance.as_ref().and_then(|instance| began(&self.record, instance, &self.input.clock));
        let on_the_wall = || exit.started.map_or(Duration::ZERO, |started| exit.at.since(started));
        began.map_or_else(on_the_wall, |began| self.input.clock.steady.since(began))
    }

    /// Whether what has ended is not what is wanted now: then its end says nothing about that, which has yet to run. What nothing tells of
    /// was what is stored.
    fn was_another(&self, seen: &Observed) -> bool {
        let started_as = seen.instance.as_ref().and_then(|instance| instance.record.as_ref());
        let was = started_as.or_else(|| self.input.records.get(&self.record.spec.name));
        was.is_some_and(|was| !replacement_reasons(&was.spec, &self.record.spec).is_empty())
    }

    /// Whether it has failed more often than its manifest allows by now.
    pub(super) fn is_out_of_tries(&self) -> bool {
        self.record.spec.job.retries.at().is_some_and(|retries| self.record.failed_tries > retries)
    }

    /// Its task is over: for good, or until its next time comes.
    pub(super) fn finish(&mut self) {
        self.release();
        match &mut self.record.scheduled {
            Some(scheduled) => scheduled.due = scheduled.due.take().filter(|due| !due.begun),
            None => self.record.finished = true,
        }
    }

    /// When a run that is under way has taken too long.
    pub(super) fn timeout_at(&self, instance: &Instance) -> Option<Steady> {
        let (timeout, began) = (self.record.spec.job.timeout?, began(&self.record, instance, &self.input.clock)?);
        matches!(instance.life, Life::Running { .. }).then(|| began.plus(timeout))
    }

    /// How it ended, and why there is no other try.
    pub(super) fn last_words(&self) -> String {
        let outcome = self.last_outcome();
        match (self.record.failed_tries, self.record.spec.job.retries) {
            (tries @ 1.., Limit::At(retries)) if tries > retries => {
                format!("{outcome}; {tries} failed, retries is {retries}")
            }
            _ => outcome,
        }
    }

    pub(super) fn finished_phase(&self) -> Phase {
        let success = self.record.last_exit.as_ref().is_some_and(|exit| exit.outcome.is_success());
        if success { Phase::Completed } else { Phase::Failed }
    }
}
