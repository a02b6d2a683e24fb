//! Who has which name when several files claim it.

use super::{Claims, Files, still_claims};
use crate::manifest::diagnostic::Diagnostic;
use crate::manifest::tree::Place;
use crate::model::name::Name;
use crate::model::record::Origin;
use crate::model::spec::Spec;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Who has a workload, with all its replicas: half of them from one file and half from another are what nobody asked for.
pub(super) struct Keeper {
    pub(super) path: String,
    /// Of the document in it; none where the file is broken and may still stand for it.
    line: Option<u64>,
}

impl Keeper {
    pub(super) fn is(&self, origin: &Origin) -> bool {
        self.path == origin.path && self.line.is_none_or(|line| line == origin.line)
    }
}

impl fmt::Display for Keeper {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(out, "{}:{line}", self.path),
            None => write!(out, "{}", self.path),
        }
    }
}

/// Who has each workload that is claimed: the file it is recorded from, or what that has been renamed to, or else the first in order.
pub(super) fn keepers(
    claims: &Claims<'_>,
    files: &Files,
    settling: &BTreeSet<String>,
    owners: &BTreeMap<Name, String>,
) -> BTreeMap<Name, Keeper> {
    let mut documents: BTreeMap<&Name, Vec<(&Spec, &Origin)>> = BTreeMap::new();
    for (spec, origin) in claims.values().flatten() {
        documents.entry(spec.workload()).or_default().push((spec, origin));
    }
    let keeper = |(workload, mut documents): (&Name, Vec<(&Spec, &Origin)>)| {
        // What the file says that has it and has just gone: the same under another path is a rename.
        let gone = documents
            .iter()
            .find(|(spec, origin)| spec.name == *workload && owners.get(workload) == Some(&origin.path));
        let gone = gone.map(|(spec, _)| *spec);
        if documents.iter().any(|(_, origin)| !settling.contains(&origin.path)) {
            documents.retain(|(_, origin)| !settling.contains(&origin.path));
        }
        let owner = owners.get(workload);
        let keeper = match owner.filter(|path| !settling.contains(*path) && still_claims(files.get(*path), workload)) {
            Some(path) => Keeper { path: path.clone(), line: None },
            None => {
                let rank = |(spec, origin): &(&Spec, &Origin)| {
                    (Some(&origin.path) != owner, Some(*spec) != gone, origin.path.clone(), origin.line)
                };
                let (_, first) = documents.into_iter().min_by_key(rank)?;
                Keeper { path: first.path.clone(), line: Some(first.line) }
            }
        };
        Some((workload.clone(), keeper))
    };
    documents.into_iter().filter_map(keeper).collect()
}

/// Which documents were told that a workload's name is taken: once for all replicas.
#[derive(Default)]
pub(super) struct Told(BTreeSet<(Name, String, u64)>);

impl Told {
    pub(super) fn once(&mut self, found: Diagnostic, spec: &Spec) -> Option<Diagnostic> {
        self.0.insert((spec.workload().clone(), found.path.clone(), found.line)).then_some(found)
    }
}

pub(super) fn taken(spec: &Spec, refused: &Origin, keeper: &str, help: String) -> Diagnostic {
    let place = Place { line: refused.line, column: 1 };
    Diagnostic::error(&refused.path, place, format!("name {} is taken by {keeper}", spec.name), help)
}

pub(super) fn rename(spec: &Spec) -> String {
    format!("rename one of the two: `name: {}-2`", spec.workload())
}

/// Nothing is recorded of either: where a controller runs one of them, which `validate` cannot know, it is the other that is refused.
pub(super) fn rename_either(spec: &Spec) -> String {
    format!("{}; a controller that runs one of them keeps that one", rename(spec))
}
