//! What is decided of a workload that too little is known of.

use super::{Decision, Next};
use crate::model::observed::{Life, Observed};
use crate::model::status::{ConditionKind, Phase};
use crate::plan::{Act, Finding};

/// Too little is known to do anything about it. What was last seen of it is told.
pub(super) fn unexplained(reason: &str, seen: &Observed) -> Decision {
    let phase = match seen.instance.as_ref().map(|instance| &instance.life) {
        Some(Life::Running { .. }) => Phase::Running,
        Some(Life::Starting) => Phase::Starting,
        Some(Life::Ended(_)) | None => Phase::Pending,
    };
    let ready = Finding { kind: ConditionKind::Ready, status: false, reason: "Unknown", message: reason.to_owned() };
    let next = Next::Rest { reason: reason.to_owned() };
    Decision { findings: vec![ready], ..Decision::blank(None, next, phase) }
}

/// Nothing is known about it but what lies around: a crash came between making a cgroup and starting something in it.
pub(super) fn leftovers(seen: &Observed) -> Decision {
    let populated = seen.group.as_ref().is_some_and(|group| group.populated);
    let act = if populated { Act::Kill } else { Act::Forget };
    let next = Next::Do { act, reason: "a leftover that no record and no manifest explains".to_owned() };
    Decision::blank(None, next, Phase::Stopping)
}
