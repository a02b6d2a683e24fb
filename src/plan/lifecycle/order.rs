//! Who starts after whom, and who is stopped before whom.

use super::Case;
use super::accept::replacement_reasons;
use super::end::KILL_AGAIN;
use crate::model::name::Name;
use crate::model::observed::{Instance, Life};
use crate::model::record::{Record, Stopping};
use crate::model::replica::Replica;
use crate::model::spec::{Kind, Spec};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Case<'_, '_> {
    /// What it has to wait for before it starts: a reason in one word, and a sentence. Holds for each start, but a run is not stopped because
    /// a workload it came after is no longer ready.
    pub(super) fn waits_for(&self) -> Option<(&'static str, String)> {
        self.record.spec.after.iter().find_map(|other| self.not_yet(other))
    }

    fn not_yet(&self, other: &Name) -> Option<(&'static str, String)> {
        let Some(spec) = self.spec_of(other) else {
            let desired = self.input.desired;
            if let Some(why) = desired.refused.get(other) {
                let message = format!("waits for {other}, whose manifest cannot be accepted: {why}");
                return Some(("RefusedDependency", message));
            }
            let message = match desired.elsewhere.get(other) {
                Some(why) => format!("waits for {other}, which is not for this host: {why}; take it out of `after`"),
                None => format!("waits for {other}, which no manifest names; add one, or take it out of `after`"),
            };
            return Some(("UnknownDependency", message));
        };
        let all: Vec<Name> = match &spec.replica {
            Some(replica) if replica.of == *other => Replica::all(replica).collect(),
            _ => vec![other.clone()],
        };
        let missing = all.iter().find(|name| !self.is_there(name, spec))?;
        let what = match spec.kind {
            Kind::Service => "be ready",
            Kind::Job => "complete",
        };
        Some(("Dependency", format!("waits for {missing} to {what}{}", self.never(missing, spec))))
    }

    /// Why that will not come by itself, if it will not, and what to do.
    fn never(&self, missing: &Name, spec: &Spec) -> String {
        if spec.suspend {
            return ", which is suspended; take `suspend` out of its manifest".to_owned();
        }
        let over = self.input.records.get(missing).filter(|record| record.finished && *record.spec == *spec);
        let exit = over.and_then(|record| record.last_exit.as_ref());
        exit.map_or_else(String::new, |exit| {
            format!(", which has ended for good ({}); `containerctl describe {missing}` tells more, an edit of its manifest tries again", exit.outcome)
        })
    }

    fn spec_of(&self, name: &Name) -> Option<&Arc<Spec>> {
        let wanted = self.input.desired.wanted.get(name).map(|wanted| &wanted.spec);
        wanted.or_else(|| self.input.records.get(name).map(|record| &record.spec))
    }

    fn is_there(&self, name: &Name, spec: &Spec) -> bool {
        match spec.kind {
            Kind::Service => self.ready.contains(name) || self.is_over_and_well(name),
            Kind::Job => self.input.records.get(name).is_some_and(|record| self.is_completed(name, record)),
        }
    }

    /// Whether a service has ended well and is not to run again: it will never be ready, and what it was there for is done. Whoever comes after
    /// it would wait for ever.
    fn is_over_and_well(&self, name: &Name) -> bool {
        self.input.records.get(name).is_some_and(|record| record.finished && self.is_completed(name, record))
    }

    /// Whether a job has done what its manifest says now. One with a schedule has if its last run succeeded.
    fn is_completed(&self, name: &Name, record: &Record) -> bool {
        let same = self.spec_of(name).is_none_or(|spec| replacement_reasons(&record.spec, spec).is_empty());
        record.is_over() && same && record.last_exit.as_ref().is_some_and(|exit| exit.outcome.is_success())
    }

    /// A workload that is to be stopped as well, comes after this one and is still there: it may need this one to end well.
    pub(super) fn leaves_before(&self) -> Option<Name> {
        let own = &self.record.spec;
        let others =
            self.input.records.iter().filter(|(name, record)| **name != own.name && comes_after(&record.spec, own));
        let mut leaving = others.filter(|(name, record)| self.is_leaving(name) && self.is_still_there(name, record));
        // Two that came to wait for each other by edits must not wait for ever.
        leaving.find(|(_, record)| !self.depends(own, &record.spec)).map(|(name, _)| name.clone())
    }

    fn is_leaving(&self, name: &Name) -> bool {
        let desired = self.input.desired;
        self.input.shutdown.is_some() || !desired.wanted.contains_key(name) && !desired.held.contains_key(name)
    }

    /// Alive, and not one that even a kill has not ended: its grace is the bound of the wait.
    fn is_still_there(&self, name: &Name, record: &Record) -> bool {
        let instance = self.input.observed.get(name).and_then(|seen| seen.instance.as_ref());
        let alive = matches!(instance, Some(Instance { life: Life::Starting | Life::Running { .. }, .. }));
        let killed = record.stopping.as_ref().and_then(|Stopping { killed, .. }| killed.as_ref());
        alive && killed.is_none_or(|killed| self.input.clock.left(killed, KILL_AGAIN).is_some())
    }

    /// Whether `spec` comes after `other`, directly or by others.
    fn depends(&self, spec: &Spec, other: &Spec) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![spec]);
        while let Some(spec) = open.pop() {
            if comes_after(spec, other) {
                return true;
            }
            let next = spec.after.iter().filter(|name| seen.insert((*name).clone()));
            open.extend(next.filter_map(|name| self.input.records.get(name)).map(|record| record.spec.as_ref()));
        }
        false
    }
}

fn comes_after(spec: &Spec, other: &Spec) -> bool {
    spec.after.contains(&other.name) || spec.after.contains(other.workload())
}
