//! Which v1 hierarchies a host has, by cgroups-rs, and where a group is in each.

use cgroups_rs::fs::Cgroup;
use cgroups_rs::fs::hierarchies::V1;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The controllers whose hierarchies a workload joins: those it is held to. Each costs a directory and, at a start, 20 us.
pub const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "hugetlb"];
/// Those it joins only once it is held to something there: few are, and a directory that is made and removed in each hierarchy shows in
/// the time of every start.
const OPTIONAL: [&str; 1] = ["blkio"];
/// The ones without which this is no workload host.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Where the kernel's v1 hierarchies are.
#[derive(Clone, Debug)]
pub struct Hierarchies(V1);

impl Hierarchies {
    /// Those that are mounted, if the controllers that limits need are among them.
    pub fn find() -> Option<Hierarchies> {
        let hierarchies = Hierarchies(V1::new());
        let mounted = hierarchies.controllers();
        NEEDED.iter().all(|needed| mounted.contains(*needed)).then_some(hierarchies)
    }

    /// Those of the joined controllers that are mounted.
    pub fn controllers(&self) -> BTreeSet<String> {
        let group = self.load(Path::new("containerctl"));
        group.subsystems().iter().map(|subsystem| subsystem.to_controller().control_type().to_string()).collect()
    }

    /// A handle on a group; makes nothing.
    pub fn load(&self, path: &Path) -> Cgroup {
        self.load_with(path, &CONTROLLERS)
    }

    fn load_with(&self, path: &Path, controllers: &[&str]) -> Cgroup {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Cgroup::load_with_specified_controllers(Box::new(self.0.clone()), path, controllers)
    }

    /// A group's directory in each hierarchy, each once: controllers may be mounted together.
    pub fn directories(&self, path: &Path) -> Vec<PathBuf> {
        self.directories_of(path, &CONTROLLERS)
    }

    /// The same in those that are joined when needed.
    pub fn optional(&self, path: &Path) -> Vec<PathBuf> {
        let always = self.directories(path);
        self.directories_of(path, &OPTIONAL).into_iter().filter(|directory| !always.contains(directory)).collect()
    }

    fn directories_of(&self, path: &Path, controllers: &[&str]) -> Vec<PathBuf> {
        let group = self.load_with(path, controllers);
        let paths = group.subsystems().iter().map(|subsystem| subsystem.to_controller().path().to_owned());
        let mut paths: Vec<PathBuf> = paths.collect();
        paths.sort();
        paths.dedup();
        paths
    }
}
