//! The simulated manifests folder, with what people and their tools do to it.

use crate::census::Told;
use crate::rng::Rng;
use crate::vocabulary::{bad, good, idle, scaled};
use crate::world::{Sim, World};
use containerctl::control;
use containerctl::control::folder::{FolderError, Scan};
use containerctl::manifest::away::DELETION_SETTLES;
use containerctl::manifest::diagnostic::Diagnostic;
use containerctl::manifest::tree::Place;
use containerctl::manifest::{Parsed, parse};
use containerctl::model::spec::Spec;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a file has to be missing until it is gone, in milliseconds.
const SETTLES: u64 = DELETION_SETTLES.as_secs() * 1000;

/// Workloads of one story.
const NAMES: [&str; 6] = ["w0", "w1", "w2", "w3", "w4", "w5"];

/// A sub-folder, and so a group of jobs.
const GROUP: &str = "team";

#[derive(Clone)]
pub struct File {
    pub text: String,
    pub parsed: Arc<Parsed>,
    pub unreadable_until: u64,
    pub written_until: u64,
    /// Not to be seen before this.
    pub away_until: u64,
}

/// The folder as it is, and as a controller has seen it last.
pub struct Shelf {
    pub files: BTreeMap<String, File>,
    pub names: Vec<&'static str>,
    /// Those of them that have their manifests in a sub-folder.
    grouped: BTreeSet<&'static str>,
    /// Whether most of them ask for much.
    is_crowded: bool,
    pub gone_until: u64,
    /// When somebody was last told what is in it.
    pub told_at: u64,
    /// Since when a file is missing, and what was read of it.
    missing: BTreeMap<String, u64>,
    read: BTreeMap<String, Arc<Parsed>>,
    /// When a file that is gone was told to be.
    dropped: BTreeMap<String, u64>,
    /// What the controller that lives was told of, and whether each of its looks was told to it.
    told: BTreeSet<String>,
    missed: bool,
}

thread_local! {
    /// What is in files as they were read before: the same few hundred are written in thousands of stories.
    static PARSED: RefCell<BTreeMap<(String, String), Parsed>> = RefCell::default();
}

fn parsed(path: &str, text: &str) -> Parsed {
    let anew = || parse(path, text.as_bytes());
    PARSED.with_borrow_mut(|known| known.entry((path.to_owned(), text.to_owned())).or_insert_with(anew).clone())
}

impl File {
    fn new(path: &str, text: &str) -> File {
        let parsed = Arc::new(parsed(path, text));
        File { text: text.to_owned(), parsed, unreadable_until: 0, written_until: 0, away_until: 0 }
    }
}

/// Whether a file is about a workload, as its name says, or about a replica of it.
pub fn is_about(path: &str, workload: &str) -> bool {
    stem(path) == workload.split('.').next().unwrap_or(workload)
}

fn stem(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path).trim_end_matches(".yaml").trim_start_matches("also-")
}

impl Shelf {
    pub fn new(rng: &mut Rng) -> Shelf {
        let count = usize::try_from(rng.between(1, NAMES.len() as u64 + 1)).unwrap_or(1);
        let names = NAMES[..count].to_vec();
        let grouped = names.iter().copied().filter(|_| rng.chance(2_000)).collect();
        Shelf {
            files: BTreeMap::new(),
            names,
            grouped,
            is_crowded: rng.chance(2_500),
            gone_until: 0,
            told_at: 0,
            missing: BTreeMap::new(),
            read: BTreeMap::new(),
            dropped: BTreeMap::new(),
            told: BTreeSet::new(),
            missed: false,
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.grouped.contains(name) { format!("{GROUP}/{name}.yaml") } else { format!("{name}.yaml") }
    }

    /// Everything can be read again.
    pub fn calm(&mut self) {
        self.gone_until = 0;
        for file in self.files.values_mut() {
            (file.unreadable_until, file.written_until, file.away_until) = (0, 0, 0);
        }
    }

    /// A controller that was started has read nothing yet.
    pub fn forget(&mut self) {
        self.read.clear();
        self.missing.clear();
        self.told.clear();
        self.missed = false;
    }

    /// Whether the controller that lives cannot know of any file about a workload. One that could not look goes by what is on record.
    pub fn is_untold(&self, workload: &str) -> bool {
        !self.missed && !self.told.iter().any(|path| is_about(path, workload))
    }

    /// What the files about a workload ask for, and whether there is any, and any that cannot be accepted.
    pub fn claims(&self, workload: &str, now: u64) -> (Vec<Arc<Spec>>, bool, bool) {
        let about = self.files.iter().filter(|(path, file)| is_about(path, workload) && file.away_until <= now);
        let (mut claims, mut any, mut broken) = (Vec::new(), false, false);
        for (_, file) in about {
            (any, broken) = (true, broken || file.parsed.broken);
            claims.extend(file.parsed.workloads.iter().map(|(spec, _)| Arc::clone(spec)));
        }
        (claims, any, broken)
    }

    /// When it was told of a workload that all its files are gone.
    pub fn told_gone_at(&self, workload: &str) -> Option<u64> {
        self.dropped.iter().filter(|(path, _)| is_about(path, workload)).map(|(_, at)| *at).max()
    }

    /// Whether nothing of it is missing, for however short a time.
    pub fn is_whole(&self, now: u64) -> bool {
        now >= self.gone_until && self.missing.is_empty() && self.files.values().all(|file| file.away_until <= now)
    }

    /// Whether whoever looked last was told of a workload what is there, and of all that is gone that it has been for long enough. A file
    /// that could not be read then, or a folder, hides what was edited meanwhile until somebody looks again.
    pub fn is_known(&self, workload: &str) -> bool {
        let told =
            |(path, file): (&String, &File)| self.read.get(path).is_some_and(|read| Arc::ptr_eq(read, &file.parsed));
        let mut about = self.files.iter().filter(|(path, _)| is_about(path, workload));
        about.all(told) && self.read.keys().all(|path| !is_about(path, workload) || self.files.contains_key(path))
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
        for (path, file) in self.files.iter().filter(|(_, file)| file.away_until <= now) {
            self.missing.remove(path);
            self.dropped.remove(path);
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
        let is_there = |path: &String| self.files.get(path).is_some_and(|file| file.away_until <= now);
        let gone: Vec<String> = self.read.keys().filter(|path| !is_there(path)).cloned().collect();
        for path in gone {
            let since = *self.missing.entry(path.clone()).or_insert(now);
            if now >= since + SETTLES {
                self.read.remove(&path);
                self.missing.remove(&path);
                self.dropped.insert(path, now);
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
    /// What is there as the story begins.
    pub fn fill_the_folder(&mut self) {
        for name in self.shelf.names.clone() {
            if self.rng.chance(7_000) {
                self.write_good(name, &self.shelf.path_of(name), 0);
            }
        }
    }

    fn put(&mut self, name: &str, path: String, file: File) {
        self.note_who_is_back(name);
        self.say(|| format!("folder: {path} becomes {:?}", file.text));
        self.shelf.files.insert(path, file);
        self.note_folder(name);
        self.tell_of_folder();
    }

    fn write_good(&mut self, name: &'static str, path: &str, busy: u64) {
        let (word, mut text) = good(&mut self.rng, name, &self.shelf.names, self.shelf.is_crowded);
        self.census.note(Told::Word(word));
        if path.starts_with("also-") {
            text = format!("name: {name}\n{text}");
        }
        let file = File { written_until: self.now + busy, ..File::new(path, &text) };
        self.put(name, path.to_owned(), file);
    }

    /// Saves a file.
    pub fn save(&mut self, is_good: bool, busy: u64) {
        let name = *self.rng.pick(&self.shelf.names);
        let path = self.shelf.path_of(name);
        if is_good {
            return self.write_good(name, &path, busy);
        }
        let text = bad(&mut self.rng);
        let file = File::new(&path, &text);
        self.put(name, path, file);
    }

    /// Asks for another number of replicas, where there are any. Answers whether it did.
    pub fn scale(&mut self) -> bool {
        let rng = &mut self.rng;
        let known: Vec<(String, String)> =
            self.shelf.files.iter().filter_map(|(path, file)| Some((path.clone(), scaled(rng, &file.text)?))).collect();
        if known.is_empty() {
            return false;
        }
        let (path, text) = self.rng.pick(&known).clone();
        let (name, file) = (owner(&path), File::new(&path, &text));
        self.put(&name, path, file);
        true
    }

    /// Everything that is done by the calendar is put off, so that the host can come to rest.
    pub fn put_off_schedules(&mut self) {
        let edits: Vec<(String, String)> =
            self.shelf.files.iter().filter_map(|(path, file)| Some((path.clone(), idle(&file.text)?))).collect();
        for (path, text) in edits {
            let (name, file) = (owner(&path), File::new(&path, &text));
            self.put(&name, path, file);
        }
        // What a file that cannot be accepted keeps as it was goes on by its calendar, whichever file it came from.
        for name in self.shelf.names.clone() {
            let record = name.parse().ok().and_then(|name| self.disk.record(&name));
            let Some(record) = record.filter(|record| record.spec.job.schedule.is_some()) else { continue };
            let follows = |file: &File| file.parsed.workloads.iter().any(|(spec, _)| spec.job.schedule.is_some());
            if self.shelf.files.get(&record.origin.path).is_none_or(|file| !follows(file)) {
                let file = File::new(&record.origin.path, &format!("name: {name}\ncommand: serve\n"));
                self.put(name, record.origin.path, file);
            }
        }
    }

    fn a_path(&mut self) -> Option<String> {
        let paths: Vec<&String> = self.shelf.files.keys().collect();
        if paths.is_empty() { None } else { Some((*self.rng.pick(&paths)).clone()) }
    }

    pub fn delete(&mut self) {
        let Some(path) = self.a_path() else { return };
        self.say(|| format!("folder: {path} is deleted"));
        self.shelf.files.remove(&path);
        self.note_folder(&owner(&path));
        self.tell_of_folder();
    }

    /// Somebody deletes a workload and one that comes after it. Where there are no such two it is any one.
    pub fn retire(&mut self) {
        let files = &self.shelf.files;
        let after = |file: &File| -> Vec<String> {
            file.parsed.workloads.iter().flat_map(|(spec, _)| &spec.after).map(ToString::to_string).collect()
        };
        let first = |name: &String| files.keys().find(|path| is_about(path, name)).cloned();
        let pairs: Vec<(String, String)> = files
            .iter()
            .flat_map(|(path, file)| {
                after(file).iter().filter_map(first).map(|other| (path.clone(), other)).collect::<Vec<_>>()
            })
            .filter(|(path, other)| path != other)
            .collect();
        if pairs.is_empty() {
            return self.delete();
        }
        let (path, other) = self.rng.pick(&pairs).clone();
        for path in [path, other] {
            self.say(|| format!("folder: {path} is deleted"));
            self.shelf.files.remove(&path);
            self.note_folder(&owner(&path));
        }
        self.tell_of_folder();
    }

    pub fn empty(&mut self) {
        self.note_who_is_guarded();
        self.say(|| "folder: all files are deleted".to_owned());
        let paths: Vec<String> = std::mem::take(&mut self.shelf.files).into_keys().collect();
        for path in paths {
            self.note_folder(&owner(&path));
        }
        self.tell_of_folder();
    }

    /// A file is away for a while that is too short to mean anything.
    pub fn blink(&mut self) {
        let Some(path) = self.a_path() else { return };
        let until = self.now + self.rng.between(50, 900);
        self.say(|| format!("folder: {path} is away until {until} ms"));
        self.shelf.files.get_mut(&path).into_iter().for_each(|file| file.away_until = until);
        self.note_folder(&owner(&path));
        self.tell_of_folder();
        self.after(until - self.now, crate::world::Event::FolderStirs(owner(&path)));
    }

    pub fn unreadable(&mut self) {
        let Some(path) = self.a_path() else { return };
        let until = self.now + self.rng.between(100, 6_000);
        self.say(|| format!("folder: {path} cannot be read until {until} ms"));
        self.shelf.files.get_mut(&path).into_iter().for_each(|file| file.unreadable_until = until);
        self.tell_of_folder();
    }

    pub fn duplicate(&mut self) {
        let name = *self.rng.pick(&self.shelf.names);
        self.write_good(name, &format!("also-{name}.yaml"), 0);
    }
}

/// The workload that a file is about.
pub fn owner(path: &str) -> String {
    stem(path).to_owned()
}

/// What the controller scans.
pub struct Source(pub Arc<Sim>);

impl control::Source for Source {
    fn scan(&mut self) -> Result<Scan, FolderError> {
        let failed = |source| FolderError::Read { path: PathBuf::from("/manifests"), source };
        let missed = std::mem::replace(&mut self.0.world().shelf.missed, true);
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
        if let Ok(Scan { files, .. }) = &scan {
            let mut world = self.0.world();
            (world.shelf.told_at, world.shelf.missed) = (now, missed);
            world.shelf.told.extend(files.keys().cloned());
        }
        scan
    }

    fn anew(&self) -> Box<dyn control::Source> {
        Box::new(Source(Arc::clone(&self.0)))
    }
}
