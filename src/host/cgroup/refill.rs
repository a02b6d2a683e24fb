//! v1 cpusets on the way down to our workloads that lack what came back.
//!
//! Problem: where a CPU or a node goes, v1 takes it out of `cpuset.cpus` and `cpuset.mems` of every group, and gives it back to the root alone
//! (cgroup-v1/cpusets.rst, 1.2; v2 keeps what was asked for). No workload could have it again until a reboot.
//! Approach: a group that had all that the one above it has is given what comes back, and nothing else. One that lost what the one above it kept
//! is kept smaller by somebody, and left alone until somebody widens it again.
//! Guarantees: only CPUs and nodes that were seen to come, or to be lost in a look that the kernel called for; never more than the group above has.

use super::CgroupError;
use crate::model::cpuset::CpuSet;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// The groups from the root of the hierarchy down to that of all workloads.
#[derive(Debug)]
pub struct Refill {
    way: Vec<PathBuf>,
    known: Mutex<BTreeMap<PathBuf, Known>>,
    /// Whether the kernel told of something that came or went since the last look.
    is_told: AtomicBool,
}

/// What is known of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    above: CpuSet,
    held: CpuSet,
    /// Whether it had whatever the one above had.
    follows: bool,
    /// What has gone, or come, and is not in it yet.
    owed: CpuSet,
    /// What the kernel did not take, so that it is told once.
    refused: CpuSet,
}

impl Refill {
    /// For a group that is `depth` groups below the root of its hierarchy.
    pub fn of(parent: &Path, depth: usize) -> Refill {
        let mut way: Vec<PathBuf> = parent.ancestors().take(depth + 1).map(Path::to_owned).collect();
        way.reverse();
        Refill { way, known: Mutex::default(), is_told: AtomicBool::new(false) }
    }

    /// The kernel told of a CPU or a node: what is missing in the next look may be gone and back already.
    pub fn expect(&self) {
        self.is_told.store(true, Ordering::Relaxed);
    }

    /// Looks, and gives back what is missing. The first error that is new is told, after all groups were looked at.
    pub fn look(&self) -> Result<(), CgroupError> {
        let is_told = self.is_told.swap(false, Ordering::Relaxed);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = Ok(());
        for file in FILES {
            let Some((root, all)) =
                self.way.first().map(|root| root.join(file)).and_then(|path| Some((path.clone(), list(&path)?)))
            else {
                continue;
            };
            let came = known.get(&root).map_or_else(CpuSet::new, |before| all.difference(&before.held));
            known.insert(root, Known { held: all, ..Known::default() });
            for (above, group) in self.way.iter().zip(self.way.iter().skip(1)) {
                let path = group.join(file);
                // In this order: what goes in between is still in the group, not taken from it.
                let (Some(held), Some(above)) = (list(&path), list(&above.join(file))) else { continue };
                let before = known.get(&path);
                let mut now = next(before, &above, &held, &came, is_told);
                if before.is_none_or(|before| before.follows) && !now.follows {
                    tracing::warn!(path = %path.display(), cpus = %held, of = %above, "somebody keeps this group smaller than the one above it; it stays so");
                }
                let back = now.owed.intersection(&above);
                if !back.is_empty() {
                    let value = held.union(&back).to_string();
                    match fs::write(&path, &value) {
                        Ok(()) => {
                            tracing::info!(path = %path.display(), was = %held, is = %value, "what has come back is given back to this group");
                            now = Known {
                                held: held.union(&back),
                                owed: now.owed.difference(&back),
                                refused: CpuSet::new(),
                                ..now
                            };
                        }
                        Err(source) => {
                            let is_new = now.refused != back;
                            now.refused = back;
                            if is_new && result.is_ok() {
                                result = Err(CgroupError::Write { path: path.clone(), value, source });
                            }
                        }
                    }
                }
                known.insert(path, now);
            }
        }
        result
    }
}

/// What is to be known of a group that holds `held` below one that has `above`, and what it is owed, where `came` is what came since the last look.
fn next(before: Option<&Known>, above: &CpuSet, held: &CpuSet, came: &CpuSet, is_told: bool) -> Known {
    let now = Known { above: above.clone(), held: held.clone(), ..Known::default() };
    let Some(before) = before else { return Known { follows: above.is_subset(held), ..now } };
    let lost = before.held.difference(held);
    let stayed_above = above.intersection(&before.above).difference(came);
    let is_taken = !is_told && !lost.is_disjoint(&stayed_above);
    let is_widened = !held.is_subset(&before.held) && above.is_subset(held);
    if !is_widened && (is_taken || !before.follows) {
        return now;
    }
    let owed = before.owed.union(&lost).union(came).difference(held);
    Known { follows: true, owed, refused: before.refused.clone(), ..now }
}

fn list(path: &Path) -> Option<CpuSet> {
    fs::read_to_string(path).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy as files: the root, a group on the way, and ours.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(root: &str, way: &str, ours: &str) -> (Tree, Refill) {
            let tree = Tree(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.0.path().join("a/b")).unwrap();
            tree.set(root, way, ours);
            let refill = Refill::of(&tree.0.path().join("a/b"), 2);
            (tree, refill)
        }

        fn set(&self, root: &str, way: &str, ours: &str) {
            for (folder, cpus) in [("", root), ("a", way), ("a/b", ours)] {
                fs::write(self.0.path().join(folder).join("cpuset.cpus"), cpus).unwrap();
                fs::write(self.0.path().join(folder).join("cpuset.mems"), "0").unwrap();
            }
        }

        fn held(&self) -> String {
            let read = |folder: &str| fs::read_to_string(self.0.path().join(folder).join("cpuset.cpus")).unwrap();
            format!("{} {}", read("a"), read("a/b"))
        }
    }

    #[test]
    fn a_cpu_that_comes_back_is_given_back_all_the_way_down() {
        let (tree, refill) = Tree::new("0-7", "0-7", "0-7");
        refill.look().unwrap();
        tree.set("0-4,6-7", "0-4,6-7", "0-4,6-7");
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-4,6-7 0-4,6-7");
        tree.set("0-7", "0-4,6-7", "0-4,6-7");
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-7 0-7");
        // Gone and back before anybody looked, as the kernel tells.
        tree.set("0-7", "0-6", "0-6");
        refill.expect();
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-7 0-7");
    }

    #[test]
    fn one_that_was_off_when_the_controller_began_is_given_back_too() {
        let (tree, refill) = Tree::new("0-2", "0-2", "0-2");
        refill.look().unwrap();
        tree.set("0-3", "0-2", "0-2");
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-3 0-3");
    }

    #[test]
    fn a_group_that_somebody_keeps_smaller_is_left_alone() {
        let (tree, refill) = Tree::new("0-7", "4-7", "4-7");
        refill.look().unwrap();
        tree.set("0-4,6-7", "4,6-7", "4,6-7");
        refill.look().unwrap();
        tree.set("0-7", "4,6-7", "4,6-7");
        refill.look().unwrap();
        assert_eq!(tree.held(), "4,6-7 4,6-7");
        // Whoever makes one smaller while we run has done the same, and it stays so whatever comes and goes.
        tree.set("0-7", "0-7", "0-7");
        refill.look().unwrap();
        tree.set("0-7", "0-7", "0-3");
        refill.look().unwrap();
        tree.set("0-6", "0-6", "0-3");
        refill.look().unwrap();
        tree.set("0-7", "0-6", "0-3");
        refill.expect();
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-7 0-3");
        // One above that somebody widens has nothing to do with CPUs that come.
        let (tree, refill) = Tree::new("0-7", "4-7", "4-7");
        refill.look().unwrap();
        tree.set("0-7", "0-7", "4-7");
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-7 4-7");
    }

    #[test]
    fn a_refusal_is_told_once_tried_again_and_keeps_nobody_else_without() {
        let (tree, refill) = Tree::new("0-6", "0-6", "0-6");
        refill.look().unwrap();
        for (file, text) in [("cpuset.cpus", "0-7"), ("cpuset.mems", "0-1")] {
            fs::write(tree.0.path().join(file), text).unwrap();
        }
        // Read like a file, and refuses to be written, by root too.
        let link = tree.0.path().join("a/cpuset.cpus");
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("/sys/devices/system/cpu/kernel_max", &link).unwrap();
        refill.expect();
        assert!(refill.look().unwrap_err().to_string().contains("a/cpuset.cpus"));
        assert_eq!(fs::read_to_string(tree.0.path().join("a/b/cpuset.mems")).unwrap(), "0-1");
        refill.look().unwrap();
        fs::remove_file(&link).unwrap();
        fs::write(&link, "0-6").unwrap();
        refill.look().unwrap();
        assert_eq!(tree.held(), "0-7 0-7");
    }
}
