//! What one look at the folder found.

use crate::control::watch::Places;
use crate::manifest::Parsed;
use crate::manifest::diagnostic::Diagnostic;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What one look found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    pub files: BTreeMap<String, Arc<Parsed>>,
    /// Files among them that have disappeared and are about to be forgotten.
    pub settling: BTreeSet<String>,
    /// Files that somebody has open for writing, or that changed while they were read.
    pub being_written: BTreeSet<String>,
    /// What to watch: the folder, its sub-folders, and where links that lead here lie.
    pub places: Places,
    /// Whether some of it is where changes have to be looked for.
    pub remote: bool,
    /// The revision of the whole folder, where it has one.
    pub revision: Option<String>,
    /// Remarks about entries that are no manifests.
    pub remarks: Vec<Diagnostic>,
    /// Entries and sub-folders that are there and cannot be used, and why.
    pub unusable: BTreeMap<String, String>,
    /// Whether something had changed since the look before.
    pub stirred: bool,
    /// When a look may find something new without an event.
    pub again_in: Option<Duration>,
    /// Files whose content was read, not only their identity.
    pub read: usize,
}

impl Scan {
    pub(super) fn again(&mut self, wait: Duration) {
        self.again_in = Some(self.again_in.map_or(wait, |other| other.min(wait)));
    }
}
