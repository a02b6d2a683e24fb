//! Carrying out the steps of an order. Owns nothing, decides nothing: each step is one or a few system calls, verbatim.

use super::sys::{self, Errno, Fd, MountAttr, ResourceLimit, Result};
use super::wire::{SLOTS_MAX, Step};
use core::ffi::CStr;

/// Mount trees taken by [`Step::Grab`] and not yet attached. Zero is an empty place: descriptor 0 is standard input, never a tree.
pub struct Slots([Fd; SLOTS_MAX]);

impl Slots {
    #[must_use]
    pub const fn new() -> Slots {
        Slots([0; SLOTS_MAX])
    }

    fn put(&mut self, slot: u64, tree: Fd) -> Result<()> {
        *usize::try_from(slot).ok().and_then(|slot| self.0.get_mut(slot)).ok_or(Errno::INVAL)? = tree;
        Ok(())
    }

    fn take(&mut self, slot: u64) -> Result<Fd> {
        let place = usize::try_from(slot).ok().and_then(|slot| self.0.get_mut(slot)).ok_or(Errno::INVAL)?;
        let tree = core::mem::take(place);
        if tree == 0 { Err(Errno::INVAL) } else { Ok(tree) }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Slots::new()
    }
}

/// Does one step.
pub fn perform(step: &Step<&CStr>, slots: &mut Slots) -> Result<()> {
    match *step {
        Step::WriteFile { path, content } => write_file(path, content.to_bytes()),
        Step::ResetScheduling {} => reset_scheduling(),
        Step::LimitResource { resource, soft, hard } => limit_resource(resource as u32, ResourceLimit { soft, hard }),
        Step::NewSession {} => sys::setsid(),
        Step::DieWithParent {} => sys::prctl(sys::PR_SET_PDEATHSIG, sys::SIGKILL as usize, 0).map(drop),
        Step::Unshare { flags } => sys::unshare(flags),
        Step::Hostname { name } => sys::sethostname(name.to_bytes()),
        Step::Mount { source, target, fstype, flags, data } => sys::mount(source, target, fstype, flags, data),
        Step::Grab { slot, path, set, clear } => slots.put(slot, grab(path, set, clear, sys::AT_RECURSIVE)?),
        Step::Attach { slot, target, make } => {
            let tree = slots.take(slot)?;
            if make != 0 {
                make_target(tree, target)?;
            }
            attach(tree, target)
        }
        Step::Bind { source, target, set, optional } => {
            // Looked for before anything is copied: letting go of an unused mount tree costs an RCU grace period, 50 us.
            if optional != 0 && !(sys::exists(source) && sys::exists(target)) {
                return Ok(());
            }
            attach(grab(source, set, 0, 0)?, target)
        }
        Step::EnterRoot { slot, mountpoint } => enter_root(slots.take(slot)?, mountpoint),
        Step::Mkdir { path, mode } => match sys::mkdir(path, mode as u32) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        },
    }
}

fn write_file(path: &CStr, content: &[u8]) -> Result<()> {
    let file = sys::openat(sys::AT_FDCWD, path, sys::O_WRONLY | sys::O_CLOEXEC, 0)?;
    let result = sys::write(file, content).map(drop);
    sys::close(file);
    result
}

/// An affinity mask would be intersected with the cpuset for ever (since Linux 6.2), a low OOM score make the workload unkillable by its
/// own limit. Lowering a niceness or a score that is high needs a capability the controller may lack: then it stays, and starves no other.
fn reset_scheduling() -> Result<()> {
    sys::set_affinity_to_all()?;
    let lenient = |result| match result {
        Err(Errno::PERM | Errno::ACCES) => Ok(()),
        result => result,
    };
    lenient(sys::set_usual_scheduling())?;
    lenient(write_file(c"/proc/self/oom_score_adj", b"0"))
}

/// Without CAP_SYS_RESOURCE a hard limit can only be lowered (setrlimit(2)): then both are as near as they may be.
fn limit_resource(resource: u32, wanted: ResourceLimit) -> Result<()> {
    match sys::set_resource_limit(resource, wanted) {
        Err(Errno::PERM) => {
            let held = sys::resource_limit(resource)?;
            let (soft, hard) = (wanted.soft.min(held.hard), wanted.hard.min(held.hard));
            sys::set_resource_limit(resource, ResourceLimit { soft, hard })
        }
        result => result,
    }
}

/// Makes something to mount a tree on. Whether the tree is a folder shows in looking for `.` in it.
fn make_target(tree: Fd, target: &CStr) -> Result<()> {
    let flags = sys::O_PATH | sys::O_CLOEXEC;
    let made = match sys::openat(tree, c".", flags, 0) {
        Ok(folder) => {
            sys::close(folder);
            sys::mkdir(target, 0o755)
        }
        Err(_) => {
            sys::openat(sys::AT_FDCWD, target, sys::O_CREAT | sys::O_WRONLY | sys::O_CLOEXEC, 0o644).map(sys::close)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// A detached copy of a mount, or with `AT_RECURSIVE` of the tree below it (open_tree(2)): nobody sees it before it is complete, and it
/// needs no name.
fn grab(path: &CStr, set: u64, clear: u64, recursive: u32) -> Result<Fd> {
    let tree = sys::open_tree(sys::AT_FDCWD, path, sys::OPEN_TREE_CLONE | sys::OPEN_TREE_CLOEXEC | recursive)?;
    if set | clear != 0 {
        let attr = MountAttr { set, clear, propagation: 0, userns_fd: 0 };
        if let Err(errno) = sys::mount_setattr(tree, recursive, &attr) {
            sys::close(tree);
            return Err(errno);
        }
    }
    Ok(tree)
}

fn attach(tree: Fd, target: &CStr) -> Result<()> {
    let result = sys::move_mount(tree, target);
    sys::close(tree);
    result
}

/// Makes the tree the root and lets go of the old one.
///
/// pivot_root(".", ".") stacks the old root on the new one, so that no directory for it is needed (pivot_root(2), NOTES); detaching "."
/// then takes the old one away. Unlike chroot, nothing of the old root stays in the namespace for a workload to find.
fn enter_root(tree: Fd, mountpoint: &CStr) -> Result<()> {
    attach(tree, mountpoint)?;
    sys::chdir(mountpoint)?;
    sys::pivot_root(c".", c".")?;
    sys::unmount(c".", sys::MNT_DETACH)?;
    sys::chdir(c"/")
}
