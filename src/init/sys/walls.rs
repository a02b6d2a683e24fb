//! The system calls that shut a process in: namespaces, capabilities, filters, Landlock, keyrings.

use super::{CStr, Errno, Fd, O_CLOEXEC, Result, check, close, nr, syscall};

pub fn pidfd_open(pid: i32) -> Result<Fd> {
    call!(nr::PIDFD_OPEN, pid, 0).map(|fd| fd as Fd)
}

/// Enters the namespace behind a descriptor, which must be of this kind (`CLONE_NEW*`); or those of these kinds of the process behind a
/// pidfd (Linux 5.8).
pub fn setns(namespace: Fd, kind: u64) -> Result<()> {
    call!(nr::SETNS, namespace, kind).map(drop)
}

/// Leaves the session keyring for an empty one without a name (keyctl(2)).
pub fn new_session_keyring() -> Result<()> {
    const JOIN_SESSION_KEYRING: u32 = 1;
    call!(nr::KEYCTL, JOIN_SESSION_KEYRING, 0).map(drop)
}

/// Sets an interface up (netdevice(7)).
pub fn bring_up(interface: &CStr) -> Result<()> {
    const AF_INET: u32 = 2;
    const SOCK_DGRAM: u32 = 2;
    const SIOCSIFFLAGS: u32 = 0x8914;
    const IFF_UP: u8 = 1;
    // struct ifreq: the name in 16 bytes, then the flags in two.
    let mut request = [0u8; 40];
    let name = interface.to_bytes();
    request.get_mut(..name.len()).filter(|place| place.len() < 16).ok_or(Errno::INVAL)?.copy_from_slice(name);
    request[16] = IFF_UP;
    let socket = call!(nr::SOCKET, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0)? as Fd;
    let result = call!(nr::IOCTL, socket, SIOCSIFFLAGS, request.as_ptr()).map(drop);
    close(socket);
    result
}

/// Adds a filter of system calls to this process; `instructions` are `struct sock_filter`s (seccomp(2)).
pub fn add_filter(instructions: &[u64]) -> Result<()> {
    const SET_MODE_FILTER: u32 = 1;
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const u64,
    }
    let len = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { len, filter: instructions.as_ptr() };
    call!(nr::SECCOMP, SET_MODE_FILTER, 0, &raw const program).map(drop)
}

/// A ruleset that handles these file accesses and ends these scopes. Kernels that know no scopes (before 6.12) take none.
pub fn landlock_ruleset(fs: u64, scoped: u64) -> Result<Fd> {
    // struct landlock_ruleset_attr: file accesses, network accesses, scopes. Older kernels want it as short as they know it.
    let attr: [u64; 3] = [fs, 0, scoped];
    let len = if scoped == 0 { size_of::<u64>() } else { size_of_val(&attr) };
    call!(nr::LANDLOCK_CREATE_RULESET, attr.as_ptr(), len, 0).map(|fd| fd as Fd)
}

/// Allows accesses below the file or folder that `place` is open on.
pub fn landlock_allow(ruleset: Fd, place: Fd, access: u64) -> Result<()> {
    const PATH_BENEATH: u32 = 1;
    /// `struct landlock_path_beneath_attr`.
    #[repr(C, packed)]
    struct Beneath {
        access: u64,
        place: Fd,
    }
    let beneath = Beneath { access, place };
    call!(nr::LANDLOCK_ADD_RULE, ruleset, PATH_BENEATH, &raw const beneath, 0).map(drop)
}

/// The version of Landlock this kernel has.
#[cfg(not(containerctl_init))]
pub fn landlock_version() -> Result<usize> {
    const VERSION: u32 = 1;
    call!(nr::LANDLOCK_CREATE_RULESET, 0, 0, VERSION)
}

pub fn landlock_restrict(ruleset: Fd) -> Result<()> {
    call!(nr::LANDLOCK_RESTRICT_SELF, ruleset, 0).map(drop)
}

/// Sets the permitted and effective capabilities to `set`, and the inheritable ones (capset(2), version 3).
pub fn set_capabilities(set: u64, inheritable: u64) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let (low, high) = (set as u32, (set >> 32) as u32);
    let data: [u32; 6] = [low, low, inheritable as u32, high, high, (inheritable >> 32) as u32];
    call!(nr::CAPSET, header.as_ptr(), data.as_ptr()).map(drop)
}
