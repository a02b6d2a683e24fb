//! Starting `containerctl-init`: one clone3, one execveat, and no Rust in between but raw system calls.
//!
//! Owns: the sealed copy of init in memory, the argument block of clone3, the numbering of descriptors init expects. This is the only
//! unsafe module of `host`.
//!
//! Why not fork: a fork copies the page tables of the whole controller (4.4 ms at 100 MB resident); `CLONE_VM | CLONE_VFORK` borrows them
//! for the few calls until execveat (0.25 ms). Why not `posix_spawn`: it knows neither namespaces nor `CLONE_INTO_CGROUP`.

#![allow(
    unsafe_code,
    reason = "clone3 with a stack of its own has no safe wrapper anywhere; each block argues its own case"
)]

use crate::init::supervise::fds;
use crate::init::sys;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals};
use std::arch::asm;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fs::File;
use std::io::{self, Write as _};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// From linux/sched.h; libc's constant of the name is cut off to 32 bits, that is to 0.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;
/// New mount, uts, ipc and pid namespaces. The cgroup namespace is made by init once it is in its groups: its root is where its maker
/// is at that moment (cgroup_namespaces(7)).
const NAMESPACES: u64 = 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000;

/// Stack of the child between clone3 and execveat: a dozen raw calls. Four pages, of which it touches one.
const STACK_BYTES: usize = 16 * 1024;
/// Where descriptors are put out of the way of the numbers init expects.
const FIRST_FREE_FD: i32 = 16;

/// What went wrong with starting init.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(
        "cannot keep containerctl-init in memory (help: with the sysctl vm.memfd_noexec at 2 nothing may be executed from there, set it to 1)"
    )]
    Image(#[source] io::Error),
    #[error("cannot pass the order to containerctl-init")]
    Order(#[source] io::Error),
    #[error("cannot prepare descriptors for containerctl-init")]
    Descriptors(#[source] io::Error),
    #[error("cannot clone a process into its namespaces and cgroup")]
    Clone(#[source] io::Error),
    #[error("cannot execute containerctl-init")]
    Execute(#[source] io::Error),
}

/// Init in memory: sealed, so that nothing that runs under it can rewrite it through `/proc/1/exe` (memfd_create(2), CVE-2019-5736).
#[derive(Debug)]
pub struct Image(OwnedFd);

impl Image {
    pub fn load(program: &[u8]) -> Result<Image, SpawnError> {
        let failed = |error: io::Error| SpawnError::Image(error);
        let fd = memory_file(c"containerctl-init", MemfdFlags::ALLOW_SEALING, MemfdFlags::EXEC).map_err(failed)?;
        let mut file = File::from(fd);
        file.write_all(program).map_err(failed)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).map_err(|errno| failed(errno.into()))?;
        Ok(Image(file.into()))
    }
}

/// Standard input, output and error of init.
#[derive(Clone, Copy, Debug)]
pub enum Stdio<'a> {
    /// Nothing to read, nothing kept: init pumps the command's output into its log.
    Null,
    /// The caller's own, for a run in the foreground.
    Inherit,
    /// Nothing to read; output and errors to this.
    Output(BorrowedFd<'a>),
    /// These three.
    Given([BorrowedFd<'a>; 3]),
}

/// Where init is born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// As PID 1 of new ones.
    New,
    /// In the caller's; it will join others.
    Inherited,
}

/// One init to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Shown as its second argument.
    pub name: &'a str,
    /// What it is to do, as `init::wire` spells it.
    pub order: &'a [u8],
    /// A v2 cgroup to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    pub namespaces: Namespaces,
    /// The instance's folder in the runtime directory.
    pub instance: BorrowedFd<'a>,
    /// The log folder.
    pub logs: BorrowedFd<'a>,
    pub stdio: Stdio<'a>,
}

/// An init that was started.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid as we see it.
    pub pid: u32,
    pub pidfd: OwnedFd,
    /// Readable, or hung up, once its set-up is over one way or the other.
    pub report: OwnedFd,
}

/// `struct clone_args` (linux/sched.h), version 2.
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What the child reads, and the place where it leaves its failure: memory is shared until it executes.
struct Child {
    program: RawFd,
    argv: [*const c_char; 3],
    envp: [*const c_char; 1],
    /// Descriptors to duplicate, from and to.
    moves: [(RawFd, RawFd); 7],
    failure: i32,
}

/// Starts init. Returns when it has been executed, not when its set-up is over.
pub fn spawn(image: &Image, spawn: &Spawn<'_>) -> Result<Spawned, SpawnError> {
    let order = order_file(spawn.order)?;
    let (report, report_end) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| SpawnError::Descriptors(errno.into()))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(SpawnError::Descriptors)?;
    let out_of_the_way = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD).map_err(|errno| SpawnError::Descriptors(errno.into()))
    };
    let (order, report_end, null) =
        (out_of_the_way(order.as_fd())?, out_of_the_way(report_end.as_fd())?, out_of_the_way(null.as_fd())?);
    let (instance, logs) = (out_of_the_way(spawn.instance)?, out_of_the_way(spawn.logs)?);
    let program = out_of_the_way(image.0.as_fd())?;
    // Held until the child has them in place: one of these may be a number that an earlier move overwrites.
    let given = match spawn.stdio {
        Stdio::Given(given) => given.into_iter().map(out_of_the_way).collect::<Result<Vec<_>, _>>()?,
        Stdio::Output(output) => {
            [null.as_fd(), output, output].into_iter().map(out_of_the_way).collect::<Result<_, _>>()?
        }
        Stdio::Null | Stdio::Inherit => Vec::new(),
    };
    let stdio = |at: usize, fd: RawFd| match (given.get(at), spawn.stdio) {
        (Some(from), _) => (from.as_raw_fd(), fd),
        (None, Stdio::Inherit) => (fd, fd),
        (None, _) => (null.as_raw_fd(), fd),
    };
    // A name has no NUL: it is made of letters, digits and three other characters.
    let name = CString::new(spawn.name).unwrap_or_default();
    let mut child = Child {
        program: program.as_raw_fd(),
        argv: [c"containerctl-init".as_ptr(), name.as_ptr(), ptr::null()],
        envp: [ptr::null()],
        moves: [
            stdio(0, 0),
            stdio(1, 1),
            stdio(2, 2),
            (order.as_raw_fd(), fds::ORDER),
            (report_end.as_raw_fd(), fds::REPORT),
            (instance.as_raw_fd(), fds::INSTANCE),
            (logs.as_raw_fd(), fds::LOGS),
        ],
        failure: 0,
    };
    let namespaces = match spawn.namespaces {
        Namespaces::New => NAMESPACES,
        Namespaces::Inherited => 0,
    };
    let flags = sys::CLONE_VM | sys::CLONE_VFORK | CLONE_CLEAR_SIGHAND | namespaces;
    let mut stack = vec![0u8; STACK_BYTES];
    // SAFETY: memory is shared, so with CLONE_VFORK: this thread, and with it `child` and `stack`, stay put until `enter` has executed init
    // or exited, one of which it always does.
    let cloned = unsafe { clone(flags, &mut stack, spawn.cgroup, enter, ptr::from_mut(&mut child).cast()) };
    let (pid, pidfd) = cloned.map_err(SpawnError::Clone)?;
    if child.failure != 0 {
        // It has exited already; collect it.
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        return Err(SpawnError::Execute(io::Error::from_raw_os_error(child.failure)));
    }
    Ok(Spawned { pid, pidfd, report })
}

/// A memory file that says whether it is to be executed, as `vm.memfd_noexec` may demand (Linux 6.3; older kernels know no such word).
fn memory_file(name: &CStr, flags: MemfdFlags, executable: MemfdFlags) -> io::Result<OwnedFd> {
    let flags = flags | MemfdFlags::CLOEXEC;
    match rustix::fs::memfd_create(name, flags | executable) {
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::memfd_create(name, flags)?),
        made => Ok(made?),
    }
}

fn order_file(order: &[u8]) -> Result<OwnedFd, SpawnError> {
    let fd = memory_file(c"order", MemfdFlags::empty(), MemfdFlags::NOEXEC_SEAL).map_err(SpawnError::Order)?;
    let mut file = File::from(fd);
    file.write_all(order).map_err(SpawnError::Order)?;
    Ok(file.into())
}

/// A child in `entry`, with its pid and pidfd.
///
/// # Safety
/// `entry` must not return. Where memory is shared (`CLONE_VM`), `argument` and `stack` must live and `entry` leave everything else alone
/// until the child has executed a program or ended; nothing but raw system calls may run in it.
unsafe fn clone(
    flags: u64,
    stack: &mut [u8],
    cgroup: Option<BorrowedFd<'_>>,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: flags | CLONE_PIDFD | into_cgroup,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: sys::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: stack.len() as u64 & !15,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.and_then(|fd| u64::try_from(fd.as_raw_fd()).ok()).unwrap_or(0),
    };
    // A signal handler that ran in the child would run in our memory. Init unblocks what it wants after its exec.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: `args` is a valid clone_args; the rest is what our caller vouches for.
    let result = unsafe { clone3(&args, entry, argument) };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let pid = u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(0)))?;
    // SAFETY: CLONE_PIDFD stored a new descriptor that nothing else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// The system call. Answers the child's pid or a negative error number.
///
/// # Safety
/// `args` must name a stack large enough for `entry`, which must not return; what shared memory asks of the caller is said at [`clone`].
unsafe fn clone3(args: &CloneArgs, entry: unsafe extern "C" fn(*mut c_void) -> !, argument: *mut c_void) -> i64 {
    let result: i64;
    // SAFETY: clone3(2): the child resumes after `syscall` with rax 0 on the top of the given stack (16-byte aligned, so `call` leaves it
    // as the C convention wants), and goes to `entry` without touching this frame. The parent goes on at 2 with its own stack.
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
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(args), in("rsi") size_of::<CloneArgs>(),
            in("r12") entry, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// The child: puts the descriptors where init looks for them and becomes it, which closes everything else.
unsafe extern "C" fn enter(argument: *mut c_void) -> ! {
    // SAFETY: `clone` passes its `Child`, which lives until we have executed or exited.
    let child = unsafe { &mut *argument.cast::<Child>() };
    for (from, to) in child.moves {
        // dup3 refuses to duplicate a descriptor onto itself; an inherited one is where it belongs already.
        if from != to
            && let Err(errno) = sys::dup3(from, to, 0)
        {
            child.failure = errno.0;
            sys::exit(127);
        }
    }
    // SAFETY: the arrays are NULL-terminated and point to NUL-terminated strings that live in the suspended parent.
    let errno = unsafe {
        sys::execveat(
            child.program,
            c"" as &CStr,
            child.argv.as_ptr().cast(),
            child.envp.as_ptr().cast(),
            sys::AT_EMPTY_PATH,
        )
    };
    child.failure = errno.0;
    sys::exit(127)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_cannot_be_changed_any_more() {
        let image = Image::load(b"\x7fELF").unwrap();
        let mut again = File::from(image.0.try_clone().unwrap());
        assert_eq!(again.write_all(b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(again.set_len(0).is_err());
    }

    #[test]
    fn flags_are_the_ones_libc_knows() {
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID;
        assert_eq!(NAMESPACES, u64::try_from(namespaces).unwrap());
        assert_eq!(CLONE_PIDFD, u64::try_from(libc::CLONE_PIDFD).unwrap());
        assert_eq!(size_of::<CloneArgs>(), 88, "CLONE_ARGS_SIZE_VER2");
    }
}
