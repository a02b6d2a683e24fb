//! The guard against mass deletion: a folder that has lost most of its manifests is more likely broken than meant.
//!
//! Rule: when more than `max(3, half)` of the running workloads would be stopped because their manifests are gone, nothing is deleted, and each
//! goes on as recorded until somebody consents or its manifest comes back. By a second rule of the same measure the same holds for those that
//! do not run and have something to lose: jobs whose completion would be forgotten, so that they ran again when the folder is mended, and
//! suspended workloads. Too many of these gone hold these only.
//!
//! Running counts as what is meant to run, not what does at this moment: otherwise one that crashes would open the way for the others, and a
//! machine that boots with an empty folder would forget everything. Workloads whose deletion has begun count with the rest, so that a
//! folder that empties file by file does not get past in small steps. What is held stays held while a folder fills again file by file. A
//! consent is for the workloads it was given for. All three are in the records, and so outlive the controller and a reboot.

use super::Input;
use crate::model::desired::{Desired, Held};
use crate::model::name::Name;
use crate::model::record::{Deletion, Record};
use std::collections::BTreeMap;

/// So few are deleted without being asked, whatever share of the host they are: two or three files are a person's work.
const ALWAYS_MAX: usize = 3;

/// What a workload is counted among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is meant to run.
    Running,
    /// Its work is done, or it is not to run for now.
    AtRest,
}

/// How many of a kind there are, and how many of them have lost their manifests.
#[derive(Clone, Copy, Default)]
struct Count {
    all: usize,
    lost: usize,
}

impl Count {
    fn most(self) -> usize {
        ALWAYS_MAX.max(self.all / 2)
    }

    fn is_too_many(self) -> bool {
        self.lost > self.most()
    }
}

/// Desired as it is, with those held whose deletion has to wait for consent; none if nothing is to be held.
pub(super) fn hold(input: &Input<'_>) -> Option<Desired> {
    if !input.prune_guard {
        return None;
    }
    // Where its manifest is there and asks for fewer replicas, that is asked for, not lost.
    let known: BTreeMap<&Name, &Record> =
        explained(input).filter(|(_, record)| !is_one_too_many(input.desired, record)).collect();
    let gone = |name: &Name| !input.desired.wanted.contains_key(name) && !input.desired.held.contains_key(name);
    let count = |kind: Kind| {
        let approved = |name: &Name, record: &Record| gone(name) && record.deletion == Some(Deletion::Approved);
        let counted = known.iter().filter(|(name, record)| kind_of(record) == kind && !approved(name, record));
        counted.fold(Count::default(), |count, (name, _)| Count {
            all: count.all + 1,
            lost: count.lost + usize::from(gone(name)),
        })
    };
    let (running, at_rest) = (count(Kind::Running), count(Kind::AtRest));
    let too_many = |kind: Kind| running.is_too_many() || kind == Kind::AtRest && at_rest.is_too_many();
    let is_held = |name: &Name, record: &Record| match record.deletion {
        // What is on its way cannot be called back.
        Some(Deletion::Approved | Deletion::Begun) => false,
        Some(Deletion::Held) => gone(name),
        None => gone(name) && too_many(kind_of(record)),
    };
    let mut desired: Option<Desired> = None;
    for (name, record) in known.iter().filter(|(name, record)| is_held(name, record)) {
        let (count, which) = match kind_of(record) {
            Kind::AtRest if at_rest.is_too_many() => (at_rest, "are done or suspended"),
            _ => (running, "run"),
        };
        let (Count { all, lost }, most) = (count, count.most());
        let finding = format!(
            "too many manifests have gone at once ({lost} of {all} that {which}, at most {most} may): it is not deleted before its manifest is back or `containerctl approve` consents"
        );
        let held = Held { path: record.origin.path.clone(), revision: None, finding };
        let desired = desired.get_or_insert_with(|| input.desired.clone());
        desired.held.insert((*name).clone(), held);
        desired.guarded.insert((*name).clone());
    }
    desired
}

fn kind_of(record: &Record) -> Kind {
    if record.finished || record.spec.suspend { Kind::AtRest } else { Kind::Running }
}

fn is_one_too_many(desired: &Desired, record: &Record) -> bool {
    let Record { spec, .. } = record;
    spec.replica.is_some() && spec.name != *spec.workload() && desired.wanted.contains_key(spec.workload())
}

/// Every workload there is a record of, in the database or beside its run.
fn explained<'a>(input: &Input<'a>) -> impl Iterator<Item = (&'a Name, &'a Record)> {
    let running = input.observed.iter();
    let started_as = running.filter_map(|(name, seen)| Some((name, seen.instance.as_ref()?.record.as_ref()?)));
    started_as.chain(input.records)
}
