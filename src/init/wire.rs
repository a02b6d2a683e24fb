//! The order a controller hands to `containerctl-init`: how it is written, and how it is read without copying or allocating.
//!
//! Owns the byte layout, shared by both sides. Never acts on what it carries. Both sides come out of one build (init is embedded in
//! the controller), so there is no version to negotiate; the magic number only guards against a wrong descriptor.
//!
//! Layout, little-endian, every field 8-byte aligned: `magic, length of the steps`, the steps, the run record. A string is its length
//! including the final NUL, then its bytes, then padding. A list of strings is its count, as many 8-byte slots plus one (init turns them
//! into the pointer array that execve wants, in its private mapping), then the strings.

use core::ffi::CStr;

const MAGIC: u64 = u64::from_le_bytes(*b"ctlinit1");
const WORD: usize = 8;

/// Mount trees that one order may hold open between [`Step::Grab`] and [`Step::Attach`]: the root and one a volume.
pub const SLOTS_MAX: usize = 64;

/// One thing to do before the workload's command runs, in order. The first that fails ends the start. `S` is the kind of text: owned
/// where an order is written, borrowed out of it where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<S> {
    /// Write `content` to an existing file: `0` into a cgroup's `tasks` moves the writer there.
    WriteFile { path: S, content: S },
    /// Leave behind what the controller's own service settings would pass on: CPU affinity, scheduling policy, niceness, OOM score. The
    /// score is a signed number.
    ResetScheduling { oom_score_adj: u64 },
    /// A resource limit (setrlimit(2)), as far as the current hard limit may be raised.
    LimitResource { resource: u64, soft: u64, hard: u64 },
    /// Leave the session and the controlling terminal of whoever started us.
    NewSession {},
    /// Be killed when the thread that started us ends (foreground runs).
    DieWithParent {},
    /// Make namespaces of our own (`CLONE_NEW*`).
    Unshare { flags: u64 },
    /// Name the host inside the uts namespace.
    Hostname { name: S },
    /// mount(2), verbatim.
    Mount { source: S, target: S, fstype: S, flags: u64, data: S },
    /// Copy the mount at `path` into a slot, or all mounts from there on (`recursive`), with attributes (`MOUNT_ATTR_*`) set and cleared.
    /// A path with a symbolic link in it is refused unless `links`.
    Grab { slot: u64, path: S, set: u64, clear: u64, recursive: u64, links: u64 },
    /// Make a user namespace for the command that maps `count` ids from 0 to those of the host from `first` on. Needs our own `/proc`.
    MapUsers { first: u64, count: u64 },
    /// Show the owners of the tree in a slot through that user namespace.
    MapOwners { slot: u64, source: S },
    /// Mount the tree in a slot at `target`; with `make`, a missing target is made first, a file or a folder as the tree is.
    Attach { slot: u64, target: S, make: u64 },
    /// Copy the mount at `source`, without those below it, over `target` with attributes set; a missing source or target is passed over
    /// when `optional`.
    Bind { source: S, target: S, set: u64, optional: u64 },
    /// Make what is mounted at `mountpoint` the root and detach the old one.
    EnterRoot { mountpoint: S },
    /// Make a directory; one that exists is fine.
    Mkdir { path: S, mode: u64 },
    /// Bring up the loopback interface of a network namespace of our own.
    Loopback {},
    /// Enter namespaces of these kinds (`CLONE_NEW*`) of the process that has this number and began then; with `users`, the command will enter
    /// its user namespace too.
    Join { pid: u64, start_ticks: u64, kinds: u64, users: u64 },
    /// Begin a second wall (landlock(7)) around the command: which file accesses need a [`Step::Door`], and which scopes end here.
    Wall { fs: u64, scoped: u64 },
    /// Let the wall's accesses through below `path`.
    Door { path: S, access: u64 },
    /// Touch files as this id of the host from here on, without losing a capability.
    ActAs { id: u64 },
    /// In the folder `place`, show `lower` with the changes in `layers/upper`, which is made if it is not there, at `root`.
    Overlay { place: S, flags: u64 },
    /// See that there is a folder to mount on, which is not reached by a link; with `make`, make it.
    Folder { path: S, make: u64 },
}

/// What to execute once every step is done, and under which identity.
pub struct Run<'a> {
    /// Bytes a log file may hold, 0 to leave stdin, stdout and stderr as they were handed over.
    pub log_bytes_max: u64,
    /// Log files kept, the one being written included.
    pub log_files_max: u64,
    /// Whether standard input is a terminal that is to be the command's own, in a session it leads.
    pub terminal: u64,
    pub uid: u64,
    pub gid: u64,
    /// The same ids as the host has them, who own the command's output.
    pub host_uid: u64,
    pub host_gid: u64,
    /// Capabilities it keeps, a bit each.
    pub capabilities: u64,
    pub no_new_privileges: u64,
    /// System call filters, one after the other: the number of instructions, then those (`struct sock_filter`).
    pub filters: &'a [u64],
    /// The working directory.
    pub workdir: &'a CStr,
    /// Supplementary groups.
    pub groups: &'a [u64],
    /// Files to try to execute, in order; those that do not exist are passed over.
    pub candidates: Strings<'a>,
    pub argv: Strings<'a>,
    pub envp: Strings<'a>,
}

/// A list of strings inside an order.
pub struct Strings<'a> {
    slots: &'a mut [u64],
    packed: &'a [u8],
}

/// The bytes are no order of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

type Result<T> = core::result::Result<T, Malformed>;

macro_rules! steps {
    ($($code:literal $name:ident { $($field:ident : $kind:ident),* })*) => {
        impl<'a> Step<&'a CStr> {
            fn decode(reader: &mut Reader<'a>) -> Result<Step<&'a CStr>> {
                Ok(match reader.u64()? {
                    $($code => Step::$name { $($field: reader.$kind()?),* },)*
                    _ => return Err(Malformed),
                })
            }
        }

        #[cfg(not(containerctl_init))]
        impl<S: AsRef<CStr>> Step<S> {
            fn encode(&self, out: &mut Vec<u8>) {
                match self { $(Step::$name { $($field),* } => {
                    encode::word(out, $code);
                    $(encode::$kind(out, $field);)*
                })* }
            }
        }
    };
}

steps! {
    1 WriteFile { path: cstr, content: cstr }
    2 NewSession {}
    3 DieWithParent {}
    4 Unshare { flags: u64 }
    5 Hostname { name: cstr }
    6 Mount { source: cstr, target: cstr, fstype: cstr, flags: u64, data: cstr }
    7 Grab { slot: u64, path: cstr, set: u64, clear: u64, recursive: u64, links: u64 }
    8 Attach { slot: u64, target: cstr, make: u64 }
    9 Bind { source: cstr, target: cstr, set: u64, optional: u64 }
    10 EnterRoot { mountpoint: cstr }
    11 Mkdir { path: cstr, mode: u64 }
    12 ResetScheduling { oom_score_adj: u64 }
    13 LimitResource { resource: u64, soft: u64, hard: u64 }
    14 Loopback {}
    15 Wall { fs: u64, scoped: u64 }
    16 Door { path: cstr, access: u64 }
    17 MapUsers { first: u64, count: u64 }
    18 MapOwners { slot: u64, source: cstr }
    19 Join { pid: u64, start_ticks: u64, kinds: u64, users: u64 }
    20 ActAs { id: u64 }
    21 Overlay { place: cstr, flags: u64 }
    22 Folder { path: cstr, make: u64 }
}

/// Reads an order: the steps, to be walked once, and what to run.
pub fn decode(order: &mut [u8]) -> Result<(Steps<'_>, Run<'_>)> {
    let (head, rest) = order.split_at_mut_checked(2 * WORD).ok_or(Malformed)?;
    let mut head = Reader { rest: head };
    if head.u64()? != MAGIC {
        return Err(Malformed);
    }
    let steps_len = usize::try_from(head.u64()?).map_err(|_| Malformed)?;
    let (steps, run) = rest.split_at_mut_checked(steps_len).ok_or(Malformed)?;
    Ok((Steps { reader: Reader { rest: steps } }, decode_run(run)?))
}

fn decode_run(bytes: &mut [u8]) -> Result<Run<'_>> {
    let (log_bytes_max, bytes) = take_u64(bytes)?;
    let (log_files_max, bytes) = take_u64(bytes)?;
    let (terminal, bytes) = take_u64(bytes)?;
    let (uid, bytes) = take_u64(bytes)?;
    let (gid, bytes) = take_u64(bytes)?;
    let (owner, bytes) = take_u64(bytes)?;
    let (group, bytes) = take_u64(bytes)?;
    let (capabilities, bytes) = take_u64(bytes)?;
    let (no_new_privileges, bytes) = take_u64(bytes)?;
    let (filter_words, bytes) = take_u64(bytes)?;
    let (filters, bytes) = take_words(bytes, filter_words)?;
    let (group_count, bytes) = take_u64(bytes)?;
    let (groups, bytes) = take_words(bytes, group_count)?;
    let (workdir, bytes) = take_cstr(bytes)?;
    let (candidates, bytes) = take_strings(bytes)?;
    let (argv, bytes) = take_strings(bytes)?;
    let (envp, _) = take_strings(bytes)?;
    let limits = (log_bytes_max, log_files_max);
    Ok(Run {
        log_bytes_max: limits.0,
        log_files_max: limits.1,
        terminal,
        uid,
        gid,
        host_uid: owner,
        host_gid: group,
        capabilities,
        no_new_privileges,
        filters,
        workdir,
        groups,
        candidates,
        argv,
        envp,
    })
}

/// The steps of an order, in order.
pub struct Steps<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Steps<'a> {
    type Item = Result<Step<&'a CStr>>;

    fn next(&mut self) -> Option<Result<Step<&'a CStr>>> {
        if self.reader.rest.is_empty() { None } else { Some(Step::decode(&mut self.reader)) }
    }
}

impl<'a> Strings<'a> {
    /// The strings one by one.
    pub fn iter(&self) -> impl Iterator<Item = &'a CStr> + use<'a> {
        let mut reader = Reader { rest: self.packed };
        core::iter::from_fn(move || reader.cstr().ok())
    }

    /// A NULL-terminated array of pointers to the strings, as execve(2) wants it. It lives as long as the order.
    pub fn pointers(&mut self) -> *const *const u8 {
        let strings = self.iter();
        for (slot, string) in self.slots.iter_mut().zip(strings) {
            *slot = string.as_ptr() as u64;
        }
        self.slots.as_ptr().cast()
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn u64(&mut self) -> Result<u64> {
        let (word, rest) = self.rest.split_first_chunk::<WORD>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*word))
    }

    fn cstr(&mut self) -> Result<&'a CStr> {
        let len = usize::try_from(self.u64()?).map_err(|_| Malformed)?;
        let padded = len.checked_next_multiple_of(WORD).ok_or(Malformed)?;
        let (bytes, rest) = self.rest.split_at_checked(padded).ok_or(Malformed)?;
        self.rest = rest;
        let text = bytes.get(..len).ok_or(Malformed)?;
        CStr::from_bytes_with_nul(text).map_err(|_| Malformed)
    }
}

fn take_u64(bytes: &mut [u8]) -> Result<(u64, &mut [u8])> {
    let (word, rest) = bytes.split_first_chunk_mut::<WORD>().ok_or(Malformed)?;
    Ok((u64::from_le_bytes(*word), rest))
}

fn take_words(bytes: &mut [u8], count: u64) -> Result<(&mut [u64], &mut [u8])> {
    let len = usize::try_from(count).ok().and_then(|count| count.checked_mul(WORD)).ok_or(Malformed)?;
    let (words, rest) = bytes.split_at_mut_checked(len).ok_or(Malformed)?;
    // SAFETY: any bytes are valid u64s; `align_to_mut` answers the aligned middle, and the check below refuses an order whose words are
    // not aligned, which the encoder's padding and the page-aligned mapping rule out.
    let (before, words, after) = unsafe { words.align_to_mut::<u64>() };
    if before.is_empty() && after.is_empty() { Ok((words, rest)) } else { Err(Malformed) }
}

fn take_cstr(bytes: &mut [u8]) -> Result<(&CStr, &mut [u8])> {
    let (len, bytes) = take_u64(bytes)?;
    let len = usize::try_from(len).map_err(|_| Malformed)?;
    let padded = len.checked_next_multiple_of(WORD).ok_or(Malformed)?;
    let (text, rest) = bytes.split_at_mut_checked(padded).ok_or(Malformed)?;
    let text: &[u8] = text.get(..len).ok_or(Malformed)?;
    Ok((CStr::from_bytes_with_nul(text).map_err(|_| Malformed)?, rest))
}

fn take_strings(bytes: &mut [u8]) -> Result<(Strings<'_>, &mut [u8])> {
    let (count, bytes) = take_u64(bytes)?;
    let (slots, bytes) = take_words(bytes, count.checked_add(1).ok_or(Malformed)?)?;
    let (packed_len, bytes) = take_u64(bytes)?;
    let packed_len = usize::try_from(packed_len).map_err(|_| Malformed)?;
    let (packed, rest) = bytes.split_at_mut_checked(packed_len).ok_or(Malformed)?;
    Ok((Strings { slots, packed }, rest))
}

#[cfg(not(containerctl_init))]
pub use encode::{RunOrder, order};

/// The controller's side: turns steps and a run into bytes.
#[cfg(not(containerctl_init))]
mod encode {
    use super::{CStr, MAGIC, Step, WORD};
    use std::ffi::CString;

    /// What to execute, as the controller holds it. See [`super::Run`] for the fields.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct RunOrder {
        pub log_bytes_max: u64,
        pub log_files_max: u64,
        pub terminal: bool,
        pub uid: u32,
        pub gid: u32,
        pub host_uid: u32,
        pub host_gid: u32,
        pub capabilities: u64,
        pub no_new_privileges: bool,
        pub filters: Vec<Vec<u64>>,
        pub groups: Vec<u32>,
        pub workdir: CString,
        pub candidates: Vec<CString>,
        pub argv: Vec<CString>,
        pub envp: Vec<CString>,
    }

    /// The bytes of an order.
    #[must_use]
    pub fn order<S: AsRef<CStr>>(steps: &[Step<S>], run: &RunOrder) -> Vec<u8> {
        let mut body = Vec::with_capacity(4096);
        for step in steps {
            step.encode(&mut body);
        }
        let mut out = Vec::with_capacity(body.len() + 4096);
        word(&mut out, MAGIC);
        word(&mut out, body.len() as u64);
        out.extend_from_slice(&body);
        let RunOrder { log_bytes_max, log_files_max, terminal, uid, gid, host_uid, host_gid, .. } = run;
        let RunOrder { capabilities, no_new_privileges, filters, groups, workdir, candidates, argv, envp, .. } = run;
        word(&mut out, *log_bytes_max);
        word(&mut out, *log_files_max);
        word(&mut out, u64::from(*terminal));
        word(&mut out, u64::from(*uid));
        word(&mut out, u64::from(*gid));
        word(&mut out, u64::from(*host_uid));
        word(&mut out, u64::from(*host_gid));
        word(&mut out, *capabilities);
        word(&mut out, u64::from(*no_new_privileges));
        word(&mut out, filters.iter().map(|filter| filter.len() as u64 + 1).sum());
        for filter in filters {
            word(&mut out, filter.len() as u64);
            for instruction in filter {
                word(&mut out, *instruction);
            }
        }
        word(&mut out, groups.len() as u64);
        for group in groups {
            word(&mut out, u64::from(*group));
        }
        cstr(&mut out, workdir);
        for list in [candidates, argv, envp] {
            strings(&mut out, list);
        }
        out
    }

    pub(super) fn word(out: &mut Vec<u8>, value: u64) {
        out.extend_from_slice(&value.to_le_bytes());
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the macro that writes fields passes references")]
    pub(super) fn u64(out: &mut Vec<u8>, value: &u64) {
        word(out, *value);
    }

    pub(super) fn cstr<S: AsRef<CStr>>(out: &mut Vec<u8>, value: &S) {
        let bytes = value.as_ref().to_bytes_with_nul();
        word(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(WORD), 0);
    }

    fn strings(out: &mut Vec<u8>, list: &[CString]) {
        word(out, list.len() as u64);
        out.resize(out.len() + (list.len() + 1) * WORD, 0);
        let mut packed = Vec::new();
        for string in list {
            cstr(&mut packed, string);
        }
        word(out, packed.len() as u64);
        out.extend_from_slice(&packed);
    }
}

#[cfg(test)]
mod tests;
