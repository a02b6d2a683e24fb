//! What the manifests ask of this host.

use super::name::Name;
use super::record::Origin;
use super::spec::Spec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything wanted, and everything that must not be touched for want of a readable manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub wanted: BTreeMap<Name, Wanted>,
    /// Workloads to leave as they are recorded, and the manifest that is in the way.
    pub held: BTreeMap<Name, Held>,
    /// Those of `held` whose manifest is gone with too many others: deleting them waits for consent.
    pub guarded: BTreeSet<Name>,
    /// Those of `held` whose manifest was not there when the controller began to look, and may be in a moment.
    pub away: BTreeSet<Name>,
    /// Names that nothing is recorded of, and why the manifest that bears them cannot be accepted.
    pub refused: BTreeMap<Name, String>,
    /// Workloads whose manifest is for other hosts, and in which way; as good as deleted here.
    pub elsewhere: BTreeMap<Name, String>,
}

/// A manifest that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub path: String,
    /// Of the content that is refused; none if it could not even be read.
    pub revision: Option<String>,
    /// What is wrong with it, `web.yaml:3:3: unknown field cpu.limt`.
    pub finding: String,
}

/// One accepted manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub spec: Arc<Spec>,
    pub origin: Origin,
}
