//! Whether a run that should go on may: by its probes.

use super::{Case, Decision, Next};
use crate::model::observed::Instance;
use crate::model::probe::{ProbeKind, Standing};
use crate::model::record::Stopping;
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use std::sync::Arc;

impl Case<'_, '_> {
    /// It runs as its manifest says, until `wake_at` at least. Without probes that is all there is to being ready.
    pub(super) fn running(mut self, instance: &Instance, pid: u32, wake_at: Option<Timestamp>) -> Decision {
        if self.record.spec.probes.is_empty() {
            self.find(ConditionKind::Ready, true, "Running", format!("pid {pid}"));
            return self.decision(Phase::Running, Next::Keep, wake_at);
        }
        // What was said of another run, or to another question, says nothing about this one.
        let spec = Arc::clone(&self.record.spec);
        let speaks = |standing: &&Standing| {
            (standing.instance, standing.pid) == (instance.number, pid)
                && standing.speaks_of(standing.failed.unwrap_or(ProbeKind::Readiness), &spec.probes)
        };
        let Some(standing) = self.input.standings.get(&spec.name).filter(speaks) else {
            self.find(ConditionKind::Ready, false, "Probing", "its probes have not been asked yet");
            return self.decision(Phase::Running, Next::Keep, wake_at);
        };
        let Standing { ready, reason, message, failed, .. } = standing.clone();
        self.find(ConditionKind::Ready, ready, reason, message.clone());
        if failed.is_none() {
            return self.decision(Phase::Running, Next::Keep, wake_at);
        }
        let stopping = Stopping::by_asking(self.input.clock.now(), message);
        self.ask(instance, Stopping { failed, ..stopping })
    }
}
