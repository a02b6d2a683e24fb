//! What is worth telling: transitions, not passes. They go to the log as they happen and to the journal for those who ask later.

use super::journal::Changes;
use super::report::Snapshot;
use super::{Controller, Done, Job};
use crate::host::chain;
use crate::manifest::diagnostic::{self, Diagnostic};
use crate::model::event::{News, Severity};
use crate::model::name::Name;
use crate::model::status::{ConditionKind, Phase, Status};
use std::mem;
use std::sync::Arc;

impl Controller {
    /// Notes what has happened in the journal. The database gets it when nobody waits for it any more.
    pub(super) fn note(&mut self, news: Vec<News>) {
        self.journal.note(news, self.host.now(), &mut self.unsaved);
    }

    /// Notes it, and logs it.
    pub(super) fn tell(&mut self, news: Vec<News>) {
        for News { severity, workload, reason, message } in &news {
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

/// The events between two passes.
pub fn between(before: &Snapshot, after: &Snapshot) -> Vec<News> {
    let mut news = Vec::new();
    for (name, status) in &after.statuses {
        match before.statuses.get(name) {
            // The same value: nothing has happened to it.
            Some(known) if Arc::ptr_eq(known, status) => {}
            // What ran before this controller did was told by the one before.
            None if before.statuses.is_empty() && status.pid.is_some() => {}
            known => changed(known.map(AsRef::as_ref), status, &mut news),
        }
    }
    for (name, _) in before.statuses.iter().filter(|(name, _)| !after.statuses.contains_key(*name)) {
        news.push(News::normal(name, "Removed", "nothing is left of it"));
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

/// What has happened to one workload.
fn changed(before: Option<&Status>, now: &Status, news: &mut Vec<News>) {
    let name = &now.name;
    if before.is_none_or(|before| before.generation != now.generation) {
        news.push(News::normal(name, "Accepted", format!("generation {} of {}", now.generation, now.manifest)));
    }
    let ended =
        now.last_exit.as_ref().filter(|exit| before.is_some_and(|before| before.last_exit.as_ref() != Some(exit)));
    if let Some(exit) = ended {
        let tell = if exit.code == 0 { News::normal } else { News::warning };
        news.push(tell(name, "Ended", exit.message.clone()));
    }
    if before.map(|before| (before.phase, before.pid)) != Some((now.phase, now.pid)) {
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
            Phase::Stopping => news.push(News::normal(name, "Stopping", text)),
            Phase::Completed => news.push(News::normal(name, "Completed", text)),
            Phase::Suspended => news.push(News::normal(name, "Suspended", text)),
        }
    }
    let wrong = |status: &Status| {
        let of = status.conditions.iter().filter(|condition| match condition.kind {
            ConditionKind::Degraded => condition.status,
            ConditionKind::Accepted | ConditionKind::Placed => !condition.status,
            ConditionKind::Ready => false,
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
}
