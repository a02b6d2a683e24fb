//! The life of one workload, seen from its PID 1: set up, start, report, reap, pump, write the exit, leave.
//!
//! Guarantees: what became of the start, and later of the command, is in the instance folder (`started`, `exit`) before this process
//! ends, whether or not a controller lives; every orphan is reaped; a signal sent to init reaches the command. When init leaves, the
//! kernel ends whatever still runs in the pid namespace (pid_namespaces(7)).
//! Caveat: when init itself is killed from outside there is no `exit` file; the controller then reports what waitid or the cgroup say.

use super::log::{Log, READ_MAX, Stream};
use super::report::{Report, identity, publish, tell};
use super::steps::{Slots, perform};
use super::sys::{self, Errno, Fd, PollFd, Result};
use super::wire::{self, Run};
use core::ffi::c_void;

/// Descriptors the controller leaves open for init, by number.
pub mod fds {
    /// The order, a memory file.
    pub const ORDER: i32 = 3;
    /// The write end of the report pipe.
    pub const REPORT: i32 = 4;
    /// The instance's folder in the runtime directory.
    pub const INSTANCE: i32 = 5;
    /// The workload's log folder.
    pub const LOGS: i32 = 6;
}

/// Init's own exit code when it never got to run the command; the reports say why.
const NOT_STARTED: i32 = 125;
/// Exit code of a command ended by a signal, plus the signal, as shells have it.
const SIGNALLED: i32 = 128;
/// The usual gid of nobody: the overflow gid of the kernel and `nogroup` of Debian.
const NOBODY: u32 = 65534;
/// Between two looks where the kernel will not wait for us.
const LOOK_AGAIN_MS: u32 = 100;
/// Stack of the child between vfork and execve: a dozen system calls and no recursion. A page of it is touched.
const CHILD_STACK: usize = 16 * 1024;

/// Memory that must not lie on the small stack, all zero and so free until touched.
pub struct Memory {
    pub buffer: [u8; READ_MAX],
    pub child_stack: [u8; CHILD_STACK],
    pub slots: Slots,
}

impl Memory {
    #[must_use]
    pub const fn new() -> Memory {
        Memory { buffer: [0; READ_MAX], child_stack: [0; CHILD_STACK], slots: Slots::new() }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

/// Runs a workload from the order in [`fds::ORDER`] to its end. Answers init's exit code.
pub fn run(memory: &mut Memory) -> i32 {
    // A workload must not read or write this process's memory or follow its descriptors, whatever uid it has (ptrace(2), "Ptrace access
    // mode checking": not dumpable needs CAP_SYS_PTRACE).
    let _ = sys::prctl(sys::PR_SET_DUMPABLE, 0, 0);
    let _ = sys::prctl(sys::PR_SET_NAME, c"containerctl-init".as_ptr() as usize, 0);
    // What the controller was started with (a lock of the shell's, a jobserver, a directory of the host's) is none of the workload's: a
    // descriptor on a host directory would be a way out of the box (CVE-2024-21626). Without this nothing is started.
    if let Err(errno) = sys::close_from(fds::LOGS + 1) {
        return refuse(&Report::new(b"unprepared").errno(errno));
    }
    // Modes in the steps are meant as they are written; the command gets a usual mask.
    sys::umask(0);
    // All signals wait for the signalfd: none may take its default action on a PID 1 that is doing set-up.
    let _ = sys::set_signal_mask(!0);
    match start(memory) {
        Ok((started, report)) => {
            publish(c"started", &report);
            tell(&report);
            watch(started, &mut memory.buffer)
        }
        Err(report) => refuse(&report),
    }
}

fn refuse(report: &Report) -> i32 {
    publish(c"exit", report);
    tell(report);
    NOT_STARTED
}

struct Started {
    command: i32,
    signals: Fd,
    /// Read ends of the command's output, and where it goes; none in a foreground run.
    output: Option<(Fd, Fd, Log)>,
}

fn start(memory: &mut Memory) -> core::result::Result<(Started, Report), Report> {
    let malformed = || Report::new(b"malformed");
    // The host's /proc names processes by the host's numbers (proc(5): `self` resolves in the pid namespace the mount belongs to), which
    // is the only cheap way to learn what the controller calls us. Opened before the steps hide it, closed before the command runs.
    let host_proc =
        sys::openat(sys::AT_FDCWD, c"/proc", sys::O_RDONLY | sys::O_DIRECTORY | sys::O_CLOEXEC, 0).unwrap_or(-1);
    let len = sys::size_of_file(fds::ORDER).ok().and_then(|len| usize::try_from(len).ok()).ok_or_else(malformed)?;
    let order = sys::map_private(fds::ORDER, len).map_err(|_| malformed())?;
    sys::close(fds::ORDER);
    // SAFETY: a fresh private mapping of exactly `len` bytes, used by nobody else and unmapped after the last use below.
    let bytes = unsafe { core::slice::from_raw_parts_mut(order, len) };
    let (steps, run) = wire::decode(bytes).map_err(|_| malformed())?;
    for (index, step) in steps.enumerate() {
        let step = step.map_err(|_| malformed())?;
        perform(&step, &mut memory.slots, &mut memory.child_stack)
            .map_err(|errno| Report::new(b"failed").number(index as u64).errno(errno))?;
    }
    let started = launch(run, &mut memory.child_stack, host_proc, &memory.slots)?;
    sys::close(host_proc);
    sys::unmap(order, len);
    Ok(started)
}

/// What the child between vfork and execve needs, and what it leaves behind: the memory is shared.
struct Child<'a> {
    run: Run<'a>,
    output: Option<(Fd, Fd)>,
    host_proc: Fd,
    /// A Landlock ruleset and a user namespace, 0 for none.
    wall: Fd,
    users: Fd,
    identity: (u64, u64),
    failure: Option<(&'static [u8], Errno)>,
}

fn launch(
    run: Run<'_>,
    stack: &mut [u8],
    host_proc: Fd,
    slots: &Slots,
) -> core::result::Result<(Started, Report), Report> {
    let setup = |errno| Report::new(b"unprepared").errno(errno);
    // Every signal but the two that our own writes may raise, to a reader that has gone or past a limit on file sizes.
    let own_doing = 1 << (sys::SIGPIPE - 1) | 1 << (sys::SIGXFSZ - 1);
    let signals = sys::signalfd(!own_doing).map_err(setup)?;
    let (bytes_max, files_max) = (run.log_bytes_max, run.log_files_max);
    let owner = (run.host_uid as u32, run.host_gid as u32);
    let (wall, users) = (slots.wall, slots.users);
    let mut child = Child { run, output: None, host_proc, wall, users, identity: (0, 0), failure: None };
    let mut readers = None;
    if bytes_max > 0 {
        let (out_read, out_write) = sys::pipe2(sys::O_CLOEXEC).map_err(setup)?;
        let (err_read, err_write) = sys::pipe2(sys::O_CLOEXEC).map_err(setup)?;
        // Programs open /dev/stdout by its name, which is then checked against the pipe's owner.
        for pipe in [out_write, err_write] {
            sys::fchown(pipe, owner.0, owner.1).map_err(setup)?;
        }
        child.output = Some((out_write, err_write));
        readers = Some((out_read, err_read));
    }
    let own = identity(host_proc);
    // SAFETY: `command` ends in execve or exit; it writes only to `child`, which this frame owns and reads after the child has let go of
    // the memory; the stack is a kilobyte deep in use and 16 KiB large.
    let pid = unsafe { sys::child(sys::CLONE_VFORK, stack, command, (&raw mut child).cast()) }.map_err(setup)?;
    if let Some((word, errno)) = child.failure {
        let _ = sys::reap();
        return Err(Report::new(word).errno(errno));
    }
    for fd in [users, wall].into_iter().filter(|fd| *fd != 0) {
        sys::close(fd);
    }
    let report = Report::new(b"started").number(own.0).number(own.1).number(child.identity.0).number(child.identity.1);
    if let Some((out, err)) = child.output {
        sys::close(out);
        sys::close(err);
    }
    let output = readers.map(|(out, err)| (out, err, Log::open(fds::LOGS, bytes_max, files_max)));
    // A workload of our own uid could otherwise take our descriptors away with prlimit(2), which asks for real, effective and saved ids to
    // be the caller's, or a capability; one odd id is enough to fail that.
    let _ = sys::set_saved_gid(NOBODY);
    // From here on init only reads pipes, writes its two folders and signals its command, which may have another uid.
    let _ = sys::set_capabilities(1 << sys::CAP_KILL, 0);
    Ok((Started { command: pid, signals, output }, report))
}

/// The child's side: becomes the command or leaves the reason in `failure`.
unsafe extern "C" fn command(argument: *mut c_void) -> ! {
    // SAFETY: `launch` passes its `Child`, which outlives us: it sleeps until we execute or exit.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    child.identity = identity(child.host_proc);
    child.failure = Some(match become_command(child) {
        Err(failure) => failure,
        Ok(never) => match never {},
    });
    sys::exit(NOT_STARTED)
}

enum Never {}

fn become_command(child: &mut Child<'_>) -> core::result::Result<Never, (&'static [u8], Errno)> {
    let refused = |word: &'static [u8]| move |errno| (word, errno);
    if let Some((out, err)) = child.output {
        sys::dup3(out, 1, 0).and_then(|()| sys::dup3(err, 2, 0)).map_err(refused(b"unprepared"))?;
    }
    if child.run.terminal != 0 {
        // A session that the command leads, not we: what is typed reaches its jobs, and a hang-up ends them (ioctl_tty(2), TIOCSCTTY).
        sys::setsid().and_then(|()| sys::control_terminal(0)).map_err(refused(b"unprepared"))?;
    }
    if child.users != 0 {
        // With every capability in it until `identify`, and none outside any more.
        sys::setns(child.users, sys::CLONE_NEWUSER).map_err(refused(b"userns"))?;
    }
    // Whatever secrets the controller's session holds stay there; a kernel without keyrings has none.
    match sys::new_session_keyring() {
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(errno) => return Err((b"keyring", errno)),
    }
    if child.wall != 0 {
        sys::landlock_restrict(child.wall).map_err(refused(b"landlock"))?;
    }
    // Nothing of the host's is open while paths of the workload's root are walked: a link in it could name a descriptor, and the working
    // directory become the host's (CVE-2024-21626).
    sys::close_from(fds::ORDER).map_err(refused(b"unprepared"))?;
    // Without no-new-privileges only a privileged process may add filters; with it they come as late as possible, so that a profile need
    // not allow what we do ourselves.
    if child.run.no_new_privileges == 0 {
        filter(&child.run).map_err(refused(b"seccomp"))?;
    }
    identify(&child.run).map_err(refused(b"identity"))?;
    // As the workload's user: a folder it may not enter is no place to be in.
    sys::chdir(child.run.workdir).map_err(refused(b"workdir"))?;
    sys::umask(0o022);
    // What the controller ignores (SIGPIPE, SIGIO) would stay ignored across execve; SIGKILL and SIGSTOP refuse, as they should.
    for signal in 1..sys::SIGNALS_END {
        let _ = sys::default_signal(signal);
    }
    let _ = sys::set_signal_mask(0);
    if child.run.no_new_privileges != 0 {
        sys::prctl(sys::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(refused(b"identity"))?;
        filter(&child.run).map_err(refused(b"seccomp"))?;
    }
    let (argv, envp) = (child.run.argv.pointers(), child.run.envp.pointers());
    let mut reason = Errno::NOENT;
    for path in child.run.candidates.iter() {
        // SAFETY: both arrays were built by `pointers` out of the order, which stays mapped until we have executed.
        match unsafe { sys::execve(path, argv, envp) } {
            // The file is there: what it names on its `#!` line, or as its loader, is not (execve(2)).
            Errno::NOENT if sys::exists(path) => return Err((b"uninterpretable", Errno::NOENT)),
            Errno::NOENT | Errno::NOTDIR => {}
            // As execvp(3): a file that may not be executed is remembered, and a later one on the path may still do.
            Errno::ACCES => reason = Errno::ACCES,
            errno => return Err((b"unexecutable", errno)),
        }
    }
    Err((b"unexecutable", reason))
}

/// Loads the system call filters.
fn filter(run: &Run<'_>) -> Result<()> {
    let mut rest = run.filters;
    while let Some((len, filters)) = rest.split_first() {
        let len = usize::try_from(*len).map_err(|_| Errno::INVAL)?;
        let (filter, more) = filters.split_at_checked(len).ok_or(Errno::INVAL)?;
        sys::add_filter(filter)?;
        rest = more;
    }
    Ok(())
}

/// Takes the workload's user and gives up every capability but the granted ones for good.
fn identify(run: &Run<'_>) -> Result<()> {
    const GROUPS_MAX: usize = 64;
    let mut groups = [0u32; GROUPS_MAX];
    let used = groups.get_mut(..run.groups.len()).ok_or(Errno::INVAL)?;
    for (group, wide) in used.iter_mut().zip(run.groups) {
        *group = *wide as u32;
    }
    sys::set_groups(used)?;
    let granted = |capability: usize| run.capabilities >> capability & 1 != 0;
    // The bounding set goes first, while CAP_SETPCAP is still there; it ends at the first number the kernel does not know.
    for capability in (0..64).filter(|capability| !granted(*capability)) {
        match sys::prctl(sys::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    sys::prctl(sys::PR_CAP_AMBIENT, sys::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    // Leaving uid 0 would take the granted ones too (capabilities(7), "Effect of user ID changes").
    sys::prctl(sys::PR_SET_KEEPCAPS, usize::from(run.capabilities != 0), 0)?;
    sys::set_gid(run.gid as u32)?;
    sys::set_uid(run.uid as u32)?;
    sys::set_capabilities(run.capabilities, run.capabilities)?;
    // Ambient, so that they outlive execve whatever the uid.
    (0..64)
        .filter(|capability| granted(*capability))
        .try_for_each(|capability| sys::prctl(sys::PR_CAP_AMBIENT, sys::PR_CAP_AMBIENT_RAISE, capability).map(drop))
}

fn watch(mut started: Started, buffer: &mut [u8; READ_MAX]) -> i32 {
    let mut fds = [PollFd { fd: started.signals, events: sys::POLLIN, revents: 0 }; 3];
    let (out, err) = started.output.as_ref().map_or((-1, -1), |(out, err, _)| (*out, *err));
    (fds[1].fd, fds[2].fd) = (out, err);
    loop {
        match sys::poll(&mut fds) {
            Err(Errno::INTR) => continue,
            Err(_) => look(&mut fds),
            Ok(_) => {}
        }
        if let Some((_, _, log)) = &mut started.output {
            for (place, stream) in fds[1..].iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
                if place.revents != 0 && !log.pump(place.fd, stream, buffer) {
                    // A negative descriptor is passed over by poll(2): the stream has ended.
                    place.fd = -1;
                }
            }
        }
        if fds[0].revents != 0
            && let Some(status) = attend(&started)
        {
            drain(&mut started, buffer);
            return finish(status);
        }
    }
}

/// Stands in for a poll that the kernel refuses: looks at everything now and then. Only reading a signalfd never waits.
fn look(fds: &mut [PollFd; 3]) {
    sys::pause(LOOK_AGAIN_MS);
    for place in fds.iter_mut().filter(|place| place.fd >= 0) {
        place.revents = 0;
        let _ = sys::poll_now(core::slice::from_mut(place));
    }
    fds[0].revents = sys::POLLIN;
}

/// Forwards what was sent to us and reaps what has ended. Answers the command's wait status once there is one.
fn attend(started: &Started) -> Option<i32> {
    while let Ok(record) = sys::read_signal(started.signals) {
        let signal = record.signal as i32;
        // What a terminal sends (SI_KERNEL) the command gets itself, being in the same process group.
        if signal != sys::SIGCHLD && record.code != sys::SI_KERNEL {
            let _ = sys::kill(started.command, signal);
        }
    }
    let mut ended = None;
    while let Ok(Some((pid, status))) = sys::reap() {
        if pid == started.command {
            ended = Some(status);
        }
    }
    ended
}

/// Logs what the command wrote last. Bounded: a descendant that goes on writing must not keep an ended workload alive.
fn drain(started: &mut Started, buffer: &mut [u8; READ_MAX]) {
    /// A pipe holds 64 KiB (pipe(7)); more than that was written after the end.
    const READS_MAX: usize = 64 * 1024 / READ_MAX;
    let Some((out, err, log)) = &mut started.output else { return };
    for (pipe, stream) in [(*out, Stream::Stdout), (*err, Stream::Stderr)] {
        for _ in 0..READS_MAX {
            let mut fds = [PollFd { fd: pipe, events: sys::POLLIN, revents: 0 }];
            if !matches!(sys::poll_now(&mut fds), Ok(1)) || !log.pump(pipe, stream, buffer) {
                break;
            }
        }
    }
}

fn finish(status: i32) -> i32 {
    // wait(2): the low seven bits are the signal, or zero for an exit whose code is in the next eight.
    let signal = status & 0x7f;
    let code = (status >> 8) & 0xff;
    let report = if signal == 0 {
        Report::new(b"exited").number(code as u64)
    } else {
        Report::new(b"killed").number(signal as u64)
    };
    publish(c"exit", &report);
    if signal == 0 { code } else { SIGNALLED + signal }
}
