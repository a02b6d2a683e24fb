//! Since when a condition is what it is, where this controller has not seen it become so.
//!
//! Problem: a controller that starts finds everything as an earlier one left it. To call all of that new would tell people that a service
//! that has run for a month has been ready for a minute.
//! Approach: what the record and the run themselves date is taken from there: the run's own beginning, its last end, the stop that was begun.
//! Guarantees: never later than now, never earlier than what it is read from. What nothing dates (a refused manifest, a probe's word, a
//! wait for room) counts from this controller's first look; no record is written for it.

use crate::model::observed::Instance;
use crate::model::record::{Record, Stopping};
use crate::model::status::ConditionKind;
use crate::model::time::Timestamp;
use crate::plan::Finding;

/// When it became so, as far as anything tells.
pub fn remembered(
    finding: &Finding,
    record: &Record,
    instance: Option<&Instance>,
    now: Timestamp,
) -> Option<Timestamp> {
    let ended = || record.last_exit.as_ref().map(|exit| exit.at);
    let begun = || record.begun.as_ref().map(|begun| begun.wall);
    // What a run was started from was accepted, at the latest, when it was.
    let started_as = instance.and_then(|instance| instance.record.as_ref());
    let is_what_was_started = || started_as.is_some_and(|started| started.generation == record.generation);
    let told = match (finding.kind, finding.status, finding.reason) {
        (ConditionKind::Ready, true, "Running") => instance.and_then(|instance| instance.started),
        (ConditionKind::Ready, false, "Ended" | "BackOff" | "NotStarted" | "Finished") => ended(),
        (ConditionKind::Ready, false, "Starting") | (ConditionKind::Placed, true, "Placed") => begun(),
        (ConditionKind::Ready, false, "Stopping") => record.stopping.as_ref().map(|Stopping { since, .. }| since.wall),
        (ConditionKind::Ready, false, "Killed") => {
            record.stopping.as_ref().and_then(|stopping| stopping.killed.as_ref()).map(|killed| killed.wall)
        }
        (ConditionKind::Accepted, true, "Current") if is_what_was_started() => begun(),
        (ConditionKind::Accepted, false, "RolledBack") => record.refused.as_ref().map(|refused| refused.at.wall),
        _ => None,
    };
    // The clock may have been set back since.
    told.map(|told| told.min(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;
    use crate::model::clock::Moment;
    use crate::model::exit::{Exit, Outcome};
    use crate::model::observed::Life;
    use std::sync::Arc;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn record() -> Record {
        let parsed = parse("web.yaml", b"command: serve");
        let (spec, origin) = parsed.workloads[0].clone();
        let at = |wall| Moment { wall: Timestamp(wall), reading: None };
        let exit = Exit { instance: 1, outcome: Outcome::Exited { code: 3 }, started: None, at: Timestamp(400) };
        let stopping = Stopping { killed: Some(at(900)), ..Stopping::by_asking(at(800), String::new()) };
        let record = Record::new(Arc::clone(&spec), origin);
        Record { begun: Some(at(500)), last_exit: Some(exit), stopping: Some(stopping), instance: 2, ..record }
    }

    fn since(kind: ConditionKind, status: bool, reason: &'static str, record: &Record) -> Option<u64> {
        let started_as = Record { stopping: None, ..self::record() };
        let life = Life::Running { pid: 7 };
        let started = Some(Timestamp(510));
        let instance = Instance { number: 2, record: Some(started_as), started, began: None, life };
        let finding = Finding { kind, status, reason, message: String::new() };
        remembered(&finding, record, Some(&instance), NOW).map(|at| at.0)
    }

    #[test]
    fn what_the_record_and_the_run_date_is_taken_from_there() {
        let record = record();
        assert_eq!(since(ConditionKind::Ready, true, "Running", &record), Some(510), "the command's own start");
        assert_eq!(since(ConditionKind::Ready, false, "BackOff", &record), Some(400), "the end it waits after");
        assert_eq!(since(ConditionKind::Ready, false, "Stopping", &record), Some(800));
        assert_eq!(since(ConditionKind::Ready, false, "Killed", &record), Some(900));
        assert_eq!(since(ConditionKind::Accepted, true, "Current", &record), Some(500));
    }

    #[test]
    fn what_nothing_dates_counts_from_the_first_look() {
        let edited = Record { generation: 2, ..record() };
        assert_eq!(
            since(ConditionKind::Accepted, true, "Current", &edited),
            None,
            "accepted while it ran, nobody knows when"
        );
        assert_eq!(since(ConditionKind::Accepted, false, "Refused", &record()), None);
        assert_eq!(since(ConditionKind::Ready, false, "NotPlaced", &record()), None);
    }

    #[test]
    fn a_clock_that_was_set_back_dates_nothing_in_the_future() {
        let begun = Moment { wall: Timestamp(NOW.0 + 5), reading: None };
        let later = Record { begun: Some(begun), ..record() };
        assert_eq!(since(ConditionKind::Placed, true, "Placed", &later), Some(NOW.0));
    }
}
