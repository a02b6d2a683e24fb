//! Read leases: the kernel's word that nobody has a file open for writing.

#![allow(
    unsafe_code,
    reason = "neither std, nix nor rustix has F_SETLEASE; sigaction is unsafe for the sake of handlers"
)]

use nix::sys::signal::{SigHandler, Signal, signal};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes a read lease and gives it back at once, so that it holds up no writer. `EAGAIN` while somebody has the file open for writing;
/// another error where leases do not work, as on network file systems (fcntl(2), `F_SETLEASE`).
pub fn try_read_lease(file: &File) -> io::Result<()> {
    for kind in [libc::F_RDLCK, libc::F_UNLCK] {
        // SAFETY: fcntl with F_SETLEASE takes a descriptor, which `file` keeps open, and an integer; it touches no memory of ours. A
        // writer that comes between the two calls makes the kernel send SIGIO, which the controller ignores.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ignores SIGIO, which the kernel sends to whoever holds a lease when a writer comes, and whose default is to end the process. To be
/// called once before the first lease.
pub fn ignore_lease_breaks() -> nix::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours in a signal handler, which is what sigaction(2) is unsafe for.
    unsafe { signal(Signal::SIGIO, SigHandler::SigIgn) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_refused_while_somebody_writes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        assert_eq!(try_read_lease(&reader).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        let path = file.into_temp_path();
        try_read_lease(&reader).unwrap();
        drop(path);
    }
}
