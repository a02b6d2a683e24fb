//! CPUs that a v2 group has alone, by the kernel's word (cgroup-v2.rst, `cpuset.cpus.partition`).
//!
//! Problem: a cpuset keeps our workloads off exclusive CPUs and nobody else. A partition takes its CPUs from every group that is not below it, but
//! is granted only below a partition, which the group of all workloads is not, unless an administrator made it one; or, from Linux 6.7 on,
//! where each group on the way down sets the CPUs aside in `cpuset.cpus.exclusive`.
//! Approach: ask, and let the answer be read back. `cpuset.cpus.exclusive` follows from what is asked for, so nobody decides about it.
//! Guarantees: a wish that the kernel does not grant fails nothing; the reason is what the file is read as from then on.

use super::unified::{read_at, write_at};
use super::{SUFFIX, list_directories};
use crate::model::cgroup::PARTITION;
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where CPUs are set aside for partitions further down, from Linux 6.7 on.
const EXCLUSIVE: &str = "cpuset.cpus.exclusive";
/// The attribute that says which of these are ours; the kernel keeps `user.` ones on groups from 5.7 on, and none of more than a page.
const NOTE: &str = "user.containerctl.exclusive";
const NOTE_BYTES_MAX: usize = 4096;
const CPUS: &str = "cpuset.cpus";
const EFFECTIVE: &str = "cpuset.cpus.effective";

/// The partitions below one group.
#[derive(Debug)]
pub struct Partitions {
    parent: PathBuf,
    /// The groups from the top of the tree down to the parent.
    way: Vec<PathBuf>,
    /// The CPUs that are switched on.
    online: PathBuf,
    /// Wishes that the kernel did not even take, so that it does not show them.
    refusals: Mutex<BTreeMap<Name, String>>,
}

impl Partitions {
    /// Below `parent`, which is `depth` groups below the root of its tree.
    pub fn below(parent: &Path, depth: usize) -> Partitions {
        let mut way: Vec<PathBuf> = parent.ancestors().take(depth).map(Path::to_owned).collect();
        way.reverse();
        let online = PathBuf::from("/sys/devices/system/cpu/online");
        Partitions { parent: parent.to_owned(), way, online, refusals: Mutex::default() }
    }

    /// Asks for a workload's CPUs, or gives them back. Only the latter can fail.
    pub fn ask(&self, name: &Name, group: impl AsFd, value: &str) -> io::Result<()> {
        if value != "root" {
            write_at(&group, PARTITION, value)?;
            self.forget(name);
            self.release(&group);
            return Ok(());
        }
        let asked = self.set_aside(&group).and_then(|()| write_at(&group, PARTITION, value));
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match asked {
            Ok(()) => refusals.remove(name),
            Err(error) => refusals.insert(name.clone(), error.to_string()),
        };
        Ok(())
    }

    /// Gives a workload other CPUs. What is set aside for it goes along: the kernel has a partition keep what it had (`cpuset.cpus.exclusive`
    /// comes before `cpuset.cpus`).
    pub fn give(&self, name: &Name, group: impl AsFd, cpus: &str) -> io::Result<()> {
        let is_wished = || read_at(&group, PARTITION).is_ok_and(|held| held.starts_with("root"));
        if set_aside_for(&group).is_empty() || !is_wished() && !self.is_refused(name) {
            return write_at(&group, CPUS, cpus);
        }
        self.release(&group);
        let written = write_at(&group, CPUS, cpus);
        // Where the kernel did not take it, what it had.
        self.ask(name, &group, "root").and(written)
    }

    /// What the file holds, in the kernel's notation; a wish that it did not take as one that it does not grant, and so one that it grants for
    /// fewer CPUs than the group has.
    pub fn answer(&self, name: &Name, group: impl AsFd, held: String) -> String {
        if is_granted(&held) {
            let read = |file| read_at(&group, file).ok()?.parse::<CpuSet>().ok();
            let (Some(cpus), Some(effective)) = (read(CPUS), read(EFFECTIVE)) else { return held };
            // One that is switched off is nobody's.
            let online = fs::read_to_string(&self.online).ok().and_then(|text| text.parse().ok());
            let lacks = cpus.intersection(&online.unwrap_or_else(|| cpus.clone())).difference(&effective);
            return if lacks.is_empty() { held } else { format!("root invalid ({EFFECTIVE} is {effective})") };
        }
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.get(name) {
            Some(why) if held == "member" => format!("root invalid ({why})"),
            _ => held,
        }
    }

    /// Before a group is removed.
    pub fn leave(&self, name: &Name, group: impl AsFd) {
        self.forget(name);
        self.release(group);
    }

    /// Asks again for what was not granted because somebody was in the way: the kernel does not look again by itself when they leave.
    pub fn ask_again(&self) {
        let refused: Vec<Name> = {
            let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            refusals.keys().cloned().collect()
        };
        for name in refused {
            if let Ok(group) = File::open(self.parent.join(format!("{name}{SUFFIX}"))) {
                let _ = self.ask(&name, &group, "root");
            }
        }
        if !self.are_possible() {
            return;
        }
        for group in self.groups() {
            let is_ungranted = read(&group, PARTITION).is_some_and(|held| held.starts_with("root invalid"));
            if is_ungranted && let Ok(group) = File::open(&group) {
                // What comes of it is read from the file.
                let _ = write_at(&group, PARTITION, "root");
            }
        }
    }

    /// The CPUs that partitions below the parent have, which its own effective set lacks.
    pub fn granted(&self) -> CpuSet {
        if !self.are_possible() {
            return CpuSet::new();
        }
        let has = |group: &PathBuf| read(group, PARTITION).is_some_and(|held| is_granted(&held));
        let sets = self.groups().into_iter().filter(has).filter_map(|group| list(&group, EFFECTIVE));
        sets.fold(CpuSet::new(), |all, cpus| all.union(&cpus))
    }

    /// Whether any group below may be one: otherwise there is no need to ask each.
    fn are_possible(&self) -> bool {
        read(&self.parent, PARTITION).is_some_and(|held| is_granted(&held))
            || list(&self.parent, EXCLUSIVE).is_some_and(|cpus| !cpus.is_empty())
    }

    fn groups(&self) -> Vec<PathBuf> {
        let names = list_directories(&self.parent).unwrap_or_default();
        names.into_iter().map(|name| self.parent.join(format!("{name}{SUFFIX}"))).collect()
    }

    fn is_refused(&self, name: &Name) -> bool {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    fn forget(&self, name: &Name) {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Sets the group's CPUs aside on the way down to it, where the kernel wants that.
    fn set_aside(&self, group: impl AsFd) -> io::Result<()> {
        if !self.parent.join(EXCLUSIVE).exists() {
            return Ok(());
        }
        let cpus: CpuSet = read_at(&group, CPUS)?.parse().map_err(io::Error::other)?;
        for above in self.way.iter().filter(|above| !is_partition(above)) {
            let held = list(above, EXCLUSIVE).unwrap_or_default();
            let added = cpus.difference(&held);
            if !added.is_empty() {
                let above = File::open(above)?;
                // First, so that a crash leaves nobody with what is ours.
                note(&above, &noted(&above).union(&added));
                write_at(&above, EXCLUSIVE, &held.union(&cpus).to_string())?;
            }
        }
        write_at(&group, EXCLUSIVE, &cpus.to_string())
    }

    /// What was set aside for the group is anybody's again. One that is left set aside takes nothing from anybody, so this may fail.
    fn release(&self, group: impl AsFd) {
        let cpus = set_aside_for(&group);
        if cpus.is_empty() {
            return;
        }
        let _ = write_at(&group, PARTITION, "member");
        let _ = write_at(&group, EXCLUSIVE, "\n");
        for path in self.way.iter().rev().filter(|path| !is_partition(path)) {
            let Ok(above) = File::open(path) else { continue };
            let (held, noted) = (set_aside_for(&above), noted(&above));
            // An administrator's stay: somebody else may need them.
            let ours = held.intersection(&cpus).intersection(&noted);
            if !ours.is_empty() && write_at(&above, EXCLUSIVE, &format!("{}\n", held.difference(&ours))).is_ok() {
                note(&above, &noted.difference(&ours));
            }
        }
    }
}

/// One that is a partition itself has its CPUs for those below already, or its administrator keeps it smaller.
fn is_partition(group: &Path) -> bool {
    read(group, PARTITION).is_some_and(|held| is_granted(&held))
}

/// What we have set aside in a group, as it is noted on the group itself: there it outlives us and not the group.
fn noted(group: &File) -> CpuSet {
    let mut text = vec![0; NOTE_BYTES_MAX];
    let length = fgetxattr(group, NOTE, text.as_mut_slice()).unwrap_or(0);
    std::str::from_utf8(&text[..length]).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Where it cannot be noted it stays set aside.
fn note(group: &File, cpus: &CpuSet) {
    let noted = if cpus.is_empty() {
        fremovexattr(group, NOTE)
    } else {
        fsetxattr(group, NOTE, cpus.to_string().as_bytes(), XattrFlags::empty())
    };
    if let Err(error) = noted {
        tracing::debug!(error = %error, "cannot note what was set aside for partitions; it stays set aside");
    }
}

fn set_aside_for(group: impl AsFd) -> CpuSet {
    read_at(group, EXCLUSIVE).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn is_granted(held: &str) -> bool {
    matches!(held, "root" | "isolated")
}

fn read(group: &Path, file: &str) -> Option<String> {
    fs::read_to_string(group.join(file)).ok().map(|text| text.trim_end().to_owned())
}

fn list(group: &Path, file: &str) -> Option<CpuSet> {
    read(group, file)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups on the way down and one of a workload, as files; no kernel answers, so what is written is what is read.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Partitions) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let partitions = Partitions::below(&root.path().join("a/b"), 2);
        let partitions = Partitions { online: root.path().join("online"), ..partitions };
        (root, partitions)
    }

    fn all(root: &tempfile::TempDir, files: &[&str; 3]) -> [String; 3] {
        files.map(|file| fs::read_to_string(root.path().join(file)).unwrap().trim_end().to_owned())
    }

    #[test]
    fn cpus_are_set_aside_on_the_way_down_and_given_back() {
        let files = ["a/cpuset.cpus.exclusive", "a/b/cpuset.cpus.exclusive", "a/b/x.workload/cpuset.cpus.exclusive"];
        let (root, partitions) = tree(&[
            (files[0], "1"),
            (files[1], ""),
            (files[2], ""),
            ("a/b/x.workload/cpuset.cpus", "4-5"),
            ("a/b/x.workload/cpuset.cpus.partition", "member"),
            ("a/b/x.workload/cpuset.cpus.effective", "4-5"),
        ]);
        let (name, group): (Name, _) = ("x".parse().unwrap(), File::open(root.path().join("a/b/x.workload")).unwrap());
        partitions.ask(&name, &group, "root").unwrap();
        assert_eq!(all(&root, &files), ["1,4-5", "4-5", "4-5"]);
        assert_eq!(partitions.granted().to_string(), "4-5");
        partitions.leave(&name, &group);
        assert_eq!(all(&root, &files), ["1", "", ""]);
    }

    #[test]
    fn what_an_administrator_has_set_aside_stays_so() {
        let files = ["a/cpuset.cpus.exclusive", "a/b/cpuset.cpus.exclusive", "a/b/x.workload/cpuset.cpus.exclusive"];
        let (root, partitions) = tree(&[
            (files[0], "4"),
            (files[1], "0-7"),
            (files[2], ""),
            ("a/b/x.workload/cpuset.cpus", "4-5"),
            ("a/b/x.workload/cpuset.cpus.partition", "member"),
        ]);
        let (name, group): (Name, _) = ("x".parse().unwrap(), File::open(root.path().join("a/b/x.workload")).unwrap());
        partitions.ask(&name, &group, "root").unwrap();
        assert_eq!(all(&root, &files), ["4-5", "0-7", "4-5"]);
        // Another controller knows whose is whose.
        let partitions = Partitions::below(&root.path().join("a/b"), 2);
        partitions.leave(&name, &group);
        assert_eq!(all(&root, &files), ["4", "0-7", ""]);
        // A partition of somebody's would be made smaller by either.
        fs::write(root.path().join("a/cpuset.cpus.partition"), "root\n").unwrap();
        fs::write(root.path().join(files[0]), "").unwrap();
        partitions.ask(&name, &group, "root").unwrap();
        assert_eq!(all(&root, &files), ["", "0-7", "4-5"]);
        fs::write(root.path().join(files[0]), "0-7").unwrap();
        partitions.leave(&name, &group);
        assert_eq!(all(&root, &files), ["0-7", "0-7", ""]);
    }

    #[test]
    fn what_is_set_aside_goes_along_with_a_workload_that_is_given_other_cpus() {
        let files = ["a/cpuset.cpus.exclusive", "a/b/cpuset.cpus.exclusive", "a/b/x.workload/cpuset.cpus.exclusive"];
        let own = ["a/b/x.workload/cpuset.cpus", "a/b/x.workload/cpuset.cpus.partition", "online"];
        let (root, partitions) = tree(&[
            (files[0], "1"),
            (files[1], ""),
            (files[2], ""),
            (own[0], "4-5"),
            (own[1], "member"),
            (own[2], "0-6"),
            ("a/b/x.workload/cpuset.cpus.effective", "4-5"),
        ]);
        let (name, group): (Name, _) = ("x".parse().unwrap(), File::open(root.path().join("a/b/x.workload")).unwrap());
        // As long as nothing is asked for, only the file itself.
        partitions.give(&name, &group, "3-4").unwrap();
        assert_eq!(all(&root, &files), ["1", "", ""]);
        partitions.ask(&name, &group, "root").unwrap();
        for (cpus, on_the_way) in [("3-6", ["1,3-6", "3-6", "3-6"]), ("6-7", ["1,6-7", "6-7", "6-7"])] {
            partitions.give(&name, &group, cpus).unwrap();
            assert_eq!(all(&root, &files), on_the_way);
            assert_eq!(all(&root, &own), [cpus, "root", "0-6"]);
        }
        let answer = || partitions.answer(&name, &group, "root".to_owned());
        assert_eq!(answer(), "root invalid (cpuset.cpus.effective is 4-5)");
        // Nobody misses one that is switched off.
        fs::write(root.path().join("a/b/x.workload/cpuset.cpus.effective"), "6").unwrap();
        assert_eq!(answer(), "root");
    }

    #[test]
    fn a_wish_that_is_not_taken_is_read_as_one_that_is_not_granted() {
        let (root, partitions) = tree(&[("a/b/x.workload/cpuset.cpus", "4-5")]);
        let (name, group): (Name, _) = ("x".parse().unwrap(), File::open(root.path().join("a/b/x.workload")).unwrap());
        partitions.ask(&name, &group, "root").unwrap();
        let held = partitions.answer(&name, &group, "member".to_owned());
        assert_eq!(held, "root invalid (No such file or directory (os error 2))");
        assert_eq!(partitions.answer(&name, &group, "root".to_owned()), "root");
        assert_eq!(partitions.granted(), CpuSet::new());
        partitions.leave(&name, &group);
        assert_eq!(partitions.answer(&name, &group, "member".to_owned()), "member");
    }

    #[test]
    fn what_was_not_granted_or_not_taken_is_asked_for_again() {
        let (root, partitions) = tree(&[
            ("a/b/x.workload/cpuset.cpus", "4-5"),
            ("a/b/y.workload/cpuset.cpus", "6-7"),
            ("a/b/y.workload/cpuset.cpus.partition", "root invalid (Cpu list in cpuset.cpus not exclusive)"),
            ("a/b/cpuset.cpus.partition", "root"),
        ]);
        let held = |name: &str| fs::read_to_string(root.path().join("a/b").join(name).join("cpuset.cpus.partition"));
        let (name, group): (Name, _) = ("x".parse().unwrap(), File::open(root.path().join("a/b/x.workload")).unwrap());
        partitions.ask(&name, &group, "root").unwrap();
        assert!(partitions.is_refused(&name));
        fs::write(root.path().join("a/b/x.workload/cpuset.cpus.partition"), "member").unwrap();
        partitions.ask_again();
        assert_eq!((held("x.workload").unwrap(), held("y.workload").unwrap()), ("root".to_owned(), "root".to_owned()));
        assert!(!partitions.is_refused(&name));
    }
}
