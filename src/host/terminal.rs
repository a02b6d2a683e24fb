//! A terminal inside the box of a workload: the caller keeps the master's side, a command inside gets the other.
//!
//! The box has a devpts of its own, so that neither side names a terminal of the host's: `tty` inside answers a path that exists there,
//! and what runs inside can neither read nor write the caller's terminal, nor see who else has one.

use super::exec::{ExecError, Target};
use super::processes::is_alive;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, fstatfs, major, minor, open, openat2};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use std::io;
use std::os::fd::OwnedFd;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: i64 = 0x1cd1;
/// The number of `ptmx` (linux/Documentation/admin-guide/devices.txt).
const PTMX: (u32, u32) = (5, 2);

/// The two sides of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Stays outside.
    pub master: OwnedFd,
    /// Belongs to the workload's user.
    pub peer: OwnedFd,
}

/// Makes a terminal in the box of `target`.
pub fn make(target: &Target) -> Result<Terminal, ExecError> {
    let name = &target.record.spec.name;
    let failed = |source: io::Error| ExecError::Terminal { name: name.clone(), source };
    let root = format!("/proc/{}/root", target.process.pid);
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    // With the root in hand: if the process is still the one that was meant, nobody else had its number when the root was opened.
    if !is_alive(target.process) {
        return Err(ExecError::NotRunning { name: name.clone() });
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    // A workload that may mount could have laid a link of its own there, which must not lead into the host's files.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let master = openat2(&root, "dev/pts/ptmx", flags | OFlags::NONBLOCK, Mode::empty(), resolve)
        .map_err(|errno| failed(errno.into()))?;
    check(&master).map_err(failed)?;
    let peer = (|| {
        unlockpt(&master)?;
        rustix::io::ioctl_fionbio(&master, false)?;
        ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
    })()
    .map_err(|errno| failed(errno.into()))?;
    // As the user it may be opened by its name, as programs do that ask for a password; the group stays that of terminals.
    fchown(&peer, Some(Uid::from_raw(owner(target))), None::<Gid>).map_err(|errno| failed(errno.into()))?;
    Ok(Terminal { master, peer })
}

/// Whether this is a devpts' own multiplexer and no file that was laid in its place.
fn check(master: &OwnedFd) -> io::Result<()> {
    let device = fstat(master)?.st_rdev;
    if fstatfs(master)?.f_type == DEVPTS && (major(device), minor(device)) == PTMX {
        return Ok(());
    }
    Err(io::Error::other("/dev/pts/ptmx inside is no terminal multiplexer"))
}

/// The workload's user as the host has it.
fn owner(target: &Target) -> u32 {
    let process = &target.record.spec.process;
    let ids = target.record.ids.filter(|_| process.security.user_namespace);
    ids.map_or(process.user.uid, |ids| ids.first.saturating_add(process.user.uid))
}
