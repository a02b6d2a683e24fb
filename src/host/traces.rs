//! What a run leaves in the runtime directory: `workloads/<name>/<instance>/`, with `box` (written by the controller before anything
//! runs), `started` and `exit` (written by init).
//!
//! This is what makes adoption possible without a database: the record a run was started from, and who its processes are. The directory
//! is on a tmpfs in practice and gone after a reboot; `box` begins with the boot id for when it is not. What follows is the record as the
//! database keeps it, version and checksum included, so that a newer or older controller reads it as far as it can.

use super::confine;
use crate::init::wire::Step;
use crate::model::codec;
use crate::model::exit::{Exit, Outcome};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::time::Timestamp;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Bytes of `started` or `exit` that are read; init writes a line of at most 128.
const REPORT_BYTES_MAX: u64 = 256;
/// Bytes that are reserved for one.
const REPORT_ROOM: usize = 128;
/// Bytes of `box` that are read. A record holds at most one manifest document (1 MiB) and a few lines about it.
const BOX_BYTES_MAX: u64 = 8 << 20;

/// What a workload's folder is called while it is being removed. No name begins like this.
const REMOVED: &str = ".removed-";

/// What cannot be kept or found there.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot make {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot remove {path}")]
    Remove { path: PathBuf, source: io::Error },
}

/// `box`: what a run was started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boxed {
    pub boot_id: String,
    /// None if this version cannot read it.
    pub record: Option<Record>,
}

/// The traces of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub number: u64,
    pub boxed: Boxed,
    pub started: Option<Started>,
    /// What init says it ended with.
    pub end: Option<Report>,
}

/// `started`: who runs, by the host's pids and their start times in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    pub init: Process,
    pub command: Process,
    pub at: Timestamp,
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub start_ticks: u64,
}

/// A line of init's: a word, numbers, a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub word: String,
    pub numbers: Vec<u64>,
    pub at: Timestamp,
}

/// The traces of all runs.
#[derive(Clone, Debug)]
pub struct Traces {
    root: PathBuf,
}

impl Traces {
    /// Below a runtime directory; only its owner gets in.
    pub fn open(runtime: &Path) -> Result<Traces, TraceError> {
        let root = runtime.join("workloads");
        make_private(&root)?;
        let traces = Traces { root };
        traces.sweep()?;
        Ok(traces)
    }

    /// Takes away what a controller that was killed in between has left half made or half removed: it speaks of no run.
    fn sweep(&self) -> Result<(), TraceError> {
        for entry in entries(&self.root)? {
            let is_nothing = match entry.parse::<Name>() {
                Ok(name) => self.root.join(&entry).is_dir() && self.newest(&name)?.is_none(),
                Err(_) => entry.starts_with(REMOVED),
            };
            if is_nothing {
                remove(&self.root.join(entry))?;
            }
        }
        Ok(())
    }

    fn of(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Makes the folder of a run and puts `box` in it, whole or not at all. Answers the open folder.
    pub fn begin(&self, name: &Name, boot_id: &str, record: &Record) -> Result<File, TraceError> {
        let folder = self.of(name).join(record.instance.to_string());
        make_private(&self.of(name))?;
        make_private(&folder)?;
        let path = folder.join("box");
        let failed = |source| TraceError::Write { path: path.clone(), source };
        let aside = folder.join("box.tmp");
        let bytes = box_bytes(boot_id, record).map_err(|error| failed(error.into()))?;
        // Room for what init will say. Blanks behind a report are no part of it.
        for reserved in ["report.tmp", "exit.tmp"] {
            fs::write(folder.join(reserved), [b' '; REPORT_ROOM]).map_err(failed)?;
        }
        fs::write(&aside, bytes).map_err(failed)?;
        fs::rename(&aside, &path).map_err(failed)?;
        File::open(&folder).map_err(|source| TraceError::Read { path: folder, source })
    }

    /// Removes the folder of one run.
    pub fn abandon(&self, name: &Name, number: u64) -> Result<(), TraceError> {
        remove(&self.of(name).join(number.to_string()))?;
        // With its last run the workload's own folder goes, or nobody would ever look there again. It fails while there is another.
        let _ = fs::remove_dir(self.of(name));
        Ok(())
    }

    /// Removes the folders of all runs but one.
    pub fn keep_only(&self, name: &Name, number: u64) -> Result<(), TraceError> {
        let mut others = self.numbers(name)?.into_iter().filter(|other| *other != number);
        others.try_for_each(|other| self.abandon(name, other))
    }

    /// The newest run that left a `box`. One without was never begun: the box is written before anything else.
    pub fn newest(&self, name: &Name) -> Result<Option<Trace>, TraceError> {
        let mut numbers = self.numbers(name)?;
        while let Some(number) = numbers.pop() {
            let folder = self.of(name).join(number.to_string());
            let Some(bytes) = read(&folder.join("box"), BOX_BYTES_MAX)? else { continue };
            let report = |file: &str| read(&folder.join(file), REPORT_BYTES_MAX);
            return Ok(Some(Trace::parse(number, &bytes, report("started")?.as_deref(), report("exit")?.as_deref())));
        }
        Ok(None)
    }

    fn numbers(&self, name: &Name) -> Result<Vec<u64>, TraceError> {
        let mut numbers: Vec<u64> = entries(&self.of(name))?.iter().filter_map(|entry| entry.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Every workload with a trace.
    pub fn names(&self) -> Result<Vec<Name>, TraceError> {
        let is_folder = |entry: &&String| self.root.join(entry).is_dir();
        Ok(entries(&self.root)?.iter().filter(is_folder).filter_map(|entry| entry.parse().ok()).collect())
    }

    /// Removes every trace of a workload.
    pub fn clear(&self, name: &Name) -> Result<(), TraceError> {
        // Out of the way first, in one step: a folder that is half removed would be looked at for ever.
        let (path, aside) = (self.of(name), self.root.join(format!("{REMOVED}{name}")));
        remove(&aside)?;
        match fs::rename(&path, &aside) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(TraceError::Remove { path, source }),
            Ok(()) => remove(&aside),
        }
    }
}

fn remove(path: &Path) -> Result<(), TraceError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(TraceError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Makes a folder that only its owner may enter; one that exists is fine.
pub fn make_private(path: &Path) -> Result<(), TraceError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| TraceError::Make { path: path.to_owned(), source })
}

fn entries(folder: &Path) -> Result<Vec<String>, TraceError> {
    let failed = |source| TraceError::Read { path: folder.to_owned(), source };
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    for entry in listing {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

/// The beginning of a file, `None` if there is no such file.
fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, TraceError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TraceError::Read { path: path.to_owned(), source }),
    }
}

/// What goes into `box`.
pub fn box_bytes(boot_id: &str, record: &Record) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = format!("{boot_id}\n").into_bytes();
    bytes.extend(codec::encode(record)?);
    Ok(bytes)
}

fn parse_box(bytes: &[u8]) -> Boxed {
    let line_end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (boot_id, rest) = bytes.split_at(line_end);
    let record = rest.get(1..).and_then(|record| codec::decode(record).ok());
    Boxed { boot_id: String::from_utf8_lossy(boot_id).into_owned(), record }
}

pub(super) fn parse_report(line: &[u8]) -> Option<Report> {
    let line = str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let word = words.next()?.to_owned();
    let mut numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let (nanos, seconds) = (numbers.pop()?, numbers.pop()?);
    let at = Timestamp(seconds.checked_mul(1000)?.checked_add(nanos / 1_000_000)?);
    Some(Report { word, numbers, at })
}

fn parse_started(report: &Report) -> Option<Started> {
    let [init, init_start, command, command_start] = report.numbers[..] else { return None };
    let process = |pid: u64, start_ticks| Some(Process { pid: u32::try_from(pid).ok()?, start_ticks });
    Some(Started { init: process(init, init_start)?, command: process(command, command_start)?, at: report.at })
}

/// What a report of an end means. `steps` are those the run was started with, `command` its first word.
pub fn outcome(report: &Report, steps: &[Step<CString>], command: &str, workdir: &str, oom_kills: u64) -> Outcome {
    const ENOENT: u64 = 2;
    let number = |at: usize| report.numbers.get(at).copied().unwrap_or(0);
    let errno = |at: usize| io::Error::from_raw_os_error(i32::try_from(number(at)).unwrap_or(0));
    let small = |value: u64| i32::try_from(value).unwrap_or(i32::MAX);
    match report.word.as_str() {
        "exited" => Outcome::Exited { code: small(number(0)) },
        "killed" if number(0) == 9 && oom_kills > 0 => Outcome::OutOfMemory,
        "killed" => Outcome::Killed { signal: Signal(small(number(0))) },
        "unexecutable" if number(0) == ENOENT => Outcome::NotFound { command: command.to_owned() },
        "uninterpretable" => Outcome::NotStarted {
            reason: format!("cannot execute {command}: the interpreter of its #! line, or its ELF loader, is missing"),
        },
        "unexecutable" => Outcome::NotStarted { reason: format!("cannot execute {command}: {}", errno(0)) },
        "workdir" => Outcome::NotStarted { reason: format!("cannot enter workdir {workdir}: {}", errno(0)) },
        "userns" => Outcome::NotStarted { reason: format!("cannot enter its user namespace: {}", errno(0)) },
        "seccomp" => Outcome::NotStarted { reason: format!("cannot load its seccomp filters: {}", errno(0)) },
        "landlock" => Outcome::NotStarted { reason: format!("cannot restrict it with Landlock: {}", errno(0)) },
        "keyring" => Outcome::NotStarted { reason: format!("cannot give it a keyring of its own: {}", errno(0)) },
        "identity" => Outcome::NotStarted { reason: format!("cannot take the user it is to run as: {}", errno(0)) },
        "failed" => {
            let step = usize::try_from(number(0)).ok().and_then(|index| steps.get(index));
            let step = step.map_or_else(|| format!("do step {}", number(0)), confine::describe);
            Outcome::NotStarted { reason: format!("cannot {step}: {}", errno(1)) }
        }
        word => Outcome::NotStarted { reason: format!("containerctl-init reports `{word}`: {}", errno(0)) },
    }
}

/// The end that an init reported in `folder`, if it did.
pub fn report_in(folder: &Path, steps: &[Step<CString>], command: &str, workdir: &str) -> Option<Exit> {
    let report = parse_report(&read(&folder.join("exit"), REPORT_BYTES_MAX).ok().flatten()?)?;
    Some(Exit { instance: 0, outcome: outcome(&report, steps, command, workdir, 0), started: None, at: report.at })
}

impl Trace {
    /// The traces of run `number`: the contents of its three files.
    pub fn parse(number: u64, boxed: &[u8], started: Option<&[u8]>, exit: Option<&[u8]>) -> Trace {
        let started = started.and_then(parse_report).as_ref().and_then(parse_started);
        Trace { number, boxed: parse_box(boxed), started, end: exit.and_then(parse_report) }
    }

    /// The end init reported, if it did.
    pub fn exit(&self, steps: &[Step<CString>], oom_kills: u64) -> Option<Exit> {
        let report = self.end.as_ref()?;
        let process = self.boxed.record.as_ref().map(|record| &record.spec.process);
        let command = process.and_then(|process| process.command.first()).map_or("the command", String::as_str);
        let workdir = process.map_or("", |process| process.workdir.as_str());
        let outcome = outcome(report, steps, command, workdir, oom_kills);
        let started = self.started.map(|started| started.at);
        Some(Exit { instance: self.number, outcome, started, at: report.at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn record(instance: u64) -> Record {
        let (spec, origin) = parse("web.yaml", b"command: x").workloads.into_iter().next().unwrap();
        Record { instance, ..Record::new(spec, origin) }
    }

    #[test]
    fn the_newest_run_with_a_box_counts() {
        let runtime = tempfile::tempdir().unwrap();
        let traces = Traces::open(runtime.path()).unwrap();
        let name: Name = "web".parse().unwrap();
        assert_eq!(traces.newest(&name).unwrap(), None);
        traces.begin(&name, "boot", &record(9)).unwrap();
        traces.begin(&name, "boot", &record(10)).unwrap();
        let folder = runtime.path().join("workloads/web");
        fs::write(folder.join("10/started"), "started 100 5 101 6 1795464785 42000000\n").unwrap();
        fs::create_dir(folder.join("11")).unwrap();
        fs::write(runtime.path().join("workloads/stray"), "").unwrap();
        let newest = traces.newest(&name).unwrap().unwrap();
        assert_eq!((newest.number, newest.end), (10, None));
        assert_eq!(newest.boxed, Boxed { boot_id: "boot".to_owned(), record: Some(record(10)) });
        assert_eq!(newest.started.unwrap().command, Process { pid: 101, start_ticks: 6 });
        assert_eq!(newest.started.unwrap().at, Timestamp(1_795_464_785_042));
        assert_eq!(traces.names().unwrap(), std::slice::from_ref(&name));
        // A later version's record, or a damaged one, is no reason to forget that something runs.
        fs::create_dir(folder.join("12")).unwrap();
        fs::write(folder.join("12/box"), b"boot\n\x09later").unwrap();
        fs::write(folder.join("12/started"), "started 100 5 101 6 1795464785 42000000\n").unwrap();
        let newest = traces.newest(&name).unwrap().unwrap();
        assert_eq!(newest.boxed, Boxed { boot_id: "boot".to_owned(), record: None });
        assert!(newest.started.is_some());
        // Begun and not done, removed and not done: gone with the next controller, and nothing else is.
        fs::create_dir_all(runtime.path().join("workloads/half/3")).unwrap();
        fs::create_dir_all(runtime.path().join("workloads/.removed-old/1")).unwrap();
        Traces::open(runtime.path()).unwrap();
        let mut left: Vec<_> = entries(&runtime.path().join("workloads")).unwrap();
        left.sort();
        assert_eq!(left, ["stray", "web"]);
        traces.keep_only(&name, 10).unwrap();
        assert_eq!(traces.newest(&name).unwrap().unwrap().number, 10);
        traces.clear(&name).unwrap();
        traces.clear(&name).unwrap();
        assert_eq!(traces.names().unwrap(), []);
    }

    #[test]
    fn reports_become_outcomes_in_words() {
        let steps = [Step::Hostname { name: c"web".into() }];
        let check = |line: &str, oom_kills| {
            outcome(&parse_report(line.as_bytes()).unwrap(), &steps, "stress", "/srv", oom_kills).to_string()
        };
        assert_eq!(check("exited 3 1 2\n", 0), "exited with code 3");
        assert_eq!(check("killed 9 1 2\n", 0), "killed by SIGKILL");
        assert_eq!(check("killed 9 1 2\n", 1), "killed: out of memory within its limit");
        assert_eq!(check("unexecutable 2 1 2\n", 0), "command not found: stress");
        assert_eq!(check("unexecutable 13 1 2\n", 0), "cannot execute stress: Permission denied (os error 13)");
        assert_eq!(
            check("uninterpretable 2 1 2\n", 0),
            "cannot execute stress: the interpreter of its #! line, or its ELF loader, is missing"
        );
        assert_eq!(check("workdir 2 1 2\n", 0), "cannot enter workdir /srv: No such file or directory (os error 2)");
        assert_eq!(check("failed 0 1 1 2\n", 0), "cannot set the host name web: Operation not permitted (os error 1)");
        assert_eq!(check("failed 7 1 1 2\n", 0), "cannot do step 7: Operation not permitted (os error 1)");
        for torn in ["", "exited", "exited 3", "exited x 1 2", "exited 99999999999999999999 1 2"] {
            assert_eq!(parse_report(torn.as_bytes()), None, "{torn:?}");
        }
    }
}
