//! Asking workloads what their probes ask, for as long as they run.
//!
//! Owns when a try begins and where its answer goes; `plan::probe` decides what is due and what answers come to, `host` asks. The loop says
//! whom to ask ([`Probed`]) and is told when what they say calls for something else than before ([`Board`]): an answer that changes
//! nothing wakes nobody and is written nowhere but here.
//!
//! Guarantees: one try of a probe at a time; at most so many in all as [`TRIES`] says; probes that hang wait for each other, not others
//! for them; a run that is being ended is not asked any more.

use super::Controller;
use super::places::{Bounds, Pace, Places};
use super::state::State;
use crate::host::{Ask, Host};
use crate::model::clock::Steady;
use crate::model::isolation::Network;
use crate::model::name::Name;
use crate::model::observed::Life;
use crate::model::probe::{Answer, Probe, ProbeKind, ProbeStatus, Probes, Standing};
use crate::plan::environment;
use crate::plan::probe::{Run, Tally};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch as cell};
use tokio::task::{self, JoinHandle};
use tokio::time::{Instant, sleep_until};

/// Tries at the same time, each on a thread. One takes less than a millisecond, or milliseconds where a command is run, so 16 are thousands a
/// second; one that hangs takes its timeout. At the usual second every ten, 32 are enough for 320 workloads that all hang. Those that wait
/// are late, not lost. A try beyond a tenth of a second may be a slow answer as well; it only changes among whom it waits the next time.
pub const TRIES: Bounds = Bounds { prompt: 16, hung: 32, patience: Duration::from_millis(100) };
/// The age of a run whose start nobody knows: longer than any probe waits for it.
const AGE_UNKNOWN: Duration = Duration::from_hours(24 * 365);

/// A run to ask.
#[derive(Debug, PartialEq, Eq)]
pub struct Probed {
    pub instance: u64,
    pid: u32,
    /// When its command began.
    born: Option<Steady>,
    network: Network,
    env: BTreeMap<String, String>,
    pub probes: Arc<Probes>,
}

impl Probed {
    pub fn is_same_run(&self, other: &Probed) -> bool {
        (self.instance, self.pid) == (other.instance, other.pid)
    }

    /// How long its command has been running.
    pub fn age(&self, now: Steady) -> Duration {
        self.born.map_or(AGE_UNKNOWN, |born| now.since(born))
    }

    /// Its answers, none given yet. Whatever began before `asker` did was begun by another controller.
    pub fn tally(&self, name: &Name, now: Steady, asker: Steady, entropy: u64) -> Tally {
        let adopted = self.born.is_none_or(|born| born < asker);
        let run = Run { instance: self.instance, pid: self.pid, age: self.age(now), adopted };
        Tally::new(name, run, &self.probes, entropy)
    }
}

/// Everyone to ask.
pub type Wanted = BTreeMap<Name, Arc<Probed>>;

impl Controller {
    /// Whom to ask as of the last pass, and where what they say is put up.
    pub fn probed(&self) -> (Arc<Wanted>, Arc<Board>) {
        (Arc::clone(&self.probed.borrow()), Arc::clone(&self.board))
    }
}

/// Says whom to ask from now on, if that has changed.
pub(super) fn tell(probed: &cell::Sender<Arc<Wanted>>, state: &State) {
    probed.send_if_modified(|told| {
        let now = wanted(state, told);
        let changed = now != **told;
        *told = Arc::new(now);
        changed
    });
}

/// Whom to ask as things stand: what runs, has probes and is not being ended. Entries that have not changed are those of `before`.
fn wanted(state: &State, before: &Wanted) -> Wanted {
    let mut wanted = Wanted::new();
    for (name, seen) in &state.observed {
        let (Some(instance), Some(record)) = (&seen.instance, state.records.get(name)) else { continue };
        let (Life::Running { pid }, None, false) = (&instance.life, &record.stopping, record.spec.probes.is_empty())
        else {
            continue;
        };
        let known = before.get(name).filter(|known| {
            (known.instance, known.pid) == (instance.number, *pid) && *known.probes == record.spec.probes
        });
        let probed = known.cloned().unwrap_or_else(|| {
            let started_as = instance.record.as_ref().unwrap_or(record);
            Arc::new(Probed {
                instance: instance.number,
                pid: *pid,
                born: instance.began,
                network: started_as.spec.process.network,
                env: environment(started_as),
                probes: Arc::new(record.spec.probes.clone()),
            })
        });
        wanted.insert(name.clone(), probed);
    }
    wanted
}

/// What the runs that are asked have said so far, and the bell that rings when that calls for something else.
#[derive(Debug, Default)]
pub struct Board {
    entries: Mutex<BTreeMap<Name, (Standing, Vec<ProbeStatus>)>>,
    pub(super) bell: Notify,
}

impl Board {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Name, (Standing, Vec<ProbeStatus>)>> {
        // A panic while the lock was held is a bug elsewhere; the map is whole between any two statements.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where everyone stands.
    pub fn standings(&self) -> BTreeMap<Name, Standing> {
        self.entries().iter().map(|(name, (standing, _))| (name.clone(), standing.clone())).collect()
    }

    /// The last tries of a workload's probes, for people.
    pub fn report(&self, name: &Name) -> Vec<ProbeStatus> {
        self.entries().get(name).map(|(_, statuses)| statuses.clone()).unwrap_or_default()
    }

    /// Puts up where a run stands. Answers whether that calls for something else than before; then the bell rings.
    pub fn post(&self, name: &Name, standing: &Standing, statuses: Vec<ProbeStatus>) -> bool {
        let before = self.entries().insert(name.clone(), (standing.clone(), statuses));
        let changed = before.is_none_or(|(before, _)| !before.agrees_with(standing));
        if changed {
            self.bell.notify_one();
        }
        changed
    }

    pub fn remove(&self, name: &Name) {
        self.entries().remove(name);
    }
}

/// What asking needs.
#[derive(Clone)]
pub struct Prober {
    pub host: Arc<dyn Host>,
    pub board: Arc<Board>,
    /// Drawn once for each controller, for jitter.
    pub entropy: u64,
    tries: Places,
    /// Whatever began before this was begun by another controller.
    began: Steady,
}

/// Somebody being asked.
struct Watch {
    probed: cell::Sender<Arc<Probed>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    pub fn new(host: Arc<dyn Host>, board: Arc<Board>, entropy: u64) -> Prober {
        let began = host.steady();
        Prober { host, board, entropy, tries: Places::new(TRIES), began }
    }

    /// Asks those that are wanted, until nobody says any more who that is.
    pub async fn run(self, mut wanted: cell::Receiver<Arc<Wanted>>) {
        let mut watches: BTreeMap<Name, Watch> = BTreeMap::new();
        loop {
            let everyone = Arc::clone(&wanted.borrow_and_update());
            watches.retain(|name, watch| {
                let goes_on = everyone.get(name).is_some_and(|probed| probed.is_same_run(&watch.probed.borrow()));
                if !goes_on {
                    self.board.remove(name);
                }
                goes_on
            });
            for (name, probed) in everyone.iter() {
                let new = || self.watch(name, probed);
                let watch = watches.entry(name.clone()).or_insert_with(new);
                watch.probed.send_if_modified(|known| {
                    let changed = !Arc::ptr_eq(known, probed);
                    *known = Arc::clone(probed);
                    changed
                });
            }
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }

    fn watch(&self, name: &Name, probed: &Arc<Probed>) -> Watch {
        let (sender, receiver) = cell::channel(Arc::clone(probed));
        Watch { probed: sender, task: task::spawn(self.clone().follow(name.clone(), receiver)) }
    }

    /// Asks one run, for as long as it is wanted.
    async fn follow(self, name: Name, mut probed: cell::Receiver<Arc<Probed>>) {
        let mut asked = Arc::clone(&probed.borrow_and_update());
        let now = self.host.steady();
        let (begun, age) = (Instant::now(), asked.age(now));
        let born = self.host.now().minus(age);
        let mut tally = asked.tally(&name, now, self.began, self.entropy);
        // How long the last try of each took; a workload that hangs is likely to hang again.
        let mut paces: BTreeMap<ProbeKind, Pace> = BTreeMap::new();
        let (answer, mut answers) = mpsc::channel(ProbeKind::ALL.len());
        loop {
            for (kind, probe) in tally.begin(age + begun.elapsed()) {
                let pace = paces.get(&kind).copied().unwrap_or(Pace::Prompt);
                let to_ask = Try { name: name.clone(), run: Arc::clone(&asked), kind, probe, pace };
                task::spawn(self.clone().ask(to_ask, answer.clone()));
            }
            self.board.post(&name, &tally.standing(), tally.report(born));
            let due = tally.next().map(|due| begun + due.saturating_sub(age));
            // Neither loses anything to another: a message and a change stay where they are, the sleep is made anew.
            tokio::select! {
                Some(Answered { kind, probe, pace, answer }) = answers.recv() => {
                    paces.insert(kind, pace);
                    tally.take(kind, &probe, age + begun.elapsed(), answer);
                }
                changed = probed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    asked = Arc::clone(&probed.borrow_and_update());
                    tally.revise(Arc::clone(&asked.probes), age + begun.elapsed());
                }
                () = sleep_until(due.unwrap_or(begun)), if due.is_some() => {}
            }
        }
    }

    /// One try, when there is a place for it. It keeps a place until the kernel is done with it, even if nobody waits any more.
    async fn ask(self, to_ask: Try, answer: mpsc::Sender<Answered>) {
        let Try { name, run, kind, probe, pace } = to_ask;
        let held = self.tries.place(pace).await;
        if answer.is_closed() {
            return;
        }
        let (host, asked, workload) = (self.host, probe.clone(), name.clone());
        let (pace, tried) = self
            .tries
            .run(held, move || {
                let Probed { instance, network, env, .. } = run.as_ref();
                let ask = Ask { name: &name, instance: *instance, network: *network, env, kind, probe: &asked };
                host.probe(&ask)
            })
            .await;
        // A panic's message is on standard error.
        // Told at the finest level only: there may be hundreds a second.
        let said = tried.unwrap_or_else(|_| Answer::Unasked("a bug in containerctl".to_owned()));
        tracing::trace!(workload = %workload, probe = %kind, answer = %said, "answered");
        // Whoever asked may have gone.
        let _ = answer.send(Answered { kind, probe, pace, answer: said }).await;
    }
}

/// Whom to ask what.
struct Try {
    name: Name,
    run: Arc<Probed>,
    kind: ProbeKind,
    probe: Probe,
    pace: Pace,
}

/// What came of it.
struct Answered {
    kind: ProbeKind,
    probe: Probe,
    pace: Pace,
    answer: Answer,
}
