//! Looking at paths of the host whose file system may not answer.
//!
//! Problem: a path on a network or user-space file system may hang for hours, in a system call that nothing calls off. Who looks at it loses
//! the thread, and with enough such paths the controller loses all of them. Approach: a question is asked on a thread of its own, which says
//! before each step which path comes next; who asks waits for a moment only. The mount of the path where it got stuck is known to hang from
//! then on, so that no further thread is lost to it, until that one comes back.
//!
//! Guarantees: who asks waits at most [`WAIT`]; at most [`OUT_MAX`] threads; a file system that answers is never kept from being asked by
//! one that does not, up to that number of threads.
//! Caveat: it may stop answering right after it was asked. Then init waits for it, and with init its own workload alone.

use super::HostError;
use crate::model::time::Timestamp;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long an answer is waited for. A disk that has to spin up takes some seconds; it has by the time it is asked again.
const WAIT: Duration = Duration::from_secs(1);
/// Threads that wait for file systems. One mount costs as many as there are steps at a time, eight; so these are eight mounts that hang.
const OUT_MAX: usize = 64;

/// Everything that is being asked; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Asking(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    out: BTreeMap<u64, Out>,
    next: u64,
}

/// A thread that is out asking.
#[derive(Debug, Default)]
struct Out {
    /// The path it looks at.
    at: PathBuf,
    /// What hangs, as far as is known, and since when. None as long as it may still be answered in time.
    hangs: Option<(PathBuf, Timestamp)>,
}

/// A question, on the thread that asks it. Dropped when the thread is back.
#[derive(Debug)]
pub struct Question {
    asking: Asking,
    number: u64,
}

impl Asking {
    /// Asks, and waits a moment for the answer.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Question) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let asked = self.begin()?;
        let number = asked.number;
        // Room for the one answer: the thread never waits for whoever has stopped waiting for it.
        let (answer, answers) = sync_channel(1);
        let thread = thread::Builder::new().name("ask".to_owned()).spawn(move || {
            let answered = question(&asked);
            drop(asked);
            // Nobody may wait any more.
            let _ = answer.send(answered);
        });
        thread.map_err(|source| HostError::Facts { what: "paths of the host, for want of a thread", source })?;
        match answers.recv_timeout(WAIT) {
            Ok(answered) => answered,
            Err(RecvTimeoutError::Disconnected) => Err(HostError::Panicked),
            // Back in the very moment it was given up.
            Err(RecvTimeoutError::Timeout) => match self.give_up(number) {
                Some(error) => Err(error),
                None => answers.recv().unwrap_or(Err(HostError::Panicked)),
            },
        }
    }

    fn begin(&self) -> Result<Question, HostError> {
        let mut inner = self.inner();
        if inner.out.len() >= OUT_MAX {
            return Err(HostError::ManyHang { count: inner.out.len() });
        }
        let number = inner.next;
        inner.next += 1;
        inner.out.insert(number, Out::default());
        Ok(Question { asking: self.clone(), number })
    }

    /// Takes what a thread looks at for something that hangs.
    fn give_up(&self, number: u64) -> Option<HostError> {
        let mut inner = self.inner();
        let out = inner.out.get_mut(&number)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = Timestamp::default().plus(since).minus(WAIT);
        // A thread that has not got as far as its first path says nothing of any.
        if !out.at.as_os_str().is_empty() {
            out.hangs = Some((hanging(&out.at), since));
        }
        Some(HostError::Hangs { path: out.at.clone(), since })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whatever panicked, the map is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// Says what is looked at next; an error if that is known to hang.
    pub fn next(&self, path: &Path) -> Result<(), HostError> {
        let mut inner = self.asking.inner();
        let hung = inner.out.values().find_map(|out| out.hangs.as_ref().filter(|(hung, _)| path.starts_with(hung)));
        if let Some((_, since)) = hung {
            return Err(HostError::Hangs { path: path.to_owned(), since: *since });
        }
        if let Some(out) = inner.out.get_mut(&self.number) {
            path.clone_into(&mut out.at);
        }
        Ok(())
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.asking.inner().out.remove(&self.number);
    }
}

/// What hangs when a path does: its mount. Of the root's own file system only what is below the path, because a host whose root hangs runs
/// nothing that could ask.
fn hanging(path: &Path) -> PathBuf {
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo()).map(|mounts| mounts.0);
    let points = mounts.unwrap_or_default().into_iter().map(|mount| mount.mount_point);
    let above = points.filter(|point| path.starts_with(point) && point != Path::new("/"));
    above.max_by_key(|point| point.components().count()).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Instant;

    /// A question about a path that is answered when the sender is dropped.
    fn hang(asking: &Asking, path: &'static str) -> (Sender<()>, Result<(), HostError>) {
        let (release, released) = channel::<()>();
        let answered = asking.ask(move |question| {
            question.next(Path::new(path))?;
            let _ = released.recv();
            Ok(())
        });
        (release, answered)
    }

    #[test]
    fn what_hangs_is_waited_for_once_and_asked_again_when_it_is_back() {
        let asking = Asking::default();
        let (release, refused) = hang(&asking, "/nowhere/x");
        let Err(HostError::Hangs { path, since }) = refused else { panic!("{refused:?}") };
        assert_eq!(path, Path::new("/nowhere/x"));
        let begun = Instant::now();
        for path in ["/nowhere/x", "/nowhere/x/below"] {
            let (_, refused) = hang(&asking, path);
            // The same moment each time, so that what is told stays the same.
            assert!(matches!(refused, Err(HostError::Hangs { since: again, .. }) if again == since), "{refused:?}");
        }
        assert_eq!(asking.ask(|question| question.next(Path::new("/nowhere/y")).map(|()| 7)).unwrap(), 7);
        assert!(begun.elapsed() < WAIT, "a path that is known to hang was waited for");
        drop(release);
        while !asking.inner().out.is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        asking.ask(|question| question.next(Path::new("/nowhere/x"))).unwrap();
    }

    #[test]
    fn threads_that_are_out_are_bounded() {
        let asking = Asking::default();
        let held: Vec<Question> = (0..OUT_MAX).map(|_| asking.begin().unwrap()).collect();
        assert!(matches!(asking.ask(|_| Ok(())), Err(HostError::ManyHang { count: OUT_MAX })));
        drop(held);
        asking.ask(|_| Ok(())).unwrap();
        assert!(asking.inner().out.is_empty());
    }

    #[test]
    fn a_mount_hangs_as_a_whole_and_the_root_only_in_part() {
        assert_eq!(hanging(Path::new("/proc/self/x")), Path::new("/proc"));
        assert_eq!(hanging(Path::new("/no-such-folder/x")), Path::new("/no-such-folder/x"));
    }
}
