//! The loop: watch, load, observe, plan, act, record.
//!
//! [`Controller`] is the loop without its clock, threads and channels: it takes an [`Input`], gives [`Task`]s to whoever carries them out,
//! and says when to come back. [`Controller::run`] drives it on a tokio runtime, with blocking work on a bounded number of threads;
//! `tests/simulation` drives the same code on a simulated host, in an order drawn from a seed.
//!
//! Inputs of the loop: the watcher (look at the folder), the host (look at a workload), results of steps, looks and scans, commands of the
//! API, the prober (someone stands otherwise), a timer (the plan's next deadline), the resync (look at everything). Output: tasks, and a [`Snapshot`] after each pass.
//!
//! Guarantees: every input only leads to another pass over the state; a slow step delays nobody but its own workload; an idle pass
//! writes nothing; everything that waits is bounded: at most one task a workload, one scan, sweep, measurement, consent and save.

pub mod act;
pub mod balance;
mod changes;
mod consent;
mod deadline;
mod drift;
pub mod explain;
pub mod fence;
pub mod folder;
mod gpus;
pub mod journal;
mod lookers;
pub mod lost;
mod news;
mod outcome;
mod overdue;
pub mod places;
pub mod prober;
mod rebuilt;
pub mod rehearsal;
pub mod report;
mod run;
mod since;
mod source;
pub mod state;
mod sweep;
pub mod trust;
mod unsaved;
pub mod watch;

use crate::host::fence::FenceError;
use crate::host::{Host, HostError, chain};
use crate::manifest::Parsed;
use crate::model::clock::Steady;
use crate::model::cpuset::CpuSet;
use crate::model::event::News;
use crate::model::fence::Fence;
use crate::model::label::HostLabels;
use crate::model::name::Name;

use crate::model::record::Record;
use crate::plan::strain::Strains;
use crate::plan::{Act, Shutdown, Work};
use crate::store::{Found, Store};
use act::{Acted, Known, act, step_name};
use balance::{Balance, Metered};
use consent::{Consent, Remembering};
use folder::{FolderError, Scan};
use journal::Journal;
use lookers::Lookers;
use news::Told;
use prober::{Board, Wanted};
use rebuilt::Rebuilt;
use report::{Preview, Snapshot};
use state::State;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sweep::{Look, Swept};
use tokio::sync::{Notify, oneshot, watch as cell};

pub use changes::Changes;
pub use consent::Consented;
pub use run::{Handle, Threads, WORKERS_MAX};
pub use source::{SILENT_AFTER, Source};
use source::{Watched, Watching};

/// What the loop is told to do with its time.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often everything is looked at, whatever the events say.
    pub resync: Duration,
    /// Whether workloads are stopped when the controller is told to end.
    pub stop_workloads: bool,
    /// Jobs wait while the host's CPUs are busier than this.
    pub job_threshold_percent: u8,
    pub entropy: u64,
    /// Which manifests are for this host.
    pub labels: HostLabels,
    /// Whether deleting most of what runs waits for consent.
    pub prune_guard: bool,
    /// Whether the host's own processes are kept off exclusive CPUs.
    pub fence_system: bool,
    pub balance: balance::Options,
}

/// What others may ask of the loop.
#[derive(Debug)]
pub enum Command {
    /// Look at the folder now; answered after the pass that follows.
    Look { done: oneshot::Sender<()> },
    /// Something a step needs was made anew: what has happened, to be kept as an event.
    Mended { news: News },
    /// Consent to the deletions that wait for it; answers whose, once that is on the disk.
    Approve { reply: oneshot::Sender<Consented> },
    /// Where the rebalancer stands.
    Rebalance { reply: oneshot::Sender<balance::Report> },
    /// What a pass would do, for the folder as it is or for these files.
    Plan { files: Option<BTreeMap<String, Arc<Parsed>>>, reply: oneshot::Sender<Preview> },
}

/// Why the loop is to go round.
pub enum Input {
    /// Something has happened in the folder.
    Folder,
    /// Something has happened to the workloads in [`Changes`].
    Workloads,
    /// What a workload's probes say on the [`Board`] calls for something else than before.
    Probes,
    /// A task is over.
    Done(Box<Done>),
    Command(Command),
    /// CPUs or memory have come or gone.
    Machine,
    /// It is time to look at everything.
    Resync,
    /// The time that [`Controller::turn`] named has come.
    Deadline,
}

/// Work that may wait for the kernel or a disk, to be done away from the loop.
pub struct Task {
    pub job: Job,
    run: Box<dyn FnOnce() -> Done + Send>,
}

impl Task {
    /// Does it. What comes back is to be given to the loop, a panic as [`Done::Panicked`].
    pub fn run(self) -> Done {
        (self.run)()
    }
}

/// What comes back from the threads.
pub enum Done {
    Acted {
        work: Box<Work>,
        acted: Acted,
        look: Look,
    },
    Seen {
        name: Name,
        look: Look,
    },
    Scanned {
        folder: Box<dyn Source>,
        result: Result<Scan, FolderError>,
        watched: Option<Watched>,
    },
    Swept(Swept),
    Metered(Metered),
    /// The host was to be kept off these.
    Fenced(CpuSet, Result<Fence, FenceError>),
    Consented(Remembering),
    Saved,
    /// A bug of ours: the job ended in a panic, whose message is on standard error.
    Panicked(Job),
}

/// What a thread was given to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    Workload(Name),
    Scan,
    Sweep,
    Meter,
    Fence,
    Save,
    Consent,
}

/// What a controller works with.
pub struct Parts {
    pub host: Arc<dyn Host>,
    pub store: Store,
    pub source: Box<dyn Source>,
    pub changes: Arc<Changes>,
    /// Takes tasks. It never blocks.
    pub spawn: Box<dyn Fn(Task) + Send>,
}

/// The controller.
pub struct Controller {
    host: Arc<dyn Host>,
    store: Arc<Store>,
    spawn: Box<dyn Fn(Task) + Send>,
    options: Options,
    state: State,
    changes: Arc<Changes>,
    board: Arc<Board>,
    /// Whom to ask what their probes ask.
    probed: cell::Sender<Arc<Wanted>>,
    /// The folder, while nobody scans it.
    folder: Option<Box<dyn Source>>,
    /// The same folder, nothing read yet, in case a scan panics.
    folder_anew: Option<Box<dyn Source>>,
    watching: Watching,
    folder_woken: Arc<Notify>,
    snapshot: cell::Sender<Arc<Snapshot>>,
    journal: Arc<Journal>,
    told: Told,
    /// Events the database has not been given yet.
    unsaved: journal::Changes,
    /// Whether it is being given some.
    saving: bool,
    scan_at: Option<Instant>,
    /// Since when nothing runs any more, for a controller that takes its workloads along.
    down_since: Option<Steady>,
    /// When it was last told to take its workloads with it.
    ending_since: Steady,
    /// Consents that are not remembered yet, and whom the one is for that is on its way to the disk.
    consents: VecDeque<Consent>,
    consenting: BTreeSet<Name>,
    sweeping: bool,
    sweep_again: bool,
    balance: Balance,
    lookers: Lookers,
    /// Workloads to look at as soon as the step or look under way is over.
    look_again: BTreeSet<Name>,
}

impl Controller {
    /// Sets everything up. Looks at every workload there is a trace of before anything is decided.
    pub fn new(parts: Parts, found: Found, options: Options) -> Result<Controller, HostError> {
        let Parts { host, store, source, changes, spawn } = parts;
        let machine = host.survey()?;
        let mut state = State::new(machine.clone(), found.records, &options);
        state.take_machine(machine, host.time());
        (state.strains, state.since) = (Strains::since(host.now()), host.steady());
        for name in host.names()? {
            match host.observe(&name) {
                Ok(seen) => state.see_swept(&name, seen, BTreeSet::new()),
                // The others are none the worse for it; it is looked at again with the next resync.
                Err(error) => {
                    tracing::error!(workload = %name, error = %chain(&error), "cannot look at it; it is left alone until that works");
                    state.lose_sight_of(&name);
                }
            }
        }
        if !found.losses.is_empty() {
            state.rebuilt = Rebuilt::find(&state.records, &state.observed);
        }
        state.gather();
        let told = news::told(&state.records, &state.observed, &found.events);
        if let Ok(times) = host.cpu_times() {
            state.measure(times, sweep::spare_us(host.as_ref(), &state));
        }
        let scan_at = Some(host.instant());
        let (journal, mut unsaved) = (Journal::new(found.events), journal::Changes::default());
        unsaved.remove = found.unread;
        journal.note(rebuilt::news(&found.losses), host.now(), &mut unsaved);
        let balance = Balance::new(options.balance.clone(), host.meter());
        Ok(Controller {
            host,
            store: Arc::new(store),
            spawn,
            options,
            state,
            changes,
            board: Arc::default(),
            probed: cell::Sender::default(),
            folder: Some(source),
            folder_anew: None,
            watching: Watching::default(),
            folder_woken: Arc::new(Notify::new()),
            snapshot: cell::Sender::new(Arc::new(Snapshot::unread())),
            journal: Arc::new(journal),
            told,
            unsaved,
            saving: false,
            scan_at,
            down_since: None,
            ending_since: Steady::default(),
            consents: VecDeque::new(),
            consenting: BTreeSet::new(),
            sweeping: false,
            sweep_again: false,
            balance,
            lookers: Lookers::default(),
            look_again: BTreeSet::new(),
        })
    }

    /// How things stand, after each pass.
    pub fn snapshots(&self) -> cell::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// Takes in what has happened.
    pub fn take(&mut self, input: Input) {
        match input {
            Input::Folder => self.scan_at = Some(self.host.instant()),
            Input::Workloads => {
                for name in self.changes.take() {
                    self.look(&name);
                }
            }
            // The next pass reads the board.
            Input::Probes => {}
            Input::Done(done) => self.finish(*done),
            Input::Command(command) => self.obey(command),
            Input::Machine => {
                self.host.expect_change();
                self.sweep_anew();
                self.state.fencing.look_again();
            }
            Input::Resync => {
                self.watch_again();
                self.state.fencing.look_again();
                self.scan_at = Some(self.host.instant());
                self.sweep();
            }
            Input::Deadline => self.look_at_starting(),
        }
    }

    /// Goes round once: begins what is to be done now, and answers when to come back if nothing happens before.
    pub fn turn(&mut self) -> Instant {
        self.scan_if_due();
        let told_at = self.notice_silence();
        self.measure_if_due();
        let deadline = self.pass();
        self.fence_if_due();
        // Asked again: the pass may have begun what is to be measured soon.
        told_at.into_iter().chain(self.measure_at(self.host.instant())).fold(deadline, Instant::min)
    }

    /// One pass: plans, begins the work, tells how things stand. Answers when to look again.
    fn pass(&mut self) -> Instant {
        let now = self.host.time();
        // One that is to be killed is looked at after that.
        if self.state.shutdown != Some(Shutdown::AtOnce) {
            for name in self.state.blind_and_due(now.steady) {
                self.look(&name);
            }
        }
        if self.state.has_waiting_job()
            && let Ok(times) = self.host.cpu_times()
        {
            let spare_us = sweep::spare_us(self.host.as_ref(), &self.state);
            self.state.measure(times, spare_us);
        }
        self.state.standings = self.board.standings();
        let trouble = self.store.trouble();
        if trouble.is_none() && self.state.trouble.is_some() {
            // What the disk refused it may take now, and without waiting.
            self.state.setbacks.clear();
        }
        self.state.trouble = trouble;
        let consent_at = self.consent();
        let mut plan = self.state.plan(None, now);
        if !self.state.has_looked() {
            // A moment later the folder is read, or known not to be readable: what it no longer has need not run until then.
            plan.work.retain(|work| !matches!(work.act, Act::Start { .. }));
        }
        self.state.add_unsaved(&mut plan, now);
        plan.work.retain(|work| !self.is_being_approved(&work.name));
        self.state.under_way.tell(&mut plan, now);
        self.state.add_rebuilt(&mut plan);
        let deadline = self.deadline(&plan, now.wall);
        let deadline = consent_at.map_or(deadline, |at| at.min(deadline));
        tracing::debug!(steps = plan.work.len(), "pass");
        // Begun before it is told, so that what is told is what is remembered by now.
        for work in plan.work.drain(..) {
            self.begin(Box::new(work));
        }
        prober::tell(&self.probed, &self.state);
        if let Some(trouble) = &self.state.trouble {
            report::unsaved(&mut plan, &self.store.unsaved(), trouble);
        }
        self.state.log_folders.tell(&mut plan, &self.state.observed, |name| self.host.log_folder(name));
        self.publish(&plan, now);
        self.save_events();
        self.lookers.answer();
        deadline
    }

    /// Begins a step on a thread. What it remembers is in force from now on, so that the next pass builds on it.
    fn begin(&mut self, mut work: Box<Work>) {
        let name = work.name.clone();
        match &work.act {
            Act::Remember => tracing::debug!(workload = %name, reason = work.reason, "remembering"),
            act => tracing::info!(workload = %name, step = step_name(act), reason = work.reason, "step"),
        }
        if let Some(record) = &work.record {
            self.state.records.insert(name.clone(), record.clone());
        }
        let known = Known {
            seen: self.state.observed.get(&name).cloned().unwrap_or_default(),
            over: self.state.records.get(&name).is_some_and(Record::is_over),
        };
        let began = self.state.begin(&name, step_name(&work.act));
        let may_wait = self.state.unsaved.may_wait(&name);
        let (host, store) = (Arc::clone(&self.host), Arc::clone(&self.store));
        self.on_thread(Job::Workload(name), move || {
            began.get_or_init(|| host.time());
            let acted = act(host.as_ref(), &store, &mut work, &known, may_wait);
            Done::Acted { look: Look::at(host.as_ref(), &work.name), work, acted }
        });
    }

    /// Has a job done away from the loop.
    fn on_thread(&self, job: Job, run: impl FnOnce() -> Done + Send + 'static) {
        (self.spawn)(Task { job, run: Box::new(run) });
    }
}
