//! What the host has to say between two passes.

use crate::model::name::Name;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Workloads the host says to look at, and the bell that says so.
#[derive(Debug, Default)]
pub struct Changes {
    names: Mutex<BTreeSet<Name>>,
    pub(super) bell: Notify,
}

impl Changes {
    pub fn push(&self, name: &Name) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        self.bell.notify_one();
    }

    /// Has the loop go round without looking at anything.
    pub fn ring(&self) {
        self.bell.notify_one();
    }

    pub(super) fn take(&self) -> BTreeSet<Name> {
        std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
