//! What is particular to jobs: how long, how often, and when.

use super::time::Timestamp;
use super::units::Limit;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest a `missed: skip` run may be late if the manifest does not say: a pass, a restart of the controller or a moment without
/// room must not lose a run, and nobody calls a run of a minute ago missed.
const PROMPT: Duration = Duration::from_mins(1);

/// The bounds of a job's task. A service has none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// From the start of the command; then it is stopped, and that run has failed.
    pub timeout: Option<Duration>,
    /// Failed runs that are followed by another try.
    pub retries: Limit<u32>,
    pub schedule: Option<Schedule>,
}

/// When a job is to run, again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Five fields, or six with seconds in front, or a nickname such as `@daily`. Kept as it is written, so that a record outlives the
    /// library that reads it.
    pub cron: String,
    /// A name of the IANA database.
    pub time_zone: String,
    pub missed: Missed,
    pub concurrency: Concurrency,
    /// A run that could not start this long after its time is left out.
    pub starting_deadline: Option<Duration>,
}

/// What becomes of times that passed while nothing could be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missed {
    /// One run makes up for all of them.
    RunOnce,
    /// They are gone.
    Skip,
}

/// What happens if the time comes while the run before goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concurrency {
    /// The new run is left out.
    Forbid,
    /// The old run is stopped, then the new one starts.
    Replace,
}

/// Why a schedule cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("is no cron expression: {0}")]
    Cron(String),
    #[error("is no time zone of the IANA database")]
    TimeZone,
    #[error("is a time that never comes")]
    Never,
}

impl Schedule {
    /// How late a run may start, if that has a bound.
    pub fn tolerance(&self) -> Option<Duration> {
        match (self.starting_deadline, self.missed) {
            (Some(deadline), _) => Some(deadline),
            (None, Missed::Skip) => Some(PROMPT),
            (None, Missed::RunOnce) => None,
        }
    }

    /// The first time of the schedule after `after`. A time of day that a change of the clock leaves out counts as the first moment after
    /// the gap, one that comes twice counts once; intervals (`*/5`) go by the clock on the wall, in both passes of a repeated hour.
    pub fn next_after(&self, after: Timestamp) -> Result<Timestamp, ScheduleError> {
        let zone = zone(&self.time_zone)?;
        let cron = parse(&self.cron)?;
        let millis = i64::try_from(after.0).map_err(|_| ScheduleError::Never)?;
        let after = jiff::Timestamp::from_millisecond(millis).map_err(|_| ScheduleError::Never)?.to_zoned(zone);
        let next = cron.find_next_occurrence(&after, false).map_err(|_| ScheduleError::Never)?;
        u64::try_from(next.timestamp().as_millisecond()).map(Timestamp).map_err(|_| ScheduleError::Never)
    }
}

/// A time zone out of the program itself: no file is read.
fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    TimeZone::get(name).map_err(|_| ScheduleError::TimeZone)
}

/// Expressions that have been read, so that a pass over many schedules reads none anew. As many as a host has that is run by the calendar.
const READ_MAX: usize = 64;

thread_local! {
    static READ: RefCell<BTreeMap<String, Cron>> = const { RefCell::new(BTreeMap::new()) };
}

fn parse(text: &str) -> Result<Cron, ScheduleError> {
    let known = READ.with_borrow(|read| read.get(text).cloned());
    if let Some(cron) = known {
        return Ok(cron);
    }
    let cron = parse_anew(text)?;
    READ.with_borrow_mut(|read| {
        if read.len() >= READ_MAX {
            read.clear();
        }
        read.insert(text.to_owned(), cron.clone());
    });
    Ok(cron)
}

fn parse_anew(text: &str) -> Result<Cron, ScheduleError> {
    // Both a day of the month and a day of the week: either, as cron has always read it.
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).dom_and_dow(false).build();
    parser.parse(text).map_err(|error| ScheduleError::Cron(error.to_string().trim_end_matches('.').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(cron: &str, zone: &str, from: &str, count: usize) -> String {
        let schedule = Schedule {
            cron: cron.to_owned(),
            time_zone: zone.to_owned(),
            missed: Missed::RunOnce,
            concurrency: Concurrency::Forbid,
            starting_deadline: None,
        };
        let mut at = Timestamp::parse(from).unwrap();
        let mut shown = String::new();
        for _ in 0..count {
            match schedule.next_after(at) {
                Ok(next) => {
                    assert!(next > at, "{cron}: {next} is not after {at}");
                    at = next;
                    shown += &format!("{}\n", at.to_string().replace(":00.000Z", "Z"));
                }
                Err(error) => return format!("{error}\n"),
            }
        }
        shown
    }

    #[test]
    fn times_are_those_of_the_wall_clock_where_the_schedule_says() {
        insta::assert_snapshot!(times("30 9 * * 1-5", "America/New_York", "2026-07-03T00:00:00Z", 3), @"
        2026-07-03T13:30Z
        2026-07-06T13:30Z
        2026-07-07T13:30Z
        ");
        insta::assert_snapshot!(times("*/20 * * * * *", "UTC", "2026-01-01T00:00:05Z", 3), @"
        2026-01-01T00:00:20.000Z
        2026-01-01T00:00:40.000Z
        2026-01-01T00:01Z
        ");
        insta::assert_snapshot!(times("@monthly", "Asia/Kolkata", "2026-01-15T00:00:00Z", 2), @"
        2026-01-31T18:30Z
        2026-02-28T18:30Z
        ");
        insta::assert_snapshot!(times("0 0 29 2 *", "UTC", "2026-01-15T00:00:00Z", 2), @"
        2028-02-29T00:00Z
        2032-02-29T00:00Z
        ");
    }

    #[test]
    fn a_time_the_clock_leaves_out_comes_right_after_the_gap() {
        // Berlin, 29 March 2026: 02:00 becomes 03:00 at 01:00Z.
        insta::assert_snapshot!(times("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3), @"
        2026-03-28T01:30Z
        2026-03-29T01:00Z
        2026-03-30T00:30Z
        ");
        insta::assert_snapshot!(times("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:15:00Z", 3), @"
        2026-03-29T00:30Z
        2026-03-29T01:00Z
        2026-03-29T01:30Z
        ");
    }

    #[test]
    fn a_time_that_comes_twice_counts_once_and_intervals_go_on() {
        // Berlin, 25 October 2026: 03:00 becomes 02:00 at 01:00Z.
        insta::assert_snapshot!(times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2), @"
        2026-10-25T00:30Z
        2026-10-26T01:30Z
        ");
        insta::assert_snapshot!(times("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 5), @"
        2026-10-25T00:00Z
        2026-10-25T00:30Z
        2026-10-25T01:00Z
        2026-10-25T01:30Z
        2026-10-25T02:00Z
        ");
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        insta::assert_snapshot!(times("61 * * * *", "UTC", "2026-01-01T00:00:00Z", 1), @"is no cron expression: Component error: Number out of bounds");
        insta::assert_snapshot!(times("* * *", "UTC", "2026-01-01T00:00:00Z", 1), @"is no cron expression: Invalid pattern: Pattern must have 5 or 6 fields when years are disallowed");
        insta::assert_snapshot!(times("0 3 * * *", "Mars/Olympus", "2026-01-01T00:00:00Z", 1), @"is no time zone of the IANA database");
        insta::assert_snapshot!(times("0 0 30 2 *", "UTC", "2026-01-01T00:00:00Z", 1), @"is a time that never comes");
    }
}
