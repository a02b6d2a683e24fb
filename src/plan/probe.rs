//! What the answers of probes come to: when to ask again, whether a run has come up, is ready, is worth keeping.
//!
//! Owns every decision about probes. Asks nobody: times and answers are put in, and what they come to is read off.
//!
//! Terms: *time* is the age of the run, so that `initialDelay` means the same to a controller that adopts it. A *fall* is a readiness lost
//! by its probe.
//!
//! Guarantees:
//! * one try of a probe at a time; a probe that could not be asked counts neither way;
//! * until the startup probe has succeeded, the others wait, and so does `Ready`;
//! * a readiness that comes and goes is held down until it has been good for a while;
//! * a run that an earlier controller may have seen come up is not ended for not coming up;
//! * an edit of a probe never makes a run fail that would not have failed by the new probe alone.

use super::backoff;
use crate::model::name::Name;
use crate::model::probe::{Answer, Probe, ProbeKind, ProbeStatus, Probes, Standing};
use crate::model::time::Timestamp;
use crate::model::units::format_duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Tries begin up to this much later than they could, differently for each workload: two hundred that come up, or are adopted, at once
/// are spread to one every few milliseconds, and nobody notices half a second.
const JITTER_MAX: Duration = Duration::from_millis(500);
/// The first wait between tries of what has not been good yet; it doubles up to the period. With the usual period of 10 s alone, whatever
/// comes up in half a second would be kept from serving for ten.
const EAGER_FIRST: Duration = Duration::from_millis(250);
/// Falls within [`FLAP_WINDOW`] that are taken at their word. A deployment or a dependency that goes away makes one or two; every further
/// one is acted on by whoever waits for this workload, and four in ten minutes are no news about it but a habit.
const FALLS_MAX: usize = 3;
const FLAP_WINDOW: Duration = Duration::from_mins(10);
/// How long the probe has to be good without a break before a readiness that was held down counts again. Six tries of the usual period.
const STEADY: Duration = Duration::from_mins(1);

/// Which run is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub instance: u64,
    pub pid: u32,
    /// How long its command has been running.
    pub age: Duration,
    /// Whether an earlier controller started it.
    pub adopted: bool,
}

/// The answers of one run.
#[derive(Clone, Debug)]
pub struct Tally {
    name: Name,
    run: Run,
    probes: Arc<Probes>,
    entropy: u64,
    tracks: BTreeMap<ProbeKind, Track>,
    /// It may have come up before anybody here could see: a startup probe that fails neither ends it nor holds the others up.
    forgiven: bool,
    falls: VecDeque<Duration>,
    hold: Hold,
    failed: Option<ProbeKind>,
}

/// Whether a readiness is held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Off,
    On,
    /// It is, and has been good since.
    Steady {
        since: Duration,
    },
}

/// The answers to one probe.
#[derive(Clone, Debug)]
struct Track {
    probe: Probe,
    due: Duration,
    /// When the try under way began.
    asking: Option<Duration>,
    begun: Duration,
    good: u32,
    bad: u32,
    /// When the last failure of a startup probe that counted began.
    counted: Option<Duration>,
    eager: Duration,
    /// Good for as long as the thresholds say so.
    passes: bool,
    /// Has been good in this run.
    passed: bool,
    /// The thresholds have spoken, one way or the other.
    settled: bool,
    tries: u64,
    last: Option<(Duration, Answer)>,
}

impl Track {
    fn new(probe: &Probe, due: Duration) -> Track {
        Track {
            probe: probe.clone(),
            due,
            asking: None,
            begun: Duration::ZERO,
            good: 0,
            bad: 0,
            counted: None,
            eager: EAGER_FIRST,
            passes: false,
            passed: false,
            settled: false,
            tries: 0,
            last: None,
        }
    }

    /// Doubles the wait of one that has not been good yet.
    fn next_eager(&mut self) -> Duration {
        let wait = self.eager.min(self.probe.period);
        self.eager = self.eager.saturating_mul(2).min(self.probe.period);
        wait
    }

    /// The last answer, for a message.
    fn last(&self) -> String {
        self.last.as_ref().map_or_else(|| "not asked yet".to_owned(), |(_, answer)| answer.to_string())
    }
}

impl Tally {
    pub fn new(name: &Name, run: Run, probes: &Arc<Probes>, entropy: u64) -> Tally {
        let mut tally = Tally {
            name: name.clone(),
            run,
            probes: Arc::clone(probes),
            entropy,
            tracks: BTreeMap::new(),
            forgiven: false,
            falls: VecDeque::new(),
            hold: Hold::Off,
            failed: None,
        };
        for kind in ProbeKind::ALL {
            let Some(probe) = probes.get(kind) else { continue };
            let due = probe.initial_delay.max(run.age) + tally.jitter(kind, probe);
            tally.tracks.insert(kind, Track::new(probe, due));
        }
        // Past this age it has come up, or would have been ended, or nobody was there to see. Only in the last case is this wrong, and
        // then its liveness tells; ended unfairly it would be gone.
        tally.forgiven = run.adopted && probes.startup.as_ref().is_some_and(|startup| run.age > budget(startup));
        tally
    }

    fn jitter(&self, kind: ProbeKind, probe: &Probe) -> Duration {
        let salt = u32::MAX - kind as u32;
        probe.period.min(JITTER_MAX) * backoff::fraction(&self.name, salt, self.entropy) / backoff::FRACTION_END
    }

    /// When the next try is due; none while all that may be asked is being asked.
    pub fn next(&self) -> Option<Duration> {
        self.askable().map(|(_, track)| track.due).min()
    }

    /// The probes to try now. Each is under way until [`Tally::take`].
    pub fn begin(&mut self, at: Duration) -> Vec<(ProbeKind, Probe)> {
        let due: Vec<ProbeKind> = self.askable().filter(|(_, track)| track.due <= at).map(|(kind, _)| kind).collect();
        let mut begun = Vec::new();
        for kind in due {
            let Some(track) = self.tracks.get_mut(&kind) else { continue };
            (track.asking, track.begun) = (Some(at), at);
            begun.push((kind, track.probe.clone()));
        }
        begun
    }

    fn askable(&self) -> impl Iterator<Item = (ProbeKind, &Track)> {
        let (open, over) = (self.is_open(), self.failed.is_some());
        let may = move |(kind, track): &(ProbeKind, &Track)| {
            let turn = if *kind == ProbeKind::Startup { !track.passed } else { open };
            turn && track.asking.is_none() && !over
        };
        self.tracks.iter().map(|(kind, track)| (*kind, track)).filter(may)
    }

    /// Whether the startup probe holds nobody up.
    fn is_open(&self) -> bool {
        self.forgiven || self.tracks.get(&ProbeKind::Startup).is_none_or(|startup| startup.passed)
    }

    /// Takes in how a try went. `asked` is what was tried: an answer to a question that is not asked any more says nothing.
    pub fn take(&mut self, kind: ProbeKind, asked: &Probe, at: Duration, answer: Answer) {
        let Some(track) = self.tracks.get_mut(&kind) else { return };
        let Some(begun) = track.asking.take() else { return };
        track.due = at.max(begun + track.probe.period);
        if track.probe.check != asked.check {
            track.due = at;
            return;
        }
        track.tries += 1;
        match &answer {
            Answer::Good => (track.good, track.bad) = (track.good.saturating_add(1), 0),
            Answer::Bad(_) => track.good = 0,
            Answer::Unasked(_) => {}
        }
        let good = match &answer {
            Answer::Good => Some(true),
            Answer::Bad(_) => Some(false),
            Answer::Unasked(_) => None,
        };
        track.last = Some((at, answer));
        match (kind, good) {
            (_, None) => {}
            (ProbeKind::Startup, Some(good)) => self.take_startup(at, begun, good),
            (ProbeKind::Readiness, Some(good)) => self.take_readiness(at, begun, good),
            (ProbeKind::Liveness, Some(good)) => {
                track.passed |= good;
                if !good {
                    track.bad = track.bad.saturating_add(1);
                }
                if track.bad >= track.probe.failure_threshold {
                    self.failed = Some(kind);
                }
            }
        }
    }

    /// Tries between two periods are for coming up soon; only one failure a period counts, so that it has as long as its manifest says.
    fn take_startup(&mut self, at: Duration, begun: Duration, good: bool) {
        let Some(track) = self.tracks.get_mut(&ProbeKind::Startup) else { return };
        if good {
            (track.passes, track.passed) = (true, true);
            return;
        }
        let period = track.probe.period;
        if track.counted.is_none_or(|counted| begun >= counted + period) {
            (track.bad, track.counted) = (track.bad.saturating_add(1), Some(begun));
        }
        let counts_at = track.counted.unwrap_or(begun) + period;
        track.due = at.max(counts_at.min(at + track.next_eager()));
        if track.bad >= track.probe.failure_threshold && !self.forgiven {
            self.failed = Some(ProbeKind::Startup);
        }
    }

    fn take_readiness(&mut self, at: Duration, begun: Duration, good: bool) {
        let Some(track) = self.tracks.get_mut(&ProbeKind::Readiness) else { return };
        if good {
            track.passes |= track.good >= track.probe.success_threshold;
            track.passed |= track.passes;
            track.settled |= track.passes;
        } else {
            track.bad = track.bad.saturating_add(1);
            if !track.passed {
                track.due = at.max(begun + track.next_eager());
            }
            if track.bad >= track.probe.failure_threshold {
                track.settled = true;
                if std::mem::take(&mut track.passes) {
                    self.falls.push_back(at);
                }
            }
        }
        self.damp(at, good);
    }

    /// Holds down a readiness that has fallen too often, and lets go of one that has been good for long enough.
    fn damp(&mut self, at: Duration, good: bool) {
        self.falls.retain(|fall| *fall + FLAP_WINDOW > at);
        if self.falls.len() > FALLS_MAX + 1 {
            self.falls.pop_front();
        }
        self.hold = match self.hold {
            // By a fall, not by those that are remembered: it may go on being good after it was let go.
            Hold::Off if self.falls.len() > FALLS_MAX && self.falls.back() == Some(&at) => Hold::On,
            Hold::Off => Hold::Off,
            Hold::On if good => Hold::Steady { since: at },
            Hold::Steady { since } if good && at.saturating_sub(since) >= STEADY => Hold::Off,
            Hold::Steady { since } if good => Hold::Steady { since },
            Hold::On | Hold::Steady { .. } => Hold::On,
        };
    }

    /// Takes up an edit. Another question is begun anew; other thresholds go on from the answers so far.
    pub fn revise(&mut self, probes: Arc<Probes>, at: Duration) {
        let open = self.is_open();
        for kind in ProbeKind::ALL {
            let Some(probe) = probes.get(kind) else {
                self.tracks.remove(&kind);
                continue;
            };
            let due = at + self.jitter(kind, probe);
            match self.tracks.get_mut(&kind) {
                Some(track) if track.probe.check == probe.check => {
                    track.due = track.due.min(track.begun + probe.period).max(at);
                    track.probe = probe.clone();
                }
                known => {
                    let asking = known.and_then(|track| track.asking);
                    // What has come up has come up, whatever the next start will be asked.
                    let passed = kind == ProbeKind::Startup && open;
                    self.tracks.insert(kind, Track { asking, passed, ..Track::new(probe, due) });
                    if kind == ProbeKind::Readiness {
                        (self.hold, self.falls) = (Hold::Off, VecDeque::new());
                    }
                }
            }
        }
        self.probes = probes;
    }

    /// What it comes to.
    pub fn standing(&self) -> Standing {
        let Run { instance, pid, age: _, adopted: _ } = self.run;
        let (ready, reason, message) = self.verdict();
        Standing { instance, pid, probes: Arc::clone(&self.probes), ready, reason, message, failed: self.failed }
    }

    fn verdict(&self) -> (bool, &'static str, String) {
        let track = |kind| self.tracks.get(&kind);
        if let Some((kind, track)) = self.failed.and_then(|kind| Some((kind, track(kind)?))) {
            return (
                false,
                kind.failure(),
                format!("its {kind} probe failed {} times in a row: {}", track.bad, track.last()),
            );
        }
        let not_yet = |kind: ProbeKind, track: &Track| {
            (false, "Probing", format!("its {kind} probe has not succeeded yet: {}", track.last()))
        };
        let startup = track(ProbeKind::Startup).filter(|startup| !startup.passed);
        match (startup, track(ProbeKind::Readiness)) {
            (Some(startup), _) if !self.forgiven => not_yet(ProbeKind::Startup, startup),
            (Some(startup), None) => not_yet(ProbeKind::Startup, startup),
            (None, None) => (true, "Running", format!("pid {}", self.run.pid)),
            (_, Some(_)) if self.hold != Hold::Off => {
                let (window, steady) = (format_duration(FLAP_WINDOW), format_duration(STEADY));
                let message = format!(
                    "its readiness was lost more than {FALLS_MAX} times in {window}; held down until its probe has been good for {steady}"
                );
                (false, "Flapping", message)
            }
            (_, Some(readiness)) if readiness.passes => {
                (true, "ProbesSucceed", format!("pid {}; its readiness probe succeeds", self.run.pid))
            }
            (_, Some(readiness)) if !readiness.settled => not_yet(ProbeKind::Readiness, readiness),
            (_, Some(Track { good: good @ 1.., probe, .. })) => {
                let message = format!("its readiness probe has succeeded {good} of {} times", probe.success_threshold);
                (false, "NotReady", message)
            }
            (_, Some(readiness)) => (false, "NotReady", format!("its readiness probe fails: {}", readiness.last())),
        }
    }

    /// The last tries, for people. `born` is when the command began.
    pub fn report(&self, born: Timestamp) -> Vec<ProbeStatus> {
        let status = |(kind, track): (&ProbeKind, &Track)| ProbeStatus {
            kind: *kind,
            asks: format!("{} every {}", track.probe.check, format_duration(track.probe.period)),
            tries: track.tries,
            failures: track.bad,
            last: track.last.as_ref().map(|(_, answer)| answer.to_string()),
            at: track.last.as_ref().map(|(at, _)| born.plus(*at)),
        };
        self.tracks.iter().map(status).collect()
    }
}

/// How long a command has to come up.
fn budget(startup: &Probe) -> Duration {
    let tries = startup.period.max(startup.timeout).saturating_mul(startup.failure_threshold);
    startup.initial_delay.saturating_add(tries)
}

#[cfg(test)]
mod tests;
