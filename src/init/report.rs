//! What init leaves behind: one line each for the start and the end, and who it is on the host.

use super::log::decimal;
use super::supervise::fds;
use super::sys::{self, Errno, Fd};
use core::ffi::CStr;

/// Bytes of the longest report: a word and four numbers.
const REPORT_MAX: usize = 128;

/// Our pid and start time as the host has them (fields 1 and 22 of `/proc/PID/stat`), zeros where it cannot be read.
pub fn identity(host_proc: Fd) -> (u64, u64) {
    let mut text = [0u8; 512];
    let Ok(file) = sys::openat(host_proc, c"self/stat", sys::O_RDONLY | sys::O_CLOEXEC, 0) else { return (0, 0) };
    let len = sys::read(file, &mut text).unwrap_or(0);
    sys::close(file);
    parse_stat(text.get(..len).unwrap_or_default()).unwrap_or((0, 0))
}

pub fn parse_stat(text: &[u8]) -> Option<(u64, u64)> {
    // The second field is the program's name in parentheses and may hold anything, so count from the last closing one (proc(5)).
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let pid = text.split(|&byte| byte == b' ').next().and_then(parse_number)?;
    let start = text.get(close + 2..)?.split(|&byte| byte == b' ').nth(19).and_then(parse_number)?;
    Some((pid, start))
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A word and numbers; as a line for the controller, with the time behind them in seconds and nanoseconds.
#[derive(Clone)]
#[must_use]
pub struct Report {
    text: [u8; REPORT_MAX],
    len: usize,
}

impl Report {
    pub fn new(word: &[u8]) -> Report {
        Report { text: [0; REPORT_MAX], len: 0 }.push(word)
    }

    fn push(mut self, bytes: &[u8]) -> Report {
        if let Some(place) = self.text.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        }
        self
    }

    pub fn number(self, value: u64) -> Report {
        self.push(b" ").push(decimal(value, &mut [0; 20]))
    }

    pub fn errno(self, errno: Errno) -> Report {
        self.number(errno.0 as u64)
    }

    fn line(&self) -> Report {
        let (seconds, nanos) = sys::now();
        self.clone().number(seconds as u64).number(u64::from(nanos)).push(b"\n")
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// Leaves the report in the instance folder, whole or not at all: written aside, then renamed. What is there of that file is written over
/// and not cut off: the controller has reserved it, so that a full disk has room for the end of a run that began before.
pub fn publish(name: &CStr, report: &Report) {
    let line = report.line();
    let aside = if name == c"exit" { c"exit.tmp" } else { c"report.tmp" };
    let flags = sys::O_WRONLY | sys::O_CREAT | sys::O_CLOEXEC;
    if let Ok(file) = sys::openat(fds::INSTANCE, aside, flags, 0o600) {
        let whole = sys::write(file, line.bytes()) == Ok(line.len);
        sys::close(file);
        if whole {
            let _ = sys::rename(fds::INSTANCE, aside, name);
        }
    }
}

/// Sends the report of the start to the controller, once. Nobody may be reading: SIGPIPE is blocked, so that only costs an EPIPE.
pub fn tell(report: &Report) {
    let _ = sys::write(fds::REPORT, report.line().bytes());
    sys::close(fds::REPORT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_and_start_time_are_found_behind_any_program_name() {
        let stat =
            b"42 (a) b (c)) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 25 18446744073709551615\n";
        assert_eq!(parse_stat(stat), Some((42, 987_654)));
        assert_eq!(parse_stat(b"42 (sh"), None);
        let own = std::fs::read("/proc/self/stat").unwrap();
        assert_eq!(parse_stat(&own).unwrap().0, u64::from(std::process::id()));
    }

    #[test]
    fn a_report_is_a_word_and_numbers() {
        let report = Report::new(b"failed").number(3).errno(Errno::ACCES);
        assert_eq!(report.bytes(), b"failed 3 13");
    }
}
