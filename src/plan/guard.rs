//! The guard against mass deletion: a folder that has lost most of its manifests is more likely broken than meant.
//!
//! Rule: when more than `max(3, half)` of the running workloads would be stopped because their manifests are gone, none is, and each goes on
//! as recorded until somebody consents or its manifest comes back.
//!
//! Running counts as what is meant to run, not what does at this moment: otherwise one that crashes would open the way for the others, and a
//! machine that boots with an empty folder would forget everything. Workloads that are being stopped already count with the rest, so that a
//! folder that empties file by file does not get past in small steps. What is held stays held while a folder fills again file by file. A
//! consent is for the workloads it was given for. A job that has completed is held back with the rest: forgetting it would run it again when
//! the folder is mended.

use super::Input;
use crate::model::desired::{Desired, Held};
use crate::model::name::Name;
use crate::model::record::Record;
use std::collections::BTreeMap;

/// So few are stopped without being asked, whatever share of the host they are: two or three files are a person's work.
const ALWAYS_MAX: usize = 3;

/// Whether its manifest is there and says that there are to be fewer of it: that is asked for, not lost.
fn is_one_too_many(desired: &Desired, record: &Record) -> bool {
    let Record { spec, .. } = record;
    spec.replica.is_some() && spec.name != *spec.workload() && desired.wanted.contains_key(spec.workload())
}

/// Desired as it is, with those held whose deletion has to wait for consent; none if nothing is to be held.
pub(super) fn hold(input: &Input<'_>) -> Option<Desired> {
    if !input.prune_guard {
        return None;
    }
    let known: BTreeMap<&Name, &Record> = explained(input).collect();
    let gone = |name: &Name| !input.desired.wanted.contains_key(name) && !input.desired.held.contains_key(name);
    let counts = |name: &Name, record: &Record| {
        let approved = gone(name) && input.approved.contains(name);
        !(record.finished || record.spec.suspend || approved || is_one_too_many(input.desired, record))
    };
    let running = known.iter().filter(|(name, record)| counts(name, record)).count();
    let lost = known.iter().filter(|(name, record)| gone(name) && counts(name, record)).count();
    let most = ALWAYS_MAX.max(running / 2);
    let too_many = lost > most;
    let held: Vec<(&Name, &Record)> = known
        .into_iter()
        // What is on its way cannot be called back.
        .filter(|(_, record)| !is_one_too_many(input.desired, record))
        .filter(|(name, record)| gone(name) && record.stopping.is_none() && !input.approved.contains(*name))
        .filter(|(name, _)| too_many || input.guarded.contains(*name))
        .collect();
    if held.is_empty() {
        return None;
    }
    let finding = format!(
        "too many manifests have gone at once ({lost} of {running} that run, at most {most} may): it is not stopped before its manifest is back or `containerctl approve` consents"
    );
    let mut desired = input.desired.clone();
    for (name, record) in held {
        let held = Held { path: record.origin.path.clone(), revision: None, finding: finding.clone() };
        desired.held.insert(name.clone(), held);
        desired.guarded.insert(name.clone());
    }
    Some(desired)
}

/// Every workload there is a record of, in the database or beside its run.
fn explained<'a>(input: &Input<'a>) -> impl Iterator<Item = (&'a Name, &'a Record)> {
    let running = input.observed.iter();
    let started_as = running.filter_map(|(name, seen)| Some((name, seen.instance.as_ref()?.record.as_ref()?)));
    started_as.chain(input.records)
}
