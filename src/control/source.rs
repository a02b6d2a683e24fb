//! The loop's dealings with the manifests folder: when to look at it, what is watched, what a look leads to.

use super::folder::{Folder, FolderError, Scan, whereabouts};
use super::watch::{Places, Watch};
use super::{Controller, Done, Job};
use crate::host::chain;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often to look where nothing tells of changes: network and user-space file systems, a host without inotify instances to spare, a
/// folder that is away. A look costs a stat a file; Kubernetes' kubelet polls its manifests every 20 s, people wait for an edit of theirs.
const POLL: Duration = Duration::from_secs(2);

/// The longest rest after a look. While a thousand files are copied in each of them is an event; looking half of the time is enough.
const REST_MAX: Duration = Duration::from_millis(500);

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

/// The watch on the folder, if one was asked for.
#[derive(Default)]
pub(super) struct Watching {
    folder: Option<PathBuf>,
    watch: Option<Watch>,
    /// When the look under way began.
    begun: Option<Instant>,
    /// Not to look again before this.
    rest_until: Option<Instant>,
}

impl Controller {
    /// Watches a folder from now on. Without a watch it is looked at every few seconds, and a watch is tried for with every resync.
    pub fn watch(&mut self, folder: &Path) {
        self.watching.folder = Some(folder.to_owned());
        if let Err(error) = self.begin_watch() {
            cannot_watch(folder, &error.to_string());
        }
    }

    fn begin_watch(&mut self) -> Result<(), notify::Error> {
        let woken = Arc::clone(&self.folder_woken);
        self.watching.watch = Some(Watch::new(move || woken.notify_one())?);
        Ok(())
    }

    /// Tries again for a watch that could not be had.
    pub(super) fn watch_again(&mut self) {
        if self.watching.folder.is_some() && self.watching.watch.is_none() && self.begin_watch().is_ok() {
            tracing::info!("watching for changes again");
        }
    }

    /// Watches these places. If that cannot be had, or is not enough, looks again in a while.
    fn watch_places(&mut self, places: &Places, remote: bool) {
        let Watching { folder: Some(_), watch, begun: _, rest_until: _ } = &mut self.watching else { return };
        let Some(watch) = watch else { return self.scan_in(POLL) };
        let change = watch.set(places);
        for (path, error) in &change.newly_failed {
            cannot_watch(path, error);
        }
        if change.added {
            self.scan_in(Duration::ZERO);
        }
        if change.incomplete || remote {
            self.scan_in(POLL);
        }
    }

    fn scan_in(&mut self, wait: Duration) {
        let at = self.host.instant() + wait;
        self.scan_at = Some(self.scan_at.map_or(at, |other| other.min(at)));
    }

    /// When to look next: as soon as something has happened, but after a look for no shorter time than it took.
    pub(super) fn scan_due(&self) -> Option<Instant> {
        let at = self.scan_at?;
        Some(self.watching.rest_until.map_or(at, |rest| at.max(rest)))
    }

    /// Begins a scan of the folder if it is time and none is under way.
    pub(super) fn scan_if_due(&mut self) {
        if self.scan_due().is_none_or(|at| at > self.host.instant()) {
            return;
        }
        let Some(mut folder) = self.folder.take() else { return };
        let anew = folder.anew();
        self.scan_at = None;
        self.watching.begun = Some(self.host.instant());
        self.scanned.append(&mut self.waiting);
        self.folder_anew = Some(anew);
        self.on_thread(Job::Scan, move || {
            let result = folder.scan();
            Done::Scanned { folder, result }
        });
    }

    pub(super) fn take_scan(&mut self, result: Result<Scan, FolderError>) {
        let now = self.host.instant();
        let took = self.watching.begun.take().map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        self.watching.rest_until = Some(now + took.min(REST_MAX));
        match result {
            Ok(scan) => {
                if let Some(again) = scan.again_in {
                    self.scan_in(again);
                }
                tracing::debug!(files = scan.files.len(), read = scan.read, "looked at the manifests folder");
                self.watch_places(&scan.places, scan.remote);
                if let Some(again) = self.state.take_scan(scan, self.host.steady()) {
                    self.scan_in(again);
                }
            }
            Err(error) => {
                let message = chain(&error);
                if self.state.folder_error.as_ref() != Some(&message) {
                    tracing::error!(
                        error = message,
                        "the manifests folder cannot be used; everything goes on as it is"
                    );
                }
                self.state.lose_folder(message);
                if let Some(folder) = self.watching.folder.clone() {
                    self.watch_places(&whereabouts(&folder), true);
                }
            }
        }
    }
}

fn cannot_watch(path: &Path, error: &str) {
    tracing::error!(path = %path.display(), error, every_seconds = POLL.as_secs(),
        "cannot watch for changes, looking now and then instead; help: raise fs.inotify.max_user_instances or max_user_watches");
}
