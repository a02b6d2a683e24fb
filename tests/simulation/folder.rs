//! The simulated manifests folder, with what people and their tools do to it.

use crate::rng::Rng;
use crate::vocabulary::{bad, good};
use crate::world::{Sim, World};
use containerctl::control;
use containerctl::control::folder::{FolderError, Scan};
use containerctl::manifest::away::DELETION_SETTLES;
use containerctl::manifest::diagnostic::Diagnostic;
use containerctl::manifest::tree::Place;
use containerctl::manifest::{Parsed, parse};
use containerctl::model::name::Name;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a file has to be missing until it is gone, in milliseconds.
const SETTLES: u64 = DELETION_SETTLES.as_secs() * 1000;

/// Workloads of one story.
const NAMES: [&str; 6] = ["w0", "w1", "w2", "w3", "w4", "w5"];

pub struct File {
    pub parsed: Arc<Parsed>,
    pub unreadable_until: u64,
    pub written_until: u64,
    /// Somebody replaces it: until then it is not there.
    pub away_until: u64,
}

/// The folder as it is, and as a controller has seen it last.
pub struct Shelf {
    pub files: BTreeMap<String, File>,
    pub names: Vec<&'static str>,
    pub gone_until: u64,
    /// Since when a file is missing, and what was read of it.
    missing: BTreeMap<String, u64>,
    read: BTreeMap<String, Arc<Parsed>>,
}

impl File {
    fn new(path: &str, text: &str) -> File {
        let parsed = Arc::new(parse(path, text.as_bytes()));
        File { parsed, unreadable_until: 0, written_until: 0, away_until: 0 }
    }
}

impl Shelf {
    pub fn new(rng: &mut Rng) -> Shelf {
        let count = usize::try_from(rng.between(1, NAMES.len() as u64 + 1)).unwrap_or(1);
        let names = NAMES[..count].to_vec();
        let mut files = BTreeMap::new();
        for name in &names {
            if rng.chance(7_000) {
                let path = format!("{name}.yaml");
                files.insert(path.clone(), File::new(&path, &good(rng)));
            }
        }
        Shelf { files, names, gone_until: 0, missing: BTreeMap::new(), read: BTreeMap::new() }
    }

    /// Everything can be read again.
    pub fn calm(&mut self) {
        self.gone_until = 0;
        for file in self.files.values_mut() {
            (file.unreadable_until, file.written_until, file.away_until) = (0, 0, 0);
        }
    }

    /// Somebody replaces files while a controller starts: each is there again before a deletion would have settled.
    pub fn take_away(&mut self, rng: &mut Rng, now: u64) {
        for file in self.files.values_mut().filter(|file| file.away_until < now) {
            if rng.chance(6_000) {
                file.away_until = now + rng.between(1, SETTLES);
            }
        }
    }

    /// A controller that was started has read nothing yet.
    pub fn forget(&mut self) {
        self.read.clear();
        self.missing.clear();
    }

    fn scan(&mut self, now: u64) -> Result<Scan, FolderError> {
        if now < self.gone_until {
            let (path, source) = (PathBuf::from("/manifests"), io::ErrorKind::NotFound.into());
            return Err(FolderError::Read { path, source });
        }
        let mut scan = Scan::default();
        let mut soon = |wait: u64| {
            let wait = Duration::from_millis(wait);
            scan.again_in = Some(scan.again_in.map_or(wait, |other: Duration| other.min(wait)));
        };
        let here = |file: &File| file.away_until <= now;
        for (path, file) in self.files.iter().filter(|(_, file)| here(file)) {
            self.missing.remove(path);
            if now < file.written_until {
                soon(200);
                scan.being_written.insert(path.clone());
                if !self.read.contains_key(path) {
                    let held = Parsed { broken: true, ..Parsed::default() };
                    scan.files.insert(path.clone(), Arc::new(held));
                }
                continue;
            }
            let parsed = if now < file.unreadable_until {
                let at = Place { line: 1, column: 1 };
                let refused =
                    Diagnostic::error(path, at, "cannot be read: EIO".to_owned(), "check the disk".to_owned());
                Arc::new(Parsed::refused(refused))
            } else {
                Arc::clone(&file.parsed)
            };
            self.read.insert(path.clone(), parsed);
        }
        let is_gone = |path: &&String| !self.files.get(*path).is_some_and(here);
        let gone: Vec<String> = self.read.keys().filter(is_gone).cloned().collect();
        for path in gone {
            let since = *self.missing.entry(path.clone()).or_insert(now);
            if now >= since + SETTLES {
                self.read.remove(&path);
                self.missing.remove(&path);
            } else {
                soon(since + SETTLES - now);
                scan.settling.insert(path);
            }
        }
        for (path, parsed) in &self.read {
            scan.files.entry(path.clone()).or_insert_with(|| Arc::clone(parsed));
        }
        Ok(scan)
    }
}

impl World {
    /// Saves a file. Good ones are reason enough to replace what runs.
    pub fn save(&mut self, is_good: bool, busy: u64) {
        let name = *self.rng.pick(&self.shelf.names.clone());
        let path = format!("{name}.yaml");
        let text = if is_good { good(&mut self.rng) } else { bad(&mut self.rng) };
        self.say(|| format!("folder: {path} becomes {text:?}"));
        let file = File { written_until: self.now + busy, ..File::new(&path, &text) };
        self.shelf.files.insert(path, file);
        if is_good {
            self.note_edit(&name.parse().unwrap(), busy);
        }
        self.tell_of_folder();
        if busy > 0 {
            self.tell_of_folder();
        }
    }

    pub fn delete(&mut self) {
        let paths: Vec<String> = self.shelf.files.keys().cloned().collect();
        if paths.is_empty() {
            return;
        }
        let path = self.rng.pick(&paths).clone();
        self.say(|| format!("folder: {path} is deleted"));
        self.shelf.files.remove(&path);
        for name in self.shelf.names.clone() {
            // A duplicate names another; whoever may be concerned is.
            if path.contains(name) || path.starts_with("also-") {
                let name: Name = name.parse().unwrap();
                self.note_edit(&name, 0);
            }
        }
        self.tell_of_folder();
    }

    pub fn duplicate(&mut self) {
        let name = *self.rng.pick(&self.shelf.names.clone());
        let path = format!("also-{name}.yaml");
        let text = format!("name: {name}\n{}", good(&mut self.rng));
        self.say(|| format!("folder: {path} becomes {text:?}"));
        // Where the file that has the name is missing, it is this one's turn.
        if self.shelf.files.get(&format!("{name}.yaml")).is_none_or(|file| file.parsed.workloads.is_empty())
            || self.shelf.files.contains_key(&path)
        {
            self.note_edit(&name.parse().unwrap(), 0);
        }
        let file = File::new(&path, &text);
        self.shelf.files.insert(path, file);
        self.tell_of_folder();
    }
}

/// What the controller scans.
pub struct Source(pub Arc<Sim>);

impl control::Source for Source {
    fn scan(&mut self) -> Result<Scan, FolderError> {
        let failed = |source| FolderError::Read { path: PathBuf::from("/manifests"), source };
        self.0.before("folder.scan", None).map_err(failed)?;
        let mut world = self.0.world();
        let now = world.now;
        let scan = world.shelf.scan(now);
        world.say(|| {
            format!(
                "folder: scanned, {}",
                scan.as_ref().map_or_else(ToString::to_string, |scan| format!("{} files", scan.files.len()))
            )
        });
        drop(world);
        self.0.behind("folder.scan", None).map_err(failed)?;
        scan
    }

    fn anew(&self) -> Box<dyn control::Source> {
        Box::new(Source(Arc::clone(&self.0)))
    }
}
