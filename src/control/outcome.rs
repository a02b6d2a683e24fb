//! What becomes of the loop's inputs (results of steps, looks and scans, and commands), and telling how things stand after a pass.

use super::act::{ActError, Acted, Kept, step_name};
use super::sweep::Look;
use super::{Command, Controller, Done, Job, drift, news, report};
use crate::host::{HostError, chain};
use crate::model::clock::Time;
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::plan::{Act, Plan, Work};
use std::collections::BTreeSet;
use std::sync::Arc;

/// After as many tries, a second or two, what should have been a moment is told as the failure it is.
const MOMENTS_MAX: u32 = 6;

impl Controller {
    pub(super) fn finish(&mut self, done: Done) {
        match done {
            Done::Acted { work, acted: Acted { kept, result }, look: Look { seen, last } } => {
                match kept {
                    Kept::Record => self.state.unsaved.saved(&work.name),
                    Kept::Refused => self.state.unsaved.refused(&work.name),
                    Kept::Nothing => {}
                }
                if let Some(record) = work.afterwards(result.is_ok()) {
                    self.state.records.insert(work.name.clone(), record.clone());
                }
                self.conclude_move(&work, result.is_ok());
                self.conclude(&work, result);
                self.measure_last(&work.name, &seen, last);
                let before = self.state.observed.get(&work.name);
                let frozen = before
                    .zip(seen.as_ref().ok())
                    .and_then(|(before, seen)| drift::beside_a_step(&work.name, before, seen));
                self.tell(frozen.into_iter().collect());
                self.see(&work.name, seen);
            }
            Done::Seen { name, look: Look { seen, last } } => {
                self.measure_last(&name, &seen, last);
                let drift = seen.as_ref().map(|seen| self.state.drift(&name, seen, &BTreeSet::new()));
                self.tell(drift.unwrap_or_default());
                self.see(&name, seen);
            }
            Done::Metered(metered) => self.take_measurement(metered),
            Done::Fenced(fenced, result) => self.take_fence(fenced, result),
            Done::Saved => self.saving = false,
            Done::Consented(remembering) => self.take_consent(remembering),
            Done::Scanned { folder, result, watched } => {
                self.folder = Some(folder);
                self.take_scan(result, watched);
                self.lookers.end();
            }
            Done::Panicked(job) => self.survive(&job),
            Done::Swept(swept) => self.take_sweep(swept),
        }
    }

    /// Tells how things stand, if that has changed.
    pub(super) fn publish(&mut self, plan: &Plan, now: Time) {
        if !self.state.has_looked() {
            // Every manifest would be told as unread, and as mended a moment later.
            return;
        }
        let before = Arc::clone(&self.snapshot.borrow());
        let host = Arc::clone(&self.host);
        let snapshot = self.state.snapshot(plan, &before, now, |name| host.cgroup_path(name));
        if snapshot != *before {
            news::log(&before, &snapshot);
            let news = news::between(&before, &snapshot, &mut self.told);
            self.note(news);
            self.snapshot.send_replace(Arc::new(snapshot));
        }
    }

    fn survive(&mut self, job: &Job) {
        let message = "a bug in containerctl; the panic's message is in the log";
        tracing::error!(job = ?job, "a job panicked; help: please report it with the lines above");
        match job {
            Job::Workload(name) => {
                // Nobody knows how far it came: what is in memory is written once more before anything is built on it.
                self.state.unsaved.refused(name);
                self.state.set_back(name, message.to_owned(), self.host.steady());
                self.see(name, Err(HostError::Panicked));
            }
            Job::Scan => {
                self.folder = self.folder_anew.take();
                self.lose_watch();
                self.state.lose_folder(message.to_owned());
                self.state.look_anew();
                self.lookers.end();
            }
            Job::Sweep => self.end_sweep(),
            Job::Meter => self.meter_again(),
            Job::Fence => self.state.fencing.end(),
            Job::Save => self.saving = false,
            // Whoever asked is told of a shutdown, for want of a better word.
            Job::Consent => self.end_consent(),
        }
    }

    fn conclude(&mut self, work: &Work, result: Result<(), ActError>) {
        let name = &work.name;
        let Err(error) = result else {
            // A kill is how clearing away is helped along, not its success: trying that again goes on slowing down.
            if work.act != Act::Kill {
                self.state.setbacks.remove(name);
            }
            if work.act == Act::Forget {
                self.state.records.remove(name);
                self.state.unsaved.saved(name);
                // Another life may begin before anybody is told that this one is over.
                self.told.remove(name);
            }
            return;
        };
        let message = chain(&error);
        let failures = self.state.setbacks.get(name).map_or(0, |setback| setback.failures);
        if error.is_momentary() && failures < MOMENTS_MAX {
            tracing::debug!(workload = %name, error = message, "step has to wait");
        } else {
            tracing::error!(workload = %name, step = step_name(&work.act), error = message, "step failed");
        }
        self.state.set_back(name, message, self.host.steady());
    }

    fn see(&mut self, name: &Name, seen: Result<Observed, HostError>) {
        let seen = match seen {
            Ok(seen) => Some(seen),
            // What was seen before may be over, or have begun since: to act on it is to start a workload twice.
            Err(error) => {
                let message = chain(&error);
                if self.state.setbacks.get(name).is_none_or(|setback| setback.message != message) {
                    tracing::error!(workload = %name, error = message, "cannot look at it; it is left as it is, and looked at again and again");
                }
                self.state.lose_sight_of(name);
                self.state.set_back(name, message, self.host.steady());
                None
            }
        };
        self.free(name, seen);
    }

    /// What was under way about a workload is over.
    pub(super) fn free(&mut self, name: &Name, seen: Option<Observed>) {
        self.state.end(name, seen);
        if self.look_again.remove(name) {
            self.look(name);
        }
    }

    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Look { done } => {
                self.scan_at = Some(self.host.instant());
                self.lookers.ask(done);
            }
            Command::Mended { news } => {
                self.note(vec![news]);
                // What failed for want of it is tried again at once.
                self.state.setbacks.clear();
            }
            Command::Approve { reply } => self.approve(reply),
            Command::Rebalance { reply } => {
                let _ = reply.send(self.balance.report());
            }
            Command::Plan { files, reply } => {
                let now = self.host.time();
                let preview = match files {
                    Some(files) => {
                        let (desired, diagnostics) = self.state.imagine(&files);
                        report::preview(&self.state.plan(Some(&desired), now), diagnostics)
                    }
                    None => report::preview(&self.state.plan(None, now), self.state.diagnostics().to_vec()),
                };
                let _ = reply.send(preview);
            }
        }
    }
}
