//! The loop's dealings with the manifests folder: when to look at it, what is watched, what a look leads to.

use super::folder::{Folder, FolderError, Scan};
use super::watch::Watch;
use super::{Controller, Done, Job};
use crate::host::chain;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Where the manifests are.
pub trait Source: Send {
    fn scan(&mut self) -> Result<Scan, FolderError>;

    /// The same, as if it had never been looked at.
    fn anew(&self) -> Box<dyn Source>;
}

impl Source for Folder {
    fn scan(&mut self) -> Result<Scan, FolderError> {
        Folder::scan(self)
    }

    fn anew(&self) -> Box<dyn Source> {
        Box::new(Folder::anew(self))
    }
}

impl Controller {
    /// Watches a folder from now on. Without a watch the resync still looks at it.
    pub fn watch(&mut self, folder: &std::path::Path) {
        let woken = Arc::clone(&self.folder_woken);
        match Watch::new(folder, move || woken.notify_one()) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => self.cannot_watch(folder, &error),
        }
    }

    pub(super) fn cannot_watch(&self, path: &std::path::Path, error: &notify::Error) {
        let resync = self.options.resync.as_secs();
        tracing::error!(path = %path.display(), error = %error, every_seconds = resync,
            "cannot watch for changes, looking now and then instead; help: raise fs.inotify.max_user_instances or max_user_watches");
    }

    /// Begins a scan of the folder if it is time and none is under way.
    pub(super) fn scan_if_due(&mut self) {
        if self.scan_at.is_none_or(|at| at > self.host.instant()) {
            return;
        }
        let Some(mut folder) = self.folder.take() else { return };
        let anew = folder.anew();
        self.scan_at = None;
        self.scanned.append(&mut self.waiting);
        self.folder_anew = Some(anew);
        self.on_thread(Job::Scan, move || {
            let result = folder.scan();
            Done::Scanned { folder, result }
        });
    }

    pub(super) fn take_scan(&mut self, result: Result<Scan, FolderError>) {
        match result {
            Ok(scan) => {
                if let Some(again) = scan.again_in {
                    let again = self.host.instant() + again;
                    self.scan_at = Some(self.scan_at.map_or(again, |at| at.min(again)));
                }
                let failures = self.watch.as_mut().map(|watch| watch.set(&scan.folders)).unwrap_or_default();
                for (path, error) in failures {
                    self.cannot_watch(&path, &error);
                }
                self.state.take_scan(scan);
            }
            Err(error) => {
                let message = chain(&error);
                if self.state.folder_error.as_ref() != Some(&message) {
                    tracing::error!(
                        error = message,
                        "the manifests folder cannot be used; everything goes on as it is"
                    );
                }
                self.state.folder_error = Some(message);
                if let Some(watch) = &mut self.watch {
                    watch.set(&BTreeSet::<PathBuf>::new());
                }
            }
        }
    }
}
