//! The resync: a look at everything there is, whatever the events said, and what has come of it.
//!
//! What an event never tells shows here: control files, frozen groups and moved processes that somebody has changed behind our back, and
//! the counters that say who runs into a limit.

use super::{Controller, Done, Job};
use crate::host::{CpuTimes, HostError, chain};
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
    /// Its processes that are outside its cgroup.
    strays: BTreeSet<u32>,
}

/// What a sweep saw.
pub struct Swept {
    sightings: Vec<Sighting>,
    machine: Result<Machine, HostError>,
    times: Result<CpuTimes, HostError>,
}

impl Controller {
    /// Looks at everything on a thread, one after the other, without holding anybody up.
    pub(super) fn sweep(&mut self) {
        if std::mem::replace(&mut self.sweeping, true) {
            return;
        }
        let mut names: BTreeSet<Name> = self.state.records.keys().chain(self.state.observed.keys()).cloned().collect();
        let host = Arc::clone(&self.host);
        let known: BTreeMap<Name, u64> = names.iter().map(|name| (name.clone(), self.state.epoch(name))).collect();
        self.on_thread(Job::Sweep, move || {
            names.extend(host.names().unwrap_or_default());
            let look = |name: Name| {
                let (epoch, seen) = (known.get(&name).copied().unwrap_or(0), host.observe(&name));
                let usage = host.usage(&name);
                Sighting { name, epoch, seen, usage, strays: BTreeSet::new() }
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

    pub(super) fn take_sweep(&mut self, swept: Swept) {
        let Swept { sightings, machine, times } = swept;
        self.sweeping = false;
        let mut news = Vec::new();
        for Sighting { name, epoch, seen, usage, strays } in sightings {
            match seen {
                Ok(seen) if self.state.is_untouched(&name, epoch) => {
                    news.extend(self.state.drift(&name, &seen, &strays));
                    news.extend(self.measure(&name, &seen, usage));
                    self.state.see_swept(&name, seen, strays);
                }
                Ok(_) => {}
                Err(error) => tracing::error!(workload = %name, error = %chain(&error), "cannot look at it"),
            }
        }
        self.state.forget_usage_of_the_gone();
        self.tell(news);
        match machine {
            Ok(machine) => self.state.machine = machine,
            Err(error) => tracing::error!(error = %chain(&error), "cannot look at the machine"),
        }
        if let Ok(times) = times {
            self.state.measure(times);
        }
        // Who owns a manifest depends on what runs.
        self.state.gather();
    }

    /// Keeps a reading of what a workload has used; answers what there is to tell about it.
    fn measure(&mut self, name: &Name, seen: &Observed, usage: Usage) -> Vec<News> {
        let running = seen.instance.as_ref().filter(|instance| matches!(instance.life, Life::Running { .. }));
        let (Some(instance), Some(record)) = (running, self.state.records.get(name)) else {
            self.state.usage.remove(name);
            return Vec::new();
        };
        let at = self.host.now();
        let (run, began) = (instance.number, instance.started.unwrap_or(at));
        let reading = Reading { run, began, at, usage, resources: &record.spec.resources };
        let news = self.state.strains.take(name, &reading);
        self.state.usage.insert(name.clone(), usage);
        news
    }
}
