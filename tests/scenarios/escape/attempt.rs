//! System calls that no program makes for a shell, made by this very test program, inside a box or outside any.
//!
//! Each attempt is made by a process of its own, so that one that gets through (a new root, a namespace) changes nothing for the next.
//! What came of it is its error's name, or `done`; a test says which it expects, for a refusal by chance is none.

use crate::box_::inside;
use crate::world::World;
use libc::*;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// What came of each attempt, by its name.
pub type Outcomes = BTreeMap<String, String>;

/// What the scripts call by name: a line with a program that is not there would prove nothing.
const PROGRAMS: &str = "cat chmod chown dd dmesg find grep head ls mkdir mknod mount umount unshare wc";
/// A workload without any wall but its namespaces and mounts, for what must get through there.
pub const OPEN: &str = "security: {seccomp: unconfined, userNamespace: false, capabilities: [SYS_ADMIN, SYS_PTRACE, SYS_MODULE, SYS_BOOT,
    SYS_RAWIO, SYS_PACCT, SYS_CHROOT, SYS_NICE, SYSLOG, MKNOD, BPF, PERFMON, DAC_READ_SEARCH, DAC_OVERRIDE, NET_RAW, NET_ADMIN, KILL]}";
pub const UNFILTERED: &str = "security: {seccomp: unconfined}";

/// Runs a script in which every line that gets through says `ESCAPED`; `echo end` tells that it came to its end.
pub fn tries(script: &str) {
    let world = World::running();
    let check = format!("for tool in {PROGRAMS}; do command -v $tool >/dev/null || echo ESCAPED? no $tool; done");
    let out = inside(&world, "intruder", "", &format!("exec 2>&1\n{check}\n{script}\necho end"));
    assert!(!out.contains("ESCAPED") && out.ends_with("end\n"), "{out}");
}

/// Each is refused in a default workload, and for want of permission: any other error could be this test's own fault.
pub fn refused(names: &[&str]) {
    let outcomes = attempts(&World::running(), "", names);
    for (name, outcome) in &outcomes {
        // Its flags lie in memory, where no filter can see them: it is said not to be there, and programs use `clone` instead.
        let expected: &[&str] = if name == "clone3" { &["ENOSYS"] } else { &["EPERM", "EACCES"] };
        assert!(expected.contains(&outcome.as_str()), "{name}: {outcome}\n{outcomes:#?}");
    }
}

/// Each comes further than any question of permission. (This kernel may have been built without it, which is an answer too: ENOSYS.)
pub fn permitted(fields: &str, names: &[&str]) {
    let outcomes = attempts(&World::running(), fields, names);
    let shut = |outcome: &String| ["EPERM", "EACCES"].contains(&outcome.as_str()) || outcome.starts_with("signal");
    println!("{outcomes:#?}");
    assert!(!outcomes.values().any(shut), "{fields}: {outcomes:#?}");
}

pub fn is_done(outcomes: &Outcomes) -> bool {
    outcomes.values().all(|outcome| outcome == "done")
}

/// Makes them in a workload with these fields.
pub fn attempts(world: &World, fields: &str, names: &[&str]) -> Outcomes {
    let program = std::env::current_exe().unwrap().display().to_string();
    let fields = format!(
        "{fields}\nenv: {{ATTEMPT: \"{}\"}}\nvolumes: [{{source: {program}, target: /run/attempt, readOnly: true}}]",
        names.join(" ")
    );
    let out = inside(world, "intruder", &fields, "/run/attempt --exact escape::attempt::attempt --nocapture 2>&1");
    let told: Outcomes =
        out.lines().filter_map(|line| line.strip_prefix("ATTEMPT ")?.split_once(" = ")).map(owned).collect();
    assert_eq!(told.len(), names.len(), "each says what came of it: {out}");
    told
}

/// Makes them here, as root of the host. Only for those that harm nothing.
pub fn outside(names: &[&str]) -> Outcomes {
    names.iter().map(|name| owned((name, &alone(name)))).collect()
}

fn owned((name, outcome): (&str, &str)) -> (String, String) {
    (name.to_owned(), outcome.to_owned())
}

/// The inside half of [`attempts`]; outside it has nothing to do.
#[test]
fn attempt() {
    let names = std::env::var("ATTEMPT").unwrap_or_default();
    for name in names.split_whitespace() {
        println!("\nATTEMPT {name} = {}", alone(name));
    }
}

/// One attempt in a process of its own.
fn alone(name: &str) -> String {
    // SAFETY: the child allocates, which glibc allows after a fork, takes no lock of another thread's, and leaves without unwinding.
    let child = unsafe { fork() };
    if child == 0 {
        let code = make(name).map_or_else(|error| error.raw_os_error().unwrap_or(ENOMSG), |()| 0);
        // SAFETY: as above.
        unsafe { _exit(code) };
    }
    let mut status = 0;
    // SAFETY: a child of ours that nobody else waits for.
    assert_eq!(unsafe { waitpid(child, &raw mut status, 0) }, child, "{}", io::Error::last_os_error());
    match (WIFEXITED(status), WEXITSTATUS(status)) {
        (true, 0) => "done".to_owned(),
        (true, errno) => format!("{:?}", Errno::from_raw(errno)),
        (false, _) => format!("signal {}", WTERMSIG(status)),
    }
}

/// An attempt by name, or by name and argument.
fn make(name: &str) -> io::Result<()> {
    let (kind, argument) = name.split_once(':').unwrap_or((name, ""));
    let text = CString::new(argument)?;
    let number: c_long = argument.parse().unwrap_or(0);
    let path = text.as_ptr() as c_long;
    let mut buffer = [0u64; 32];
    let room = buffer.as_mut_ptr() as c_long;
    let user = c"user".as_ptr() as c_long;
    match kind {
        "read" => {
            let file = File::options().read(true).custom_flags(O_NONBLOCK).open(argument)?;
            let read = (&file).read(&mut [0])?;
            if read == 1 { Ok(()) } else { Err(io::Error::from_raw_os_error(ENODATA)) }
        }
        // To open it is enough: whoever may do that may write.
        "write" => File::options().write(true).open(argument).map(drop),
        // Whoever keeps a running program open could write to it once it has ended, if nothing else stood in the way (CVE-2019-5736).
        "unsealed" => {
            let file = File::open(argument)?;
            // SAFETY: plain numbers.
            let seals = unsafe { fcntl(file.as_raw_fd(), F_GET_SEALS) };
            if seals >= 0 && seals & F_SEAL_WRITE != 0 { Err(io::Error::from_raw_os_error(EPERM)) } else { Ok(()) }
        }
        "abstract" => UnixStream::connect_addr(&SocketAddr::from_abstract_name(argument)?).map(drop),
        "remount" => call(SYS_mount, [path, path, 0, (MS_REMOUNT | MS_BIND).cast_signed(), 0]),
        "unmount" => call(SYS_umount2, [path, MNT_DETACH.into(), 0, 0, 0]),
        "kill" => call(SYS_kill, [number, SIGKILL.into(), 0, 0, 0]),
        "kill-thread" => call(SYS_tgkill, [number, number, SIGKILL.into(), 0, 0]),
        "kill-by-descriptor" => {
            call(SYS_pidfd_send_signal, [descriptor(SYS_pidfd_open, number)?, SIGKILL.into(), 0, 0, 0])
        }
        "take-descriptor" => call(SYS_pidfd_getfd, [descriptor(SYS_pidfd_open, number)?, 0, 0, 0, 0]),
        "read-memory" => {
            let here = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 8 };
            let there = iovec { iov_base: 0x40_0000 as *mut c_void, iov_len: 8 };
            call(SYS_process_vm_readv, [number, &raw const here as c_long, 1, &raw const there as c_long, 1])
        }
        "join-namespace" => {
            let namespace = File::open(argument)?;
            call(SYS_setns, [namespace.as_raw_fd().into(), 0, 0, 0, 0])
        }
        "find-key" => call(SYS_keyctl, [KEYCTL_SEARCH.into(), KEY_SPEC_SESSION_KEYRING.into(), user, path, 0]),
        "read-key" => call(SYS_keyctl, [KEYCTL_READ.into(), number, room, 256, 0]),
        "describe-key" => call(SYS_keyctl, [KEYCTL_DESCRIBE.into(), number, room, 256, 0]),
        "link-key" => call(SYS_keyctl, [KEYCTL_LINK.into(), number, KEY_SPEC_SESSION_KEYRING.into(), 0, 0]),
        _ => plain(name, room),
    }
}

/// One that needs no argument. `zeros` is so many of them.
#[allow(clippy::too_many_lines, reason = "a table, one line a call")]
fn plain(name: &str, zeros: c_long) -> io::Result<()> {
    let here = c_long::from(AT_FDCWD);
    let root = c"/".as_ptr() as c_long;
    let tmp = c"/tmp".as_ptr() as c_long;
    let etc = c"/etc".as_ptr() as c_long;
    let text = c"x".as_ptr() as c_long;
    let user = c"user".as_ptr() as c_long;
    let tmpfs = c"tmpfs".as_ptr() as c_long;
    let procfs = c"proc".as_ptr() as c_long;
    let cgroup = c"cgroup2".as_ptr() as c_long;
    let disk = c"/tmp/disk".as_ptr() as c_long;
    let kmsg = c"/tmp/kmsg".as_ptr() as c_long;
    let block = (S_IFBLK | 0o600).into();
    let character = (S_IFCHR | 0o600).into();
    // A file handle of 8 bytes of zeros.
    let handle = [8u64, 0, 0];
    let session = KEY_SPEC_SESSION_KEYRING.into();
    let calls: &[(&str, c_long, [c_long; 5])] = &[
        ("ptrace-attach", SYS_ptrace, [PTRACE_ATTACH.into(), 1, 0, 0, 0]),
        ("ptrace-seize", SYS_ptrace, [PTRACE_SEIZE.into(), 1, 0, 0, 0]),
        ("limit-init", SYS_prlimit64, [1, RLIMIT_CORE.into(), zeros, 0, 0]),
        ("mount-tmpfs", SYS_mount, [text, tmp, tmpfs, 0, 0]),
        ("mount-proc", SYS_mount, [text, tmp, procfs, 0, 0]),
        ("mount-cgroup", SYS_mount, [text, tmp, cgroup, 0, 0]),
        ("bind", SYS_mount, [tmp, etc, 0, MS_BIND.cast_signed(), 0]),
        ("open-tree", SYS_open_tree, [here, root, 1, 0, 0]),
        ("fsopen", SYS_fsopen, [tmpfs, 0, 0, 0, 0]),
        ("mount-setattr", SYS_mount_setattr, [here, root, 0, zeros, 32]),
        ("move-mount", SYS_move_mount, [here, root, here, tmp, 0]),
        ("pivot-root", SYS_pivot_root, [tmp, tmp, 0, 0, 0]),
        ("chroot", SYS_chroot, [tmp, 0, 0, 0, 0]),
        ("block-device", SYS_mknod, [disk, block, 0xfe00, 0, 0]),
        ("character-device", SYS_mknodat, [here, kmsg, character, 0x10b, 0]),
        ("init-module", SYS_init_module, [zeros, 8, text, 0, 0]),
        ("finit-module", SYS_finit_module, [0, text, 0, 0, 0]),
        ("delete-module", SYS_delete_module, [text, 0, 0, 0, 0]),
        ("kexec", SYS_kexec_load, [0, 0, 0, 0, 0]),
        ("bpf", SYS_bpf, [0, zeros, 72, 0, 0]),
        ("perf", SYS_perf_event_open, [zeros, 0, -1, -1, 0]),
        ("userfaultfd", SYS_userfaultfd, [0, 0, 0, 0, 0]),
        ("io-uring", SYS_io_uring_setup, [1, zeros, 0, 0, 0]),
        ("open-by-handle", SYS_open_by_handle_at, [here, handle.as_ptr() as c_long, 0, 0, 0]),
        ("iopl", SYS_iopl, [3, 0, 0, 0, 0]),
        ("acct", SYS_acct, [text, 0, 0, 0, 0]),
        ("swapon", SYS_swapon, [tmp, 0, 0, 0, 0]),
        ("reboot", SYS_reboot, [0, 0, 0, 0, 0]),
        ("set-clock", SYS_settimeofday, [zeros, 0, 0, 0, 0]),
        ("hostname", SYS_sethostname, [text, 1, 0, 0, 0]),
        ("kernel-log", SYS_syslog, [3, zeros, 8, 0, 0]),
        ("no-randomisation", SYS_personality, [0x4_0000, 0, 0, 0, 0]),
        ("unshare-user", SYS_unshare, [CLONE_NEWUSER.into(), 0, 0, 0, 0]),
        ("unshare-mount", SYS_unshare, [CLONE_NEWNS.into(), 0, 0, 0, 0]),
        ("unshare-net", SYS_unshare, [CLONE_NEWNET.into(), 0, 0, 0, 0]),
        ("clone-user", SYS_clone, [c_long::from(CLONE_NEWUSER | SIGCHLD), 0, 0, 0, 0]),
        ("clone3", SYS_clone3, [zeros, 88, 0, 0, 0]),
        ("add-key", SYS_add_key, [user, text, text, 1, session]),
        ("request-key", SYS_request_key, [user, text, 0, 0, 0]),
        ("read-session-keyring", SYS_keyctl, [KEYCTL_READ.into(), session, zeros, 256, 0]),
        ("vsock", SYS_socket, [AF_VSOCK.into(), SOCK_STREAM.into(), 0, 0, 0]),
        ("raw-socket", SYS_socket, [AF_INET.into(), SOCK_RAW.into(), 1, 0, 0]),
        ("packet-socket", SYS_socket, [AF_PACKET.into(), SOCK_RAW.into(), 0, 0, 0]),
        ("type-into-terminal", SYS_ioctl, [0, TIOCSTI.cast_signed(), zeros, 0, 0]),
        ("negative-niceness", SYS_setpriority, [0, 0, -20, 0, 0]),
    ];
    let (_, number, args) = calls.iter().find(|(known, ..)| *known == name).expect("an attempt by this name");
    call(*number, *args)
}

fn call(number: c_long, args: [c_long; 5]) -> io::Result<()> {
    // SAFETY: every pointer names live memory of the caller, large enough for what the call would read or write.
    let result = unsafe { syscall(number, args[0], args[1], args[2], args[3], args[4], 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The descriptor that a call of one argument answers. It is closed with the process.
fn descriptor(number: c_long, argument: c_long) -> io::Result<c_long> {
    // SAFETY: plain numbers.
    let result = unsafe { syscall(number, argument, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new session keyring for this thread and what it starts, with one key; answers the key's number.
pub fn secret_key(name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: plain numbers and strings that end.
    unsafe {
        assert!(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) >= 0, "{}", io::Error::last_os_error());
        let key =
            syscall(SYS_add_key, c"user".as_ptr(), name.as_ptr(), c"hunter2".as_ptr(), 7, KEY_SPEC_SESSION_KEYRING);
        assert!(key > 0, "{}", io::Error::last_os_error());
        i32::try_from(key).unwrap()
    }
}
