//! What must hold whatever happens, checked at the instant it could be broken.
//!
//! The laws know what the controller cannot: everything that was ever in the folder, every run and how it really ended. Where something has
//! happened that makes an end unknowable to anybody who was not there, the run is *excused*, and laws about ends let it pass.

mod ends;
mod rest;
mod room;
mod starts;
mod stops;

use crate::census::Told;
use crate::kernel::{Run, RunId};
use crate::world::World;
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::spec::{Kind, Spec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Every law, by the name it is counted under.
pub const LAWS: [&str; 32] = [
    "one at a time",
    "GPUs are leased once",
    "no more is promised than there is",
    "a job that has succeeded is over",
    "a time of a schedule is kept once",
    "no start before its time",
    "none before those it comes after",
    "none without a manifest",
    "nothing is stopped without a reason",
    "only the more urgent are made room for",
    "the guard holds",
    "asked once",
    "killed after its grace only",
    "who gives way has its grace",
    "who depends leaves first",
    "an update leaves enough",
    "an update is taken back for a reason",
    "an end is remembered before its traces go",
    "what a reboot ends has not failed",
    "an end is told by one event at most",
    "every end is told by an event",
    "every end is recorded",
    "only its own is adopted",
    "exclusive is exclusive",
    "the first in the queue is not passed",
    "who gave way comes back",
    "what waits is bounded",
    "restarts are counted",
    "times of a schedule are kept",
    "as the manifests say",
    "within its limits",
    "a host at rest is left alone",
];

/// How long a run may have been on its way, in milliseconds, when what it was started from changed: a start takes many calls.
pub const UNDER_WAY_MAX: u64 = 5_000;

/// A file that is missing for less than this says nothing: `DELETION_SETTLES`, and a little for a file that came back while it was looked at.
const AWAY_MIN: u64 = 950;

/// A file that is back for less than this may be seen by nobody.
const BLINK: u64 = 50;

/// What the folder says about one workload, from some time on.
pub struct Era {
    at: u64,
    claims: Vec<Arc<Spec>>,
    /// Whether there is any file about it, and one that cannot be accepted.
    any: bool,
    broken: bool,
}

/// What really happened, as nobody in the simulation knows it.
#[derive(Default)]
pub struct Truth {
    eras: BTreeMap<String, Vec<Era>>,
    /// Jobs that have succeeded: as what, and when that run was born.
    completed: BTreeMap<Name, (Arc<Spec>, u64)>,
    /// When the clock was last set back, and when at all.
    pub clock_back: Option<u64>,
    pub clock_set: Option<u64>,
    /// By workload, replicas that are down because of an update.
    updating: BTreeMap<String, BTreeSet<Name>>,
    /// Steps may have failed, or waited longer than planned.
    pub disturbed: bool,
    /// What was to be flushed was not, at least once.
    pub flush_failed: bool,
    /// Workloads whose record was torn: a new one counts runs anew.
    pub torn: BTreeSet<Name>,
    /// When the folder was emptied at once, and whom the guard is to keep from being deleted for that.
    pub guarded: Option<(u64, BTreeSet<Name>)>,
    /// By workload, the last record that said since when it waits for room.
    pub waited: BTreeMap<Name, Record>,
    /// When controllers began.
    pub begun: Vec<u64>,
}

impl Truth {
    pub fn new(disturbed: bool) -> Truth {
        Truth { disturbed, ..Truth::default() }
    }
}

/// The workload that a name is of, without the number of the replica.
pub fn workload(name: &Name) -> &str {
    name.as_str().split('.').next().unwrap_or_default()
}

/// Whether two specs need processes of their own.
pub fn is_other(a: &Spec, b: &Spec) -> bool {
    a.process != b.process || a.kind != b.kind || a.gpu != b.gpu
}

fn is_here(spec: &Spec) -> bool {
    spec.hosts.iter().all(|(key, value)| key == "role" && value == "sim")
}

/// Whether the file that says so asks for this replica.
fn asks_for(claim: &Spec, name: &Name) -> bool {
    match &claim.replica {
        Some(replica) => replica.all().any(|other| other == *name),
        None => claim.name == *name,
    }
}

impl Era {
    /// Whether it speaks against a run of `spec`: it is not mentioned any more, or not for this host, or replaced, or not to run.
    fn is_against(&self, spec: &Spec) -> bool {
        let own: Vec<&Arc<Spec>> = self.claims.iter().filter(|claim| claim.name == spec.name).collect();
        let gone = own.is_empty() && self.any && !self.broken;
        // Of two files that claim a workload one has all its replicas, and it may be the one that asks for fewer.
        let disputed = self.claims.iter().any(|claim| is_here(claim) && !asks_for(claim, &spec.name));
        gone || disputed || own.iter().any(|claim| claim.suspend || is_other(claim, spec) || !is_here(claim))
    }

    /// Whether a job that has succeeded as `spec` may run again because of it.
    fn is_anew(&self, spec: &Spec) -> bool {
        let own = self.claims.iter().filter(|claim| claim.name == spec.name);
        let gone = self.any && !self.broken && own.clone().next().is_none();
        gone || own.into_iter().any(|claim| is_other(claim, spec) || !is_here(claim) || claim.job.schedule.is_some())
    }
}

/// Since when the file that is away in this era is missing for who looks now and then.
fn away_since(eras: &[Era], mut index: usize) -> u64 {
    while let Some([gone, back]) = index.checked_sub(2).and_then(|from| eras.get(from..index))
        && !gone.any
        && back.any
        && eras[index].at - back.at < BLINK
    {
        index -= 2;
    }
    eras[index].at
}

impl World {
    pub fn judge(&mut self, law: &'static str) {
        self.census.note(Told::Law(law));
    }

    /// Something about a workload has changed in the folder.
    pub fn note_folder(&mut self, workload: &str) {
        let (claims, any, broken) = self.shelf.claims(workload, self.now);
        let era = Era { at: self.now, claims, any, broken };
        self.truth.eras.entry(workload.to_owned()).or_default().push(era);
    }

    /// Whether anything the folder has said since `from` makes it so, what it said then included. A file that was away for a moment
    /// only makes nothing so.
    pub fn has_been(&self, workload: &str, from: u64, so: impl Fn(&Era) -> bool) -> bool {
        let Some(eras) = self.truth.eras.get(workload) else { return true };
        let first = eras.iter().rposition(|era| era.at <= from).unwrap_or(0);
        let nothing_at_all = eras[0].at > from;
        nothing_at_all
            || (first..eras.len()).any(|index| {
                // Noted twice while it is away, it is away once.
                let (era, back) = (&eras[index], eras[index..].iter().find(|later| later.any));
                let end = back.map_or(self.now, |back| back.at);
                let since = away_since(eras, index);
                if era.any { so(era) } else { end - since >= AWAY_MIN || self.looked_first(since, end) }
            })
    }

    /// Whether a controller may have begun while a file was away: its first look takes what it finds for all there is.
    fn looked_first(&self, from: u64, to: u64) -> bool {
        self.truth.begun.iter().any(|begun| begun + UNDER_WAY_MAX >= from && *begun <= to)
    }

    /// What the folder says now.
    pub fn claims_on(&self, name: &Name) -> Vec<Arc<Spec>> {
        let (claims, ..) = self.shelf.claims(workload(name), self.now);
        claims.into_iter().filter(|claim| claim.name == *name && is_here(claim)).collect()
    }

    /// Whether two files disagree about whether there is such a replica: which of them has the workload is not for us to say.
    fn is_disputed(&self, name: &Name) -> bool {
        let (all, ..) = self.shelf.claims(workload(name), self.now);
        all.iter().any(|claim| is_here(claim) && !asks_for(claim, name))
    }

    /// Whether the manifests say that a workload comes after itself, by whatever others.
    pub fn goes_in_a_circle(&self, name: &Name) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![name.clone()]);
        while let Some(next) = open.pop() {
            let (claims, ..) = self.shelf.claims(next.as_str(), self.now);
            for other in claims.iter().flat_map(|claim| &claim.after) {
                if other == name {
                    return true;
                }
                if seen.insert(other.clone()) {
                    open.push(other.clone());
                }
            }
        }
        false
    }

    /// From here on nobody can know how the runs of a workload ended, but for what is on record.
    pub fn excuse(&mut self, name: &Name) {
        if !self.disk.flushed(name).is_some_and(|record| record.finished) {
            self.truth.completed.remove(name);
        }
        for run in self.kernel.runs.iter_mut().filter(|run| run.name == *name) {
            run.excused = true;
        }
    }

    /// Nothing is known about a workload any more, what was on record included.
    pub fn excuse_all(&mut self, name: &Name) {
        self.excuse(name);
        self.truth.completed.remove(name);
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
        let Spec { name, kind, job, .. } = run.record.spec.as_ref();
        let counts = run.reported && run.own_end && !run.excused && *kind == Kind::Job && job.schedule.is_none();
        if counts && run.end == Some(Outcome::Exited { code: 0 }) {
            self.truth.completed.insert(name.clone(), (Arc::clone(&run.record.spec), run.born));
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
        let names: BTreeSet<Name> = self.kernel.runs.iter().map(|run| run.name.clone()).collect();
        let told = |name: &Name| Some(self.disk.flushed(name)?.last_exit?.instance);
        let known: BTreeMap<Name, Option<u64>> = names.into_iter().map(|name| (name.clone(), told(&name))).collect();
        for run in &mut self.kernel.runs {
            let told = known[&run.name].is_some_and(|number| number >= run.number);
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
            let names: BTreeSet<Name> = self.kernel.runs.iter().map(|run| run.name.clone()).collect();
            for name in names {
                self.excuse_all(&name);
            }
        }
    }

    pub fn runs_of<'a>(&'a self, name: &'a Name) -> impl DoubleEndedIterator<Item = &'a Run> {
        self.kernel.runs.iter().filter(move |run| run.name == *name)
    }
}
