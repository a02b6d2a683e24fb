//! Jobs that run by the calendar: which of their times have come, and what becomes of those that could not be kept.
//!
//! Approach: the record says up to when the schedule has been dealt with. Whatever lies between that moment and now is dealt with at once
//! and as one, so neither a crash, nor a week without power, nor a leap of the clock makes more than one run of it.

use super::{Case, Decision, Target};
use crate::model::job::{Concurrency, Schedule};
use crate::model::observed::{Instance, Life, Observed};
use crate::model::record::{Due, LeftOut, Scheduled};
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use std::time::Duration;

/// A clock set back by less than this waits until it has caught up, so that no time is kept twice; beyond it, what was dealt with lies in
/// a future that was never true, and counting begins anew. More than a correction by NTP, less than anybody wants to wait.
const SET_BACK_MAX: Duration = Duration::from_hours(1);

impl Case<'_, '_> {
    /// Deals with every time of the schedule up to now.
    pub(super) fn follow_schedule(&mut self, seen: &Observed) {
        let now = self.input.clock.wall;
        let Some(schedule) = self.record.spec.job.schedule.clone() else {
            self.record.scheduled = None;
            return;
        };
        match self.target {
            Target::Run => {}
            // Times that pass meanwhile are not made up for: whoever suspends a job means that.
            Target::Suspended => {
                self.record.scheduled = None;
                return;
            }
            Target::Gone | Target::Down => return,
        }
        let mut scheduled = self.record.scheduled.take().unwrap_or_else(|| {
            // A run that is under way is the first of the schedule; what became of those before says nothing about it.
            (self.record.finished, self.record.retry_at) = (false, None);
            Scheduled { handled: now, due: None, left_out: None }
        });
        if scheduled.handled > now.plus(SET_BACK_MAX) {
            scheduled.handled = now;
        }
        let alive = seen.instance.as_ref().is_some_and(|Instance { life, .. }| !matches!(life, Life::Ended(_)));
        // A start that only seemed to fail: what it was made for has begun, and is not to give way to itself.
        let made_for = seen.started_as().and_then(|record| record.scheduled.as_ref()?.due.as_ref());
        if let (Some(due), Some(made_for)) = (&mut scheduled.due, made_for) {
            due.begun |= due.at == made_for.at;
        }
        match schedule.next_after(scheduled.handled) {
            Ok(next) if next <= now => self.arrive(&schedule, &mut scheduled, next, alive),
            Ok(_) => {}
            Err(error) => {
                let message = format!("schedule `{}` {error}", schedule.cron);
                self.find(ConditionKind::Degraded, true, "ScheduleUnreadable", message);
            }
        }
        let waits = scheduled.due.as_ref().filter(|due| !due.begun && !alive);
        if let (Some(Due { at, .. }), Some(tolerance)) = (waits, schedule.tolerance())
            && now > at.plus(tolerance)
        {
            let busy = self.too_busy().map(|busy| format!(": {busy}")).unwrap_or_default();
            scheduled.left_out = Some(LeftOut { at: *at, reason: format!("it could not start in time{busy}") });
            scheduled.due = None;
        }
        self.record.scheduled = Some(scheduled);
    }

    /// At least one time has come, `first` being the earliest.
    fn arrive(&mut self, schedule: &Schedule, scheduled: &mut Scheduled, first: Timestamp, alive: bool) {
        let now = self.input.clock.wall;
        let timely = match schedule.tolerance() {
            None => Some(first),
            Some(tolerance) => {
                let earliest = scheduled.handled.max(now.minus(tolerance));
                schedule.next_after(earliest).ok().filter(|next| *next <= now)
            }
        };
        scheduled.handled = now;
        let mut leave_out = |at, reason: &str| scheduled.left_out = Some(LeftOut { at, reason: reason.to_owned() });
        match (timely, schedule.concurrency) {
            (None, _) => leave_out(first, "nothing could be started then"),
            (Some(at), Concurrency::Forbid) if alive => leave_out(at, "the run before still went on"),
            (Some(at), _) => {
                // A time that comes while the run before waits for another try is that try.
                scheduled.due = Some(Due { at, begun: false });
                (self.record.failures, self.record.failed_tries, self.record.retry_at) = (0, 0, None);
            }
        }
    }

    /// Whether a run that is under way has to make room for the next.
    pub(super) fn is_superseded(&self) -> bool {
        let concurrency = self.record.spec.job.schedule.as_ref().map(|schedule| schedule.concurrency);
        concurrency == Some(Concurrency::Replace) && self.due().is_some_and(|due| !due.begun)
    }

    /// Whether nothing is due.
    pub(super) fn awaits_its_time(&self) -> bool {
        self.record.spec.job.schedule.is_some() && self.due().is_none()
    }

    fn due(&self) -> Option<&Due> {
        self.record.scheduled.as_ref()?.due.as_ref()
    }

    /// When the next time comes.
    pub(super) fn next_time(&self) -> Option<Timestamp> {
        let schedule = self.record.spec.job.schedule.as_ref()?;
        schedule.next_after(self.record.scheduled.as_ref()?.handled).ok()
    }

    /// Between two runs.
    pub(super) fn await_time(mut self) -> Decision {
        self.leave_queue();
        let next = self.next_time();
        let mut message = next.map_or_else(|| "it has no next run".to_owned(), |next| format!("next run at {next}"));
        if let Some(exit) = &self.record.last_exit {
            message += &format!("; the last one: {}", exit.outcome);
        }
        if let Some(LeftOut { at, reason }) = self.record.scheduled.as_ref().and_then(|known| known.left_out.as_ref()) {
            message += &format!("; the run of {at} was left out: {reason}");
        }
        self.find(ConditionKind::Ready, false, "Scheduled", message.clone());
        self.rest(Phase::Pending, message, next)
    }
}
