//! Being told when file systems come and go. inotify says nothing when one is mounted over a watched folder, and when one is unmounted
//! only if no other mount namespace has it still; the kernel's table of mounts says both (proc_pid_mountinfo(5): poll reports a change).

#![allow(unsafe_code, reason = "tokio cannot see that a file keeps its descriptor to itself until it is dropped")]

use std::fs::File;
use std::future::pending;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const TABLE: &str = "/proc/self/mountinfo";

/// The open table of our own mount namespace.
#[derive(Debug)]
pub struct Mounts(Option<AsyncFd<File>>);

impl Mounts {
    /// To be called on the runtime. Without the table a mount is noticed with the next resync.
    pub fn watch() -> Mounts {
        let opened = File::open(TABLE).and_then(|table| {
            // SAFETY: what is registered must name the same open file until it is deregistered. The file is moved in, so nobody else can
            // close it, and AsyncFd deregisters it before it drops it.
            let registered = unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY) };
            Ok(registered?)
        });
        let told = opened.inspect_err(|error| {
            tracing::warn!(path = TABLE, error = %error, "cannot watch for mounts; they are noticed with the next resync");
        });
        Mounts(told.ok())
    }

    /// Completes when a file system has come or gone since the last time. Safe to cancel: the mark stays until it is taken.
    pub async fn changed(&self) {
        let Some(table) = &self.0 else { return pending().await };
        match table.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => pending().await,
        }
    }
}
