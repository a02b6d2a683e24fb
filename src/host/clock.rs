//! The clock that nobody sets, and when processes began by it.
//!
//! The kernel tells when a process began in ticks of a clock that goes on while the machine is suspended (`CLOCK_BOOTTIME`, proc(5)); what
//! waits goes by one that does not (`docs/decisions/0014-clocks.md`). What lies between the two is how long the machine has been suspended.

use crate::model::clock::Steady;
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicI64, Ordering};

/// The two clocks are read one after the other: whoever is interrupted for longer than this in between reads again.
const APART_MAX_MS: i64 = 1;
/// Readings in a row that may be interrupted. Then what was known before is used: it is wrong only if the machine was suspended since.
const TRIES_MAX: usize = 8;
/// A difference that has changed by less is how precisely it was read. A run's beginning must not change with each look at it, and the
/// kernel's ticks are no finer.
const SUSPENDED_MIN_MS: i64 = 20;

/// What turns ticks into a time.
#[derive(Debug)]
pub struct Clocks {
    ticks_per_second: u64,
    /// How long the machine has been suspended since it booted, in milliseconds.
    suspended_ms: AtomicI64,
}

impl Clocks {
    pub fn new() -> Clocks {
        Clocks { ticks_per_second: procfs::ticks_per_second().max(1), suspended_ms: AtomicI64::new(0) }
    }

    /// The end of a tick: a wait that is reckoned from it is late by one at most, and never early.
    pub fn at_tick(&self, tick: u64) -> Steady {
        let boottime_ms = tick.saturating_add(1).saturating_mul(1000) / self.ticks_per_second;
        Steady(i64::try_from(boottime_ms).unwrap_or(i64::MAX).saturating_sub(self.suspended_ms()))
    }

    fn suspended_ms(&self) -> i64 {
        let known = self.suspended_ms.load(Ordering::Relaxed);
        let Some(now) = (0..TRIES_MAX).find_map(|_| read_suspended_ms()) else { return known };
        if (now - known).abs() < SUSPENDED_MIN_MS {
            return known;
        }
        self.suspended_ms.store(now, Ordering::Relaxed);
        now
    }
}

/// Now.
pub fn steady() -> Steady {
    Steady(read_ms(ClockId::Monotonic))
}

fn read_suspended_ms() -> Option<i64> {
    let before = read_ms(ClockId::Monotonic);
    let boottime = read_ms(ClockId::Boottime);
    (read_ms(ClockId::Monotonic) - before <= APART_MAX_MS).then_some(boottime - before)
}

fn read_ms(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn a_process_begins_when_it_is_started_and_is_said_to_have_begun_then_at_each_look() {
        let clocks = Clocks::new();
        let before = steady();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let after = steady();
        let pid = i32::try_from(child.id()).unwrap();
        let tick = procfs::process::Process::new(pid).unwrap().stat().unwrap().starttime;
        let began = clocks.at_tick(tick);
        // A tick of a hundredth of a second, and the precision of what was suspended.
        let slack = Duration::from_millis(35);
        assert!(before.minus(slack) <= began && began <= after.plus(slack), "{before:?} {began:?} {after:?}");
        for _ in 0..50 {
            assert_eq!(clocks.at_tick(tick), began);
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_suspension_is_taken_off() {
        // What the kernel says now, as if nothing had been known of it before: the difference is found at the first look.
        let clocks = Clocks { ticks_per_second: 100, suspended_ms: AtomicI64::new(1_000_000) };
        let fresh = Clocks { ticks_per_second: 100, suspended_ms: AtomicI64::new(0) };
        let apart = clocks.at_tick(500).0 - fresh.at_tick(500).0;
        assert!(apart.abs() < 2 * SUSPENDED_MIN_MS, "{apart}");
        assert_eq!(clocks.at_tick(501).0 - clocks.at_tick(500).0, 10);
    }
}
