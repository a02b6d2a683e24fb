//! The rebalancer's turns: when to measure, what is done with what it proposes, and what is told of it.
//!
//! Measuring is done on a thread of its own turn ([`super::Job::Meter`]), deciding in the loop, which it costs less than a millisecond. There is no turn
//! where there is nothing to even out: one group of CPUs, no cpusets, nothing that counts, nobody who may be moved. A quiet host is looked at
//! with the pace of the resync. Newcomers are measured within a second, so that the next turn knows what they use.
//!
//! Guarantees: one measurement at a time; writes nothing but what it was asked to record; what is proposed and not taken up by the next turn is
//! forgotten.

mod recorder;
mod state;
mod told;

use super::overdue::MEASUREMENT;
use super::{Controller, Done, Job};
use crate::host::sampler::Meter;
use crate::host::{HostError, chain};
use crate::model::balance::{Decision, Move, Outcome, Settings};
use crate::model::event::News;
use crate::model::meter::Reading;
use crate::model::name::Name;
use crate::model::time::Timestamp;
use crate::model::topology::Topology;
use crate::plan::Work;
use crate::plan::balance::{self, Balancer, Rates};
use recorder::{Pen, Recorder};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use told::{Fate, Proposed, Report};

/// How often a host is looked at on which no CPU works more than [`QUIET_PERMILLE`]: as often as everything else.
const QUIET: Duration = Duration::from_secs(30);
/// A fifth of a CPU: less than the imbalance that anything is done about (15 %), whatever the others do, on groups of two CPUs and more.
const QUIET_PERMILLE: u32 = 200;
/// How soon those that have just begun to run are measured: once for all that begin together.
const NEWCOMERS: Duration = Duration::from_secs(1);
/// Moves that are told: those of the last quarter of an hour on a host that is as restless as it may be.
const RECENT_MAX: usize = 32;

/// What is done with what the rebalancer proposes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    On,
    /// It is told and not done.
    DryRun,
    Off,
}

/// How the rebalancer is to work.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub mode: Mode,
    /// A file to record its decisions in, with what they were made from.
    pub record: Option<PathBuf>,
}

/// What came back from the thread.
pub struct Metered {
    meter: Box<dyn Meter>,
    pen: Option<Pen>,
    /// What became of what was to be recorded, if anything was.
    recorded: Option<io::Result<()>>,
    reading: Result<Reading, HostError>,
}

/// The rebalancer's side of the loop.
pub(super) struct Balance {
    options: Options,
    settings: Settings,
    balancer: Balancer,
    rates: Rates,
    meter: Option<Box<dyn Meter>>,
    pen: Option<Pen>,
    recorder: Option<Recorder>,
    metering: bool,
    /// Groups of CPUs, and the machine they were counted on.
    groups: Option<(Topology, usize)>,
    /// Those that were measured last, and when.
    measured: BTreeSet<Name>,
    measured_at: Option<Instant>,
    /// The next turn; none before the first.
    turn_at: Option<Instant>,
    resting: Option<&'static str>,
    last: Option<(Timestamp, Decision)>,
    recent: VecDeque<Proposed>,
}

/// Whether decisions can be recorded in this file, which is made if it is not there.
pub fn check_record(path: &Path) -> io::Result<()> {
    Pen::check(path)
}

impl Balance {
    pub(super) fn new(options: Options, meter: Option<Box<dyn Meter>>) -> Balance {
        let recorder = options.record.as_ref().map(|_| Recorder::default());
        let pen = options.record.clone().map(Pen::new);
        Balance {
            options,
            settings: Settings::default(),
            balancer: Balancer::default(),
            rates: Rates::default(),
            meter,
            pen,
            recorder,
            metering: false,
            groups: None,
            measured: BTreeSet::new(),
            measured_at: None,
            turn_at: None,
            resting: None,
            last: None,
            recent: VecDeque::new(),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.options.mode == Mode::On
    }

    pub(super) fn report(&self) -> Report {
        let (at, decision) = self.last.clone().unzip();
        let resting = self.resting.map(str::to_owned);
        let Options { mode, record } = self.options.clone();
        Report { mode, resting, record, at, decision, recent: self.recent.iter().cloned().collect() }
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(self.settings.tick_ms)
    }

    /// When to measure next. What has never been measured is due at the `now` of whoever asks, who compares with the same: the clock goes on
    /// between two looks at it, and the first measurement would be due a moment later for ever.
    fn due_at(&self, runs: &BTreeMap<Name, u64>, now: Instant) -> Option<Instant> {
        if self.metering || self.resting.is_some() {
            return None;
        }
        let turn_at = self.turn_at.unwrap_or(now);
        let newcomers = runs.keys().any(|name| !self.measured.contains(name));
        let soon = self.measured_at.map_or(now, |at| at + NEWCOMERS);
        Some(if newcomers { turn_at.min(soon) } else { turn_at })
    }

    /// Whether a reading of now is a turn's. If not, this says when the next one is: a rate takes two readings, so the first is none; between
    /// two turns only newcomers were to be met, and a quiet host is looked at in earnest from then on.
    fn is_turn(&mut self, now: Instant) -> bool {
        let soon = now + self.tick();
        let next = match self.turn_at {
            None => soon,
            Some(turn_at) if turn_at > now => turn_at.min(soon),
            Some(_) => return true,
        };
        self.turn_at = Some(next);
        false
    }

    /// Begins or ends to rest.
    fn rest(&mut self, why: Option<&'static str>) {
        if let (Some(path), Some(why)) = (&self.options.record, why)
            && self.resting != Some(why)
        {
            tracing::info!(path = %path.display(), why, "the rebalancer rests; nothing is recorded meanwhile");
        }
        self.resting = why;
    }

    /// Learns what became of what was to be recorded.
    fn learn_recorded(&mut self, recorded: Option<io::Result<()>>) {
        let error = self.recorder.as_mut().zip(recorded).and_then(|(recorder, recorded)| recorder.learn(recorded));
        if let (Some(error), Some(path)) = (error, &self.options.record) {
            let path = path.display();
            tracing::error!(%path, %error, "cannot record the rebalancer's decisions; they are lost until that works again, then a new file begins");
        }
    }

    fn groups(&mut self, topology: &Topology) -> usize {
        match &self.groups {
            Some((known, groups)) if known == topology => *groups,
            _ => {
                let groups = balance::groups(topology);
                self.settings = balance::settings(topology);
                self.groups = Some((topology.clone(), groups));
                groups
            }
        }
    }

    fn note(&mut self, at: Timestamp, proposal: &Move, fate: Fate) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Proposed { at, proposal: proposal.clone(), fate });
    }

    /// Settles what became of the newest proposal for a workload.
    fn settle(&mut self, name: &Name, fate: Fate) {
        let open = |proposed: &&mut Proposed| proposed.proposal.name == *name && proposed.fate == Fate::Proposed;
        if let Some(proposed) = self.recent.iter_mut().rev().find(open) {
            proposed.fate = fate;
        }
    }
}

impl Controller {
    /// Begins a measurement if it is time for one.
    pub(super) fn measure_if_due(&mut self) {
        let resting = self.rests();
        self.balance.rest(resting);
        let now = self.host.instant();
        if self.measure_at(now).is_none_or(|due| due > now) {
            return;
        }
        let Some(mut meter) = self.balance.meter.take() else { return };
        let (mut pen, entry) = (self.balance.pen.take(), self.balance.recorder.as_mut().and_then(Recorder::take));
        let runs = balance::runs(&self.state.observed);
        self.balance.rates.keep_only(&runs);
        self.balance.measured = runs.keys().cloned().collect();
        self.balance.measured_at = Some(now);
        self.balance.metering = true;
        let (host, began) = (Arc::clone(&self.host), self.state.under_way.begin(Job::Meter, MEASUREMENT));
        self.on_thread(Job::Meter, move || {
            began.get_or_init(|| host.time());
            let recorded = pen.as_mut().zip(entry).map(|(pen, entry)| pen.write(&entry));
            let reading = meter.read(&runs);
            Done::Metered(Metered { meter, pen, recorded, reading })
        });
    }

    /// When to measure next, as seen at `now`; none while it is being done, or there is nothing to do it for.
    pub(super) fn measure_at(&self, now: Instant) -> Option<Instant> {
        self.balance.due_at(&balance::runs(&self.state.observed), now)
    }

    /// Why nothing is measured, if so.
    fn rests(&mut self) -> Option<&'static str> {
        let machine = &self.state.machine;
        if self.balance.options.mode == Mode::Off {
            Some("it is switched off (controller --rebalance)")
        } else if self.balance.meter.is_none() && !self.balance.metering {
            Some("nothing here counts what workloads use")
        } else if !machine.cgroup.files.contains("cpuset.cpus") {
            Some("this host has no cpusets: nobody can be moved")
        } else if self.balance.groups(&machine.topology) < 2 {
            Some("all CPUs are of one group: there is nothing to even out")
        } else if !self.state.is_any_movable(self.host.time()) {
            Some("nobody runs who may be moved")
        } else {
            None
        }
    }

    pub(super) fn take_measurement(&mut self, metered: Metered) {
        let Metered { meter, pen, recorded, reading } = metered;
        (self.balance.meter, self.balance.pen, self.balance.metering) = (Some(meter), pen, false);
        self.state.under_way.end(&Job::Meter);
        self.balance.learn_recorded(recorded);
        let now = self.host.instant();
        match reading {
            Ok(reading) => self.balance.rates.take(reading),
            Err(error) => {
                tracing::error!(error = %chain(&error), "cannot measure what CPUs and workloads use");
                self.balance.turn_at = Some(now + QUIET);
                return;
            }
        }
        if self.balance.is_turn(now) {
            self.decide();
            let busy = self.balance.rates.is_any_busy(QUIET_PERMILLE);
            self.balance.turn_at = Some(now + if busy { self.balance.tick() } else { QUIET });
        }
    }

    fn decide(&mut self) {
        let time = self.host.time();
        let sample = self.state.sample(&self.balance.rates, time);
        let topology = &self.state.machine.topology;
        let balance = &mut self.balance;
        let before = balance.recorder.is_some().then(|| balance.balancer.clone());
        let decision = balance.balancer.tick(topology, &sample, &balance.settings);
        if let (Some(recorder), Some(before)) = (&mut balance.recorder, before) {
            recorder.note(topology, balance.settings, before, sample, &decision);
        }
        tracing::debug!(imbalance_permille = decision.figures.imbalance, moves = decision.moves.len(), "rebalancer");
        let taken = if balance.is_on() { decision.moves.clone() } else { Vec::new() };
        let dropped = self.state.propose(taken);
        for name in dropped {
            balance.settle(&name, Fate::Dropped);
        }
        let fate = if balance.is_on() { Fate::Proposed } else { Fate::DryRun };
        for proposal in &decision.moves {
            balance.note(time.wall, proposal, fate);
            let Move { name, from, to, rung, reason, .. } = proposal;
            let step = if fate == Fate::DryRun { "would move" } else { "move proposed" };
            tracing::info!(workload = %name, %from, %to, kind = %rung, reason, "{step}");
        }
        let worse = decision.verdicts.iter().filter(|verdict| verdict.outcome == Outcome::WorseEverywhere);
        let news = worse.map(|verdict| {
            let text = format!("the move {} -> {} made it wait more: {}", verdict.from, verdict.to, verdict.outcome);
            News::normal(&verdict.name, "MoveWorse", text)
        });
        let news: Vec<News> = news.collect();
        balance.last = Some((time.wall, decision));
        self.tell(news);
    }

    /// Tells of a move that a step has made, or could not make.
    pub(super) fn conclude_move(&mut self, work: &Work, was_done: bool) {
        let grant = work.record.as_ref().and_then(|record| record.grant.as_ref());
        let Some(made) = grant.and_then(|grant| self.state.take_proposal(&work.name, &grant.cpus)) else { return };
        let (name, change) = (&made.name, format!("CPUs {} -> {}", made.from, made.to));
        let Move { rung, reason, gain, cost, .. } = &made;
        let why = format!("{change} ({rung}): {reason}; gain {gain}m, cost {cost}m");
        let news = if was_done {
            News::normal(name, "Moved", why)
        } else {
            News::warning(name, "NotMoved", format!("the kernel refused {why}"))
        };
        self.balance.settle(name, if was_done { Fate::Made } else { Fate::Refused });
        self.tell(vec![news]);
    }

    /// A measurement that panicked took what it worked with along.
    pub(super) fn meter_again(&mut self) {
        self.balance.metering = false;
        self.state.under_way.end(&Job::Meter);
        self.balance.meter = self.host.meter();
        self.balance.pen = self.balance.options.record.clone().map(Pen::new);
        if let Some(recorder) = &mut self.balance.recorder {
            recorder.begin_anew();
        }
        self.balance.turn_at = Some(self.host.instant() + QUIET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_measured_is_due_at_once_however_often_it_is_asked() {
        let mut balance = Balance::new(Options::default(), None);
        let runs = [("web".parse().unwrap(), 1)].into();
        let now = Instant::now();
        assert_eq!(balance.due_at(&runs, now), Some(now));
        assert_eq!(balance.due_at(&runs, now + NEWCOMERS), Some(now + NEWCOMERS));
        balance.metering = true;
        assert_eq!(balance.due_at(&runs, now), None);
    }

    #[test]
    fn the_first_look_decides_nothing_and_the_second_is_five_seconds_later() {
        let mut balance = Balance::new(Options::default(), None);
        let now = Instant::now();
        assert!(!balance.is_turn(now));
        assert_eq!(balance.turn_at, Some(now + Duration::from_secs(5)));
        // One for newcomers in between.
        assert!(!balance.is_turn(now + Duration::from_secs(1)));
        assert!(balance.is_turn(now + Duration::from_secs(5)));
        // On a quiet host somebody begins to run.
        balance.turn_at = Some(now + Duration::from_secs(35));
        assert!(!balance.is_turn(now + Duration::from_secs(10)));
        assert_eq!(balance.turn_at, Some(now + Duration::from_secs(15)));
    }
}
