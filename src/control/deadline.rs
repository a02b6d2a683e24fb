//! When the loop goes round again if nothing happens.

use super::Controller;
use crate::model::observed::{Life, Observed};
use crate::model::time::Timestamp;
use crate::plan::Plan;
use std::time::{Duration, Instant};

/// How soon to look again at a run that is being set up. Its report wakes us long before; this is for one an earlier controller began.
const STARTING_AGAIN: Duration = Duration::from_millis(250);
/// The longest sleep; a timer further out is set again.
const SLEEP_MAX: Duration = Duration::from_hours(1);

impl Controller {
    /// The plan's next deadline, the scan's, or a look at what is being set up.
    pub(super) fn deadline(&self, plan: &Plan, now: Timestamp) -> Instant {
        let planned = plan.wake_at.map(|at| at.since(now));
        let starting = self.state.observed.values().any(is_starting).then_some(STARTING_AGAIN);
        let wait = planned.into_iter().chain(starting).min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let scan = self.scan_due().filter(|_| self.folder.is_some());
        // A millisecond more: a deadline that is rounded down would find nothing to do yet.
        let plan_at = self.host.instant() + wait + Duration::from_millis(1);
        scan.map_or(plan_at, |scan| scan.min(plan_at))
    }

    pub(super) fn look_at_starting(&mut self) {
        let starting = self.state.observed.iter().filter(|(_, seen)| is_starting(seen)).map(|(name, _)| name.clone());
        for name in starting.collect::<Vec<_>>() {
            self.look(&name);
        }
    }
}

fn is_starting(seen: &Observed) -> bool {
    seen.instance.as_ref().is_some_and(|instance| instance.life == Life::Starting)
}
