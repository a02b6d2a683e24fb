//! Writing down what the rebalancer decided and from what, so that it can be decided again elsewhere (`containerctl replay`).
//!
//! A line of JSON each: the machine, the settings and what the rebalancer remembered, then its turns. Off unless asked for, because it writes
//! once a turn. At most two files of [`FILE_BYTES_MAX`]: a full one is set aside as `FILE.old`, and the next begins with everything it takes
//! to be replayed alone. So it does after an error: what is missing of a recording cannot be decided again, nor what follows it.

use crate::model::balance::{Decision, Line, Sample, Settings};
use crate::model::topology::Topology;
use crate::plan::balance::Balancer;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Two hours of 200 workloads, and little enough for the disk of an edge box.
pub const FILE_BYTES_MAX: usize = 32 << 20;

/// What is to be written.
#[derive(Debug, Default)]
pub struct Entry {
    /// Whether a new file begins with it.
    fresh: bool,
    text: String,
}

/// The loop's side: what is to be written next.
#[derive(Debug, Default)]
pub struct Recorder {
    entry: Entry,
    /// Bytes of the file so far; none before the first.
    bytes: Option<usize>,
    machine: Option<Topology>,
    /// Whether the last entry was not written.
    is_failing: bool,
}

impl Recorder {
    /// Takes down a turn: what the rebalancer remembered before it, what it was shown, what it decided.
    pub fn note(
        &mut self,
        machine: &Topology,
        settings: Settings,
        before: Balancer,
        sample: Sample,
        decision: &Decision,
    ) {
        if self.bytes.is_none_or(|bytes| bytes > FILE_BYTES_MAX) {
            // What has not been written of a full file yet would be lost on the other side of the change: it is one turn.
            self.entry = Entry { fresh: true, text: String::new() };
            (self.bytes, self.machine) = (Some(0), None);
        }
        if self.machine.as_ref() != Some(machine) {
            // What is decided by follows from the machine.
            self.add(&Line::<Balancer>::Settings(settings));
            self.add(&Line::<Balancer>::Machine(machine.clone()));
            self.add(&Line::State(before));
            self.machine = Some(machine.clone());
        }
        self.add(&Line::<Balancer>::Tick { sample, decision: decision.clone() });
    }

    /// What is to be written now, if anything is.
    pub fn take(&mut self) -> Option<Entry> {
        Some(mem::take(&mut self.entry)).filter(|entry| !entry.text.is_empty())
    }

    /// Learns what became of an entry. Answers an error that is worth telling: the first of several.
    pub fn learn(&mut self, written: io::Result<()>) -> Option<io::Error> {
        let Err(error) = written else {
            self.is_failing = false;
            return None;
        };
        self.begin_anew();
        (!mem::replace(&mut self.is_failing, true)).then_some(error)
    }

    /// An entry was lost: the next turn begins a new file.
    pub fn begin_anew(&mut self) {
        (self.entry, self.bytes, self.machine) = (Entry::default(), None, None);
    }

    fn add(&mut self, line: &impl Serialize) {
        // Values of our own, whose maps have texts and numbers for keys: nothing that JSON cannot say.
        let Ok(text) = serde_json::to_string(line) else { return };
        self.bytes = self.bytes.map(|bytes| bytes + text.len() + 1);
        self.entry.text.push_str(&text);
        self.entry.text.push('\n');
    }
}

/// The thread's side: the file.
#[derive(Debug)]
pub struct Pen {
    path: PathBuf,
    file: Option<File>,
}

impl Pen {
    pub fn new(path: PathBuf) -> Pen {
        Pen { path, file: None }
    }

    /// Opens a file that is to be recorded in: one that cannot be is better told at once than with the first turn.
    pub fn check(path: &Path) -> io::Result<()> {
        // Anything else is not to be set aside for a new one, and a pipe would be waited for.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        open(path).map(drop)
    }

    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        self.write_by(entry, |mut file, text| file.write_all(text))
    }

    /// What is not written whole is not there at all: a file ends with a line's end, also on a full disk.
    fn write_by(&mut self, entry: &Entry, write: impl FnOnce(&File, &[u8]) -> io::Result<()>) -> io::Result<()> {
        if entry.fresh {
            self.file = None;
            self.set_aside()?;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path)?,
        };
        let end = file.metadata()?.len();
        if let Err(error) = write(&file, entry.text.as_bytes()) {
            // If this fails too, the half line is at the end of a file that nothing is added to.
            let _ = file.set_len(end);
            return Err(error);
        }
        self.file = Some(file);
        Ok(())
    }

    /// Makes room for a new file. An empty one is none yet: on a full disk one after the other would be set aside, and in place of what was
    /// recorded before.
    fn set_aside(&self) -> io::Result<()> {
        match fs::metadata(&self.path) {
            Ok(found) if found.len() == 0 => Ok(()),
            Ok(_) => {
                let mut old = self.path.clone().into_os_string();
                old.push(".old");
                fs::rename(&self.path, old)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// It names workloads and says when they work: for root's eyes.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.split_inclusive('\n').map(|line| line.split('"').nth(1).unwrap_or(line).to_owned()).collect()
    }

    fn note(recorder: &mut Recorder) -> Entry {
        let (sample, decision) = (Sample::default(), Decision::default());
        recorder.note(&Topology::default(), Settings::default(), Balancer::default(), sample, &decision);
        recorder.take().unwrap()
    }

    fn no_space() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    #[test]
    fn after_an_error_a_new_file_begins_and_nothing_half_is_left_in_any() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("balance.jsonl"), folder.path().join("balance.jsonl.old"));
        let (mut recorder, mut pen) = (Recorder::default(), Pen::new(path.clone()));
        let whole = |mut file: &File, text: &[u8]| file.write_all(text);
        let half = |mut file: &File, text: &[u8]| file.write_all(&text[..text.len() / 2]).and(Err(no_space()));
        let written = pen.write_by(&note(&mut recorder), whole);
        assert!(recorder.learn(written).is_none());
        // The disk is full for three turns, which is told once.
        let mut told = 0;
        for _ in 0..3 {
            let written = pen.write_by(&note(&mut recorder), half);
            told += usize::from(recorder.learn(written).is_some());
        }
        assert_eq!(told, 1);
        assert_eq!(kinds(&old), ["settings", "machine", "state", "tick"], "what was recorded before is kept");
        assert_eq!(kinds(&path), [""; 0]);
        for _ in 0..2 {
            let written = pen.write_by(&note(&mut recorder), whole);
            assert!(recorder.learn(written).is_none());
        }
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick", "tick"]);
        assert!(recorder.learn(Err(no_space())).is_some(), "another time is told again");
    }

    #[test]
    fn what_is_no_file_in_a_folder_is_refused_before_anything_is_decided() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("balance.jsonl");
        Pen::check(&file).unwrap();
        Pen::check(&file).unwrap();
        assert!(Pen::check(folder.path()).is_err() && Pen::check(&folder.path().join("none/balance")).is_err());
        assert_eq!(Pen::check(Path::new("/dev/null")).unwrap_err().to_string(), "it is no regular file");
    }

    #[test]
    fn a_full_file_is_set_aside_and_the_next_can_be_replayed_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("balance.jsonl");
        fs::write(&path, "of another day\n").unwrap();
        let (mut recorder, mut pen) = (Recorder::default(), Pen::new(path.clone()));
        let mut turn = |recorder: &mut Recorder| pen.write(&note(recorder)).unwrap();
        turn(&mut recorder);
        turn(&mut recorder);
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick", "tick"]);
        let old = folder.path().join("balance.jsonl.old");
        assert_eq!(kinds(&old), ["of another day\n"]);
        recorder.bytes = Some(FILE_BYTES_MAX + 1);
        turn(&mut recorder);
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick"]);
        assert_eq!(kinds(&old), ["settings", "machine", "state", "tick", "tick"]);
        // The one beside it changes: the machine and what was remembered are written again, in place.
        let other = Topology { online: "0".parse().unwrap(), ..Topology::default() };
        recorder.note(&other, Settings::default(), Balancer::default(), Sample::default(), &Decision::default());
        pen.write(&recorder.take().unwrap()).unwrap();
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick", "settings", "machine", "state", "tick"]);
    }
}
