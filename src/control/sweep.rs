//! The resync: a look at everything there is, whatever the events said, and what has come of it.
//!
//! What an event never tells shows here: control files, frozen groups and moved processes that somebody has changed behind our back, and
//! the counters that say who runs into a limit. Those of a run that has ended go with its cgroup, which is cleared away before the next
//! sweep: the look that sees the end brings them along.

use super::overdue::SWEEP;
use super::{Controller, Done, Job};
use crate::host::{CpuTimes, FolderId, Host, HostError, Refusal, chain};
use crate::model::event::News;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::observed::{Life, Observed};
use crate::model::usage::Usage;
use crate::plan::strain::Reading;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a sweep saw of one workload.
pub struct Sighting {
    name: Name,
    /// The workload's epoch as the sweep began.
    epoch: u64,
    seen: Result<Observed, HostError>,
    usage: Usage,
    logs: Option<FolderId>,
    refusal: Option<Refusal>,
    /// Its processes that are outside its cgroup.
    strays: BTreeSet<u32>,
}

/// What was seen of one workload by looking at it alone.
pub struct Look {
    pub(super) seen: Result<Observed, HostError>,
    /// What it has used in the end, read while its cgroup is there. Not of one that runs: looking at those is to cost little.
    pub(super) last: Option<Usage>,
}

impl Look {
    pub(super) fn at(host: &dyn Host, name: &Name) -> Look {
        let seen = host.observe(name);
        let last = seen.as_ref().is_ok_and(has_ended).then(|| host.usage(name));
        Look { seen, last }
    }
}

fn has_ended(seen: &Observed) -> bool {
    seen.group.is_some() && seen.instance.as_ref().is_some_and(|instance| matches!(instance.life, Life::Ended(_)))
}

/// What a sweep saw.
pub struct Swept {
    sightings: Vec<Sighting>,
    machine: Result<Machine, HostError>,
    times: Result<CpuTimes, HostError>,
}

impl Controller {
    /// Looks at a workload on a thread, now or when the step under way is over.
    pub(super) fn look(&mut self, name: &Name) {
        if self.state.in_flight.contains(name) {
            self.look_again.insert(name.clone());
            return;
        }
        let began = self.state.begin(name, "look");
        let (host, name) = (Arc::clone(&self.host), name.clone());
        self.on_thread(Job::Workload(name.clone()), move || {
            began.get_or_init(|| host.time());
            Done::Seen { look: Look::at(host.as_ref(), &name), name }
        });
    }

    /// Looks at everything on a thread, one after the other, without holding anybody up.
    pub(super) fn sweep(&mut self) {
        if std::mem::replace(&mut self.sweeping, true) {
            return;
        }
        let mut names: BTreeSet<Name> = self.state.records.keys().chain(self.state.observed.keys()).cloned().collect();
        let host = Arc::clone(&self.host);
        let began = self.state.under_way.begin(Job::Sweep, SWEEP);
        self.state.note_leases();
        let known: BTreeMap<Name, u64> = names.iter().map(|name| (name.clone(), self.state.epoch(name))).collect();
        self.on_thread(Job::Sweep, move || {
            began.get_or_init(|| host.time());
            names.extend(host.names().unwrap_or_default());
            let look = |name: Name| {
                let (epoch, seen) = (known.get(&name).copied().unwrap_or(0), host.observe(&name));
                let usage = host.usage(&name);
                let (logs, refusal) = (host.log_folder_id(&name), host.log_folder_refusal(&name));
                Sighting { name, epoch, seen, usage, logs, refusal, strays: BTreeSet::new() }
            };
            let mut sightings: Vec<Sighting> = names.into_iter().map(look).collect();
            // After they were seen to run: whoever is being set up is on the way into its groups.
            let mut strays = host.strays();
            for sighting in &mut sightings {
                sighting.strays = strays.remove(&sighting.name).unwrap_or_default();
            }
            Done::Swept(Swept { sightings, machine: host.survey(), times: host.cpu_times() })
        });
    }

    /// No sweep is under way any more.
    pub(super) fn end_sweep(&mut self) {
        self.sweeping = false;
        self.state.under_way.end(&Job::Sweep);
    }

    /// The same, and again if one is under way: it may have looked at the machine already.
    pub(super) fn sweep_anew(&mut self) {
        self.sweep_again = self.sweeping;
        self.sweep();
    }

    pub(super) fn take_sweep(&mut self, swept: Swept) {
        let Swept { sightings, machine, times } = swept;
        self.end_sweep();
        let spare: BTreeSet<&Name> = self.state.idlers().collect();
        let idlers = sightings.iter().filter(|sighting| spare.contains(&sighting.name));
        let spare_us = idlers.filter_map(|sighting| Some((sighting.name.clone(), sighting.usage.cpu_us?))).collect();
        let mut news = Vec::new();
        for Sighting { name, epoch, seen, usage, logs, refusal, strays } in sightings {
            match seen {
                Ok(seen) if self.state.is_untouched(&name, epoch) => {
                    news.extend(self.state.drift(&name, &seen, &strays));
                    news.extend(self.measure(&name, &seen, usage));
                    self.state.log_folders.see(&name, &seen, logs, refusal);
                    self.state.see_swept(&name, seen, strays);
                }
                Ok(_) => {}
                Err(error) => tracing::error!(workload = %name, error = %chain(&error), "cannot look at it"),
            }
        }
        self.state.forget_usage_of_the_gone();
        self.tell(news);
        match machine {
            Ok(machine) => self.state.take_machine(machine, self.host.time()),
            Err(error) => tracing::error!(error = %chain(&error), "cannot look at the machine"),
        }
        if let Ok(times) = times {
            self.state.measure(times, spare_us);
        }
        // Who owns a manifest depends on what runs.
        self.state.gather();
        if std::mem::take(&mut self.sweep_again) {
            self.sweep();
        }
    }

    /// Takes the last reading of a run that was seen to have ended.
    pub(super) fn measure_last(&mut self, name: &Name, seen: &Result<Observed, HostError>, last: Option<Usage>) {
        if let (Ok(seen), Some(usage)) = (seen, last) {
            let news = self.measure(name, seen, usage);
            self.tell(news);
        }
    }

    /// Keeps a reading of what a workload has used; answers what there is to tell about it.
    fn measure(&mut self, name: &Name, seen: &Observed, usage: Usage) -> Vec<News> {
        let now = self.host.now();
        let (Some(instance), Some(record)) = (&seen.instance, self.state.records.get(name)) else {
            self.state.usage.remove(name);
            return Vec::new();
        };
        let at = match &instance.life {
            Life::Running { .. } => now,
            Life::Ended(exit) if has_ended(seen) => exit.at.min(now),
            Life::Starting | Life::Ended(_) => {
                self.state.usage.remove(name);
                return Vec::new();
            }
        };
        let (run, began) = (instance.number, instance.started.unwrap_or_default());
        let reading = Reading { run, began, at, usage, resources: &record.spec.resources };
        let news = self.state.strains.take(name, &reading);
        if has_ended(seen) {
            self.state.usage.remove(name);
        } else {
            self.state.usage.insert(name.clone(), usage);
        }
        news
    }
}

/// What those that yield to everybody have had of the CPUs.
pub(super) fn spare_us(host: &dyn Host, state: &super::State) -> BTreeMap<Name, u64> {
    state.idlers().filter_map(|name| Some((name.clone(), host.usage(name).cpu_us?))).collect()
}
