//! Driving the loop on a tokio runtime: channels, timers, and blocking work on threads.

use super::journal::Journal;
use super::places::{Bounds, Pace, Places};
use super::prober::{Board, Prober};
use super::{Command, Controller, Done, Input, Snapshot, Task};
use crate::host::chain;
use crate::host::hotplug::Hotplug;
use crate::host::mounts::Mounts;
use crate::model::name::Name;
use crate::model::observed::{Instance, Life, Observed};
use crate::plan::Shutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as cell};
use tokio::task;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

/// Steps and looks at the same time. They mostly wait for the kernel; more than a few per CPU only queue there. One that takes longer than a
/// few milliseconds waits for a disk, a file system or a device that may never answer, and moves away from among the others.
pub const WORKERS_MAX: usize = 8;
/// What hangs is of one workload each, and told ([`super::overdue`]); forty threads are what a host with everything on a dead disk costs.
const WORKERS: Bounds = Bounds { prompt: WORKERS_MAX, hung: 32, patience: Duration::from_secs(2) };
/// Results that may wait for the loop; workers wait beyond that.
const RESULTS_MAX: usize = 256;
/// API commands that may wait for the loop.
const COMMANDS_MAX: usize = 64;
/// How often a controller that is ending looks whether that is all: what there is to do wakes it by itself.
const DOWN_AGAIN: Duration = Duration::from_secs(1);
/// How long a shutdown waits for steps that are under way.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// The handles others hold on the loop.
#[derive(Clone, Debug)]
pub struct Handle {
    pub journal: Arc<Journal>,
    pub commands: mpsc::Sender<Command>,
    pub snapshots: cell::Receiver<Arc<Snapshot>>,
    pub board: Arc<Board>,
}

impl Handle {
    /// A handle on a loop that has ended: nothing is known and nobody takes commands.
    pub fn closed() -> Handle {
        let (commands, _) = mpsc::channel(1);
        let (_, snapshots) = cell::channel(Arc::new(Snapshot::default()));
        Handle { journal: Arc::new(Journal::new(Vec::new())), commands, snapshots, board: Arc::default() }
    }
}

/// The threads that tasks are done on, a bounded number at a time, and the way their results come back.
pub struct Threads {
    workers: Places,
    results: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
}

impl Default for Threads {
    fn default() -> Threads {
        let (results, done) = mpsc::channel(RESULTS_MAX);
        Threads { workers: Places::new(WORKERS), results, done }
    }
}

impl Threads {
    /// What takes tasks, to be called on the runtime. Each comes back, even if only as a panic: what is under way must not be so for ever.
    pub fn spawner(&self) -> impl Fn(Task) + Send + 'static {
        let (workers, results) = (self.workers.clone(), self.results.clone());
        move |task| {
            let (workers, results, job) = (workers.clone(), results.clone(), task.job.clone());
            task::spawn(async move {
                let place = workers.place(Pace::Prompt).await;
                let (_, done) = workers.run(place, || task.run()).await;
                let done = done.unwrap_or(Done::Panicked(job));
                // The loop may have ended.
                let _ = results.send(done).await;
            });
        }
    }
}

impl Controller {
    /// The handle for others, and what they will ask through it.
    pub fn handle(&self) -> (mpsc::Receiver<Command>, Handle) {
        let (commands, asked) = mpsc::channel(COMMANDS_MAX);
        let (journal, board) = (Arc::clone(&self.journal), Arc::clone(&self.board));
        (asked, Handle { journal, commands, snapshots: self.snapshots(), board })
    }

    /// Runs until told to end, then lets what is under way finish. Workloads go on, unless the options say that they are stopped first;
    /// answers whether all of them were.
    pub async fn run(
        mut self,
        mut threads: Threads,
        mut commands: mpsc::Receiver<Command>,
        mut ends: mpsc::Receiver<()>,
    ) -> bool {
        let mut all_down = false;
        let (folder_woken, changes) = (Arc::clone(&self.folder_woken), Arc::clone(&self.changes));
        let (mounts, hotplug) = (Mounts::watch(), Hotplug::watch());
        let board = Arc::clone(&self.board);
        let prober = Prober::new(Arc::clone(&self.host), Arc::clone(&board), self.options.entropy);
        let prober = task::spawn(prober.run(self.probed.subscribe()));
        let mut resync = interval_at(Instant::now() + self.options.resync, self.options.resync);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut deadline = self.turn();
            if self.state.shutdown.is_some() {
                if let Some(all) = self.is_down() {
                    all_down = all;
                    break;
                }
                // Looked at again in time to give up.
                deadline = deadline.min(self.host.instant() + DOWN_AGAIN);
            }
            // Each arm is safe to cancel: a permit of a Notify, a message of a channel and a tick stay where they are when another arm
            // wins, and the sleep is made anew from the next pass.
            let input = tokio::select! {
                Some(()) = ends.recv() => {
                    if !self.take_down() {
                        break;
                    }
                    continue;
                }
                () = folder_woken.notified() => Input::Folder,
                () = mounts.changed() => Input::Folder,
                () = hotplug.changed() => Input::Machine,
                () = changes.bell.notified() => Input::Workloads,
                () = board.bell.notified() => Input::Probes,
                Some(done) = threads.done.recv() => Input::Done(Box::new(done)),
                Some(command) = commands.recv() => Input::Command(command),
                _ = resync.tick() => Input::Resync,
                () = sleep_until(deadline.into()) => Input::Deadline,
            };
            self.take(input);
            // Whatever else is ready goes into the same pass: a hundred files copied at once are planned together.
            while let Ok(done) = threads.done.try_recv() {
                self.take(Input::Done(Box::new(done)));
            }
        }
        prober.abort();
        threads.done.close();
        if tokio::time::timeout(SHUTDOWN_MAX, threads.workers.rest()).await.is_err() {
            tracing::warn!("steps are still under way; the next controller finds them as they are");
        }
        if let Err(error) = self.store.flush() {
            tracing::error!(error = %chain(&error), "cannot flush the database");
        }
        all_down
    }

    /// Begins to stop the workloads, or stops waiting for them; answers whether there is anything to wait for.
    fn take_down(&mut self) -> bool {
        if !self.options.stop_workloads {
            return false;
        }
        let how = match self.state.shutdown {
            None => Shutdown::Graceful,
            Some(_) => Shutdown::AtOnce,
        };
        tracing::info!(how = ?how, "stopping the workloads");
        self.state.shutdown = Some(how);
        if how == Shutdown::AtOnce {
            self.state.try_the_blind_again();
        }
        self.ending_since = self.host.steady();
        true
    }

    /// Whether it is over, and if so whether every workload is down and cleared away. One that cannot be looked at, or that not even a kill
    /// has ended, is waited for [`SHUTDOWN_MAX`]; groups that cannot be removed within as long again are left to the next controller.
    fn is_down(&mut self) -> Option<bool> {
        let time = self.host.time();
        let clock = time.of_boot(&self.state.machine.boot_id);
        let killed = |name: &Name| {
            let stopping = self.state.records.get(name).and_then(|record| record.stopping.as_ref());
            stopping.and_then(|stopping| stopping.killed.as_ref().map(|_| &stopping.since))
        };
        let blind = self.state.blind();
        let gone = |(name, seen): (&Name, &Observed)| match &seen.instance {
            _ if blind.contains(name) => true,
            Some(Instance { life: Life::Starting | Life::Running { .. }, .. }) => {
                killed(name).is_some_and(|since| clock.since(since) > SHUTDOWN_MAX)
            }
            _ => true,
        };
        let may_be_seen = !blind.is_empty() && time.steady.since(self.ending_since) <= SHUTDOWN_MAX;
        if may_be_seen || !self.state.observed.iter().all(gone) {
            // One that was being started may appear late, and is owed as long as the others.
            self.down_since = None;
            return None;
        }
        let is_left = |(_, seen): &(&Name, &Observed)| seen.group.is_some();
        let left: Vec<&Name> = self.state.observed.iter().filter(is_left).map(|(name, _)| name).collect();
        let since = *self.down_since.get_or_insert(time.steady);
        let (busy, fenced) = (&self.state.in_flight, self.is_fenced());
        let is_done = left.is_empty() && busy.is_empty() && blind.is_empty() && fenced;
        if !is_done && time.steady.since(since) > SHUTDOWN_MAX {
            tracing::warn!(
                ?left,
                ?busy,
                ?blind,
                fenced,
                "cgroups, steps, workloads that cannot be looked at or the host's own CPUs are left as they are; the next controller finds them"
            );
            return Some(false);
        }
        is_done.then_some(true)
    }
}
