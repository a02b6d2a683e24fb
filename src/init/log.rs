//! Workload output to rotated log files, in the CRI format: `<time> <stream> <F|P> <text>`.
//!
//! Owns: reading the two pipes, cutting text into lines, the file `log` and its older siblings `log.1`, `log.2`, ... in one folder.
//! Invariants: nothing here waits for a reader or for space (what the disk refuses is dropped and counted); a text that does not end in
//! a newline yet is written at once as a part (`P`), so no line is held in memory; a file exceeds its bound by one gathered write at most.
//!
//! The format is the Kubernetes container runtime's (`design-proposals/.../kubelet-cri-logging.md`), which log shippers read as it is.

use super::clock::{TIME_LEN, rfc3339};
use super::sys::{self, Errno, Fd, IoVec};
use core::ffi::CStr;

/// Bytes taken from a pipe at once. Two pages: large enough that `yes` costs few calls, small beside the 64 KiB a workload may cost.
pub const READ_MAX: usize = 8 * 1024;
/// Lines that go out with one gathered write: three pieces each, well below IOV_MAX (1024), and 2.3 KiB of stack.
const LINES_MAX: usize = 32;
/// Log files that may be asked for; one digit keeps names simple.
pub const FILES_MAX: u64 = 9;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The log folder and the file being written.
pub struct Log {
    folder: Fd,
    file: Option<Fd>,
    written: u64,
    bytes_max: u64,
    files_max: u64,
    dropped: u64,
    /// The disk took only a part of the last write: the line it ends in has no newline.
    torn: bool,
}

impl Log {
    /// Opens the current file for appending; one that cannot be opened is tried again when there is something to write.
    #[must_use]
    pub fn open(folder: Fd, bytes_max: u64, files_max: u64) -> Log {
        let mut log = Log {
            folder,
            file: None,
            written: 0,
            bytes_max,
            files_max: files_max.clamp(1, FILES_MAX),
            dropped: 0,
            torn: false,
        };
        // What earlier runs kept within a larger bound would never be turned over again, nor counted against this one.
        for older in log.files_max..=FILES_MAX {
            let _ = sys::unlink(folder, name(&older_name(older)));
        }
        log.reopen();
        log
    }

    /// Reads what is there, at most [`READ_MAX`] bytes, and logs it. False at the end of the stream.
    pub fn pump(&mut self, pipe: Fd, stream: Stream, buffer: &mut [u8; READ_MAX]) -> bool {
        match sys::read(pipe, buffer) {
            Ok(0) => false,
            Ok(len) => {
                self.append(stream, buffer.get(..len).unwrap_or_default());
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn append(&mut self, stream: Stream, text: &[u8]) {
        let (seconds, nanos) = sys::now();
        let time = rfc3339(seconds, nanos);
        let heads = [head(time, stream, b'F'), head(time, stream, b'P')];
        let mut lines = text.split_inclusive(|&byte| byte == b'\n').peekable();
        while lines.peek().is_some() {
            self.make_ready();
            let mut pieces = [IoVec::of(b""); LINES_MAX * 3];
            let (mut used, mut len) = (0, 0);
            for (slots, line) in pieces.chunks_exact_mut(3).zip(lines.by_ref()) {
                let whole = line.ends_with(b"\n");
                slots[0] = IoVec::of(&heads[usize::from(!whole)]);
                slots[1] = IoVec::of(line);
                slots[2] = IoVec::of(if whole { b"" } else { b"\n" });
                used += 3;
                len += line.len();
            }
            self.write(pieces.get(..used).unwrap_or_default(), len);
        }
    }

    fn make_ready(&mut self) {
        if self.written >= self.bytes_max {
            self.rotate();
        }
        if self.file.is_none() {
            self.reopen();
        }
        if self.dropped > 0 {
            self.confess();
        }
    }

    /// Writes once. What the disk does not take is dropped: a workload must never wait for, or die of, a full log disk.
    fn write(&mut self, pieces: &[IoVec<'_>], len: usize) {
        let Some(file) = self.file else {
            self.dropped = self.dropped.saturating_add(len as u64);
            return;
        };
        let whole: usize = pieces.iter().map(IoVec::bytes).sum();
        let written = sys::writev(file, pieces).unwrap_or(0);
        self.written = self.written.saturating_add(written as u64);
        if written < whole {
            // Heads and text are not told apart in a part of a write, so this is "about".
            self.dropped = self.dropped.saturating_add(len.min(whole - written) as u64);
            self.torn |= written > 0;
        }
    }

    /// Says in the log itself how much is missing from it, once there is room again.
    fn confess(&mut self) {
        let Some(file) = self.file else { return };
        let (seconds, nanos) = sys::now();
        let head = head(rfc3339(seconds, nanos), Stream::Stderr, b'F');
        let mut number = [0u8; 20];
        let pieces = [
            IoVec::of(if self.torn { b"\n" } else { b"" }),
            IoVec::of(&head),
            IoVec::of(b"containerctl-init: the log disk refused about "),
            IoVec::of(decimal(self.dropped, &mut number)),
            IoVec::of(b" bytes of output before this line\n"),
        ];
        let whole: usize = pieces.iter().map(IoVec::bytes).sum();
        let written = sys::writev(file, &pieces).unwrap_or(0);
        self.written = self.written.saturating_add(written as u64);
        if written == whole {
            (self.dropped, self.torn) = (0, false);
        } else {
            self.torn |= written > 0;
        }
    }

    /// `log` becomes `log.1`, `log.1` becomes `log.2`, and so on; the last one is replaced.
    fn rotate(&mut self) {
        if let Some(file) = self.file.take() {
            sys::close(file);
        }
        for older in (1..self.files_max).rev() {
            let (from, to) = (older_name(older - 1), older_name(older));
            // A file that is not there yet is not renamed; any other failure leaves a file over its bound, which the next turn mends.
            let _ = sys::rename(self.folder, name(&from), name(&to));
        }
        if self.files_max == 1 {
            let _ = sys::unlink(self.folder, c"log");
        }
        self.torn = false;
        self.reopen();
    }

    fn reopen(&mut self) {
        let flags = sys::O_WRONLY | sys::O_CREAT | sys::O_APPEND | sys::O_CLOEXEC | sys::O_NOFOLLOW | sys::O_NONBLOCK;
        self.file = sys::openat(self.folder, c"log", flags, 0o640).ok();
        self.written = self.file.and_then(|file| sys::size_of_file(file).ok()).unwrap_or(0);
    }
}

const HEAD_LEN: usize = TIME_LEN + 10;

fn head(time: [u8; TIME_LEN], stream: Stream, tag: u8) -> [u8; HEAD_LEN] {
    let mut head = *b"2026-01-01T00:00:00.000000000Z stdout F ";
    let (at_time, rest) = head.split_at_mut(TIME_LEN);
    at_time.copy_from_slice(&time);
    rest.copy_from_slice(if stream == Stream::Stdout { b" stdout F " } else { b" stderr F " });
    head[HEAD_LEN - 2] = tag;
    head
}

/// `log` for 0, `log.N` above, NUL-terminated.
fn older_name(number: u64) -> [u8; 6] {
    if number == 0 { *b"log\0\0\0" } else { [b'l', b'o', b'g', b'.', b'0' + (number % 10) as u8, 0] }
}

fn name(bytes: &[u8; 6]) -> &CStr {
    CStr::from_bytes_until_nul(bytes).unwrap_or(c"log")
}

/// `value` in decimal, at the end of `into`.
pub fn decimal(mut value: u64, into: &mut [u8; 20]) -> &[u8] {
    let mut at = into.len();
    loop {
        at -= 1;
        into[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 || at == 0 {
            return into.get(at..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsRawFd;

    struct Folder(tempfile::TempDir, fs::File);

    fn folder() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::open(dir.path()).unwrap();
        Folder(dir, file)
    }

    impl Folder {
        fn log(&self, bytes_max: u64, files_max: u64) -> Log {
            Log::open(self.1.as_raw_fd(), bytes_max, files_max)
        }

        /// A file's lines without their times.
        fn lines(&self, name: &str) -> Vec<String> {
            let text = fs::read_to_string(self.0.path().join(name)).unwrap_or_default();
            text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
        }
    }

    #[test]
    fn whole_lines_are_full_and_the_rest_is_a_part() {
        let folder = folder();
        let mut log = folder.log(1 << 20, 2);
        log.append(Stream::Stdout, b"one\ntwo\nthr");
        log.append(Stream::Stderr, b"ee\n\n");
        assert_eq!(folder.lines("log"), ["stdout F one", "stdout F two", "stdout P thr", "stderr F ee", "stderr F "]);
    }

    #[test]
    fn more_lines_than_one_write_holds_all_arrive() {
        let folder = folder();
        let mut log = folder.log(1 << 20, 2);
        let text: String = (0..1000).map(|n| format!("{n}\n")).collect();
        log.append(Stream::Stdout, text.as_bytes());
        let expected: Vec<String> = (0..1000).map(|n| format!("stdout F {n}")).collect();
        assert_eq!(folder.lines("log"), expected);
    }

    #[test]
    fn files_rotate_at_their_bound_and_the_oldest_goes() {
        let folder = folder();
        let mut log = folder.log(100, 3);
        for n in 0..12 {
            log.append(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        assert_eq!(folder.lines("log"), ["stdout F line 9", "stdout F line 10", "stdout F line 11"]);
        assert_eq!(folder.lines("log.2").first().map(String::as_str), Some("stdout F line 3"));
        assert!(!folder.0.path().join("log.3").exists());
    }

    #[test]
    fn a_single_file_starts_anew_at_its_bound() {
        let folder = folder();
        let mut log = folder.log(60, 1);
        for n in 0..5 {
            log.append(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        assert_eq!(folder.lines("log"), ["stdout F line 4"]);
        assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_beyond_a_bound_that_was_lowered_go() {
        let folder = folder();
        let mut log = folder.log(60, 4);
        for n in 0..12 {
            log.append(Stream::Stdout, format!("line {n}\n").as_bytes());
        }
        let names = || {
            let entries = fs::read_dir(folder.0.path()).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["log", "log.1", "log.2", "log.3"]);
        folder.log(60, 2);
        assert_eq!(names(), ["log", "log.1"]);
    }

    #[test]
    fn output_the_disk_refuses_is_dropped_and_owned_up_to() {
        let folder = folder();
        let mut log = folder.log(1 << 20, 2);
        // /dev/full answers every write with ENOSPC, as a full disk does.
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = log.file.replace(full.as_raw_fd());
        log.append(Stream::Stdout, b"lost\n");
        assert_eq!(log.dropped, 5);
        log.file = good;
        log.append(Stream::Stdout, b"kept\n");
        let lines = folder.lines("log");
        assert!(lines[0].contains("refused about 5 bytes"), "{lines:?}");
        assert_eq!(lines[1], "stdout F kept");
    }

    #[test]
    fn numbers_print_in_decimal() {
        for value in [0, 7, 10, 65_535, u64::MAX] {
            assert_eq!(decimal(value, &mut [0; 20]), value.to_string().as_bytes());
        }
    }
}
