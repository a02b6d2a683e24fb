//! Laws about how runs ended, and who knows of it.

use super::{Era, workload};
use crate::census::Told;
use crate::kernel::{RunId, Stage};
use crate::world::{World, millis};
use containerctl::host::processes::Run as Key;
use containerctl::host::traces::Process;
use containerctl::model::cpuset::CpuSet;
use containerctl::model::event::Event;
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use std::collections::BTreeSet;

impl World {
    /// Before traces go: how the run ended is where a crash cannot take it.
    pub fn law_exit_is_remembered(&mut self, name: &Name, but: Option<u64>) {
        let Some(runs) = self.kernel.traces.get(name) else { return };
        let numbers: Vec<u64> = runs.keys().copied().filter(|number| Some(*number) != but).collect();
        for number in numbers {
            if self.disk.takes_nothing_of(name) {
                // In the controller's memory only, and it says so.
                self.excuse_all(name);
                return;
            }
            let known = self.disk.flushed(name).and_then(|record| record.last_exit);
            let told = known.as_ref().is_some_and(|exit| exit.instance >= number);
            // That nothing follows it no failure of the power may take: it would run again.
            let is_over = |record: Option<Record>| record.is_some_and(|record| record.finished);
            let safe = !is_over(self.disk.flushed(name)) || is_over(self.disk.synced(name));
            let run = self.kernel.runs.iter().rfind(|run| run.name == *name && run.number == number);
            let Some(run) = run.filter(|run| !run.excused) else { continue };
            // What a run was ended for counts before how it then ended.
            let (lasted, bad_answers) = (run.ended_at.map_or(0, |ended| ended - run.born + 20), run.bad_answers);
            let ended_for = |outcome: &Outcome| match outcome {
                Outcome::TimedOut { after } => lasted >= millis(*after),
                Outcome::Unhealthy { .. } => bad_answers > 0,
                _ => false,
            };
            let right = match (&known, &run.end) {
                (Some(exit), Some(end)) if exit.instance == number && run.reported && !run.killed => {
                    // The counter that tells want of memory from a kill may be gone with its group.
                    exit.outcome == *end || *end == Outcome::OutOfMemory || ended_for(&exit.outcome)
                }
                (Some(exit), Some(end @ Outcome::HostRestarted)) if exit.instance == number => {
                    exit.outcome == *end || ended_for(&exit.outcome)
                }
                _ => true,
            };
            let end = run.end.as_ref().map_or_else(|| "goes on".to_owned(), ToString::to_string);
            let unstarted = matches!(run.end, Some(Outcome::NotStarted { .. }));
            if run.end == Some(Outcome::HostRestarted) {
                self.census.note(Told::Law("what a reboot ends has not failed"));
            }
            self.judge("an end is remembered before its traces go");
            if !safe && !self.disk.flush_failed {
                self.violate(format!("that {name} is over would be forgotten if the power failed"));
            } else if !told && !self.disk.flush_failed {
                self.violate(format!("the end of run {number} of {name} ({end}) is forgotten"));
            } else if !right && !self.disk.flush_failed && !unstarted {
                let known = known.map(|exit| exit.outcome.to_string()).unwrap_or_default();
                self.violate(format!("run {number} of {name}: {end}, but is remembered as: {known}"));
            }
        }
    }

    pub fn law_only_its_own_is_adopted(&mut self, key: &Key, id: RunId) {
        self.judge("only its own is adopted");
        let run = &self.kernel.runs[id];
        if run.name != key.0 || (key.1 != 0 && run.number != key.1) {
            let (name, number) = (run.name.clone(), run.number);
            self.violate(format!("run {number} of {name} is taken for run {} of {}", key.1, key.0));
        }
    }

    pub fn law_nobody_of_the_system_is_adopted(&mut self, key: &Key, init: Process) {
        let has_begun = init.start_ticks <= self.steady() / 10;
        // A run of this boot may have had them too.
        let is_ours = self.kernel.runs.iter().any(|run| run.boot == self.kernel.boot && run.init == init);
        if has_begun && self.kernel.daemons.contains(&init) && !is_ours {
            self.violate(format!(
                "a process of the system is taken for run {} of {}, which ended with the boot before",
                key.1, key.0
            ));
        }
    }

    /// Nobody runs on CPUs that a running workload is to have alone.
    pub fn law_exclusive_is_exclusive(&mut self, written: &Name) {
        let cpus = |name: &Name| -> Option<CpuSet> {
            let group = self.kernel.groups.get(name).filter(|group| !group.meddled)?;
            group.settings.get("cpuset.cpus")?.parse().ok()
        };
        let Some(mine) = cpus(written) else { return };
        let mut judged = false;
        let there = self.kernel.there.iter().map(|id| &self.kernel.runs[*id]);
        for run in there.filter(|run| run.stage == Stage::Running && run.name != *written) {
            let fenced = run.record.grant.as_ref().map(|grant| grant.fenced.clone()).unwrap_or_default();
            if fenced.is_empty() {
                continue;
            }
            judged = true;
            // Two grants that were made in different lives may overlap when records of one were lost; that is not mended under a run.
            if self.lost_writes || fenced.is_disjoint(&mine) {
                continue;
            }
            // A class that has changed since is another story: then the fence moves first.
            let still =
                self.disk.record(&run.name).and_then(|record| record.grant).is_some_and(|grant| grant.fenced == fenced);
            let class = &run.record.spec.resources.cpu;
            let from = run.born.saturating_sub(super::UNDER_WAY_MAX);
            let other = |era: &Era| era.claims.iter().any(|claim| claim.resources.cpu != *class);
            if still && !self.has_been(workload(&run.name), from, other) {
                let what = format!("{written} is put on CPUs {mine}, of which {fenced} are {}'s alone", run.name);
                return self.violate(what);
            }
        }
        if judged {
            self.judge("exclusive is exclusive");
        }
    }

    pub fn law_what_waits_is_bounded(&mut self) {
        self.judge("what waits is bounded");
        let names: BTreeSet<&Name> = self.kernel.runs.iter().map(|run| &run.name).collect();
        // Each name at most once, those that never ran included, and the scan, the sweep and the events.
        let most = names.len().max(5 * self.shelf.names.len()) + 3;
        if self.tasks.len() > most {
            let tasks = self.tasks.len();
            self.violate(format!("{tasks} tasks are waiting"));
        }
    }

    /// At rest the newest end of each workload is the one its record speaks of, and each end has been told by one event.
    pub fn law_every_end_is_told(&mut self, events: &[Event]) {
        for run in 0..self.kernel.runs.len() {
            let run = &self.kernel.runs[run];
            let Some(record) = self.disk.record(&run.name).filter(|_| !run.excused && run.end.is_some()) else {
                continue;
            };
            let (name, number) = (run.name.clone(), run.number);
            let told = record.last_exit.as_ref().is_some_and(|exit| exit.instance >= number);
            self.judge("every end is recorded");
            if !told {
                return self.violate(format!("the end of run {number} of {name} was never told"));
            }
        }
        self.law_what_a_reboot_ends_has_not_failed();
        self.law_ends_and_events(events);
    }

    /// Whether or not its traces were on a tmpfs: what was there as the power failed was ended by that, and by nothing unknown.
    fn law_what_a_reboot_ends_has_not_failed(&mut self) {
        let names: BTreeSet<Name> = self.kernel.runs.iter().map(|run| run.name.clone()).collect();
        for name in names {
            let Some(exit) = self.disk.record(&name).and_then(|record| record.last_exit) else { continue };
            let run = self.runs_of(&name).rfind(|run| run.number == exit.instance);
            let Some(true) = run.map(|run| run.end == Some(Outcome::HostRestarted)) else { continue };
            self.judge("what a reboot ends has not failed");
            if exit.outcome == Outcome::Lost {
                return self.violate(format!(
                    "run {} of {name} ended with the host, and is remembered as lost",
                    exit.instance
                ));
            }
        }
    }

    fn law_ends_and_events(&mut self, events: &[Event]) {
        let names: BTreeSet<Name> = self.kernel.runs.iter().map(|run| run.name.clone()).collect();
        for name in names {
            let all = self.runs_of(&name).filter(|run| run.end.is_some()).count();
            let known = self.runs_of(&name).filter(|run| run.end.is_some() && !run.excused).count();
            let tells = |event: &&Event| event.reason == "Ended" && event.workload.as_ref() == Some(&name);
            let told: u32 = events.iter().filter(tells).map(|event| event.count).sum();
            let told = usize::try_from(told).unwrap_or(usize::MAX);
            // A power cut takes records, and so does a write that was torn; a disk that takes nothing keeps those that were removed. Then
            // nobody knows any more which run of which life an event was about, and an end may be told twice.
            if self.kernel.boot == 0 && !self.truth.flush_failed && !self.truth.torn.contains(&name) {
                self.judge("an end is told by one event at most");
                if told > all {
                    let said: Vec<_> = events.iter().filter(tells).map(|event| (event.run, &event.message)).collect();
                    let what = format!("{told} events tell of {all} ends of {name}: {said:?}");
                    return self.violate(what);
                }
            }
            // A crash takes what was not handed over, and a start that only seemed to fail ends in nobody's sight.
            if self.crashes <= 1 && !self.truth.disturbed {
                self.judge("every end is told by an event");
                if told < known {
                    return self.violate(format!("only {told} of {known} ends of {name} are told by events"));
                }
            }
        }
    }
}
