//! Which cgroups a host has, and making the parent group ready.

use super::hierarchies::{CONTROLLERS as JOINED, Hierarchies};
use super::legacy::Legacy;
use super::unified::{Unified, read_at, write_at};
use super::{Backend, CgroupError, FILES};
use crate::host::lock::{self, Refused};
use crate::model::cgroup::{Generation, Support};
use crate::model::cpuset::NodeSet;
use crate::model::name::Name;
use nix::errno::Errno;
use nix::fcntl::Flock;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// v2 controllers that workloads are held to, where the kernel has them.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];
/// The ones without which this is no workload host.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// The host's cgroups, ready for groups of workloads.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    /// Where the v2 tree is, if that has the controllers.
    pub tree: Option<PathBuf>,
    /// Keep other controllers off the parent for as long as they live: one in each hierarchy that has it, so that a controller which does not
    /// see all of them, in another mount namespace, is kept off by those it does see.
    pub locks: Vec<Flock<File>>,
}

/// Finds the host's cgroups and makes `parent` (a path below the hierarchies' roots) ready.
pub fn open(parent: &str) -> Result<Opened, CgroupError> {
    let parent = parent.trim_matches('/');
    let tree = mounted("cgroup2");
    if let Some(mount) = &tree
        && has_controllers(mount)
    {
        let (unified, lock) = open_unified(mount, parent, &CONTROLLERS)?;
        return Ok(Opened { backend: Box::new(unified), tree, locks: vec![lock] });
    }
    let hierarchies = Hierarchies::find().ok_or(CgroupError::NoHierarchy)?;
    let (unified, mut locks) = match &tree {
        Some(mount) => {
            let (unified, lock) = open_unified(mount, parent, &[])?;
            (Some(unified), vec![lock])
        }
        None => (None, Vec::new()),
    };
    let legacy = open_legacy(&hierarchies, parent, unified, &mut locks)?;
    Ok(Opened { backend: Box::new(legacy), tree: None, locks })
}

/// Removes a parent group that [`open`] made, and whatever empty groups are left below it.
pub fn remove_parent(parent: &str) -> Result<(), CgroupError> {
    let parent = Path::new(parent.trim_matches('/'));
    let mut directories: Vec<PathBuf> = mounted("cgroup2").map(|mount| mount.join(parent)).into_iter().collect();
    if let Some(hierarchies) = Hierarchies::find() {
        directories.extend(hierarchies.directories(parent));
        directories.extend(hierarchies.optional(parent));
    }
    for directory in directories.iter().filter(|directory| directory.exists()) {
        let inside = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in inside.filter(|path| path.is_dir()).chain([directory.clone()]) {
            fs::remove_dir(&path).map_err(|source| CgroupError::Remove { path, source })?;
        }
    }
    Ok(())
}

/// Whether a process is in a group below `parent`, in any hierarchy (cgroups(7): `/proc/PID/cgroup` has a line for each).
pub fn is_below(pid: i32, parent: &str) -> bool {
    let inside = format!("/{}/", parent.trim_matches('/'));
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| path.starts_with(&inside))
}

/// The groups of a workload that one of its processes is in.
#[derive(Debug, Default)]
pub struct Membership {
    /// Its directory in the v2 tree.
    pub unified: Option<PathBuf>,
    /// `tasks` of each v1 group.
    pub tasks: Vec<PathBuf>,
    /// Hierarchies that count in which it is elsewhere: a v1 hierarchy by its controllers, the v2 tree as `unified`.
    pub lacking: Vec<String>,
}

/// Where the process `pid` is, as far as that is the workload's own: groups of another name are the host's.
pub fn membership(pid: u32, name: &Name) -> Membership {
    let mut found = Membership::default();
    let Ok(process) = i32::try_from(pid).map_or(Err(()), |pid| procfs::process::Process::new(pid).map_err(drop)) else {
        return found;
    };
    let groups = process.cgroups().map(|groups| groups.0).unwrap_or_default();
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo()).map(|mounts| mounts.0);
    let mounts = mounts.unwrap_or_default();
    for group in &groups {
        if !group.pathname.ends_with(&format!("/{}", super::directory_name(name))) {
            found.lacking.extend(counts(&group.controllers, &mounts));
            continue;
        }
        let below = group.pathname.trim_start_matches('/');
        let holds = |mount: &&procfs::process::MountInfo| match group.controllers.first() {
            None => mount.fs_type == "cgroup2",
            Some(controller) => mount.fs_type == "cgroup" && mount.super_options.contains_key(controller),
        };
        let Some(mount) = mounts.iter().find(holds) else { continue };
        let directory = mount.mount_point.join(below);
        if group.controllers.is_empty() {
            found.unified = Some(directory);
        } else {
            found.tasks.push(directory.join("tasks"));
        }
    }
    found
}

/// What to call a hierarchy that every workload has a group in; none for the others, which hold it to nothing or not always.
fn counts(controllers: &[String], mounts: &[procfs::process::MountInfo]) -> Option<String> {
    if controllers.is_empty() {
        return mounts.iter().any(|mount| mount.fs_type == "cgroup2").then(|| "unified".to_owned());
    }
    controllers.iter().any(|controller| JOINED.contains(&controller.as_str())).then(|| controllers.join(","))
}

/// Where a file system of this type is mounted, the shallowest place first.
fn mounted(fstype: &str) -> Option<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo()).ok()?;
    let points = mounts.into_iter().filter(|mount| mount.fs_type == fstype).map(|mount| mount.mount_point);
    points.min_by_key(|point| point.as_os_str().len())
}

fn has_controllers(mount: &Path) -> bool {
    let text = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    NEEDED.iter().all(|controller| text.split_whitespace().any(|found| found == *controller))
}

fn open_unified(mount: &Path, parent: &str, controllers: &[&str]) -> Result<(Unified, Flock<File>), CgroupError> {
    let mut path = mount.to_owned();
    enable(&path, controllers)?;
    for part in parent.split('/') {
        path.push(part);
        make(&path)?;
        enable(&path, controllers)?;
    }
    let lock = lock(&path)?;
    let directory: OwnedFd =
        File::open(&path).map_err(|source| CgroupError::Open { path: path.clone(), source })?.into();
    // A group's memory.low is worth no more than its parent's (cgroup-v2.rst): the parent must not be the bottleneck.
    if controllers.contains(&"memory") {
        write(&path, "memory.low", "max")?;
    }
    let nodes =
        read_at(&directory, "cpuset.mems.effective").ok().and_then(|nodes| nodes.parse().ok()).unwrap_or_default();
    let shown = format!("/{parent}");
    let open = |directory: OwnedFd, support| {
        let controllers = controllers.iter().map(|controller| (*controller).to_owned()).collect();
        Unified::new(directory, path.clone(), shown.clone(), support).passing_on(controllers)
    };
    let probe_fd = directory.try_clone().map_err(|source| CgroupError::Open { path: path.clone(), source })?;
    let bare = open(probe_fd, support(Generation::Unified, BTreeSet::new(), NodeSet::new()));
    let files = probe(&bare, |name| vec![path.join(super::directory_name(name))])?;
    Ok((open(directory, support(Generation::Unified, files, nodes)), lock))
}

fn support(generation: Generation, files: BTreeSet<String>, nodes: NodeSet) -> Support {
    Support { generation, files, nodes }
}

/// Passes controllers on to the groups below, those that are not yet. One the kernel has not, or will not give, is left out: what it would have done is then
/// missing among the probed files, and reported with the workloads that ask for it.
pub(super) fn enable<C: AsRef<str>>(group: &Path, controllers: &[C]) -> Result<(), CgroupError> {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |text: &str, controller: &str| text.split_whitespace().any(|found| found == controller);
    let controllers = controllers.iter().map(AsRef::as_ref);
    for controller in controllers.filter(|controller| has(&available, controller) && !has(&enabled, controller)) {
        match write(group, "cgroup.subtree_control", &format!("+{controller}")) {
            Err(error) if NEEDED.contains(&controller) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn write(group: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Write { path: group.join(file), value: value.to_owned(), source };
    let directory = File::open(group).map_err(failed)?;
    write_at(&directory, file, value).map_err(failed)
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(CgroupError::Create { path: path.to_owned(), source }),
    }
}

/// The kernel's lock on the parent's directory: it goes with the process that holds it, so a crash leaves nothing to clean.
fn lock(path: &Path) -> Result<Flock<File>, CgroupError> {
    let directory = File::open(path).map_err(|source| CgroupError::Open { path: path.to_owned(), source })?;
    lock::exclusive(directory).map_err(|Refused { errno, holder }| match errno {
        Errno::EWOULDBLOCK => CgroupError::Locked { path: path.to_owned(), holder },
        errno => CgroupError::Open { path: path.to_owned(), source: errno.into() },
    })
}

fn open_legacy(
    hierarchies: &Hierarchies,
    parent: &str,
    unified: Option<Unified>,
    locks: &mut Vec<Flock<File>>,
) -> Result<Legacy, CgroupError> {
    let created = hierarchies.load(Path::new(parent)).create();
    created.map_err(|error| CgroupError::Create { path: PathBuf::from(parent), source: io::Error::other(error) })?;
    let optional = hierarchies.optional(Path::new(parent));
    for path in &optional {
        fs::create_dir_all(path).map_err(|source| CgroupError::Create { path: path.clone(), source })?;
    }
    let directories = hierarchies.directories(Path::new(parent));
    for path in directories.iter().chain(&optional) {
        locks.push(lock(path)?);
    }
    let read = |file: &str| {
        let mut texts = directories.iter().filter_map(|directory| fs::read_to_string(directory.join(file)).ok());
        texts.find_map(|text| text.trim().parse::<NodeSet>().ok())
    };
    let nodes = read("cpuset.effective_mems").or_else(|| read("cpuset.mems")).unwrap_or_default();
    let new = |unified, files, nodes| {
        let support = support(Generation::Legacy, files, nodes);
        Legacy::new(hierarchies.clone(), parent.to_owned(), unified, support)
    };
    let bare = new(None, BTreeSet::new(), NodeSet::new());
    let mut files =
        probe(&bare, |name| directories.iter().map(|parent| parent.join(super::directory_name(name))).collect())?;
    // Not the root of its hierarchy, so the parent has the files its children have.
    let exists = |file: &&&str| optional.iter().any(|parent| parent.join(file).exists());
    files.extend(FILES.iter().filter(exists).map(|file| (*file).to_owned()));
    Ok(new(unified, files, nodes))
}

/// Which control files a group has: makes one, looks, removes it.
fn probe(backend: &dyn Backend, directories: impl Fn(&Name) -> Vec<PathBuf>) -> Result<BTreeSet<String>, CgroupError> {
    // No manifest can claim this name while we look: it is gone before the first one is read.
    let Ok(name) = "probe".parse::<Name>() else { return Ok(BTreeSet::new()) };
    // One that a crash left behind is as good for looking at.
    let ours = match backend.create(&name) {
        Ok(()) => true,
        Err(CgroupError::Create { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let directories = directories(&name);
    let exists = |file: &&&str| directories.iter().any(|directory| directory.join(file).exists());
    let files = FILES.iter().filter(exists).map(|file| (*file).to_owned()).collect();
    if ours {
        backend.remove(&name)?;
    }
    Ok(files)
}
