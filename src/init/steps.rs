//! Carrying out the steps of an order. Owns nothing, decides nothing: each step is one or a few system calls, verbatim.

use super::log::decimal;
use super::report::parse_stat;
use super::supervise::fds;
use super::sys::{self, Errno, Fd, MountAttr, PollFd, ResourceLimit, Result};
use super::wire::{SLOTS_MAX, Step};
use core::ffi::{CStr, c_void};

/// What one step leaves for a later one. Zero is an empty place: descriptor 0 is standard input and nothing else.
pub struct Slots {
    /// Mount trees taken by [`Step::Grab`] and not yet attached.
    trees: [Fd; SLOTS_MAX],
    /// The ruleset of [`Step::Wall`], which the command will be held to.
    pub wall: Fd,
    /// The user namespace of [`Step::MapUsers`], which the command will enter.
    pub users: Fd,
}

impl Slots {
    #[must_use]
    pub const fn new() -> Slots {
        Slots { trees: [0; SLOTS_MAX], wall: 0, users: 0 }
    }

    fn put(&mut self, slot: u64, tree: Fd) -> Result<()> {
        *usize::try_from(slot).ok().and_then(|slot| self.trees.get_mut(slot)).ok_or(Errno::INVAL)? = tree;
        Ok(())
    }

    fn take(&mut self, slot: u64) -> Result<Fd> {
        let place = usize::try_from(slot).ok().and_then(|slot| self.trees.get_mut(slot)).ok_or(Errno::INVAL)?;
        let tree = core::mem::take(place);
        if tree == 0 { Err(Errno::INVAL) } else { Ok(tree) }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Slots::new()
    }
}

/// Does one step. `stack` is for a child that lives for a moment.
pub fn perform(step: &Step<&CStr>, slots: &mut Slots, stack: &mut [u8]) -> Result<()> {
    match *step {
        Step::WriteFile { path, content } => write_file(path, content.to_bytes()),
        Step::ResetScheduling { oom_score_adj } => reset_scheduling(oom_score_adj as i64),
        Step::LimitResource { resource, soft, hard } => limit_resource(resource as u32, ResourceLimit { soft, hard }),
        Step::NewSession {} => sys::setsid(),
        Step::DieWithParent {} => die_with_parent(),
        Step::Unshare { flags } => sys::unshare(flags),
        Step::Hostname { name } => sys::sethostname(name.to_bytes()),
        Step::Mount { source, target, fstype, flags, data } => sys::mount(source, target, fstype, flags, data),
        Step::Grab { slot, path, set, clear, recursive, links } => {
            let recursive = if recursive == 0 { 0 } else { sys::AT_RECURSIVE };
            let resolve = if links == 0 { sys::RESOLVE_NO_SYMLINKS } else { 0 };
            slots.put(slot, grab(path, set, clear, recursive, resolve)?)
        }
        Step::MapUsers { first, count } => {
            slots.users = map_users(first, count, stack)?;
            Ok(())
        }
        Step::MapOwners { slot, source: _ } => {
            let tree = slots.take(slot)?;
            let userns_fd = slots.users as u64;
            let attr = MountAttr { set: sys::MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns_fd };
            sys::mount_setattr(tree, sys::AT_RECURSIVE, &attr)?;
            slots.put(slot, tree)
        }
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
            attach(grab(source, set, 0, 0, 0)?, target)
        }
        Step::EnterRoot { mountpoint } => enter_root(mountpoint),
        Step::Mkdir { path, mode } => match sys::mkdir(path, mode as u32) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        },
        Step::Loopback {} => sys::bring_up(c"lo"),
        Step::Join { pid, start_ticks, kinds, users } => {
            let pid = pid as i32;
            if users != 0 {
                let path = Text::proc(pid, c"ns/user");
                slots.users = sys::openat(sys::AT_FDCWD, path.path()?, sys::O_RDONLY | sys::O_CLOEXEC, 0)?;
            }
            join(pid, start_ticks, kinds)
        }
        Step::Wall { fs, scoped } => {
            slots.wall = sys::landlock_ruleset(fs, scoped)?;
            Ok(())
        }
        Step::Door { path, access } => door(slots.wall, path, access),
        Step::ActAs { id } => sys::act_as(id as u32),
        Step::Overlay { place, flags } => overlay(place, flags),
        Step::Folder { path, make } => folder(path, make != 0),
    }
}

/// A user namespace, held by the descriptor alone.
///
/// An execve in a namespace whose map is not yet written drops every capability, and who is suspended by `CLONE_VFORK` cannot be waited
/// for (user_namespaces(7)). So a child that does nothing holds it while we write its map, and is ended; the command enters it later. Not
/// the controller's child: that one would keep its locks and its socket open if the controller were killed meanwhile.
fn map_users(first: u64, count: u64, stack: &mut [u8]) -> Result<Fd> {
    // SAFETY: memory is shared; `hold` touches nothing but the stack, which nobody else uses until the child has been reaped below.
    let pid = unsafe { sys::child(sys::CLONE_NEWUSER, stack, hold, core::ptr::null_mut()) }?;
    let made =
        write_map(pid, c"uid_map", first, count).and_then(|()| write_map(pid, c"gid_map", first, count)).and_then(
            |()| sys::openat(sys::AT_FDCWD, Text::proc(pid, c"ns/user").path()?, sys::O_RDONLY | sys::O_CLOEXEC, 0),
        );
    let _ = sys::kill(pid, sys::SIGKILL);
    sys::reap_one(pid)?;
    made
}

/// Sleeps until it is killed.
unsafe extern "C" fn hold(_: *mut c_void) -> ! {
    loop {
        sys::pause(u32::MAX >> 1);
    }
}

fn write_map(pid: i32, file: &CStr, first: u64, count: u64) -> Result<()> {
    let mut line = Text::new();
    line.push(b"0 ").number(first).push(b" ").number(count);
    write_file(Text::proc(pid, file).path()?, line.bytes())
}

/// A short text without a heap.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Text {
    fn new() -> Text {
        Text { bytes: [0; 64], len: 0 }
    }

    /// `/proc/PID/file`.
    fn proc(pid: i32, file: &CStr) -> Text {
        let mut path = Text::new();
        path.push(b"/proc/").number(u64::from(pid.unsigned_abs())).push(b"/").push(file.to_bytes());
        path
    }

    /// What does not fit is left out; the texts made here do.
    fn push(&mut self, more: &[u8]) -> &mut Text {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + more.len()) {
            place.copy_from_slice(more);
            self.len += more.len();
        }
        self
    }

    fn number(&mut self, number: u64) -> &mut Text {
        self.push(decimal(number, &mut [0; 20]))
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn path(&self) -> Result<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno::INVAL)
    }
}

fn join(pid: i32, start_ticks: u64, kinds: u64) -> Result<()> {
    let process = sys::pidfd_open(pid)?;
    // Checked with the descriptor in hand: if whoever has the number now began when we think, the descriptor is on that one too, and not on
    // a stranger that was given the number, whose namespaces may be the host's.
    let mut text = [0u8; 512];
    let stat = sys::openat(sys::AT_FDCWD, Text::proc(pid, c"stat").path()?, sys::O_RDONLY | sys::O_CLOEXEC, 0)?;
    let len = sys::read(stat, &mut text).unwrap_or(0);
    sys::close(stat);
    let found = parse_stat(text.get(..len).unwrap_or_default());
    if found.is_none_or(|(_, began)| began != start_ticks) {
        return Err(Errno::SRCH);
    }
    let joined = sys::setns(process, kinds);
    sys::close(process);
    joined
}

/// A rule on a file may only speak of what can be done to a file (landlock_add_rule(2)).
fn door(wall: Fd, path: &CStr, access: u64) -> Result<()> {
    let place = sys::openat(sys::AT_FDCWD, path, sys::O_PATH | sys::O_CLOEXEC, 0)?;
    let result = match sys::landlock_allow(wall, place, access) {
        Err(Errno::INVAL) => sys::landlock_allow(wall, place, access & sys::LANDLOCK_ON_FILES),
        result => result,
    };
    sys::close(place);
    result
}

fn write_file(path: &CStr, content: &[u8]) -> Result<()> {
    let file = sys::openat(sys::AT_FDCWD, path, sys::O_WRONLY | sys::O_CLOEXEC, 0)?;
    let result = sys::write(file, content).map(drop);
    sys::close(file);
    result
}

/// Who started us may have died before this: then nobody holds the other end of the report pipe any more. (getppid(2) would not tell: from
/// inside a pid namespace a parent outside is always 0.)
fn die_with_parent() -> Result<()> {
    sys::prctl(sys::PR_SET_PDEATHSIG, sys::SIGKILL as usize, 0)?;
    let mut report = [PollFd { fd: fds::REPORT, events: 0, revents: 0 }];
    sys::poll_now(&mut report)?;
    if report[0].revents & sys::POLLERR == 0 { Ok(()) } else { Err(Errno::SRCH) }
}

/// An affinity mask would be intersected with the cpuset for ever (since Linux 6.2), a low OOM score make the workload unkillable by its
/// own limit. Lowering a niceness or a score that is high needs a capability the controller may lack: then it stays, and starves no other.
fn reset_scheduling(oom_score_adj: i64) -> Result<()> {
    sys::set_affinity_to_all()?;
    let lenient = |result| match result {
        Err(Errno::PERM | Errno::ACCES) => Ok(()),
        result => result,
    };
    lenient(sys::set_usual_scheduling())?;
    let mut score = Text::new();
    score.push(if oom_score_adj < 0 { b"-" } else { b"" }).number(oom_score_adj.unsigned_abs());
    lenient(write_file(c"/proc/self/oom_score_adj", score.bytes()))
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
    // One that is there is only looked at: opening it to write would copy it up into an overlay.
    if let Ok(there) = sys::openat2(sys::AT_FDCWD, target, flags, 0, sys::RESOLVE_NO_MAGICLINKS) {
        sys::close(there);
        return Ok(());
    }
    let made = match sys::openat(tree, c".", flags, 0) {
        Ok(folder) => {
            sys::close(folder);
            sys::mkdir(target, 0o755)
        }
        Err(_) => {
            let flags = sys::O_CREAT | sys::O_WRONLY | sys::O_CLOEXEC;
            sys::openat2(sys::AT_FDCWD, target, flags, 0o644, sys::RESOLVE_NO_MAGICLINKS).map(sys::close)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// A detached copy of a mount, or with `AT_RECURSIVE` of the tree below it (open_tree(2)): nobody sees it before it is complete, and it
/// needs no name. open_tree(2) cannot be told how to resolve, so that is done first.
fn grab(path: &CStr, set: u64, clear: u64, recursive: u32, resolve: u64) -> Result<Fd> {
    let place = sys::openat2(sys::AT_FDCWD, path, sys::O_PATH | sys::O_CLOEXEC, 0, resolve)?;
    let flags = sys::OPEN_TREE_CLONE | sys::OPEN_TREE_CLOEXEC | sys::AT_EMPTY_PATH | recursive;
    let tree = sys::open_tree(place, c"", flags);
    sys::close(place);
    let tree = tree?;
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

/// Makes the mount the root and lets go of the old one.
///
/// pivot_root(".", ".") stacks the old root on the new one, so that no directory for it is needed (pivot_root(2), NOTES); detaching "."
/// then takes the old one away. Unlike chroot, nothing of the old root stays in the namespace for a workload to find.
fn enter_root(mountpoint: &CStr) -> Result<()> {
    sys::chdir(mountpoint)?;
    sys::pivot_root(c".", c".")?;
    sys::unmount(c".", sys::MNT_DETACH)?;
    sys::chdir(c"/")
}

/// Mounts an overlay (Documentation/filesystems/overlayfs.rst). Names are relative: they hold none of the characters that mean something
/// among its options, whatever the path of `place`.
///
/// Whoever mounts it is who makes its temporary files ever after, and through an id-mapped mount only an id that is mapped can make any:
/// hence [`Step::ActAs`] before. What the defaults of a kernel's build could turn on (redirect_dir and the like) writes marks into the upper
/// layer that another kernel may not understand: off.
fn overlay(place: &CStr, flags: u64) -> Result<()> {
    sys::chdir(place)?;
    prepare_upper()?;
    let options =
        c"lowerdir=lower,upperdir=layers/upper,workdir=layers/work,index=off,metacopy=off,redirect_dir=off,nfs_export=off";
    sys::mount(c"overlay", c"root", c"overlay", flags, options)
}

/// The upper layer's own root is what the workload sees as the owner and mode of `/`: those of the directory. The work folder is made
/// last, so that one which is there says that the upper layer is complete.
fn prepare_upper() -> Result<()> {
    let open = |path| sys::openat(sys::AT_FDCWD, path, sys::O_RDONLY | sys::O_DIRECTORY | sys::O_CLOEXEC, 0);
    if sys::exists(c"layers/work") {
        return Ok(());
    }
    match sys::mkdir(c"layers/upper", 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let (lower, upper) = (open(c"lower")?, open(c"layers/upper")?);
    let sys::Owner { uid, gid, mode } = sys::owner(lower)?;
    match sys::fchown(upper, uid, gid) {
        // An owner that no id inside stands for cannot own anything there: it stays root's.
        Ok(()) | Err(Errno::OVERFLOW) => {}
        Err(errno) => return Err(errno),
    }
    sys::fchmod(upper, mode)?;
    sys::close(lower);
    sys::close(upper);
    sys::mkdir(c"layers/work", 0o700)
}

fn folder(path: &CStr, make: bool) -> Result<()> {
    let flags = sys::O_PATH | sys::O_DIRECTORY | sys::O_CLOEXEC;
    match sys::openat2(sys::AT_FDCWD, path, flags, 0, sys::RESOLVE_NO_SYMLINKS) {
        Ok(folder) => {
            sys::close(folder);
            Ok(())
        }
        Err(Errno::NOENT) if make => sys::mkdir(path, 0o755),
        Err(errno) => Err(errno),
    }
}
