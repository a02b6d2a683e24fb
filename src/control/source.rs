//! The loop's dealings with the manifests folder: when to look at it, what is watched, what a look leads to.
//!
//! The folder may be on a file system that does not answer, and whoever asks it then waits. So it is asked by looks alone, each on a thread, one
//! at a time: the watch goes along with them, because setting it asks for paths. The loop itself only has a clock, and says when a look has
//! been under way for too long; everything else goes on as with a folder that cannot be read.

use super::folder::{Folder, FolderError, Scan, whereabouts};
use super::watch::{Change, Places, Watch};
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

/// A folder whose look takes longer does not answer. Twenty thousand files on a slow disk are looked at in one; the time is told in
/// doubling steps, so that what is told changes seldom.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

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
    /// While no look has it.
    watch: Option<Watch>,
    /// When the look under way began.
    begun: Option<Instant>,
    /// The time in which it has not answered, as it was told last.
    silent: Option<Duration>,
    /// Not to look again before this.
    rest_until: Option<Instant>,
}

/// What became of the watch in a look.
pub struct Watched {
    watch: Watch,
    change: Change,
}

/// A look, away from the loop: at the files, then at what is to be watched.
fn look(
    source: &mut dyn Source,
    folder: Option<&Path>,
    watch: Option<Watch>,
) -> (Result<Scan, FolderError>, Option<Watched>) {
    let result = source.scan();
    let watched = watch.zip(folder).map(|(mut watch, folder)| {
        let away: Places;
        let places = match &result {
            Ok(scan) => &scan.places,
            Err(_) => {
                away = whereabouts(folder);
                &away
            }
        };
        let change = watch.set(places);
        Watched { watch, change }
    });
    (result, watched)
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
        // A look under way has the watch.
        let is_here = self.watching.begun.is_none();
        if is_here && self.watching.folder.is_some() && self.watching.watch.is_none() && self.begin_watch().is_ok() {
            tracing::info!("watching for changes again");
        }
    }

    /// Takes the watch back. If one could not be had, or is not enough, looks again in a while.
    fn take_watch(&mut self, watched: Option<Watched>, remote: bool) {
        if self.watching.folder.is_none() {
            return;
        }
        let Some(Watched { watch, change }) = watched else { return self.scan_in(POLL) };
        self.watching.watch = Some(watch);
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

    /// A look has ended in a panic, and the watch with it.
    pub(super) fn lose_watch(&mut self) {
        (self.watching.begun, self.watching.silent) = (None, None);
        self.scan_in(POLL);
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
        let Some(mut source) = self.folder.take() else { return };
        let anew = source.anew();
        self.scan_at = None;
        self.watching.begun = Some(self.host.instant());
        self.lookers.begin();
        self.folder_anew = Some(anew);
        let (folder, watch) = (self.watching.folder.clone(), self.watching.watch.take());
        self.on_thread(Job::Scan, move || {
            let (result, watched) = look(source.as_mut(), folder.as_deref(), watch);
            Done::Scanned { folder: source, result, watched }
        });
    }

    /// Says so if the look under way has taken too long. Answers when to say so next.
    pub(super) fn notice_silence(&mut self) -> Option<Instant> {
        let begun = self.watching.begun?;
        let elapsed = self.host.instant().saturating_duration_since(begun);
        let Some(silent) = in_steps(elapsed) else { return Some(begun + SILENT_AFTER) };
        if self.watching.silent != Some(silent) {
            let path = self.watching.folder.as_deref().unwrap_or(Path::new("")).display().to_string();
            let message = format!(
                "the manifests folder {path} has not answered for {} s; what runs goes on as it is; help: see to the network or user-space file system it lies on",
                silent.as_secs()
            );
            if self.watching.silent.is_none() {
                tracing::error!("{message}");
            }
            self.watching.silent = Some(silent);
            self.state.lose_folder(message);
        }
        self.lookers.give_up();
        Some(begun + silent * 2)
    }

    pub(super) fn take_scan(&mut self, result: Result<Scan, FolderError>, watched: Option<Watched>) {
        let now = self.host.instant();
        let took = self.watching.begun.take().map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        self.watching.rest_until = Some(now + took.min(REST_MAX));
        if self.watching.silent.take().is_some() {
            tracing::info!(after_seconds = took.as_secs(), "the manifests folder answers again");
        }
        match result {
            Ok(scan) => {
                if let Some(again) = scan.again_in {
                    self.scan_in(again);
                }
                tracing::debug!(files = scan.files.len(), read = scan.read, "looked at the manifests folder");
                self.take_watch(watched, scan.remote);
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
                self.take_watch(watched, true);
            }
        }
    }
}

/// The longest of 3, 6, 12, 24 s and so on that has gone by; none before the first.
fn in_steps(elapsed: Duration) -> Option<Duration> {
    let mut step = Some(SILENT_AFTER).filter(|first| *first <= elapsed)?;
    while step * 2 <= elapsed {
        step *= 2;
    }
    Some(step)
}

fn cannot_watch(path: &Path, error: &str) {
    tracing::error!(path = %path.display(), error, every_seconds = POLL.as_secs(),
        "cannot watch for changes, looking now and then instead; help: raise fs.inotify.max_user_instances or max_user_watches");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_in_steps_that_double() {
        let told = |seconds: u64| in_steps(Duration::from_secs(seconds)).map(|step| step.as_secs());
        assert_eq!(
            [2, 3, 5, 6, 11, 12, 3600].map(told),
            [None, Some(3), Some(3), Some(6), Some(6), Some(12), Some(3072)]
        );
    }
}
