//! v1 cpusets on the way down to our workloads that lack what came back.
//!
//! Problem: where a CPU or a node goes, v1 takes it out of `cpuset.cpus` and `cpuset.mems` of every group, and gives it back to the root alone
//! (cgroup-v1/cpusets.rst, 1.2; v2 keeps what was asked for). No workload could have it again until a reboot.
//! Approach: a group that had all that the one above it has follows that one. Of a group that somebody keeps smaller only what is known
//! to have gone is given back.
//! Guarantees: never more than the group above has; nothing is written where nothing is missing. Whoever makes a group smaller that follows sees
//! it widened again: that is what --reserved-cpus is for.

use super::CgroupError;
use crate::model::cpuset::CpuSet;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// The groups from the root of the hierarchy down to that of all workloads.
#[derive(Debug)]
pub struct Refill {
    way: Vec<PathBuf>,
    known: Mutex<BTreeMap<PathBuf, Known>>,
}

/// What is known of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    held: CpuSet,
    /// Whether it has whatever the one above has.
    follows: bool,
    /// What it had, and lost together with the one above.
    gone: CpuSet,
}

impl Refill {
    /// For a group that is `depth` groups below the root of its hierarchy.
    pub fn of(parent: &Path, depth: usize) -> Refill {
        let mut way: Vec<PathBuf> = parent.ancestors().take(depth + 1).map(Path::to_owned).collect();
        way.reverse();
        Refill { way, known: Mutex::default() }
    }

    /// Looks, and gives back what is missing.
    pub fn look(&self) -> Result<(), CgroupError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (above, group) in self.way.iter().zip(self.way.iter().skip(1)) {
            for file in FILES {
                let path = group.join(file);
                let (Some(above), Some(held)) = (list(&above.join(file)), list(&path)) else { continue };
                let before = known.get(&path);
                let now = next(before, &above, held.clone());
                if before.is_none() && !now.follows {
                    tracing::warn!(path = %path.display(), cpus = %held, of = %above, "somebody keeps this group smaller than the one above it; it stays so");
                }
                if now.held != held {
                    let value = now.held.to_string();
                    tracing::info!(path = %path.display(), was = %held, is = %value, "what has come back is given back to this group");
                    fs::write(&path, &value).map_err(|source| CgroupError::Write {
                        path: path.clone(),
                        value,
                        source,
                    })?;
                }
                known.insert(path, now);
            }
        }
        Ok(())
    }
}

/// What a group is to hold that holds `held` below one that has `above`.
fn next(before: Option<&Known>, above: &CpuSet, held: CpuSet) -> Known {
    let Some(Known { held: had, follows, gone }) = before else {
        return Known { follows: above.is_subset(&held), gone: CpuSet::new(), held };
    };
    if *follows {
        return Known { held: held.union(above), follows: true, gone: CpuSet::new() };
    }
    // What it lost that the one above still has, somebody took.
    let gone = gone.union(&had.difference(&held).difference(above));
    let back = gone.intersection(above);
    Known { held: held.union(&back), follows: false, gone: gone.difference(&back) }
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
        // Gone and back before anybody looked.
        tree.set("0-7", "0-6", "0-6");
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
    fn a_group_that_somebody_keeps_smaller_gets_back_only_what_it_had() {
        let (tree, refill) = Tree::new("0-7", "4-7", "4-7");
        refill.look().unwrap();
        assert_eq!(tree.held(), "4-7 4-7");
        tree.set("0-4,6-7", "4,6-7", "4,6-7");
        refill.look().unwrap();
        tree.set("0-7", "4,6-7", "4,6-7");
        refill.look().unwrap();
        assert_eq!(tree.held(), "4-7 4-7");
        // Somebody takes one that is there.
        tree.set("0-7", "4-6", "4-6");
        refill.look().unwrap();
        assert_eq!(tree.held(), "4-6 4-6");
    }
}
