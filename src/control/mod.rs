//! The loop: watch, load, observe, plan, act, record.
//!
//! One task decides; blocking work happens on a bounded number of threads, one step per workload at a time, and comes back as messages.
//!
//! Inputs of the loop: the watcher (look at the folder), the host (look at a workload), results of steps, looks and scans, commands of the
//! API, a timer (the plan's next deadline), the resync (look at everything), signals. Output: steps, and a [`Snapshot`] after each pass.
//!
//! Guarantees: every input only leads to another pass over the state; a slow step delays nobody but its own workload; an idle pass
//! writes nothing; everything that waits is bounded.

pub mod act;
pub mod folder;
mod news;
mod outcome;
pub mod report;
pub mod state;
pub mod trust;
pub mod watch;

use crate::host::{CpuTimes, Host, HostError, chain};
use crate::manifest::Parsed;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::observed::{Life, Observed};
use crate::model::time::Timestamp;
use crate::plan::{Act, Plan, Work};
use crate::store::Store;
use act::{ActError, act};
use folder::{Folder, FolderError, Scan};
use report::{Preview, Snapshot};
use state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch as cell};
use tokio::task;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use watch::Watch;

/// Steps and looks at the same time. They mostly wait for the kernel; more than a few per CPU only queue there.
const WORKERS_MAX: usize = 8;
/// Results that may wait for the loop; workers wait beyond that.
const RESULTS_MAX: usize = 256;
/// API commands that may wait for the loop.
const COMMANDS_MAX: usize = 64;
/// How soon to look again at a run that is being set up. Its report wakes us long before; this is for one an earlier controller began.
const STARTING_AGAIN: Duration = Duration::from_millis(250);
/// How long a shutdown waits for steps that are under way.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);
/// The longest sleep; a timer further out is set again.
const SLEEP_MAX: Duration = Duration::from_hours(1);

/// What the loop is told to do with its time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often everything is looked at, whatever the events say.
    pub resync: Duration,
    /// Jobs wait while the host's CPUs are busier than this.
    pub job_threshold_percent: u8,
    pub entropy: u64,
}

/// What others may ask of the loop.
#[derive(Debug)]
pub enum Command {
    /// Look at the folder now; answered after the pass that follows.
    Look { done: oneshot::Sender<()> },
    /// What a pass would do, for the folder as it is or for these files.
    Plan { files: Option<BTreeMap<String, Arc<Parsed>>>, reply: oneshot::Sender<Preview> },
}

/// The handles others hold on the loop.
#[derive(Clone, Debug)]
pub struct Handle {
    pub commands: mpsc::Sender<Command>,
    pub snapshots: cell::Receiver<Arc<Snapshot>>,
}

/// Workloads the host says to look at, and the bell that says so.
#[derive(Debug, Default)]
pub struct Changes {
    names: Mutex<BTreeSet<Name>>,
    bell: Notify,
}

impl Changes {
    pub fn push(&self, name: &Name) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        self.bell.notify_one();
    }

    fn take(&self) -> BTreeSet<Name> {
        std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What comes back from the threads.
enum Done {
    Acted {
        work: Box<Work>,
        result: Result<(), ActError>,
        seen: Result<Observed, HostError>,
    },
    Seen {
        name: Name,
        seen: Result<Observed, HostError>,
    },
    Scanned {
        folder: Box<Folder>,
        result: Result<Scan, FolderError>,
    },
    Swept {
        sightings: Vec<(Name, u64, Result<Observed, HostError>)>,
        machine: Result<Machine, HostError>,
        times: Result<CpuTimes, HostError>,
    },
    /// A bug of ours: the job ended in a panic, whose message is on standard error.
    Panicked(Job),
}

/// What a thread was given to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    Workload(Name),
    Scan,
    Sweep,
}

/// The controller.
pub struct Controller {
    host: Arc<dyn Host>,
    store: Arc<Store>,
    options: Options,
    state: State,
    changes: Arc<Changes>,
    /// The folder, while nobody scans it.
    folder: Option<Box<Folder>>,
    /// The same folder, nothing read yet, in case a scan panics.
    folder_anew: Option<Box<Folder>>,
    watch: Option<Watch>,
    folder_woken: Arc<Notify>,
    workers: Arc<Semaphore>,
    results: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
    commands: mpsc::Receiver<Command>,
    snapshot: cell::Sender<Arc<Snapshot>>,
    scan_at: Option<Instant>,
    sweeping: bool,
    /// Asked to look at the folder; `waiting` by the scan that is to come, `scanned` by one that is under way.
    waiting: Vec<oneshot::Sender<()>>,
    scanned: Vec<oneshot::Sender<()>>,
    answerable: Vec<oneshot::Sender<()>>,
    /// Workloads to look at as soon as the step or look under way is over.
    look_again: BTreeSet<Name>,
}

impl Controller {
    /// Sets everything up. Looks at every workload there is a trace of before anything is decided.
    pub fn new(
        host: Arc<dyn Host>,
        store: Store,
        records: BTreeMap<Name, crate::model::record::Record>,
        folder: Folder,
        changes: Arc<Changes>,
        options: Options,
    ) -> Result<(Controller, Handle), HostError> {
        let machine = host.survey()?;
        let mut state = State::new(machine, records, options.job_threshold_percent, options.entropy);
        for name in host.names()? {
            match host.observe(&name) {
                Ok(seen) => state.see_if_untouched(&name, 0, seen),
                // The others are none the worse for it; it is looked at again with the next resync.
                Err(error) => {
                    tracing::error!(workload = %name, error = %chain(&error), "cannot look at it; it is left alone until that works");
                    state.blind(&name);
                }
            }
        }
        state.gather();
        if let Ok(times) = host.cpu_times() {
            state.measure(times);
        }
        let (results, done) = mpsc::channel(RESULTS_MAX);
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let (snapshot, snapshots) = cell::channel(Arc::new(Snapshot::default()));
        let controller = Controller {
            host,
            store: Arc::new(store),
            options,
            state,
            changes,
            folder: Some(Box::new(folder)),
            folder_anew: None,
            watch: None,
            folder_woken: Arc::new(Notify::new()),
            workers: Arc::new(Semaphore::new(WORKERS_MAX)),
            results,
            done,
            commands,
            snapshot,
            scan_at: Some(Instant::now()),
            sweeping: false,
            waiting: Vec::new(),
            scanned: Vec::new(),
            answerable: Vec::new(),
            look_again: BTreeSet::new(),
        };
        Ok((controller, Handle { commands: commands_in, snapshots }))
    }

    /// Watches a folder from now on. Without a watch the resync still looks at it.
    pub fn watch(&mut self, folder: &std::path::Path) {
        let woken = Arc::clone(&self.folder_woken);
        match Watch::new(folder, move || woken.notify_one()) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => self.cannot_watch(folder, &error),
        }
    }

    fn cannot_watch(&self, path: &std::path::Path, error: &notify::Error) {
        let resync = self.options.resync.as_secs();
        tracing::error!(path = %path.display(), error = %error, every_seconds = resync,
            "cannot watch for changes, looking now and then instead; help: raise fs.inotify.max_user_instances or max_user_watches");
    }

    /// Runs until `shutdown` completes, then lets what is under way finish. Workloads go on.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut resync = interval_at(Instant::now() + self.options.resync, self.options.resync);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.scan_if_due();
            let deadline = self.pass();
            // Each arm is safe to cancel: a permit of a Notify, a message of a channel and a tick stay where they are when another arm
            // wins, and the sleep is made anew from the next pass.
            tokio::select! {
                () = &mut shutdown => break,
                () = self.folder_woken.notified() => self.scan_at = Some(Instant::now()),
                () = self.changes.bell.notified() => {
                    for name in self.changes.take() {
                        self.look(&name);
                    }
                }
                Some(done) = self.done.recv() => self.finish(done),
                Some(command) = self.commands.recv() => self.obey(command),
                _ = resync.tick() => {
                    self.scan_at = Some(Instant::now());
                    self.sweep();
                }
                () = sleep_until(deadline) => self.look_at_starting(),
            }
            // Whatever else is ready goes into the same pass: a hundred files copied at once are planned together.
            while let Ok(done) = self.done.try_recv() {
                self.finish(done);
            }
        }
        self.finish_up().await;
    }

    async fn finish_up(&mut self) {
        let all = u32::try_from(WORKERS_MAX).unwrap_or(u32::MAX);
        let workers = Arc::clone(&self.workers);
        self.done.close();
        if tokio::time::timeout(SHUTDOWN_MAX, workers.acquire_many(all)).await.is_err() {
            tracing::warn!("steps are still under way; the next controller finds them as they are");
        }
        if let Err(error) = self.store.flush() {
            tracing::error!(error = %chain(&error), "cannot flush the database");
        }
    }

    /// One pass: plans, begins the work, tells how things stand. Answers when to look again.
    fn pass(&mut self) -> Instant {
        let now = self.host.now();
        if self.state.has_waiting_job()
            && let Ok(times) = self.host.cpu_times()
        {
            self.state.measure(times);
        }
        let mut plan = self.state.plan(None, now);
        let deadline = self.deadline(&plan, now);
        // Begun before it is told, so that what is told is what is remembered by now.
        for work in plan.work.drain(..) {
            self.begin(Box::new(work));
        }
        self.publish(&plan, now);
        for done in self.answerable.drain(..) {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
        deadline
    }

    fn deadline(&self, plan: &Plan, now: Timestamp) -> Instant {
        let planned = plan.wake_at.map(|at| at.since(now));
        let starting = self.state.observed.values().any(is_starting).then_some(STARTING_AGAIN);
        let wait = planned.into_iter().chain(starting).min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        let scan = self.scan_at.filter(|_| self.folder.is_some());
        // A millisecond more: a deadline that is rounded down would find nothing to do yet.
        let plan_at = Instant::now() + wait + Duration::from_millis(1);
        scan.map_or(plan_at, |scan| scan.min(plan_at))
    }

    fn publish(&mut self, plan: &Plan, now: Timestamp) {
        let before = Arc::clone(&self.snapshot.borrow());
        let host = Arc::clone(&self.host);
        let snapshot = self.state.snapshot(plan, &before, now, |name| host.cgroup_path(name));
        if snapshot != *before {
            news::tell(&before, &snapshot);
            self.snapshot.send_replace(Arc::new(snapshot));
        }
    }

    /// Begins a step on a thread. What it remembers is in force from now on, so that the next pass builds on it.
    fn begin(&mut self, work: Box<Work>) {
        let name = work.name.clone();
        match &work.act {
            Act::Remember => tracing::debug!(workload = %name, reason = work.reason, "remembering"),
            act => tracing::info!(workload = %name, step = step_name(act), reason = work.reason, "step"),
        }
        if let Some(record) = &work.record {
            self.state.records.insert(name.clone(), record.clone());
        }
        let seen = self.state.observed.get(&name).cloned().unwrap_or_default();
        self.state.begin(&name);
        let (host, store) = (Arc::clone(&self.host), Arc::clone(&self.store));
        self.on_thread(Job::Workload(name), move || {
            let result = act(host.as_ref(), &store, &work, &seen);
            Done::Acted { seen: host.observe(&work.name), work, result }
        });
    }

    /// Looks at a workload on a thread, now or when the step under way is over.
    fn look(&mut self, name: &Name) {
        if self.state.in_flight.contains(name) {
            self.look_again.insert(name.clone());
            return;
        }
        self.state.begin(name);
        let (host, name) = (Arc::clone(&self.host), name.clone());
        self.on_thread(Job::Workload(name.clone()), move || Done::Seen { seen: host.observe(&name), name });
    }

    fn look_at_starting(&mut self) {
        let starting = self.state.observed.iter().filter(|(_, seen)| is_starting(seen)).map(|(name, _)| name.clone());
        for name in starting.collect::<Vec<_>>() {
            self.look(&name);
        }
    }

    /// Looks at everything on a thread, one after the other, without holding anybody up.
    fn sweep(&mut self) {
        if std::mem::replace(&mut self.sweeping, true) {
            return;
        }
        let mut names: BTreeSet<Name> = self.state.records.keys().chain(self.state.observed.keys()).cloned().collect();
        let host = Arc::clone(&self.host);
        let known: BTreeMap<Name, u64> = names.iter().map(|name| (name.clone(), self.state.epoch(name))).collect();
        self.on_thread(Job::Sweep, move || {
            names.extend(host.names().unwrap_or_default());
            let look = |name: Name| (name.clone(), known.get(&name).copied().unwrap_or(0), host.observe(&name));
            let sightings = names.into_iter().map(look).collect();
            Done::Swept { sightings, machine: host.survey(), times: host.cpu_times() }
        });
    }

    /// Begins a scan of the folder if it is time and none is under way.
    fn scan_if_due(&mut self) {
        if self.scan_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let Some(mut folder) = self.folder.take() else { return };
        let anew = folder.anew();
        self.scan_at = None;
        self.scanned.append(&mut self.waiting);
        self.folder_anew = Some(Box::new(anew));
        self.on_thread(Job::Scan, move || {
            let result = folder.scan();
            Done::Scanned { folder, result }
        });
    }

    /// Does a job on a thread. It always comes back, even if only as a panic: what is under way must not be so for ever.
    fn on_thread(&self, what: Job, job: impl FnOnce() -> Done + Send + 'static) {
        let (workers, results) = (Arc::clone(&self.workers), self.results.clone());
        task::spawn(async move {
            // The semaphore is never closed.
            let Ok(_permit) = workers.acquire().await else { return };
            let done = task::spawn_blocking(job).await.unwrap_or(Done::Panicked(what));
            // The loop may have ended.
            let _ = results.send(done).await;
        });
    }
}

fn is_starting(seen: &Observed) -> bool {
    seen.instance.as_ref().is_some_and(|instance| instance.life == Life::Starting)
}

fn step_name(act: &Act) -> &'static str {
    match act {
        Act::Remember => "remember",
        Act::Start { .. } => "start",
        Act::Resize { .. } => "resize",
        Act::Stop { .. } => "stop",
        Act::Kill => "kill",
        Act::Clear => "clear",
        Act::Forget => "forget",
    }
}
