//! What is particular to jobs: `timeout`, `retries` and `schedule`.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::tree::Value;
use crate::model::job::{Concurrency, Job, Missed, Schedule, ScheduleError};
use crate::model::spec::{Kind, Restart, RestartPolicy};
use crate::model::time::Timestamp;
use crate::model::units::Limit;
use std::time::Duration;

pub const SCHEDULE: Schema =
    Schema { fields: &["cron", "timeZone", "missed", "concurrency", "startingDeadline"], later: &[] };

/// More tries than this are as good as `max`: at five minutes each it is a lifetime.
const RETRIES_MAX: u32 = 1_000_000;

/// Reads the fields of a job, and refuses them for a service.
pub fn job(map: &Map<'_>, kind: Kind, restart: &Restart, problems: &mut Problems) -> Job {
    if kind == Kind::Service {
        for key in ["timeout", "retries", "schedule"] {
            if let Some(field) = map.get(key, problems) {
                let help = "delete the line, or write `kind: job`; `restart` says what follows when a service ends";
                problems.error(field.at(), format!("{key} is for jobs, and this is a service"), help);
            }
        }
        return Job::default();
    }
    let timeout = map.get("timeout", problems).and_then(|field| timeout(&field, problems));
    let retries = map.get("retries", problems).and_then(|field| retries(&field, restart, problems));
    let schedule = map.get("schedule", problems).and_then(|field| schedule(&field, problems));
    Job { timeout, retries: retries.unwrap_or_default(), schedule }
}

fn timeout(field: &Field<'_>, problems: &mut Problems) -> Option<Duration> {
    let timeout = field.duration(problems)?;
    if timeout.is_zero() {
        field.wrong("more than nothing", "write for example `timeout: 1h`, or delete the line for no bound", problems);
        return None;
    }
    Some(timeout)
}

fn retries(field: &Field<'_>, restart: &Restart, problems: &mut Problems) -> Option<Limit<u32>> {
    let retries = match &field.node.value {
        Value::Scalar { text, .. } if text == "max" => Limit::Max,
        _ => Limit::At(field.integer(0..=RETRIES_MAX, problems)?),
    };
    if restart.policy == RestartPolicy::Never && retries != Limit::At(0) {
        field.wrong(
            "0 beside `restart: never`",
            "delete one of the two lines; jobs are retried `on-failure`",
            problems,
        );
    }
    Some(retries)
}

fn schedule(field: &Field<'_>, problems: &mut Problems) -> Option<Schedule> {
    let mut schedule = Schedule {
        cron: String::new(),
        time_zone: "UTC".to_owned(),
        missed: Missed::RunOnce,
        concurrency: Concurrency::Forbid,
        starting_deadline: None,
    };
    if !matches!(field.node.value, Value::Map(_)) {
        field.text(problems)?.clone_into(&mut schedule.cron);
        check(field, None, &schedule, problems);
        return Some(schedule);
    }
    let map = Map::open(field.node, "schedule.", &SCHEDULE, problems)?;
    let Some(cron) = map.get("cron", problems) else {
        let help = "write minute, hour, day, month and weekday, for example `cron: \"0 3 * * *\"`";
        problems.error(map.at(), "schedule.cron is missing", help);
        return None;
    };
    cron.text(problems)?.clone_into(&mut schedule.cron);
    let zone = map.get("timeZone", problems);
    if let Some(zone) = &zone {
        zone.text(problems)?.clone_into(&mut schedule.time_zone);
    }
    if let Some(field) = map.get("missed", problems) {
        schedule.missed = field.one_of(&[("run-once", Missed::RunOnce), ("skip", Missed::Skip)], problems)?;
    }
    if let Some(field) = map.get("concurrency", problems) {
        schedule.concurrency = concurrency(&field, problems)?;
    }
    schedule.starting_deadline = map.get("startingDeadline", problems).and_then(|field| field.duration(problems));
    check(&cron, zone.as_ref(), &schedule, problems);
    Some(schedule)
}

fn concurrency(field: &Field<'_>, problems: &mut Problems) -> Option<Concurrency> {
    if matches!(&field.node.value, Value::Scalar { text, .. } if text == "allow") {
        field.wrong(
            "forbid or replace",
            "a name stands for one run at a time; give runs that may overlap a name each",
            problems,
        );
        return None;
    }
    field.one_of(&[("forbid", Concurrency::Forbid), ("replace", Concurrency::Replace)], problems)
}

/// Whether there is such a time. From a fixed day, because a manifest means the same whenever it is read.
fn check(cron: &Field<'_>, zone: Option<&Field<'_>>, schedule: &Schedule, problems: &mut Problems) {
    const SOME_DAY: Timestamp = Timestamp(1_767_225_600_000);
    let Err(reason) = schedule.next_after(SOME_DAY) else { return };
    let (field, help) = match (&reason, zone) {
        (ScheduleError::TimeZone, Some(zone)) => (zone, "write a name such as `Europe/Berlin` or `UTC`"),
        _ => (cron, "write minute, hour, day of month, month and day of week, for example `\"0 3 * * *\"`"),
    };
    let shown = if matches!(reason, ScheduleError::TimeZone) { &schedule.time_zone } else { &schedule.cron };
    problems.error(field.at(), format!("{} is `{}`, which {reason}", field.name, shown.escape_debug()), help);
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse;
    use crate::model::job::Job;

    fn job(more: &str) -> Job {
        let parsed = parse("job.yaml", format!("command: a\nkind: job\n{more}").as_bytes());
        assert_eq!(parsed.diagnostics, []);
        parsed.workloads[0].0.job.clone()
    }

    fn wrong(text: &str) -> String {
        let parsed = parse("job.yaml", format!("command: a\n{text}").as_bytes());
        parsed.diagnostics.iter().map(|found| format!("{found}\n")).collect()
    }

    #[test]
    fn jobs_have_bounds_and_times() {
        assert_eq!(job(""), Job::default());
        insta::assert_snapshot!(format!("{:?}", job("timeout: 1h\nretries: 3\nschedule: '*/5 * * * *'")), @r#"Job { timeout: Some(3600s), retries: At(3), schedule: Some(Schedule { cron: "*/5 * * * *", time_zone: "UTC", missed: RunOnce, concurrency: Forbid, starting_deadline: None }) }"#);
        assert_eq!(job("retries: max"), Job::default());
        insta::assert_snapshot!(
            format!("{:?}", job("schedule: {cron: '@daily', timeZone: Europe/Berlin, missed: skip, concurrency: replace, startingDeadline: 5m}")),
            @r#"Job { timeout: None, retries: Max, schedule: Some(Schedule { cron: "@daily", time_zone: "Europe/Berlin", missed: Skip, concurrency: Replace, starting_deadline: Some(300s) }) }"#
        );
    }

    #[test]
    fn a_service_has_none_of_it() {
        insta::assert_snapshot!(wrong("timeout: 1h\nretries: 3\nschedule: '@daily'"), @"
        job.yaml:2:10: timeout is for jobs, and this is a service
          help: delete the line, or write `kind: job`; `restart` says what follows when a service ends
        job.yaml:3:10: retries is for jobs, and this is a service
          help: delete the line, or write `kind: job`; `restart` says what follows when a service ends
        job.yaml:4:11: schedule is for jobs, and this is a service
          help: delete the line, or write `kind: job`; `restart` says what follows when a service ends
        ");
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        insta::assert_snapshot!(wrong("kind: job\ntimeout: 0s\nretries: -1\nschedule: 5 * * *"), @r#"
        job.yaml:3:10: timeout is `0s`, expected more than nothing
          help: write for example `timeout: 1h`, or delete the line for no bound
        job.yaml:4:10: retries is `-1`, expected 0..=1000000
          help: write a whole number from 0 to 1000000
        job.yaml:5:11: schedule is `5 * * *`, which is no cron expression: Invalid pattern: Pattern must have 5 or 6 fields when years are disallowed
          help: write minute, hour, day of month, month and day of week, for example `"0 3 * * *"`
        "#);
        insta::assert_snapshot!(wrong("kind: job\nrestart: never\nretries: 2\nschedule: {timeZone: UTC}"), @r#"
        job.yaml:4:10: retries is `2`, expected 0 beside `restart: never`
          help: delete one of the two lines; jobs are retried `on-failure`
        job.yaml:5:11: schedule.cron is missing
          help: write minute, hour, day, month and weekday, for example `cron: "0 3 * * *"`
        "#);
        insta::assert_snapshot!(wrong("kind: job\nschedule: {cron: 0 3 * * *, timeZone: Berlin}"), @"
        job.yaml:3:39: schedule.timeZone is `Berlin`, which is no time zone of the IANA database
          help: write a name such as `Europe/Berlin` or `UTC`
        ");
        insta::assert_snapshot!(wrong("kind: job\nschedule: {cron: 0 0 31 2 *, missed: all, concurrency: allow}"), @"
        job.yaml:3:38: schedule.missed is `all`, expected one of run-once, skip
          help: known here: run-once, skip
        ");
        insta::assert_snapshot!(wrong("kind: job\nschedule: {cron: 0 3 * * *, concurrency: allow}"), @"
        job.yaml:3:42: schedule.concurrency is `allow`, expected forbid or replace
          help: a name stands for one run at a time; give runs that may overlap a name each
        ");
        insta::assert_snapshot!(wrong("kind: job\nschedule: {cron: 0 0 31 2 *}"), @r#"
        job.yaml:3:18: schedule.cron is `0 0 31 2 *`, which is a time that never comes
          help: write minute, hour, day of month, month and day of week, for example `"0 3 * * *"`
        "#);
    }
}
