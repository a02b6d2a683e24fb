//! What is worth telling: transitions, not passes. They go to the log as they happen and to the journal for those who ask later.

use super::journal::Changes;
use super::report::Snapshot;
use super::{Controller, Done, Job};
use crate::host::chain;
use crate::manifest::diagnostic::{self, Diagnostic};
use crate::model::event::{Event, News, Severity};
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::model::record::Record;
use crate::model::status::{ConditionKind, Phase, Status};
use crate::plan::{HOST_BUSY, PREEMPTED};
use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

impl Controller {
    /// Notes what has happened in the journal. The database gets it when nobody waits for it any more.
    pub(super) fn note(&mut self, news: Vec<News>) {
        self.journal.note(news, self.host.now(), &mut self.unsaved);
    }

    /// Notes it, and logs it.
    pub(super) fn tell(&mut self, news: Vec<News>) {
        for News { severity, workload, reason, message, run: _ } in &news {
            let workload = workload.as_ref().map_or("", Name::as_str);
            match severity {
                Severity::Normal => tracing::info!(workload, reason, message, "event"),
                Severity::Warning => tracing::warn!(workload, reason, message, "event"),
            }
        }
        self.note(news);
    }

    /// Gives the database what has been noted, on a thread, one batch at a time.
    pub(super) fn save_events(&mut self) {
        if self.saving || self.unsaved.is_empty() {
            return;
        }
        self.saving = true;
        let Changes { put, remove } = mem::take(&mut self.unsaved);
        let store = Arc::clone(&self.store);
        self.on_thread(Job::Save, move || {
            if let Err(error) = store.keep_events(&put, &remove) {
                tracing::error!(error = %chain(&error), "cannot keep events: they are lost with this controller");
            }
            Done::Saved
        });
    }
}

/// Logs what has changed between two passes: phases, and findings about manifests.
pub fn log(before: &Snapshot, after: &Snapshot) {
    for (name, status) in &after.statuses {
        if before.statuses.get(name).is_none_or(|known| known.phase != status.phase) {
            let ready = status.condition(ConditionKind::Ready);
            let why = ready.map_or("", |ready| ready.message.as_str());
            tracing::info!(workload = %name, phase = %status.phase, generation = status.generation, why, "phase");
        }
    }
    for found in after.diagnostics.iter().filter(|found| !before.diagnostics.contains(found)) {
        let Diagnostic { path, line, column, severity, message, help } = found;
        let at = format!("{path}:{line}:{column}");
        match severity {
            diagnostic::Severity::Error => tracing::error!(at, found = message, help, "manifest refused"),
            diagnostic::Severity::Warning => tracing::warn!(at, found = message, help, "manifest doubtful"),
            diagnostic::Severity::Info => tracing::info!(at, found = message, help, "manifest not for this host"),
        }
    }
}

/// Up to which run the ends of each workload have been told. A new life of a name counts its runs anew, and it is forgotten in between.
pub type Told = BTreeMap<Name, u64>;

/// What the controllers before this one have told: by the events they have kept, or where none is left that says so, by what they have
/// recorded. An end whose event was lost with its controller is told by the next.
pub fn told(records: &BTreeMap<Name, Record>, observed: &BTreeMap<Name, Observed>, events: &[Event]) -> Told {
    let mut by_events = Told::new();
    for Event { workload, reason, run, .. } in events {
        let Some(name) = workload else { continue };
        match (reason.as_str(), run) {
            (ENDED, Some(run)) => {
                by_events.insert(name.clone(), *run);
            }
            (REMOVED, _) => {
                by_events.remove(name);
            }
            _ => {}
        }
    }
    let names = records.keys().chain(observed.keys());
    let told = |name: &Name| {
        let seen = observed.get(name).and_then(|seen| seen.instance.as_ref());
        let record = records.get(name).or(seen.and_then(|instance| instance.record.as_ref()));
        let recorded = record.and_then(|record| record.last_exit.as_ref()).map_or(0, |exit| exit.instance);
        // An event may be ahead of the record. Beyond all that is known of, it is about a life whose record was lost.
        let given = record.map_or(0, |record| record.instance);
        let newest = seen.map_or(0, |instance| instance.number).max(recorded).max(given);
        by_events.get(name).copied().filter(|run| *run <= newest).unwrap_or(recorded)
    };
    names.map(|name| (name.clone(), told(name))).collect()
}

const ENDED: &str = "Ended";
const REMOVED: &str = "Removed";

/// The events between two passes.
pub fn between(before: &Snapshot, after: &Snapshot, told: &mut Told) -> Vec<News> {
    let mut news = Vec::new();
    for (name, status) in &after.statuses {
        match before.statuses.get(name) {
            // The same value: nothing has happened to it.
            Some(known) if Arc::ptr_eq(known, status) => {}
            // What ran before this controller did was told by the one before, but perhaps not what it had ended before that.
            None if before.statuses.is_empty() && status.pid.is_some() => ended(status, told, &mut news),
            known => changed(known.map(AsRef::as_ref), status, told, &mut news),
        }
    }
    for (name, _) in before.statuses.iter().filter(|(name, _)| !after.statuses.contains_key(*name)) {
        told.remove(name);
        news.push(News::normal(name, REMOVED, "nothing is left of it"));
    }
    for found in after.diagnostics.iter().filter(|found| !before.diagnostics.contains(found)) {
        let (severity, reason) = match found.severity {
            diagnostic::Severity::Error => (Severity::Warning, "ManifestRefused"),
            diagnostic::Severity::Warning => (Severity::Warning, "ManifestDoubtful"),
            diagnostic::Severity::Info => (Severity::Normal, "ManifestNotForUs"),
        };
        let Diagnostic { path, line, column, message, .. } = found;
        news.push(News { severity, ..News::of_host(reason, format!("{path}:{line}:{column}: {message}")) });
    }
    match (&before.folder_error, &after.folder_error) {
        (None, Some(error)) => news.push(News::of_host("FolderUnusable", error.clone())),
        (Some(_), None) => {
            news.push(News {
                severity: Severity::Normal,
                ..News::of_host("FolderBack", "the manifests folder can be used again")
            });
        }
        _ => {}
    }
    news
}

/// Each end that has not been told yet.
fn ended(now: &Status, told: &mut Told, news: &mut Vec<News>) {
    let known = told.entry(now.name.clone()).or_insert(0);
    for exit in now.earlier_exits.iter().chain(&now.last_exit) {
        if exit.run > *known {
            *known = exit.run;
            let tell = if exit.code == 0 { News::normal } else { News::warning };
            news.push(News { run: Some(exit.run), ..tell(&now.name, ENDED, exit.message.clone()) });
        }
    }
}

/// What has happened to one workload.
fn changed(before: Option<&Status>, now: &Status, told: &mut Told, news: &mut Vec<News>) {
    let name = &now.name;
    if before.is_none_or(|before| before.generation != now.generation) {
        news.push(News::normal(name, "Accepted", format!("generation {} of {}", now.generation, now.manifest)));
    }
    ended(now, told, news);
    let is_told =
        |status: &Status, word| status.condition(ConditionKind::Ready).is_some_and(|ready| ready.reason == word);
    let is_held_up = |status: &Status| is_told(status, HOST_BUSY);
    if is_held_up(now) && !before.is_some_and(is_held_up) {
        // Whoever waits for a job to start looks for this in vain among what is wrong with it.
        let why = now.condition(ConditionKind::Ready).map_or("", |ready| ready.message.as_str());
        news.push(News::normal(name, HOST_BUSY, why));
    } else if before.map(|before| (before.phase, before.pid)) != Some((now.phase, now.pid)) {
        let why = now.condition(ConditionKind::Ready).map_or("", |ready| ready.message.as_str());
        let text = if why.is_empty() { now.phase.to_string() } else { why.to_owned() };
        match now.phase {
            // On the way, and told where it leads to.
            Phase::Starting => {}
            Phase::Running => {
                let pid = now.pid.map_or_else(String::new, |pid| format!("pid {pid}"));
                news.push(News::normal(name, "Started", pid));
            }
            Phase::Failed => news.push(News::warning(name, "Failed", text)),
            Phase::Pending => news.push(News::normal(name, "Pending", text)),
            Phase::Stopping if is_told(now, PREEMPTED) => news.push(News::normal(name, PREEMPTED, text)),
            Phase::Stopping => news.push(News::normal(name, "Stopping", text)),
            Phase::Completed => news.push(News::normal(name, "Completed", text)),
            Phase::Suspended => news.push(News::normal(name, "Suspended", text)),
        }
    }
    let wrong = |status: &Status| {
        let of = status.conditions.iter().filter(|condition| match condition.kind {
            ConditionKind::Degraded => condition.status,
            ConditionKind::Accepted | ConditionKind::Placed => !condition.status,
            // Told below if it was otherwise: where a host has no means for it, every start would say so.
            ConditionKind::Ready | ConditionKind::Exclusive => false,
        });
        of.map(|condition| (condition.kind, condition.reason.clone(), condition.message.clone())).collect::<Vec<_>>()
    };
    let (earlier, later) = (before.map(wrong).unwrap_or_default(), wrong(now));
    for (kind, reason, message) in later.iter().filter(|found| !earlier.contains(found)) {
        news.push(News::warning(name, kind.when_wrong(), format!("{reason}: {message}")));
    }
    for (kind, reason, _) in
        earlier.iter().filter(|(kind, reason, _)| !later.iter().any(|(k, r, _)| (k, r) == (kind, reason)))
    {
        news.push(News::normal(name, "Mended", format!("no longer {} ({reason})", kind.when_wrong())));
    }
    let alone = |status: &Status| status.condition(ConditionKind::Exclusive).map(|condition| condition.status);
    if let (Some(Some(true)), Some(open)) = (before.map(alone), now.condition(ConditionKind::Exclusive))
        && !open.status
    {
        news.push(News::warning(name, open.kind.when_wrong(), format!("{}: {}", open.reason, open.message)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;
    use crate::model::exit::{Exit, Outcome};
    use crate::model::time::Timestamp;
    use serde_json::json;

    fn status(phase: &str, ready: (&str, &str), last_exit: Option<u64>) -> Status {
        let time = |at: u64| Timestamp(at).to_string();
        let exit =
            last_exit.map(|at| json!({"run": at, "code": 137, "message": "ended", "started": null, "at": time(at)}));
        let (reason, message) = ready;
        serde_json::from_value(json!({
            "name": "web", "kind": "job", "group": "", "phase": phase, "ready": false, "pid": null, "restarts": 0,
            "lastExit": exit, "cpus": "", "memory": null, "gpus": [], "cgroup": "", "manifest": "web.yaml",
            "revision": "", "generation": 1, "observedGeneration": 0, "started": null, "command": [], "labels": {},
            "conditions": [{"type": "Ready", "status": false, "reason": reason, "message": message, "since": time(0)}],
            "limits": {},
        }))
        .unwrap()
    }

    /// What is told by the second status after the first, or first of all.
    fn told_by(before: Option<Status>, now: Status, told: Option<u64>) -> Vec<String> {
        let snapshot = |status: Option<Status>| {
            let statuses = status.map(|status| (status.name.clone(), Arc::new(status))).into_iter().collect();
            Snapshot { statuses, ..Snapshot::default() }
        };
        let mut told = told.map(|run| (now.name.clone(), run)).into_iter().collect();
        let news = between(&snapshot(before), &snapshot(Some(now)), &mut told);
        news.iter().map(|news| format!("{}: {}", news.reason, news.message)).collect()
    }

    #[test]
    fn a_job_that_begins_to_wait_for_a_quieter_host_is_told_once() {
        let busy = |message| status("Pending", (HOST_BUSY, message), None);
        let other = || status("Pending", ("Ended", "exited with code 1"), None);
        assert_eq!(told_by(None, busy("90 %"), None), ["Accepted: generation 1 of web.yaml", "HostBusy: 90 %"]);
        assert_eq!(told_by(Some(other()), busy("90 %"), None), ["HostBusy: 90 %"], "it was pending before");
        assert_eq!(told_by(Some(busy("90 %")), busy("91 %"), None), [""; 0]);
    }

    #[test]
    fn an_end_that_nobody_has_told_is_told_by_the_controller_that_finds_it() {
        let now = || status("Pending", ("BackOff", "waits"), Some(7));
        let first = ["Accepted: generation 1 of web.yaml", "Ended: ended", "Pending: waits"];
        assert_eq!(told_by(None, now(), None), first);
        assert_eq!(told_by(None, now(), Some(6)), first, "the one before was told by the controller before");
        assert_eq!(told_by(None, now(), Some(7)), [first[0], first[2]]);
        assert_eq!(told_by(Some(now()), now(), Some(7)), [""; 0]);
        assert_eq!(told_by(Some(now()), status("Pending", ("BackOff", "waits"), Some(8)), Some(7)), ["Ended: ended"]);
    }

    #[test]
    fn each_end_is_told_once_however_many_there_were() {
        let exit = |run| status("Pending", ("", ""), Some(run)).last_exit.unwrap();
        let now = || Status { earlier_exits: vec![exit(5), exit(6)], ..status("Running", ("", ""), Some(7)) };
        assert_eq!(told_by(None, now(), Some(7)), ["Accepted: generation 1 of web.yaml", "Started: "]);
        assert_eq!(told_by(None, now(), Some(5))[1..3], ["Ended: ended", "Ended: ended"]);
        // It runs again as a controller begins that has nothing else to tell of it.
        let runs = Status { pid: Some(9), ..now() };
        assert_eq!(told_by(None, runs, Some(6)), ["Ended: ended"]);
    }

    #[test]
    fn what_the_last_controller_has_told_is_known_by_its_events() {
        let web: Name = "web".parse().unwrap();
        let records = |recorded| {
            let (spec, origin) = parse("web.yaml", b"command: a").workloads.remove(0);
            let exit = Exit { instance: recorded, outcome: Outcome::Lost, started: None, at: Timestamp(0) };
            [(web.clone(), Record { last_exit: Some(exit), ..Record::new(spec, origin) })].into()
        };
        let event = |reason: &str, run| {
            let (workload, reason) = (Some("web".parse().unwrap()), reason.to_owned());
            let (severity, message, at) = (Severity::Normal, String::new(), Timestamp(0));
            Event { sequence: 1, severity, workload, reason, message, run, count: 1, first: at, last: at }
        };
        let known = |recorded, events: &[Event]| told(&records(recorded), &BTreeMap::new(), events)[&web];
        assert_eq!(known(7, &[]), 7, "events that have scrolled away told of it");
        assert_eq!(known(7, &[event("Ended", Some(6))]), 6, "the event of the last end was lost");
        assert_eq!(known(7, &[event("Ended", None)]), 7, "an event of an older version");
        assert_eq!(known(1, &[event("Ended", Some(6)), event("Removed", None)]), 1, "another life");
        assert_eq!(known(1, &[event("Ended", Some(6))]), 1, "a life whose record was lost");
        // The end was told, and what was recorded of it went with the controller.
        let mut behind = records(0);
        for record in behind.values_mut() {
            (record.instance, record.last_exit) = (6, None);
        }
        assert_eq!(told(&behind, &BTreeMap::new(), &[event("Ended", Some(6))])[&web], 6);
    }
}
