//! The system calls `containerctl-init` makes, and nothing else.
//!
//! Owns: the one `syscall` instruction of the init program, the kernel's numbers and flags it needs, and thin wrappers that
//! turn the kernel's negative results into [`Errno`]. Never allocates, never retries, never decides.
//!
//! Why not libc or rustix: init is linked without any library so that an idle workload costs a few kilobytes (see
//! `docs/decisions/0002-embedded-init.md`). Constants are the kernel's ABI for x86-64; a test compares each with the libc crate's.

use core::arch::asm;
use core::ffi::{CStr, c_void};
use core::marker::PhantomData;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("containerctl runs on x86-64 Linux only; system call numbers for other machines are not there yet");

/// A kernel error number, always positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const PERM: Errno = Errno(1);
    pub const NOENT: Errno = Errno(2);
    pub const SRCH: Errno = Errno(3);
    pub const INTR: Errno = Errno(4);
    pub const AGAIN: Errno = Errno(11);
    pub const ACCES: Errno = Errno(13);
    pub const EXIST: Errno = Errno(17);
    pub const NAMETOOLONG: Errno = Errno(36);
    pub const NOTDIR: Errno = Errno(20);
    pub const INVAL: Errno = Errno(22);
    pub const NOSYS: Errno = Errno(38);
    pub const OVERFLOW: Errno = Errno(75);
}

pub type Result<T> = core::result::Result<T, Errno>;

/// A file descriptor number. Init holds a handful for its whole life, so nothing owns or closes them by scope.
pub type Fd = i32;

pub const AT_FDCWD: Fd = -100;
pub const AT_EMPTY_PATH: u32 = 0x1000;
pub const AT_RECURSIVE: u32 = 0x8000;

pub const O_RDONLY: u32 = 0;
pub const O_WRONLY: u32 = 1;
pub const O_CREAT: u32 = 0o100;
pub const O_TRUNC: u32 = 0o1000;
pub const O_APPEND: u32 = 0o2000;
pub const O_NONBLOCK: u32 = 0o4000;
pub const O_DIRECTORY: u32 = 0o200_000;
pub const O_NOFOLLOW: u32 = 0o400_000;
pub const O_CLOEXEC: u32 = 0o2_000_000;
pub const O_PATH: u32 = 0o10_000_000;

pub const CLONE_VM: u64 = 0x100;
pub const CLONE_VFORK: u64 = 0x4000;
pub const CLONE_NEWUSER: u64 = 0x1000_0000;

pub const SIGKILL: i32 = 9;
pub const SIGPIPE: i32 = 13;
pub const SIGCHLD: i32 = 17;
pub const SIGXFSZ: i32 = 25;
/// One past the highest signal (signal(7): 64 is SIGRTMAX).
pub const SIGNALS_END: i32 = 65;
pub const SI_KERNEL: i32 = 0x80;
pub const SIG_SETMASK: u32 = 2;
pub const SFD_NONBLOCK: u32 = O_NONBLOCK;
pub const SFD_CLOEXEC: u32 = O_CLOEXEC;
pub const WNOHANG: i32 = 1;
pub const POLLIN: i16 = 1;
pub const POLLERR: i16 = 8;

pub const PR_SET_PDEATHSIG: i32 = 1;
pub const PR_SET_DUMPABLE: i32 = 4;
pub const PR_SET_KEEPCAPS: i32 = 8;
pub const PR_SET_NAME: i32 = 15;
pub const PR_CAPBSET_DROP: i32 = 24;
pub const PR_SET_NO_NEW_PRIVS: i32 = 38;
pub const PR_CAP_AMBIENT: i32 = 47;
pub const PR_CAP_AMBIENT_RAISE: usize = 2;
pub const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;

pub const CAP_KILL: u32 = 5;

pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
/// Write and truncate: the accesses of landlock(7) that a rule on a single file may name, of those we use.
pub const LANDLOCK_ON_FILES: u64 = 1 << 1 | 1 << 14;

pub const MNT_DETACH: i32 = 2;
pub const OPEN_TREE_CLONE: u32 = 1;
pub const OPEN_TREE_CLOEXEC: u32 = O_CLOEXEC;
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
pub const MOVE_MOUNT_T_SYMLINKS: u32 = 0x10;

pub const PROT_READ: i32 = 1;
pub const PROT_WRITE: i32 = 2;
pub const MAP_PRIVATE: i32 = 2;

pub const CLOCK_REALTIME: i32 = 0;
pub const TIOCSCTTY: u32 = 0x540e;

mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const POLL: usize = 7;
    pub const LSEEK: usize = 8;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WRITEV: usize = 20;
    pub const IOCTL: usize = 16;
    pub const SOCKET: usize = 41;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const CHDIR: usize = 80;
    pub const FCHOWN: usize = 93;
    pub const UMASK: usize = 95;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const CAPSET: usize = 126;
    pub const PIVOT_ROOT: usize = 155;
    pub const PRCTL: usize = 157;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const SETHOSTNAME: usize = 170;
    pub const CLOCK_GETTIME: usize = 228;
    pub const KEYCTL: usize = 250;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const MKDIRAT: usize = 258;
    pub const UNLINKAT: usize = 263;
    pub const RENAMEAT: usize = 264;
    pub const UNSHARE: usize = 272;
    pub const FACCESSAT: usize = 269;
    pub const PRLIMIT64: usize = 302;
    pub const SETNS: usize = 308;
    pub const SECCOMP: usize = 317;
    pub const SCHED_SETSCHEDULER: usize = 144;
    pub const SCHED_SETAFFINITY: usize = 203;
    pub const SETPRIORITY: usize = 141;
    pub const PIDFD_OPEN: usize = 434;
    pub const CLOSE_RANGE: usize = 436;
    pub const SIGNALFD4: usize = 289;
    pub const DUP3: usize = 292;
    pub const PIPE2: usize = 293;
    #[cfg(not(containerctl_init))]
    pub const EXECVEAT: usize = 322;
    pub const OPEN_TREE: usize = 428;
    pub const OPENAT2: usize = 437;
    pub const FCHMOD: usize = 91;
    pub const SETFSUID: usize = 122;
    pub const SETFSGID: usize = 123;
    pub const CAPGET: usize = 125;
    pub const STATX: usize = 332;
    pub const MOVE_MOUNT: usize = 429;
    pub const MOUNT_SETATTR: usize = 442;
    pub const LANDLOCK_CREATE_RULESET: usize = 444;
    pub const LANDLOCK_ADD_RULE: usize = 445;
    pub const LANDLOCK_RESTRICT_SELF: usize = 446;
}

/// One system call with up to six arguments.
///
/// # Safety
/// The arguments must be what the numbered call expects: every pointer valid for the access the kernel will make.
#[inline]
unsafe fn syscall(number: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the x86-64 Linux convention: number in rax, arguments in rdi rsi rdx r10 r8 r9, rcx and r11 clobbered, the result in
    // rax. Memory may be read and written by the kernel through the pointers, which the caller vouches for; no `nomem` is claimed.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

fn check(result: isize) -> Result<usize> {
    // The kernel answers -4095..=-1 for an error and anything else for success (syscall(2)).
    if (-4095..0).contains(&result) { Err(Errno((-result) as i32)) } else { Ok(result as usize) }
}

macro_rules! call {
    ($number:expr $(, $arg:expr)*) => {{
        let given = [$($arg as usize),*];
        let mut args = [0usize; 6];
        args[..given.len()].copy_from_slice(&given);
        // SAFETY: every wrapper below passes integers, or pointers derived from references that outlive the call and whose length
        // (a NUL-terminated CStr, a slice with its own length, or a repr(C) struct) is what the named call reads or writes.
        check(unsafe { syscall($number, args) })
    }};
}

pub fn read(fd: Fd, into: &mut [u8]) -> Result<usize> {
    call!(nr::READ, fd, into.as_mut_ptr(), into.len())
}

pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    call!(nr::WRITE, fd, bytes.as_ptr(), bytes.len())
}

/// One piece of a gathered write (`struct iovec`), borrowing the bytes it names.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IoVec<'a> {
    base: *const u8,
    len: usize,
    lender: PhantomData<&'a [u8]>,
}

impl<'a> IoVec<'a> {
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> IoVec<'a> {
        IoVec { base: bytes.as_ptr(), len: bytes.len(), lender: PhantomData }
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len
    }
}

/// Writes the pieces in order; answers how many bytes went out, which may be fewer than given.
pub fn writev(fd: Fd, pieces: &[IoVec<'_>]) -> Result<usize> {
    call!(nr::WRITEV, fd, pieces.as_ptr(), pieces.len())
}

pub fn openat(dir: Fd, path: &CStr, flags: u32, mode: u32) -> Result<Fd> {
    call!(nr::OPENAT, dir, path.as_ptr(), flags, mode).map(|fd| fd as Fd)
}

pub fn close(fd: Fd) {
    // close(2): the descriptor is gone whatever the result; there is nothing to do about an error.
    let _ = call!(nr::CLOSE, fd);
}

pub fn size_of_file(fd: Fd) -> Result<u64> {
    const SEEK_END: i32 = 2;
    call!(nr::LSEEK, fd, 0, SEEK_END).map(|at| at as u64)
}

/// Closes `first` and every descriptor above it (close_range(2), Linux 5.9).
pub fn close_from(first: Fd) -> Result<()> {
    call!(nr::CLOSE_RANGE, first, u32::MAX, 0).map(drop)
}

pub fn dup3(from: Fd, to: Fd, flags: u32) -> Result<()> {
    call!(nr::DUP3, from, to, flags).map(drop)
}

pub fn pipe2(flags: u32) -> Result<(Fd, Fd)> {
    let mut ends: [Fd; 2] = [-1; 2];
    call!(nr::PIPE2, ends.as_mut_ptr(), flags)?;
    Ok((ends[0], ends[1]))
}

/// Maps a whole file privately, readable and writable: writes stay in this process.
pub fn map_private(fd: Fd, len: usize) -> Result<*mut u8> {
    call!(nr::MMAP, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0).map(|at| at as *mut u8)
}

pub fn unmap(at: *mut u8, len: usize) {
    let _ = call!(nr::MUNMAP, at, len);
}

/// `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: Fd,
    pub events: i16,
    pub revents: i16,
}

/// Waits without a limit: init has nothing to do until something happens, and an idle workload must cost no wake-up.
pub fn poll(fds: &mut [PollFd]) -> Result<usize> {
    call!(nr::POLL, fds.as_mut_ptr(), fds.len(), -1isize)
}

/// Looks without waiting.
pub fn poll_now(fds: &mut [PollFd]) -> Result<usize> {
    call!(nr::POLL, fds.as_mut_ptr(), fds.len(), 0)
}

/// Sleeps: poll(2) with nothing to wait for takes any limit on descriptors.
pub fn pause(millis: u32) {
    let _ = call!(nr::POLL, 0, 0, millis);
}

/// Blocks exactly the signals of `mask` (bit n-1 is signal n).
pub fn set_signal_mask(mask: u64) -> Result<()> {
    call!(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask, 0, 8).map(drop)
}

/// Gives one signal its default action (`SIG_DFL`).
pub fn default_signal(signal: i32) -> Result<()> {
    // struct kernel_sigaction: handler (SIG_DFL is 0), flags, restorer, mask.
    let action: [u64; 4] = [0, 0, 0, 0];
    call!(nr::RT_SIGACTION, signal, action.as_ptr(), 0, 8).map(drop)
}

pub fn signalfd(mask: u64) -> Result<Fd> {
    call!(nr::SIGNALFD4, -1isize, &raw const mask, 8, SFD_CLOEXEC | SFD_NONBLOCK).map(|fd| fd as Fd)
}

/// The head of `struct signalfd_siginfo`, whose whole size is 128 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SignalRecord {
    pub signal: u32,
    pub errno: i32,
    pub code: i32,
    rest: [u32; 29],
}

pub fn read_signal(fd: Fd) -> Result<SignalRecord> {
    let mut record = SignalRecord { signal: 0, errno: 0, code: 0, rest: [0; 29] };
    call!(nr::READ, fd, &raw mut record, size_of::<SignalRecord>())?;
    Ok(record)
}

/// Reaps one child: its pid and wait status, or `None` when none has ended.
pub fn reap() -> Result<Option<(i32, i32)>> {
    let mut status: i32 = 0;
    let pid = call!(nr::WAIT4, -1isize, &raw mut status, WNOHANG, 0)?;
    Ok(if pid == 0 { None } else { Some((pid as i32, status)) })
}

/// Waits for the end of one child.
pub fn reap_one(pid: i32) -> Result<()> {
    call!(nr::WAIT4, pid, 0, 0, 0).map(drop)
}

pub fn kill(pid: i32, signal: i32) -> Result<()> {
    call!(nr::KILL, pid, signal).map(drop)
}

pub fn chdir(path: &CStr) -> Result<()> {
    call!(nr::CHDIR, path.as_ptr()).map(drop)
}

pub fn umask(mask: u32) {
    let _ = call!(nr::UMASK, mask);
}

pub fn setsid() -> Result<()> {
    call!(nr::SETSID).map(drop)
}

/// Makes a terminal the one that controls the caller's session (ioctl_tty(2)).
pub fn control_terminal(fd: Fd) -> Result<()> {
    call!(nr::IOCTL, fd, TIOCSCTTY, 0).map(drop)
}

pub fn set_groups(groups: &[u32]) -> Result<()> {
    call!(nr::SETGROUPS, groups.len(), groups.as_ptr()).map(drop)
}

pub fn set_gid(gid: u32) -> Result<()> {
    call!(nr::SETRESGID, gid, gid, gid).map(drop)
}

/// Keeps the real and effective group and sets the saved one.
pub fn set_saved_gid(gid: u32) -> Result<()> {
    const KEEP: u32 = u32::MAX;
    call!(nr::SETRESGID, KEEP, KEEP, gid).map(drop)
}

pub fn set_uid(uid: u32) -> Result<()> {
    call!(nr::SETRESUID, uid, uid, uid).map(drop)
}

/// `struct rlimit64`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    pub soft: u64,
    pub hard: u64,
}

pub fn resource_limit(resource: u32) -> Result<ResourceLimit> {
    let mut limit = ResourceLimit { soft: 0, hard: 0 };
    call!(nr::PRLIMIT64, 0, resource, 0, &raw mut limit)?;
    Ok(limit)
}

pub fn set_resource_limit(resource: u32, limit: ResourceLimit) -> Result<()> {
    call!(nr::PRLIMIT64, 0, resource, &raw const limit, 0).map(drop)
}

/// Allows this process on every CPU its cpuset has (sched_setaffinity(2): what the cpuset lacks is left out).
pub fn set_affinity_to_all() -> Result<()> {
    let all = [u64::MAX; 128];
    call!(nr::SCHED_SETAFFINITY, 0, size_of_val(&all), all.as_ptr()).map(drop)
}

/// The usual scheduling policy (`SCHED_OTHER`) and niceness 0.
pub fn set_usual_scheduling() -> Result<()> {
    let priority: i32 = 0;
    call!(nr::SCHED_SETSCHEDULER, 0, 0, &raw const priority)?;
    call!(nr::SETPRIORITY, 0, 0, 0).map(drop)
}

pub fn exists(path: &CStr) -> bool {
    call!(nr::FACCESSAT, AT_FDCWD, path.as_ptr(), 0).is_ok()
}

pub fn prctl(option: i32, a: usize, b: usize) -> Result<usize> {
    call!(nr::PRCTL, option, a, b, 0, 0)
}

pub fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> Result<()> {
    call!(nr::MOUNT, source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr()).map(drop)
}

pub fn unmount(target: &CStr, flags: i32) -> Result<()> {
    call!(nr::UMOUNT2, target.as_ptr(), flags).map(drop)
}

pub fn pivot_root(new_root: &CStr, put_old: &CStr) -> Result<()> {
    call!(nr::PIVOT_ROOT, new_root.as_ptr(), put_old.as_ptr()).map(drop)
}

pub fn open_tree(dir: Fd, path: &CStr, flags: u32) -> Result<Fd> {
    call!(nr::OPEN_TREE, dir, path.as_ptr(), flags).map(|fd| fd as Fd)
}

pub fn move_mount(from: Fd, to: &CStr) -> Result<()> {
    // A target that ends in a symbolic link means where the link leads, as everywhere else.
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
    call!(nr::MOVE_MOUNT, from, c"".as_ptr(), AT_FDCWD, to.as_ptr(), flags).map(drop)
}

/// `struct mount_attr`: what to set and clear on a mount, or with `AT_RECURSIVE` on all mounts below it.
#[repr(C)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

pub fn mount_setattr(tree: Fd, flags: u32, attr: &MountAttr) -> Result<()> {
    call!(nr::MOUNT_SETATTR, tree, c"".as_ptr(), AT_EMPTY_PATH | flags, &raw const *attr, size_of::<MountAttr>())
        .map(drop)
}

pub fn sethostname(name: &[u8]) -> Result<()> {
    call!(nr::SETHOSTNAME, name.as_ptr(), name.len()).map(drop)
}

pub fn fchown(fd: Fd, uid: u32, gid: u32) -> Result<()> {
    call!(nr::FCHOWN, fd, uid, gid).map(drop)
}

pub fn unshare(flags: u64) -> Result<()> {
    call!(nr::UNSHARE, flags).map(drop)
}

pub fn rename(dir: Fd, from: &CStr, to: &CStr) -> Result<()> {
    call!(nr::RENAMEAT, dir, from.as_ptr(), dir, to.as_ptr()).map(drop)
}

pub fn unlink(dir: Fd, path: &CStr) -> Result<()> {
    call!(nr::UNLINKAT, dir, path.as_ptr(), 0).map(drop)
}

/// Seconds and nanoseconds since 1970 (`CLOCK_REALTIME`); zeros if the clock cannot be read, which the kernel does not do.
#[must_use]
pub fn now() -> (i64, u32) {
    let mut time: [i64; 2] = [0; 2];
    let _ = call!(nr::CLOCK_GETTIME, CLOCK_REALTIME, time.as_mut_ptr());
    (time[0], time[1] as u32)
}

/// Replaces this process's program.
///
/// # Safety
/// `argv` and `envp` must be NULL-terminated arrays of pointers to NUL-terminated strings, all alive during the call.
pub unsafe fn execve(path: &CStr, argv: *const *const u8, envp: *const *const u8) -> Errno {
    match call!(nr::EXECVE, path.as_ptr(), argv, envp) {
        Err(errno) => errno,
        // execve does not return on success.
        Ok(_) => Errno(0),
    }
}

/// For the controller, which starts init out of memory: replaces this process's program by the one behind a path, or behind `dir` itself with `AT_EMPTY_PATH`.
///
/// # Safety
/// As [`execve`].
#[cfg(not(containerctl_init))]
pub unsafe fn execveat(dir: Fd, path: &CStr, argv: *const *const u8, envp: *const *const u8, flags: u32) -> Errno {
    match call!(nr::EXECVEAT, dir, path.as_ptr(), argv, envp, flags) {
        Err(errno) => errno,
        Ok(_) => Errno(0),
    }
}

pub fn exit(code: i32) -> ! {
    loop {
        let _ = call!(nr::EXIT_GROUP, code);
    }
}

/// Runs `entry(argument)` in a child that shares this process's memory (`CLONE_VM`), on `stack`, with further `flags`. With `CLONE_VFORK`
/// this thread sleeps until the child has executed a program or ended. Answers the child's pid.
///
/// Why not fork: copying even this small address space costs twice the rest of the start.
///
/// # Safety
/// `entry` must not return, and must leave the shared memory in a state this process can go on with. `stack` must be large enough for
/// everything it calls. `argument` is handed over as it is.
pub unsafe fn child(
    flags: u64,
    stack: &mut [u8],
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<i32> {
    let top = (stack.as_mut_ptr() as usize + stack.len()) & !15;
    let flags = flags | CLONE_VM | SIGCHLD as u64;
    let result: isize;
    // SAFETY: clone(2) with an explicit stack: the child starts after the `syscall` instruction with rax 0 on its own stack, so this
    // frame is never touched by two processes. It jumps straight to `entry`, which does not return; `call` leaves the stack as the C
    // convention wants it (16-byte aligned before the call). The parent takes the other branch with its stack unchanged.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE as isize => result,
            in("rdi") flags, in("rsi") top, in("rdx") 0usize, in("r10") 0usize, in("r8") 0usize,
            in("r12") entry, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    check(result).map(|pid| pid as i32)
}

mod files;
pub use files::*;

mod walls;
pub use walls::*;

#[cfg(test)]
mod tests;
