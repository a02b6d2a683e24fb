//! The log of a host: transitions, not passes.

use super::report::Snapshot;
use crate::manifest::diagnostic::{Diagnostic, Severity};
use crate::model::status::ConditionKind;

/// Logs what has changed between two passes: phases, and findings about manifests.
pub fn tell(before: &Snapshot, after: &Snapshot) {
    for (name, status) in &after.statuses {
        if before.statuses.get(name).is_none_or(|known| known.phase != status.phase) {
            let ready = status.condition(ConditionKind::Ready);
            let why = ready.map_or("", |ready| ready.message.as_str());
            tracing::info!(workload = %name, phase = %status.phase, generation = status.generation, why, "phase");
        }
    }
    for found in after.diagnostics.iter().filter(|found| !before.diagnostics.contains(found)) {
        tell_finding(found);
    }
}

fn tell_finding(found: &Diagnostic) {
    let Diagnostic { path, line, column, severity, message, help } = found;
    let at = format!("{path}:{line}:{column}");
    match severity {
        Severity::Error => tracing::error!(at, found = message, help, "manifest refused"),
        Severity::Warning => tracing::warn!(at, found = message, help, "manifest doubtful"),
        Severity::Info => tracing::info!(at, found = message, help, "manifest not for this host"),
    }
}
