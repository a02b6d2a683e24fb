//! What must hold whatever happens, checked at the instant it could be broken.

use crate::kernel::{Run, RunId, Stage};
use crate::world::{Sim, World};
use containerctl::host::processes::Run as Key;
use containerctl::model::cpuset::CpuSet;
use containerctl::model::exit::Outcome;
use containerctl::model::gpu::{GpuLease, Share};
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::spec::{Kind, Spec};
use containerctl::model::status::{ConditionKind, Phase};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long a run may have been on its way, in milliseconds, when what it was started from changed: a start takes many calls.
const UNDER_WAY_MAX: u64 = 5_000;

/// What really happened, as nobody in the simulation knows it.
#[derive(Default)]
pub struct Truth {
    /// When somebody last gave a reason to stop or replace a workload.
    edited: BTreeMap<Name, u64>,
    /// Jobs that have succeeded, and as what.
    completed: BTreeMap<Name, Arc<Spec>>,
}

impl World {
    pub fn note_edit(&mut self, name: &Name, busy: u64) {
        self.truth.edited.insert(name.clone(), self.now + busy);
        self.truth.completed.remove(name);
    }

    /// From here on nobody can know how the runs of a workload ended.
    pub fn excuse(&mut self, name: &Name) {
        self.truth.completed.remove(name);
        for run in self.kernel.runs.iter_mut().filter(|run| run.name == *name) {
            run.excused = true;
        }
    }

    /// A run that a failed start takes away again, whatever has become of it meanwhile.
    pub fn excuse_run(&mut self, name: &Name, number: u64) {
        for run in self.kernel.runs.iter_mut().filter(|run| run.name == *name && run.number == number) {
            run.excused = true;
            self.truth.completed.remove(name);
        }
    }

    /// A job's command has succeeded, and not because it was asked to end.
    pub fn note_completion(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let edited = self.truth.edited.get(&run.name).copied().unwrap_or(0);
        let untouched = !run.asked_to_stop && !run.killed && !run.excused && edited + UNDER_WAY_MAX < run.born;
        let counts = run.reported && untouched && run.record.spec.kind == Kind::Job;
        if counts && run.end == Some(Outcome::Exited { code: 0 }) {
            self.truth.completed.insert(run.name.clone(), Arc::clone(&run.record.spec));
        }
    }

    /// A completion that was on no platter when the power failed, and whose traces are gone, has happened to nobody.
    pub fn note_power_cut(&mut self) {
        let known = |name: &Name| {
            self.disk.flushed(name).is_some_and(|record| record.finished) || self.kernel.traces.contains_key(name)
        };
        let lost: Vec<Name> = self.truth.completed.keys().filter(|name| !known(name)).cloned().collect();
        for name in lost {
            self.truth.completed.remove(&name);
        }
        // The same goes for other ends.
        for run in &mut self.kernel.runs {
            let known = self.disk.flushed(&run.name).and_then(|record| record.last_exit);
            let told = known.is_some_and(|exit| exit.instance >= run.number);
            let traced = self.kernel.traces.get(&run.name).is_some_and(|runs| runs.contains_key(&run.number));
            run.excused |= !told && !traced;
        }
    }

    /// Ends that were in nobody's memory but the controller's, which is gone.
    pub fn excuse_the_untold(&mut self) {
        for id in 0..self.kernel.runs.len() {
            self.excuse_if_untold(id);
        }
    }

    /// A run whose init could leave neither report is told of by its parent, which waits for it. An adopter has nothing to know its end by.
    pub fn excuse_if_untold(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let orphan = !self.up || run.parent != self.incarnation;
        let traces = self.kernel.traces.get(&run.name).and_then(|runs| runs.get(&run.number));
        let began = traces.is_some_and(|files| files.started.is_some());
        if orphan && run.end.is_some() && !run.reported && !began {
            self.kernel.runs[id].excused = true;
        }
    }

    /// The controller was told that the disk takes nothing: what it knew is lost with it.
    pub fn forget_what_is_lost(&mut self) {
        if self.disk.flush_failed {
            for name in self.shelf.names.clone() {
                self.excuse(&name.parse().unwrap());
            }
        }
    }

    pub fn law_one_at_a_time(&mut self, name: &Name, record: &Record) {
        if let Some(id) = self.kernel.live(name) {
            let other = self.kernel.runs[id].number;
            self.violate(format!("run {} of {name} is started while run {other} lives", record.instance));
        }
        if self.kernel.runs.iter().any(|run| run.in_group && run.name == *name) {
            self.violate(format!("run {} of {name} is started in a group that is not empty", record.instance));
        }
    }

    /// No GPU is given twice: of whoever is started, nobody that lives holds one whole, whatever crashed in between.
    pub fn law_gpus_are_leased_once(&mut self, record: &Record) {
        let devices = |record: &Record| -> Vec<GpuLease> {
            record.grant.as_ref().map(|grant| grant.gpus.clone()).unwrap_or_default()
        };
        let mine = devices(record);
        let clash = |run: &&Run| {
            let is_held = |lease: &GpuLease| {
                mine.iter().any(|own| own.gpu == lease.gpu && [own.share, lease.share].contains(&Share::Whole))
            };
            run.stage != Stage::Gone && run.name != record.spec.name && devices(&run.record).iter().any(is_held)
        };
        let other = self.kernel.runs.iter().find(clash).map(|run| run.name.clone());
        // When records were lost, and the traces of the run with them, nobody can know.
        if let (Some(other), false) = (other, self.lost_writes) {
            self.violate(format!("{} is started on a GPU of {other}, which lives", record.spec.name));
        }
    }

    pub fn law_jobs_complete_once(&mut self, record: &Record) {
        let spec = &record.spec;
        let completed = self.truth.completed.get(&spec.name);
        if completed.is_some_and(|before| before.process == spec.process && before.kind == spec.kind) {
            self.violate(format!("{} has succeeded and is run again", spec.name));
        }
    }

    pub fn law_no_stop_without_a_reason(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let edited = self.truth.edited.get(&run.name).copied();
        let reason = edited.is_some_and(|at| at + UNDER_WAY_MAX >= run.born);
        let owner = self.disk.record(&run.name).map(|record| record.origin.path);
        let orphaned = owner.is_some_and(|path| !self.shelf.files.contains_key(&path));
        let unwanted = orphaned || self.is_unwanted(&run.record.spec);
        let healthy = matches!(run.stage, Stage::SettingUp | Stage::Running) && !run.excused && !run.asked_to_stop;
        if healthy && !reason && !unwanted {
            let (name, number) = (run.name.clone(), run.number);
            self.violate(format!("run {number} of {name} is stopped although nobody asked for it"));
        }
    }

    /// Whether the manifests speak against a run of `spec`: it is not mentioned any more, or replaced, or not to run.
    fn is_unwanted(&self, spec: &Spec) -> bool {
        let against = |claim: &Spec| {
            let same = claim.process == spec.process && claim.kind == spec.kind && claim.gpu == spec.gpu;
            claim.name == spec.name && (claim.suspend || !same)
        };
        let files = &self.shelf.files;
        !files.keys().any(|path| path.contains(spec.name.as_str()))
            || files.values().flat_map(|file| &file.parsed.workloads).any(|(claim, _)| against(claim))
    }

    /// Before traces go: how the run ended is where a crash cannot take it.
    pub fn law_exit_is_remembered(&mut self, name: &Name, but: Option<u64>) {
        let Some(runs) = self.kernel.traces.get(name) else { return };
        let numbers: Vec<u64> = runs.keys().copied().filter(|number| Some(*number) != but).collect();
        for number in numbers {
            let known = self.disk.flushed(name).and_then(|record| record.last_exit);
            let told = known.as_ref().is_some_and(|exit| exit.instance >= number);
            let run = self.kernel.runs.iter().rfind(|run| run.name == *name && run.number == number);
            let Some(run) = run.filter(|run| !run.excused) else { continue };
            let right = match (&known, &run.end) {
                (Some(exit), Some(end)) if exit.instance == number && run.reported && !run.killed => {
                    // The counter that tells want of memory from a kill may be gone with its group.
                    exit.outcome == *end || *end == Outcome::OutOfMemory
                }
                _ => true,
            };
            let end = run.end.as_ref().map_or_else(|| "goes on".to_owned(), ToString::to_string);
            if !told && !self.disk.flush_failed {
                self.violate(format!("the end of run {number} of {name} ({end}) is forgotten"));
            } else if !right && !self.disk.flush_failed && !matches!(run.end, Some(Outcome::NotStarted { .. })) {
                let known = known.map(|exit| exit.outcome.to_string()).unwrap_or_default();
                self.violate(format!("run {number} of {name}: {end}, but is remembered as: {known}"));
            }
        }
    }

    pub fn law_only_its_own_is_adopted(&mut self, key: &Key, id: RunId) {
        let run = &self.kernel.runs[id];
        if run.name != key.0 || (key.1 != 0 && run.number != key.1) {
            let (name, number) = (run.name.clone(), run.number);
            self.violate(format!("run {number} of {name} is taken for run {} of {}", key.1, key.0));
        }
    }

    /// Nobody runs on CPUs that a running workload is to have alone.
    pub fn law_exclusive_is_exclusive(&mut self, written: &Name) {
        let cpus = |name: &Name| -> Option<CpuSet> {
            let group = self.kernel.groups.get(name).filter(|group| !group.meddled)?;
            group.settings.get("cpuset.cpus")?.parse().ok()
        };
        let Some(mine) = cpus(written) else { return };
        for run in self.kernel.runs.iter().filter(|run| run.stage == Stage::Running && run.name != *written) {
            let fenced = run.record.grant.as_ref().map(|grant| grant.fenced.clone()).unwrap_or_default();
            // A class that has changed since is another story: then the fence moves first.
            let still =
                self.disk.record(&run.name).and_then(|record| record.grant).is_some_and(|grant| grant.fenced == fenced);
            let wants_other_cpus = |file: &crate::folder::File| {
                let claims = file.parsed.workloads.iter().filter(|(spec, _)| spec.name == run.name);
                claims.into_iter().any(|(spec, _)| spec.resources.cpu != run.record.spec.resources.cpu)
            };
            // It gives CPUs back in the same instant in which others get them.
            let lately = self.truth.edited.get(&run.name).is_some_and(|at| at + UNDER_WAY_MAX >= self.now);
            let edited = lately || self.shelf.files.values().any(wants_other_cpus);
            // Two grants that were made in different lives may overlap when records of one were lost; that is not mended under a run.
            if still && !edited && !self.lost_writes && !fenced.is_disjoint(&mine) {
                let what = format!("{written} is put on CPUs {mine}, of which {fenced} are {}'s alone", run.name);
                return self.violate(what);
            }
        }
    }

    pub fn law_queue_is_bounded(&mut self) {
        if self.tasks.len() > self.shelf.names.len() + 3 {
            let tasks = self.tasks.len();
            self.violate(format!("{tasks} tasks are waiting"));
        }
    }

    /// At rest the newest end of each workload is the one its record speaks of.
    pub fn law_every_exit_is_told(&mut self) {
        for run in 0..self.kernel.runs.len() {
            let run = &self.kernel.runs[run];
            let Some(record) = self.disk.record(&run.name).filter(|_| !run.excused && run.end.is_some()) else {
                continue;
            };
            let told = record.last_exit.as_ref().is_some_and(|exit| exit.instance >= run.number);
            if !told {
                let what = format!("the end of run {} of {} was never told", run.number, run.name);
                return self.violate(what);
            }
        }
    }
}

impl Sim {
    /// Everything is as the manifests say.
    pub fn check_converged(&self) {
        let snapshot = self.controller().as_ref().map(|controller| Arc::clone(&controller.snapshots().borrow()));
        let mut world = self.world();
        if world.violation.is_some() {
            return;
        }
        let Some(snapshot) = snapshot else { return world.violate("no controller is there at the end".to_owned()) };
        for name in world.shelf.names.clone() {
            let name: Name = name.parse().unwrap();
            if let Some(what) = world.differs(&name, &snapshot) {
                world.violate(format!("not converged: {name} {what}"));
            }
        }
    }
}

impl World {
    fn differs(&self, name: &Name, snapshot: &containerctl::control::report::Snapshot) -> Option<String> {
        let claims: Vec<&Arc<Spec>> = self
            .shelf
            .files
            .values()
            .flat_map(|file| &file.parsed.workloads)
            .map(|(spec, _)| spec)
            .filter(|spec| spec.name == *name)
            .collect();
        let mentioned = self.shelf.files.keys().any(|path| path.contains(name.as_str()));
        let live = self.kernel.live(name).map(|id| &self.kernel.runs[id]);
        let Some(status) = snapshot.statuses.get(name) else {
            let left = live.is_some() || self.kernel.groups.contains_key(name) || self.kernel.traces.contains_key(name);
            return match (claims.is_empty(), left) {
                (false, _) => Some("is wanted and unknown".to_owned()),
                // A manifest that cannot be read may explain it.
                (true, true) if !mentioned => Some("has left something behind".to_owned()),
                (true, _) => None,
            };
        };
        if claims.is_empty() && !mentioned && !self.prune_guard {
            return Some(format!("is {} and nobody wants it", status.phase));
        }
        match (status.phase, live) {
            (Phase::Running, Some(run)) => {
                // A file that cannot be read keeps its name, and what runs under it.
                let held = self.shelf.files.get(&format!("{name}.yaml")).is_some_and(|file| file.parsed.broken);
                let good = run.excused
                    || held
                    || claims.is_empty()
                    || claims.iter().any(|spec| spec.process == run.record.spec.process);
                (!good).then(|| format!("runs {:?}, which nobody wants", run.record.spec.process.command))
            }
            (Phase::Running, None) => Some("is said to run, and does not".to_owned()),
            (Phase::Completed | Phase::Suspended | Phase::Failed, None) => None,
            (Phase::Pending, None) => {
                let placed = status.condition(ConditionKind::Placed).is_some_and(|placed| !placed.status);
                let fenced = status.conditions.iter().any(|condition| condition.reason == "CpusOccupied");
                (!placed && !fenced).then(|| format!("is pending: {:?}", status.conditions))
            }
            (phase, live) => {
                Some(format!("is {phase}, with run {:?}: {:?}", live.map(|run| run.number), status.conditions))
            }
        }
    }
}
