//! Why a workload is as it is, as a colleague would say it: from what is told of it and from what has happened to it.
//!
//! Decides nothing and looks nothing up: `plan` and `place` gave their reasons when they decided, and conditions and events kept them.

use crate::model::event::Event;
use crate::model::name::Name;
use crate::model::status::{Condition, ConditionKind, Phase, Status};
use crate::model::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Events that are told as what happened lately: what fits on a screen beside the rest.
const EVENTS_TOLD: usize = 5;
/// Earlier ends that are told; the status has more.
const ENDS_TOLD: usize = 3;
/// Events that say that it was moved, or had to go.
const MOVES: [&str; 2] = ["Moved", "Preempted"];

/// The whole story; `GET /v1/workloads/NAME/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub workload: Name,
    pub phase: Phase,
    pub sentences: Vec<Sentence>,
}

/// One sentence, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentence {
    pub about: About,
    pub says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    Phase,
    Waiting,
    Cpus,
    Gpus,
    Limits,
    Restarts,
    Manifest,
    Move,
    Lately,
}

/// Tells it. `events` are those of this workload, oldest first.
pub fn explain(status: &Status, events: &[Event]) -> Explanation {
    let mut sentences = vec![phase(status)];
    let mut say = |about, says: String| sentences.push(Sentence { about, says });
    if let Some(why) = waiting(status) {
        say(About::Waiting, why);
    }
    if let Some(placed) = status.condition(ConditionKind::Placed).filter(|placed| placed.status) {
        let cpus = if status.cpus.is_empty() { "its CPUs".to_owned() } else { format!("CPUs {}", status.cpus) };
        say(About::Cpus, format!("it has {cpus} by this rule: {}", placed.message));
    }
    if let Some(alone) = status.condition(ConditionKind::Exclusive) {
        let whether = if alone.status { "it has them alone" } else { "it does not have them quite alone" };
        say(About::Cpus, format!("{whether} ({}): {}", alone.reason, alone.message));
    }
    for lease in &status.gpus {
        let why = if lease.reason.is_empty() { String::new() } else { format!(" by this rule: {}", lease.reason) };
        say(About::Gpus, format!("it holds {lease}{why}; what keeps it to that: {}", lease.enforcement()));
    }
    for degraded in status.conditions.iter().filter(|found| found.kind == ConditionKind::Degraded && found.status) {
        say(
            About::Limits,
            format!("not as asked since {} ({}): {}", degraded.since, degraded.reason, degraded.message),
        );
    }
    if let Some(why) = restarts(status) {
        say(About::Restarts, why);
    }
    say(About::Manifest, manifest(status));
    let moved = events.iter().rev().find(|event| MOVES.contains(&event.reason.as_str()));
    if let Some(Event { reason, message, last, .. }) = moved {
        say(About::Move, format!("last moved at {last} ({reason}): {message}"));
    }
    for event in &events[events.len().saturating_sub(EVENTS_TOLD)..] {
        say(About::Lately, lately(event));
    }
    Explanation { workload: status.name.clone(), phase: status.phase, sentences }
}

fn phase(status: &Status) -> Sentence {
    let Status { name, kind, phase, .. } = status;
    let because = match (phase, status.condition(ConditionKind::Ready)) {
        (_, None) => "nothing more is known yet".to_owned(),
        (Phase::Running, Some(ready)) if ready.status => format!("ready since {}", ready.since),
        (Phase::Running, Some(ready)) => format!("not ready since {}: {}", ready.since, ready.message),
        (_, Some(ready)) => format!("since {}: {}", ready.since, ready.message),
    };
    let since = |started: Timestamp| format!(", started at {started}");
    let pid = status.pid.map(|pid| format!(" as pid {pid}")).unwrap_or_default();
    let started = status.started.map(since).unwrap_or_default();
    let says = format!("{name}, a {kind}, is {phase}{pid}{started}, {because}");
    Sentence { about: About::Phase, says }
}

/// What it lacks, if it waits for room or for its turn.
fn waiting(status: &Status) -> Option<String> {
    let placed = status.condition(ConditionKind::Placed).filter(|placed| !placed.status)?;
    let Condition { reason, message, since, .. } = placed;
    Some(format!("it cannot be placed since {since} ({reason}): {message}"))
}

fn restarts(status: &Status) -> Option<String> {
    let last = status.last_exit.as_ref()?;
    let again = match status.restarts {
        0 => "it was never started again after a failure".to_owned(),
        1 => "it was started again once after a failure".to_owned(),
        times => format!("it was started again {times} times after failures"),
    };
    let mut says = format!("{again}; its last run ended at {} with code {}: {}", last.at, last.code, last.message);
    for before in status.earlier_exits.iter().rev().take(ENDS_TOLD) {
        says += &format!("; before that at {} with code {}: {}", before.at, before.code, before.message);
    }
    Some(says)
}

fn manifest(status: &Status) -> String {
    let Status { manifest, revision, generation, observed_generation, .. } = status;
    let mut says = format!("it follows {manifest}, revision {revision}, generation {generation}");
    if status.pid.is_some() && observed_generation != generation {
        says += &format!(" (in force is {observed_generation})");
    }
    match status.condition(ConditionKind::Accepted).filter(|accepted| !accepted.status) {
        Some(refused) => format!("{says}; {}: {}", refused.reason, refused.message),
        None => says,
    }
}

fn lately(event: &Event) -> String {
    let Event { reason, message, count, last, .. } = event;
    let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
    format!("{last} {reason}{times}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::journal::{Changes, Journal};
    use crate::model::event::News;
    use serde_json::{Value, json};

    fn check(changes: &Value, events: Vec<News>) -> String {
        let at = |second: u64| Timestamp(second * 1000).to_string();
        let mut status = json!({
            "name": "web", "kind": "service", "group": "", "phase": "Running", "ready": true, "pid": 7, "restarts": 0,
            "lastExit": null, "cpus": "0-1", "memory": null, "gpus": [], "cgroup": "", "manifest": "web.yaml",
            "revision": "abc", "generation": 2, "observedGeneration": 2, "started": at(5), "command": [], "labels": {},
            "limits": {}, "conditions": [
                {"type": "Accepted", "status": true, "reason": "Current", "message": "web.yaml:1 is what runs", "since": at(1)},
                {"type": "Placed", "status": true, "reason": "Placed", "message": "smallest domain with room: core 0-1", "since": at(2)},
                {"type": "Ready", "status": true, "reason": "Running", "message": "pid 7", "since": at(6)},
            ],
        });
        for (key, value) in changes.as_object().unwrap() {
            status[key] = value.clone();
        }
        let journal = Journal::new(Vec::new());
        for (second, news) in (10..).zip(events) {
            journal.note(vec![news], Timestamp(second * 1000), &mut Changes::default());
        }
        let told = explain(&serde_json::from_value(status).unwrap(), &journal.after(0, None));
        told.sentences.iter().map(|sentence| format!("{:?}: {}\n", sentence.about, sentence.says)).collect()
    }

    #[test]
    fn a_run_is_told_with_its_place_its_ends_and_its_last_move() {
        let web: Name = "web".parse().unwrap();
        let ended = |second: u64, code| json!({"code": code, "message": format!("exited with code {code}"), "started": null, "at": Timestamp(second * 1000).to_string()});
        let changes = json!({"restarts": 2, "lastExit": ended(4, 3), "earlierExits": [ended(2, 9), ended(3, 1)],
            "gpus": [{"gpu": "GPU-0", "share": "whole"}], "observedGeneration": 1});
        insta::assert_snapshot!(check(&changes, vec![
            News::normal(&web, "Started", "pid 5"),
            News::normal(&web, "Preempted", "makes room for urgent, whose priority 5 is above its 0"),
            News::normal(&web, "Started", "pid 7"),
        ]), @"
        Phase: web, a service, is Running as pid 7, started at 1970-01-01T00:00:05.000Z, ready since 1970-01-01T00:00:06.000Z
        Cpus: it has CPUs 0-1 by this rule: smallest domain with room: core 0-1
        Gpus: it holds GPU-0 (whole); what keeps it to that: cooperative
        Restarts: it was started again 2 times after failures; its last run ended at 1970-01-01T00:00:04.000Z with code 3: exited with code 3; before that at 1970-01-01T00:00:03.000Z with code 1: exited with code 1; before that at 1970-01-01T00:00:02.000Z with code 9: exited with code 9
        Manifest: it follows web.yaml, revision abc, generation 2 (in force is 1)
        Move: last moved at 1970-01-01T00:00:11.000Z (Preempted): makes room for urgent, whose priority 5 is above its 0
        Lately: 1970-01-01T00:00:10.000Z Started: pid 5
        Lately: 1970-01-01T00:00:11.000Z Preempted: makes room for urgent, whose priority 5 is above its 0
        Lately: 1970-01-01T00:00:12.000Z Started: pid 7
        ");
    }

    #[test]
    fn who_waits_is_told_what_is_missing_and_what_would_fit() {
        let at = Timestamp(1000).to_string();
        let missing = "memory.request 6Gi does not fit: 12Gi of 16Gi are set aside for others (db 12Gi); 4Gi would fit, or stop db";
        let changes = json!({"phase": "Pending", "pid": null, "started": null, "cpus": "", "observedGeneration": 0, "conditions": [
            {"type": "Accepted", "status": false, "reason": "Refused", "message": "web.yaml:3:1: unknown field", "since": at},
            {"type": "Placed", "status": false, "reason": "InsufficientMemory", "message": missing, "since": at},
            {"type": "Ready", "status": false, "reason": "NotPlaced", "message": "waits for room", "since": at},
            {"type": "Degraded", "status": true, "reason": "NotHonoured", "message": "no cpu.idle here", "since": at},
        ]});
        insta::assert_snapshot!(check(&changes, Vec::new()), @"
        Phase: web, a service, is Pending, since 1970-01-01T00:00:01.000Z: waits for room
        Waiting: it cannot be placed since 1970-01-01T00:00:01.000Z (InsufficientMemory): memory.request 6Gi does not fit: 12Gi of 16Gi are set aside for others (db 12Gi); 4Gi would fit, or stop db
        Limits: not as asked since 1970-01-01T00:00:01.000Z (NotHonoured): no cpu.idle here
        Manifest: it follows web.yaml, revision abc, generation 2; Refused: web.yaml:3:1: unknown field
        ");
    }
}
