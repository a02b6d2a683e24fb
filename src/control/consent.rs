//! Consent to deletions that wait for it: remembered on the disk before whoever gave it is told so.
//!
//! A consent is one job for all it was given for. From when it is given nothing else is begun about them, so that no step writes an older
//! record over it; what is being done already is waited for, for a while. Those for whom that does not end stay held, and `approve` names
//! the others. A disk that does not take it leaves everything as it was, and whoever asked is told why.

use super::{Controller, Done, Job};
use crate::host::chain;
use crate::model::event::News;
use crate::model::name::Name;
use crate::model::record::{Deletion, Record};
use crate::store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Consents that may wait. They are given by people, one after the other.
const CONSENTS_MAX: usize = 8;
/// How long a consent waits for steps that are under way. They take milliseconds, unless a path of theirs does not answer.
const FREE_MAX: Duration = Duration::from_secs(10);

/// Whose deletion was consented to, or why that came to nothing, with what to do about it.
pub type Consented = Result<BTreeSet<Name>, String>;

/// A consent that is not remembered yet.
pub(super) struct Consent {
    names: BTreeSet<Name>,
    given: Instant,
    reply: oneshot::Sender<Consented>,
}

/// A consent on its way to the disk.
pub struct Remembering {
    before: BTreeMap<Name, Record>,
    result: Result<(), StoreError>,
    reply: oneshot::Sender<Consented>,
}

impl Controller {
    pub(super) fn approve(&mut self, reply: oneshot::Sender<Consented>) {
        let names = self.state.plan(None, self.host.time()).guarded;
        if names.is_empty() {
            let _ = reply.send(Ok(names));
        } else if self.consents.len() >= CONSENTS_MAX {
            let _ =
                reply.send(Err("others are consenting already; help: see `containerctl ps`, and try again".to_owned()));
        } else {
            self.consents.push_back(Consent { names, given: self.host.instant(), reply });
        }
    }

    /// Begins with the next consent once nobody it is for is being acted on; after a while with those nobody is. Answers when to stop waiting.
    pub(super) fn consent(&mut self) -> Option<Instant> {
        while self.consenting.is_empty() {
            let next = self.consents.front()?;
            let is_free = |name: &&Name| !self.state.in_flight.contains(*name);
            let free: BTreeSet<Name> = next.names.iter().filter(is_free).cloned().collect();
            let until = next.given + FREE_MAX;
            if free.len() < next.names.len() && self.host.instant() < until {
                return Some(until);
            }
            let Consent { names, reply, .. } = self.consents.pop_front()?;
            let held_up: Vec<&str> = names.difference(&free).map(Name::as_str).collect();
            if !held_up.is_empty() {
                tracing::warn!(workloads = ?held_up, "a step is under way that does not end: their deletion goes on waiting for consent");
            }
            if let (Some(name), true) = (held_up.first(), free.is_empty()) {
                let why = format!("a step of {name} has been under way for {} s", FREE_MAX.as_secs());
                let help =
                    format!("`containerctl describe {name}` says what it waits for; approve again once it is over");
                let _ = reply.send(Err(format!("{why}, so nothing is deleted; help: {help}")));
            } else {
                self.remember_consent(&free, reply);
            }
        }
        None
    }

    /// Whether a consent waits for what is being done about a workload: then nothing new is begun.
    pub(super) fn is_being_approved(&self, name: &Name) -> bool {
        self.consents.front().is_some_and(|consent| consent.names.contains(name))
    }

    fn remember_consent(&mut self, names: &BTreeSet<Name>, reply: oneshot::Sender<Consented>) {
        // A manifest that has come back meanwhile is not deleted.
        let guarded = self.state.plan(None, self.host.time()).guarded;
        let record = |name: &Name| Some((name.clone(), self.state.records.get(name)?.clone()));
        let before: BTreeMap<Name, Record> = names.intersection(&guarded).filter_map(record).collect();
        if before.is_empty() {
            let _ = reply.send(Ok(BTreeSet::new()));
            return;
        }
        self.consenting = before.keys().cloned().collect();
        let began: Vec<_> = before.keys().map(|name| self.state.begin(name, "consent")).collect();
        let (host, store) = (Arc::clone(&self.host), Arc::clone(&self.store));
        self.on_thread(Job::Consent, move || {
            for began in began {
                began.get_or_init(|| host.time());
            }
            let result = remember(&store, &before);
            Done::Consented(Remembering { before, result, reply })
        });
    }

    /// Lets go of those whose consent was on its way to the disk.
    pub(super) fn end_consent(&mut self) {
        for name in std::mem::take(&mut self.consenting) {
            self.free(&name, None);
        }
    }

    pub(super) fn take_consent(&mut self, remembering: Remembering) {
        let Remembering { before, result, reply } = remembering;
        let names: BTreeSet<Name> = before.keys().cloned().collect();
        if result.is_ok() {
            for (name, record) in before {
                self.state.unsaved.saved(&name);
                self.state.records.insert(name, approved(&record));
            }
            let given = |name: &Name| News::normal(name, "DeletionApproved", "somebody has consented to its deletion");
            self.tell(names.iter().map(given).collect());
        }
        self.end_consent();
        let answer = result.map(|()| names).map_err(|error| {
            let error = chain(&error);
            tracing::error!(error, "cannot remember a consent; nothing is deleted");
            format!("the consent cannot be kept, so nothing is deleted: {error}; help: make room in the state folder, then approve again")
        });
        let _ = reply.send(answer);
    }
}

/// Puts the consent and waits for the disk; if that takes nothing, puts everything back.
fn remember(store: &Store, before: &BTreeMap<Name, Record>) -> Result<(), StoreError> {
    let put = || {
        before.iter().try_for_each(|(name, record)| store.put(name, &approved(record)))?;
        store.sync()
    };
    put().inspect_err(|_| {
        for (name, record) in before {
            // What cannot be put back either is found not to be saved with its next record.
            let _ = store.put(name, record);
        }
    })
}

fn approved(record: &Record) -> Record {
    Record { deletion: Some(Deletion::Approved), ..record.clone() }
}
