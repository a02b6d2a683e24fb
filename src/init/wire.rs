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
    /// Leave behind what the controller's own service settings would pass on: CPU affinity, scheduling policy, niceness, OOM score.
    ResetScheduling {},
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
    /// Copy the mount tree at `path` into a slot, with attributes (`MOUNT_ATTR_*`) set and cleared on all of it.
    Grab { slot: u64, path: S, set: u64, clear: u64 },
    /// Mount the tree in a slot at `target`; with `make`, a missing target is made first, a file or a folder as the tree is.
    Attach { slot: u64, target: S, make: u64 },
    /// Copy the mount at `source`, without those below it, over `target` with attributes set; a missing source or target is passed over
    /// when `optional`.
    Bind { source: S, target: S, set: u64, optional: u64 },
    /// Mount the tree in a slot at `mountpoint`, make it the root and detach the old one.
    EnterRoot { slot: u64, mountpoint: S },
    /// Make a directory; one that exists is fine.
    Mkdir { path: S, mode: u64 },
}

/// What to execute once every step is done, and under which identity.
pub struct Run<'a> {
    /// Bytes a log file may hold, 0 to leave stdin, stdout and stderr as they were handed over.
    pub log_bytes_max: u64,
    /// Log files kept, the one being written included.
    pub log_files_max: u64,
    pub uid: u64,
    pub gid: u64,
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
    7 Grab { slot: u64, path: cstr, set: u64, clear: u64 }
    8 Attach { slot: u64, target: cstr, make: u64 }
    9 Bind { source: cstr, target: cstr, set: u64, optional: u64 }
    10 EnterRoot { slot: u64, mountpoint: cstr }
    11 Mkdir { path: cstr, mode: u64 }
    12 ResetScheduling {}
    13 LimitResource { resource: u64, soft: u64, hard: u64 }
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
    let (uid, bytes) = take_u64(bytes)?;
    let (gid, bytes) = take_u64(bytes)?;
    let (group_count, bytes) = take_u64(bytes)?;
    let (groups, bytes) = take_words(bytes, group_count)?;
    let (workdir, bytes) = take_cstr(bytes)?;
    let (candidates, bytes) = take_strings(bytes)?;
    let (argv, bytes) = take_strings(bytes)?;
    let (envp, _) = take_strings(bytes)?;
    Ok(Run { log_bytes_max, log_files_max, uid, gid, workdir, groups, candidates, argv, envp })
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
        pub uid: u32,
        pub gid: u32,
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
        let RunOrder { log_bytes_max, log_files_max, uid, gid, groups, workdir, candidates, argv, envp } = run;
        word(&mut out, *log_bytes_max);
        word(&mut out, *log_files_max);
        word(&mut out, u64::from(*uid));
        word(&mut out, u64::from(*gid));
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
mod tests {
    use super::*;
    use std::ffi::CString;

    fn run_order() -> RunOrder {
        RunOrder {
            log_bytes_max: 1 << 20,
            log_files_max: 3,
            uid: 1000,
            gid: 1001,
            groups: vec![4, 24],
            workdir: c"/srv".into(),
            candidates: vec![c"/bin/sleep".into(), c"/usr/bin/sleep".into()],
            argv: vec![c"sleep".into(), c"".into(), c"infinity".into()],
            envp: vec![c"A=b".into()],
        }
    }

    /// A mapping starts on a page, so the test's buffer has to be aligned too.
    fn aligned(bytes: &[u8]) -> Vec<u64> {
        bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            })
            .collect()
    }

    fn bytes_of(words: &mut [u64]) -> &mut [u8] {
        // SAFETY: u64s may be seen as bytes; the slice borrows the words for as long as it lives.
        unsafe { words.align_to_mut::<u8>() }.1
    }

    #[test]
    fn an_order_reads_back_as_it_was_written() {
        let steps = [
            Step::WriteFile { path: c"/sys/fs/cgroup/cpu/web/tasks", content: c"0" },
            Step::NewSession {},
            Step::Mount { source: c"proc", target: c"/proc", fstype: c"proc", flags: 14, data: c"" },
            Step::EnterRoot { slot: 0, mountpoint: c"/run/x" },
        ];
        let mut words = aligned(&order(&steps, &run_order()));
        let (read, mut run) = decode(bytes_of(&mut words)).unwrap();
        assert_eq!(read.map(Result::unwrap).collect::<Vec<_>>(), steps);
        assert_eq!((run.uid, run.gid, run.groups), (1000, 1001, &[4, 24][..]));
        assert_eq!(run.workdir, c"/srv");
        assert_eq!(run.candidates.iter().map(CString::from).collect::<Vec<_>>(), run_order().candidates);
        let argv = run.argv.pointers();
        // SAFETY: three strings and the NULL after them were encoded above.
        let words = unsafe { std::slice::from_raw_parts(argv, 4) };
        assert!(words[3].is_null());
        // SAFETY: the pointer names a NUL-terminated string inside `words`.
        assert_eq!(unsafe { CStr::from_ptr(words[2].cast()) }, c"infinity");
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_refused_or_read_without_a_panic() {
        let whole = order(&[Step::Hostname { name: c"web" }], &run_order());
        for len in 0..whole.len() {
            let mut words = aligned(&whole[..len]);
            let bytes = &mut bytes_of(&mut words)[..len];
            assert!(decode(bytes).is_err(), "{len} bytes of {} were accepted", whole.len());
        }
        for at in 0..whole.len() {
            let mut words = aligned(&whole);
            let bytes = bytes_of(&mut words);
            bytes[at] ^= 0xff;
            if let Ok((steps, mut run)) = decode(bytes) {
                steps.for_each(drop);
                run.argv.pointers();
            }
        }
    }
}
