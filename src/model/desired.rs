//! What the manifests ask of this host.

use super::name::Name;
use super::record::Origin;
use super::spec::Spec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything wanted, and everything that must not be touched for want of a readable manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub wanted: BTreeMap<Name, Wanted>,
    /// Workloads to leave as they are recorded, and the path of the manifest that is in the way.
    pub held: BTreeMap<Name, String>,
}

/// One accepted manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub spec: Arc<Spec>,
    pub origin: Origin,
}
