//! The next run: what it waits for, and where it is placed.

use super::{Case, Decision, Next};
use crate::model::name::Name;
use crate::model::record::{Deletion, Grant};
use crate::model::spec::{CpuClass, Kind};
use crate::model::status::{ConditionKind, Phase};
use crate::place::{self, Ask, Holding};
use crate::plan::Input;
use std::time::Duration;

/// What a job that waits for a quieter host is told to be.
pub const HOST_BUSY: &str = "HostBusy";

/// How often a job that waits for a quieter host looks again.
const UTILISATION_AGAIN: Duration = Duration::from_secs(1);

impl Case<'_, '_> {
    /// Start it, or say what it waits for.
    pub(super) fn next_run(mut self) -> Decision {
        let clock = self.input.clock;
        let longest = self.record.spec.restart.max_delay;
        if let Some(retry_at) = self.record.retry_at.as_ref().and_then(|at| clock.awaited(at, longest)) {
            let message = format!("{}; next try at {}", self.last_outcome(), retry_at.wall);
            let never_ran = self.record.last_exit.as_ref().is_some_and(|exit| exit.outcome.never_ran());
            let (phase, reason) = if never_ran { (Phase::Failed, "NotStarted") } else { (Phase::Pending, "BackOff") };
            self.find(ConditionKind::Ready, false, reason, message.clone());
            let wake_at = clock.wall.plus(clock.until(&retry_at));
            self.record.retry_at = Some(retry_at);
            return self.rest(phase, message, Some(wake_at));
        }
        if let Some((reason, wait)) = self.waits_for() {
            self.release();
            self.find(ConditionKind::Ready, false, reason, wait.clone());
            return self.rest(Phase::Pending, wait, None);
        }
        if let Some(wait) = self.too_busy() {
            self.find(ConditionKind::Ready, false, HOST_BUSY, wait.clone());
            return self.rest(Phase::Pending, wait, Some(clock.wall.plus(UTILISATION_AGAIN)));
        }
        let grant = match self.placed() {
            Ok(grant) => grant,
            Err(refusal) => return self.refused(refusal),
        };
        if let Some(why) = self.kept_back() {
            return self.queued(why);
        }
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
        // From here on it holds what it was given, and not only wishes for it: the wait for this try is over.
        if self.record.retry_at.take().is_some() {
            self.record.restarts = self.record.restarts.saturating_add(1);
        }
        if let Some(neighbour) = self.still_on_fenced(&grant) {
            let message = format!("waits for {neighbour} to leave CPUs {}", grant.fenced);
            self.find(ConditionKind::Ready, false, "CpusOccupied", message.clone());
            return self.rest(Phase::Pending, message, None);
        }
        if let Some(due) = self.record.scheduled.as_mut().and_then(|scheduled| scheduled.due.as_mut()) {
            due.begun = true;
        }
        // What is begun anew goes on: neither a stop that went before nor a consent to it is about this run.
        self.record.deletion = self.record.deletion.filter(|deletion| *deletion == Deletion::Held);
        (self.record.queued, self.record.preempting) = (None, None);
        self.record.instance += 1;
        self.record.begun = Some(clock.now());
        self.find(ConditionKind::Ready, false, "Starting", "being set up");
        self.decision(Phase::Starting, Next::Start, None)
    }

    /// Jobs start when the host is quiet enough; those that yield to everybody disturb nobody.
    pub(super) fn too_busy(&self) -> Option<String> {
        let Input { utilisation_percent, job_threshold_percent, .. } = self.input;
        if self.record.spec.resources.cpu.class == CpuClass::Idle {
            return None;
        }
        match (self.record.spec.kind, utilisation_percent) {
            (Kind::Job, Some(used)) if used > job_threshold_percent => {
                let below = format!("jobs start at {job_threshold_percent} % or less (controller --job-cpu-threshold)");
                Some(format!("host CPUs are {used} % busy, {below}"))
            }
            _ => None,
        }
    }

    pub(super) fn placed(&mut self) -> Result<Grant, place::Refusal> {
        self.forget_squeeze();
        place::place(self.input.machine, self.ledger, &Ask::of(&self.record.spec, self.record.grant.as_ref()))
    }

    /// Moves a running workload if its CPUs no longer serve: its class or number has changed, or an exclusive neighbour took them.
    pub(super) fn replace_cpus(&mut self) {
        if self.input.moves.is_none() {
            self.forget_squeeze();
        }
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
    pub(super) fn still_on_fenced(&self, grant: &Grant) -> Option<Name> {
        if grant.fenced.is_empty() {
            return None;
        }
        let Input { observed, busy, records, .. } = self.input;
        let own = &self.record.spec.name;
        let seen_there = |name: &Name| {
            let group = observed.get(name).and_then(|seen| seen.group.as_ref());
            let held = group.and_then(|group| group.settings.get("cpuset.cpus"));
            held.is_some_and(|cpus| cpus.parse().is_ok_and(|cpus| !grant.fenced.is_disjoint(&cpus)))
        };
        let on_its_way = |(name, holding): &(&Name, &Holding)| {
            busy.contains(*name) && !holding.grant.cpus.is_disjoint(&grant.fenced)
        };
        // A step that is under way was decided on the grant that is recorded, whatever this pass would rather give.
        let decided = |name: &&Name| {
            let held = records.get(*name).and_then(|record| record.grant.as_ref());
            *name != own && held.is_some_and(|held| !held.cpus.is_disjoint(&grant.fenced))
        };
        let seen = observed.keys().find(|name| *name != own && seen_there(name));
        seen.or_else(|| self.ledger.others(own).find(on_its_way).map(|(name, _)| name))
            .or_else(|| busy.iter().find(decided))
            .cloned()
    }
}
