//! Writing down what the rebalancer decided and from what, so that it can be decided again elsewhere (`containerctl replay`).
//!
//! A line of JSON each: the machine, the settings and what the rebalancer remembered, then its turns. Off unless asked for, because it writes
//! once a turn. At most two files of [`FILE_BYTES_MAX`]: a full one is set aside as `FILE.old`, and the next begins with everything it takes
//! to be replayed alone.

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

    /// What is to be written now.
    pub fn take(&mut self) -> Entry {
        mem::take(&mut self.entry)
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

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.text.is_empty() {
            return Ok(());
        }
        if entry.fresh {
            self.file = None;
            if self.path.exists() {
                let mut old = self.path.clone().into_os_string();
                old.push(".old");
                fs::rename(&self.path, old)?;
            }
        }
        if self.file.is_none() {
            // It names workloads and says when they work: for root's eyes.
            self.file = Some(OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(entry.text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_set_aside_and_the_next_can_be_replayed_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("balance.jsonl");
        fs::write(&path, "of another day\n").unwrap();
        let (mut recorder, mut pen) = (Recorder::default(), Pen::new(path.clone()));
        let mut turn = |recorder: &mut Recorder| {
            let (sample, decision) = (Sample::default(), Decision::default());
            recorder.note(&Topology::default(), Settings::default(), Balancer::default(), sample, &decision);
            pen.write(&recorder.take()).unwrap();
        };
        turn(&mut recorder);
        turn(&mut recorder);
        let kinds = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            let lines = text.lines().map(|line| line.split('"').nth(1).unwrap_or(line).to_owned());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick", "tick"]);
        let old = folder.path().join("balance.jsonl.old");
        assert_eq!(kinds(&old), ["of another day"]);
        recorder.bytes = Some(FILE_BYTES_MAX + 1);
        turn(&mut recorder);
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick"]);
        assert_eq!(kinds(&old), ["settings", "machine", "state", "tick", "tick"]);
        // The one beside it changes: the machine and what was remembered are written again, in place.
        let other = Topology { online: "0".parse().unwrap(), ..Topology::default() };
        recorder.note(&other, Settings::default(), Balancer::default(), Sample::default(), &Decision::default());
        pen.write(&recorder.take()).unwrap();
        assert_eq!(kinds(&path), ["settings", "machine", "state", "tick", "settings", "machine", "state", "tick"]);
    }
}
