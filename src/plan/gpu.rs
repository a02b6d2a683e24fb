//! How far each GPU is trusted, and how much of it strangers use.
//!
//! Problem: a driver hiccups, a device throws an error and is well again, another one dies. To move work at the first bad word breaks more
//! than it mends; never to move it leaves work on dead hardware.
//! Approach: a ladder. One bad look makes a device *suspect*: it gets nothing new. Trouble that lasts, or comes back, makes it *draining*:
//! workloads leave it, as each one's `gpu.onUnhealthy` says. Well for a while it is *on probation*: given last. Well for long it is *healthy*.
//! Guarantees: one bad look moves nothing; a device that flaps is drained, and not given again before it has been well for
//! `RECOVERED_AFTER`; a device that is gone is remembered as draining for as long as somebody holds it. All of it is the controller's
//! memory: after its restart a bad device is suspect first, as anew.

use crate::model::clock::{Steady, Time};
use crate::model::gpu::{Gpu, GpuId, Health, Share, Vendor};
use crate::model::record::Record;
use crate::model::units::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long trouble lasts before workloads leave: past a driver's reset of the device, which takes seconds.
const DRAIN_AFTER: Duration = Duration::from_secs(20);
/// So many suspicions within [`LAPSES_WITHIN`] are as bad as one that lasts.
const LAPSES_MAX: usize = 3;
const LAPSES_WITHIN: Duration = Duration::from_mins(10);
/// How long a drained device is to be well before it is given again.
const RECOVERED_AFTER: Duration = Duration::from_mins(1);
/// And how long before it counts like any other: an error an hour apart is another error.
const PROBATION: Duration = Duration::from_mins(10);
/// How long a device that is gone and that nobody holds is remembered, so that one that comes and goes is not new each time.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(1);

/// The memory of a device that was leased by an earlier controller, and that this one has never seen.
const UNKNOWN: Bytes = Bytes(0);

/// What is leased of each device.
pub type Leased = BTreeMap<GpuId, Lease>;

/// What is leased of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lease {
    #[default]
    Whole,
    Memory(Bytes),
}

/// Adds up what records hold.
pub fn leased<'a>(records: impl IntoIterator<Item = &'a Record>) -> Leased {
    let mut leased = Leased::new();
    for lease in records.into_iter().filter_map(Record::held).flat_map(|grant| &grant.gpus) {
        let held = leased.entry(lease.gpu.clone()).or_insert(Lease::Memory(Bytes(0)));
        *held = match (*held, lease.share) {
            (Lease::Whole, _) | (_, Share::Whole) => Lease::Whole,
            (Lease::Memory(Bytes(held)), Share::Memory(Bytes(more))) => Lease::Memory(Bytes(held.saturating_add(more))),
        };
    }
    leased
}

/// What is known of devices from look to look.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    rungs: BTreeMap<GpuId, Rung>,
}

#[derive(Clone, Debug)]
struct Rung {
    /// As it was last seen.
    gpu: Gpu,
    /// Since when its health is what it is. The time on the wall that [`Health`] has is for people.
    since: Steady,
    /// When it became suspect, of late.
    lapses: Vec<Steady>,
    /// Since when a draining device has been well.
    well_since: Option<Steady>,
}

impl Ladder {
    /// Takes in a look at all devices, and why it may not have been one at all. Answers with those there are, and those that are gone and still remembered. What was leased before and
    /// after the look explains memory in use: what has just ended may still have been there.
    pub fn take(
        &mut self,
        (found, trouble): (Vec<Gpu>, &[String]),
        before: &Leased,
        after: &Leased,
        now: Time,
    ) -> Vec<Gpu> {
        let seen: BTreeSet<GpuId> = found.iter().map(|gpu| gpu.id.clone()).collect();
        for mut gpu in found {
            let leases = [before, after].map(|leased| leased.get(&gpu.id));
            let explained = leases.into_iter().flatten().map(|lease| lease.of(&gpu)).max().unwrap_or_default();
            gpu.foreign = Bytes(gpu.foreign.0.saturating_sub(explained.0));
            let rung = self.rungs.entry(gpu.id.clone()).or_insert_with(|| Rung::new(gpu.clone(), now));
            let health = rung.gpu.health.clone();
            rung.gpu = Gpu { health, ..gpu };
            rung.step(rung.gpu.fault.clone(), now);
        }
        for id in after.keys().filter(|id| !seen.contains(*id)) {
            // Leased by an earlier controller, and never seen by this one.
            let unknown = || Rung::new(Gpu::new(id.clone(), Vendor::default(), "unknown", UNKNOWN), now);
            self.rungs.entry(id.clone()).or_insert_with(unknown);
        }
        self.rungs.retain(|id, rung| {
            if seen.contains(id) {
                return true;
            }
            // It may be one of those that nothing is known of: nobody leaves it for that.
            if rung.gpu.memory == UNKNOWN && !trouble.is_empty() {
                rung.doubt(trouble.join("; "), now);
                return true;
            }
            rung.step(Some("its driver does not know it any more".to_owned()), now);
            let drains = matches!(rung.gpu.health, Health::Draining { .. });
            let over = drains && now.steady.since(rung.since) >= FORGOTTEN_AFTER;
            after.contains_key(id) || !over
        });
        self.rungs.values().map(|rung| rung.gpu.clone()).collect()
    }
}

impl Rung {
    fn new(gpu: Gpu, now: Time) -> Rung {
        Rung { gpu, since: now.steady, lapses: Vec::new(), well_since: None }
    }

    /// One look: well, or not and why.
    fn step(&mut self, fault: Option<String>, now: Time) {
        let lasted = now.steady.since(self.since);
        let health = std::mem::replace(&mut self.gpu.health, Health::Healthy);
        self.gpu.health = match (health, fault) {
            (Health::Healthy | Health::Suspect { .. }, None) => Health::Healthy,
            (Health::Healthy, Some(why)) => self.lapse(why, now),
            (Health::Suspect { .. }, Some(why)) if lasted >= DRAIN_AFTER => self.drain(why, now),
            (Health::Suspect { since, .. }, Some(why)) => Health::Suspect { since, why },
            (Health::Draining { since, .. }, Some(why)) => {
                self.well_since = None;
                Health::Draining { since, why }
            }
            (Health::Draining { since, why }, None) => {
                let well_since = *self.well_since.get_or_insert(now.steady);
                if now.steady.since(well_since) >= RECOVERED_AFTER {
                    self.since = now.steady;
                    Health::Probation { since: now.wall }
                } else {
                    Health::Draining { since, why }
                }
            }
            (Health::Probation { .. }, Some(why)) => self.drain(why, now),
            (Health::Probation { .. }, None) if lasted >= PROBATION => Health::Healthy,
            (Health::Probation { since }, None) => Health::Probation { since },
        };
    }

    /// Nothing is known of it: it gets nothing new, and keeps what it has.
    fn doubt(&mut self, why: String, now: Time) {
        let since = match &self.gpu.health {
            Health::Suspect { since, .. } => *since,
            _ => now.wall,
        };
        // What is heard of it later counts from then.
        self.since = now.steady;
        self.gpu.health = Health::Suspect { since, why };
    }

    fn lapse(&mut self, why: String, now: Time) -> Health {
        self.lapses.retain(|at| now.steady.since(*at) < LAPSES_WITHIN);
        self.lapses.push(now.steady);
        if self.lapses.len() >= LAPSES_MAX {
            return self.drain(format!("{why}, the {LAPSES_MAX}rd time in a few minutes"), now);
        }
        self.since = now.steady;
        Health::Suspect { since: now.wall, why }
    }

    fn drain(&mut self, why: String, now: Time) -> Health {
        self.since = now.steady;
        self.lapses.clear();
        self.well_since = None;
        Health::Draining { since: now.wall, why }
    }
}

impl Lease {
    /// The memory a lease explains the use of.
    pub fn of(self, gpu: &Gpu) -> Bytes {
        match self {
            Lease::Whole => gpu.memory,
            Lease::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests;
