//! Two clocks: the one on the wall, which people and programs set, and one that nobody sets, which begins with each boot.
//!
//! Problem: what has been decided is remembered over restarts of the controller, and so are its times; on the wall alone an hour that NTP adds
//! ends every grace and every timeout at once, and one that it takes away prolongs them.
//!
//! Approach: a [`Moment`] is remembered by both clocks, with the boot that the second one is about. Within that boot waits go by the second
//! clock alone. After a reboot all there is is the wall, and one certainty: this boot came later, so at least as long has gone by as it lasts.
//!
//! Guarantees: nothing that waits is over sooner or later because a clock was set, unless a reboot lies between; then no wait is longer than it
//! was meant to be, counted from the boot. What people ask for by the wall, a schedule, goes by the wall.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Milliseconds on the clock that nobody sets: Linux' `CLOCK_MONOTONIC`, which stands while the machine is suspended, as everything on it does.
/// Means something within one boot only; negative for what was before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Steady(pub i64);

/// A time on the wall that a wait shows to people is corrected once it is wrong by more than this: less is what NTP slews a clock by
/// anyway, and each correction writes a record.
const SHOWN_WRONG_MAX: Duration = Duration::from_secs(1);

/// What both clocks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub wall: Timestamp,
    pub steady: Steady,
}

/// What both clocks say, and which boot this is.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    pub wall: Timestamp,
    pub steady: Steady,
    pub boot: &'a str,
}

/// A point in time that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Moment {
    pub wall: Timestamp,
    /// None in records of version 1.
    pub reading: Option<Reading>,
}

/// A reading of the clock that nobody sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The boot it was taken in.
    pub boot: String,
    pub steady: Steady,
}

/// A moment as it is written: version 1 had the wall alone, as a number.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Wall(Timestamp),
    Both { wall: Timestamp, steady: Steady, boot: String },
}

impl Steady {
    #[must_use]
    pub fn plus(self, duration: Duration) -> Steady {
        Steady(self.0.saturating_add(millis(duration)))
    }

    #[must_use]
    pub fn minus(self, duration: Duration) -> Steady {
        Steady(self.0.saturating_sub(millis(duration)))
    }

    /// The time from `earlier` to here, nothing if that is later.
    pub fn since(self, earlier: Steady) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Time {
    pub fn of_boot(self, boot: &str) -> Clock<'_> {
        Clock { wall: self.wall, steady: self.steady, boot }
    }

    /// When it will be that late, on the wall as it hangs now.
    pub fn wall_at(self, steady: Steady) -> Timestamp {
        self.wall.plus(steady.since(self.steady))
    }
}

impl Moment {
    /// When it was in this boot; none if it was in another, or nobody knows.
    pub fn steady(&self, boot: &str) -> Option<Steady> {
        self.reading.as_ref().filter(|reading| reading.boot == boot).map(|reading| reading.steady)
    }

    #[must_use]
    pub fn plus(mut self, duration: Duration) -> Moment {
        self.wall = self.wall.plus(duration);
        if let Some(reading) = &mut self.reading {
            reading.steady = reading.steady.plus(duration);
        }
        self
    }

    /// Whether it is known to have been before this boot.
    pub fn is_of_another_boot(&self, boot: &str) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.boot != boot)
    }
}

impl Clock<'_> {
    pub fn time(&self) -> Time {
        Time { wall: self.wall, steady: self.steady }
    }

    pub fn now(&self) -> Moment {
        self.moment(self.wall, self.steady)
    }

    /// When this boot began.
    pub fn boot(&self) -> Moment {
        self.moment(self.wall.minus(self.uptime()), Steady(0))
    }

    /// So much later than now.
    pub fn after(&self, wait: Duration) -> Moment {
        self.moment(self.wall.plus(wait), self.steady.plus(wait))
    }

    fn moment(&self, wall: Timestamp, steady: Steady) -> Moment {
        Moment { wall, reading: Some(Reading { boot: self.boot.to_owned(), steady }) }
    }

    /// When it will be that late, on the wall as it hangs now.
    pub fn wall_at(&self, steady: Steady) -> Timestamp {
        self.time().wall_at(steady)
    }

    fn uptime(&self) -> Duration {
        self.steady.since(Steady(0))
    }

    /// Whether one moment came after another. Whatever is of this boot came after everything that is not.
    pub fn is_later(&self, moment: &Moment, other: &Moment) -> bool {
        match (moment.steady(self.boot), other.steady(self.boot)) {
            (Some(moment), Some(other)) => moment > other,
            (None, None) => moment.wall > other.wall,
            (here, _) => here.is_some(),
        }
    }

    /// How long ago it was.
    pub fn since(&self, moment: &Moment) -> Duration {
        match moment.steady(self.boot) {
            Some(steady) => self.steady.since(steady),
            None if moment.is_of_another_boot(self.boot) => self.wall.since(moment.wall).max(self.uptime()),
            None => self.wall.since(moment.wall),
        }
    }

    /// How much of the time since then the machine has been up, as far as this boot can tell.
    pub fn up_since(&self, moment: &Moment) -> Duration {
        if moment.is_of_another_boot(self.boot) { self.uptime() } else { self.since(moment) }
    }

    /// The same moment by the clocks as they are now. A wait for it begins anew with every pass if it is not remembered like this.
    #[must_use]
    pub fn here(&self, moment: &Moment) -> Moment {
        let since = self.since(moment);
        match moment.steady(self.boot) {
            Some(_) => moment.clone(),
            None => self.moment(self.wall.minus(since), self.steady.minus(since)),
        }
    }

    /// How much is left of a wait that began then; none if it is over.
    pub fn left(&self, began: &Moment, wait: Duration) -> Option<Duration> {
        wait.checked_sub(self.since(began)).filter(|left| !left.is_zero())
    }

    /// A moment that is waited for, by the clocks as they are now, `longest` from now at the latest; none if it has come.
    pub fn awaited(&self, moment: &Moment, longest: Duration) -> Option<Moment> {
        let here = moment.steady(self.boot);
        let wait = match here {
            Some(steady) => steady.since(self.steady),
            None if moment.is_of_another_boot(self.boot) => {
                moment.wall.since(self.wall).min(longest.saturating_sub(self.uptime()))
            }
            None => moment.wall.since(self.wall),
        };
        if wait.is_zero() {
            return None;
        }
        let shown = self.wall.plus(wait);
        let right = shown.since(moment.wall).max(moment.wall.since(shown)) <= SHOWN_WRONG_MAX;
        let stays = here.is_some() && right && wait <= longest;
        Some(if stays { moment.clone() } else { self.after(wait.min(longest)) })
    }

    /// How long until a moment of this boot.
    pub fn until(&self, moment: &Moment) -> Duration {
        moment.steady(self.boot).map_or(Duration::ZERO, |steady| steady.since(self.steady))
    }
}

impl From<Stored> for Moment {
    fn from(stored: Stored) -> Moment {
        match stored {
            Stored::Wall(wall) => Moment { wall, reading: None },
            Stored::Both { wall, steady, boot } => Moment { wall, reading: Some(Reading { boot, steady }) },
        }
    }
}

impl From<Moment> for Stored {
    fn from(Moment { wall, reading }: Moment) -> Stored {
        match reading {
            None => Stored::Wall(wall),
            Some(Reading { boot, steady }) => Stored::Both { wall, steady, boot },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn clock(boot: &str, wall_s: u64, steady_s: i64) -> Clock<'_> {
        Clock { wall: Timestamp(wall_s * 1000), steady: Steady(steady_s * 1000), boot }
    }

    #[test]
    fn within_a_boot_only_the_clock_that_nobody_sets_counts() {
        let began = clock("a", 10_000, 100).now();
        for wall in [0, 9_000, 10_000, 1_000_000] {
            let clock = clock("a", wall, 107);
            assert_eq!((clock.since(&began), clock.up_since(&began)), (7 * SECOND, 7 * SECOND));
            assert_eq!((clock.left(&began, 8 * SECOND), clock.left(&began, 7 * SECOND)), (Some(SECOND), None));
            assert_eq!(clock.here(&began), began);
        }
    }

    #[test]
    fn what_is_of_this_boot_came_later_than_all_that_is_not() {
        let (before, now) = (clock("a", 50_000, 900), clock("b", 10_000, 60));
        let (early, late) = (clock("b", 20_000, 10).now(), clock("b", 5_000, 20).now());
        assert!(now.is_later(&late, &early) && !now.is_later(&early, &late), "within a boot nobody asks the wall");
        assert!(now.is_later(&early, &before.now()) && !now.is_later(&before.now(), &early));
        assert!(now.is_later(&before.now(), &clock("a", 40_000, 950).now()), "of other boots there is the wall");
        assert!(!now.is_later(&early, &early));
    }

    #[test]
    fn after_a_reboot_at_least_as_long_has_gone_by_as_it_has_been_up() {
        let began = clock("a", 10_000, 100).now();
        // The clock on the wall was set back, goes on, or was set ahead.
        for (wall, since) in [(0, 60), (10_010, 60), (20_000, 10_000)] {
            let clock = clock("b", wall, 60);
            assert_eq!(clock.since(&began), since * SECOND, "{wall}");
            assert_eq!(clock.up_since(&began), 60 * SECOND, "{wall}");
            assert_eq!(clock.since(&clock.here(&began)), since * SECOND, "{wall}");
        }
    }

    #[test]
    fn what_is_waited_for_after_a_reboot_is_not_waited_for_longer_than_was_meant() {
        let due = clock("a", 10_000, 100).after(HOUR);
        for (wall, wait) in [(0, Some(3540)), (10_060, Some(3540)), (13_000, Some(600)), (20_000, None)] {
            let clock = clock("b", wall, 60);
            let awaited = clock.awaited(&due, HOUR);
            assert_eq!(awaited.as_ref().map(|due| clock.until(due)), wait.map(|wait| wait * SECOND), "{wall}");
            // Remembered, it goes by this boot's clock.
            let Some(awaited) = awaited else { continue };
            let later = Clock { wall: Timestamp(0), steady: Steady(70_000), ..clock };
            assert_eq!(Some(later.until(&awaited)), wait.map(|wait| (wait - 10) * SECOND), "{wall}");
        }
    }

    #[test]
    fn what_is_waited_for_is_written_anew_only_where_that_says_more() {
        let due = clock("a", 10_000, 100).after(HOUR);
        let same = |wall, steady| clock("a", wall, steady).awaited(&due, HOUR).unwrap();
        assert_eq!(same(10_060, 160), due);
        assert_eq!(same(10_061, 160), due, "the clock was slewed");
        assert_eq!(same(90_000, 160).wall, Timestamp(93_540_000), "people are told when by the clock they see");
        assert_eq!(clock("a", 10_060, 160).until(&same(90_000, 160)), 3540 * SECOND);
        assert_eq!(clock("a", 0, 100).awaited(&due, SECOND).unwrap(), clock("a", 1, 101).now(), "a shorter wait");
        assert_eq!(clock("a", 0, 3_700).awaited(&due, HOUR), None);
    }

    #[test]
    fn moments_of_version_1_go_by_the_wall() {
        let old: Moment = serde_json::from_str("10000000").unwrap();
        assert_eq!(old, Moment { wall: Timestamp(10_000_000), reading: None });
        assert_eq!(clock("a", 10_007, 1).since(&old), 7 * SECOND);
        assert_eq!(clock("a", 9_000, 100).since(&old), Duration::ZERO);
        assert_eq!(clock("a", 9_000, 100).here(&old), clock("a", 9_000, 100).now());
        assert_eq!(clock("a", 9_000, 100).awaited(&old, SECOND), Some(clock("a", 9_001, 101).now()));
        assert_eq!(serde_json::to_string(&old).unwrap(), "10000000");
        let new = clock("a", 1, -2).now();
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(text, r#"{"wall":1000,"steady":-2000,"boot":"a"}"#);
        assert_eq!(serde_json::from_str::<Moment>(&text).unwrap(), new);
    }
}
