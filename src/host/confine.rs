//! The box: what init has to do before the command runs, as a list of steps.
//!
//! Pure: a spec and a few paths in, steps out, so that a step that fails can be named long after it was sent. What the steps build: a
//! read-only copy of the host's mount tree, or a directory's (`root`); private `/tmp`, `/run`, `/dev` and `/proc`; kernel paths that leak or change
//! the host masked or read-only (at least those Docker masks); the controller's own folders out of sight.

use super::gpu::cdi::MOUNTS_MAX;
use super::sources::Hidden;
use crate::init::wire::{RunOrder, SLOTS_MAX, Step};
use crate::model::isolation::{Capability, IdRange, Network, ResourceLimit, Rootfs, VolumeSource};
use crate::model::machine::Ceilings;
use crate::model::name::Name;
use crate::model::spec::{Logs, Process, VOLUMES_MAX, Volume};
use crate::model::units::Limit;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const _: () = assert!(VOLUMES_MAX + MOUNTS_MAX + 3 <= SLOTS_MAX, "the root, its layer and /dev take a slot each");

const ATTR_RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const ATTR_NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const ATTR_NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const ATTR_NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Kernel paths that change the host when written.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Kernel paths that tell or give away too much: the runtime specification's and Docker's lists. What the host has mounted below `/sys`
/// (debugfs, tracefs, bpf, efivars, cgroups) stays out of sight: sysfs is laid over itself without it.
/// `/proc/interrupts` and the throttle counts tell when somebody types or computes (moby, GHSA-6fw5-f8r9-fgfm).
const MASKED_FILES: [&str; 7] = [
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/kmsg",
];
const MASKED_FOLDERS: [&str; 5] =
    ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];
/// An empty read-only folder inside the box, laid over what is masked.
const EMPTY: &CStr = c"/dev/.masked";
/// What a tmpfs of the box may grow to. Its pages count as the workload's memory, so a memory limit bounds it further; this is for a
/// workload without one.
const TMPFS_SIZE: &str = "size=20%";
/// What every workload may use of what the kernel limits by process, whatever the controller was started with: resource, soft, hard.
/// Hard limits are the kernel's own defaults for PID 1 (include/asm-generic/resource.h), but for descriptors, where they are those
/// systemd gives a service; the soft 1024 keeps programs that still call select(2) from breaking. Memory and processes are the cgroup's.
const RESOURCE_LIMITS: [(u32, u64, u64); 11] = [
    (libc::RLIMIT_AS, libc::RLIM_INFINITY, libc::RLIM_INFINITY),
    (libc::RLIMIT_CORE, 0, libc::RLIM_INFINITY),
    (libc::RLIMIT_CPU, libc::RLIM_INFINITY, libc::RLIM_INFINITY),
    (libc::RLIMIT_DATA, libc::RLIM_INFINITY, libc::RLIM_INFINITY),
    (libc::RLIMIT_FSIZE, libc::RLIM_INFINITY, libc::RLIM_INFINITY),
    (libc::RLIMIT_MEMLOCK, 8 << 20, 8 << 20),
    (libc::RLIMIT_NICE, 0, 0),
    (libc::RLIMIT_NOFILE, 1024, 524_288),
    (libc::RLIMIT_NPROC, libc::RLIM_INFINITY, libc::RLIM_INFINITY),
    (libc::RLIMIT_RTPRIO, 0, 0),
    (libc::RLIMIT_STACK, 8 << 20, libc::RLIM_INFINITY),
];
/// The group of terminals, in every distribution.
const TTY: u32 = 5;
/// The first port anybody may listen at, of a network namespace.
const LOW_PORTS: &CStr = c"/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Accesses of landlock(7) that change files: write, remove and make of every kind, and linking between folders, without which a program
/// behind any wall could not rename from one folder to another.
const LANDLOCK_CHANGES: u64 = 1 << 1 | 0b11_1111_1111 << 4;
const LANDLOCK_TRUNCATE: u64 = 1 << 14;
const LANDLOCK_ABSTRACT_SOCKETS: u64 = 1;
/// The versions that know linking between folders (Linux 5.19), truncation (6.2) and scopes (6.12).
const LANDLOCK_MIN: u32 = 2;
const LANDLOCK_TRUNCATES: u32 = 3;
const LANDLOCK_SCOPES: u32 = 6;
/// The slots of the new root, of `/dev` and of a layer of the root; volumes follow.
const ROOT_SLOT: u64 = 0;
const DEV_SLOT: u64 = 1;
const LAYER_SLOT: u64 = 2;
const FIRST_VOLUME_SLOT: u64 = 3;

/// Everything the steps depend on.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub name: &'a Name,
    pub process: &'a Process,
    pub env: &'a BTreeMap<String, String>,
    /// Files to write `0` to, to enter v1 cgroups.
    pub tasks: &'a [PathBuf],
    /// Whether the workload can be shown its own v2 group under `/sys/fs/cgroup`.
    pub shows_cgroup: bool,
    /// An empty directory of the host to build the new root on.
    pub mountpoint: &'a Path,
    /// The folder of the host where changes of its root directory are kept; without one they are discarded.
    pub layer: Option<&'a Path>,
    /// The folder of the host that becomes `/dev`, [`super::dev`].
    pub dev: &'a Path,
    /// What its devices need to be shown, read-only: where in the box, and which of the host's.
    pub mounts: &'a [(String, String)],
    /// Folders that no workload may see into, as its own view has them.
    pub hidden: &'a Hidden,
    /// The ids its user namespace maps; none where it has no such namespace.
    pub ids: Option<IdRange>,
    /// What cannot be given, whatever is asked.
    pub ceilings: &'a Ceilings,
    /// The version of Landlock the kernel has, 0 for none.
    pub landlock: u32,
    /// What is kept of its output.
    pub logs: Logs,
    /// In the foreground of a terminal it keeps session and output, and ends with whoever started it.
    pub foreground: bool,
}

impl Plan<'_> {
    /// An id of the workload's as the host has it.
    fn on_host(&self, id: u32) -> u32 {
        self.ids.map_or(id, |ids| ids.first.saturating_add(id))
    }
}

/// What cannot be told to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfineError {
    #[error("{text:?} contains a NUL byte")]
    Nul { text: String },
    #[error(
        "its GPUs' CDI specs ask for {count} mounts, there is room for {MOUNTS_MAX}\n  help: give it fewer devices, or `rootfs: host`"
    )]
    Mounts { count: usize },
}

pub type Steps = Vec<Step<CString>>;

/// The steps, in order.
pub fn steps(plan: &Plan<'_>) -> Result<Steps, ConfineError> {
    let mut steps = Steps::new();
    for path in plan.tasks {
        steps.push(Step::WriteFile { path: path_text(path)?, content: c"0".into() });
    }
    // In its cpuset already, so that the reset mask is that of the cpuset.
    let oom_score_adj = i64::from(plan.process.oom_score_adj).cast_unsigned();
    steps.push(Step::ResetScheduling { oom_score_adj });
    limit_resources(plan.process, plan.ceilings, &mut steps);
    steps.push(if plan.foreground { Step::DieWithParent {} } else { Step::NewSession {} });
    // After the groups are entered: this is where the namespace's root will be.
    let alone = plan.process.network == Network::None;
    let network = if alone { libc::CLONE_NEWNET } else { 0 };
    steps.push(Step::Unshare { flags: u64::from((libc::CLONE_NEWCGROUP | network).unsigned_abs()) });
    if alone {
        steps.push(Step::Loopback {});
        // Its ports are nobody else's, and a capability to bind the low ones would not count in a network namespace of ours.
        steps.push(Step::WriteFile { path: LOW_PORTS.into(), content: c"0".into() });
    }
    steps.push(Step::Hostname { name: text(plan.name.as_str())? });
    root::enter(plan, &mut steps)?;
    devices(plan, &mut steps)?;
    // proc comes after the new root: it shows the pid namespace of whoever mounts it.
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    steps.push(mount("proc", "/proc", "proc", quiet, "")?);
    if let Rootfs::Host = plan.process.rootfs {
        root::map_users(plan, &mut steps);
    }
    for folder in ["/tmp", "/run"] {
        let mode = if folder == "/tmp" { "mode=1777" } else { "mode=755" };
        let data = format!("{mode},{TMPFS_SIZE},uid={root},gid={root}", root = plan.on_host(0));
        steps.push(mount("tmpfs", folder, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &data)?);
    }
    steps.push(Step::Mkdir { path: c"/run/lock".into(), mode: 0o1777 });
    kernel_paths(plan, &mut steps)?;
    for (at, (slot, volume)) in (FIRST_VOLUME_SLOT..).zip(&plan.process.volumes).enumerate() {
        attach_volume(plan, slot, volume, &mut steps)?;
        // Before a later volume can lie over the place.
        for (_, path) in plan.hidden.volumes.iter().filter(|(of, _)| *of == at) {
            let (source, target) = (EMPTY.into(), path_text(path)?);
            steps.push(Step::Bind { source, target, set: ATTR_RDONLY, optional: 0 });
        }
    }
    shown::attach(plan, &mut steps)?;
    root::leave(plan, &mut steps);
    wall(plan, &mut steps)?;
    Ok(steps)
}

/// The steps of joining the box of a running workload, told by one of its processes.
pub fn join_steps(plan: &Plan<'_>, pid: u32, start_ticks: u64) -> Result<Steps, ConfineError> {
    let mut steps = Steps::new();
    for path in plan.tasks {
        steps.push(Step::WriteFile { path: path_text(path)?, content: c"0".into() });
    }
    let oom_score_adj = i64::from(plan.process.oom_score_adj).cast_unsigned();
    steps.push(Step::ResetScheduling { oom_score_adj });
    limit_resources(plan.process, plan.ceilings, &mut steps);
    // Out of the caller's session: its terminal would be open to the command as /dev/tty, whatever streams it was given.
    steps.push(Step::NewSession {});
    steps.push(Step::DieWithParent {});
    let network = if plan.process.network == Network::None { libc::CLONE_NEWNET } else { 0 };
    let kinds =
        libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP;
    let users = u64::from(plan.ids.is_some());
    steps.push(Step::Join { pid: pid.into(), start_ticks, kinds: u64::from((kinds | network).unsigned_abs()), users });
    wall(plan, &mut steps)?;
    Ok(steps)
}

/// The usual limits, and the manifest's in their place.
fn limit_resources(process: &Process, ceilings: &Ceilings, steps: &mut Steps) {
    let number = |limit: Limit<u64>| limit.at().unwrap_or(libc::RLIM_INFINITY);
    let asked = |resource: u32| process.rlimits.keys().any(|asked| asked.number() == resource);
    for (resource, soft, hard) in RESOURCE_LIMITS.into_iter().filter(|(resource, ..)| !asked(*resource)) {
        steps.push(Step::LimitResource { resource: resource.into(), soft, hard });
    }
    for (resource, ResourceLimit { soft, hard }) in &process.rlimits {
        let ceiling = ceilings.hard.get(resource).copied().unwrap_or(libc::RLIM_INFINITY);
        let (soft, hard) = (number(*soft).min(ceiling), number(*hard).min(ceiling));
        steps.push(Step::LimitResource { resource: resource.number().into(), soft, hard });
    }
}

/// A second wall behind the read-only mounts, by another part of the kernel: nothing is changed outside the places that are for that, and
/// no socket is reached by an abstract name that was not made inside.
fn wall(plan: &Plan<'_>, steps: &mut Steps) -> Result<(), ConfineError> {
    // Whoever administers mounts could not do so behind it (landlock(7), "Filesystem topology modification").
    let administers = plan.process.security.capabilities.iter().any(|has| Capability::named("SYS_ADMIN") == Some(*has));
    if plan.landlock < LANDLOCK_MIN || administers {
        return Ok(());
    }
    let fs = if plan.landlock >= LANDLOCK_TRUNCATES { LANDLOCK_CHANGES | LANDLOCK_TRUNCATE } else { LANDLOCK_CHANGES };
    let scoped = if plan.landlock >= LANDLOCK_SCOPES { LANDLOCK_ABSTRACT_SOCKETS } else { 0 };
    steps.push(Step::Wall { fs, scoped });
    let volumes = plan.process.volumes.iter().filter(|volume| !volume.read_only).map(|volume| volume.target.as_str());
    // What changes in a root of its own is nobody else's; what is read-only in it is a mount of its own that says so.
    let root = plan.process.rootfs.is_writable().then_some("/");
    for path in ["/tmp", "/run", "/dev", "/proc"].into_iter().chain(root).chain(volumes) {
        steps.push(Step::Door { path: text(path)?, access: fs });
    }
    Ok(())
}

/// A `/dev` with the usual nodes and nothing of the host's: the prepared one, and what each workload has for itself.
fn devices(plan: &Plan<'_>, steps: &mut Steps) -> Result<(), ConfineError> {
    steps.push(Step::Attach { slot: DEV_SLOT, target: c"/dev".into(), make: 0 });
    let careful = libc::MS_NOSUID | libc::MS_NOEXEC;
    steps.push(mount(
        "devpts",
        "/dev/pts",
        "devpts",
        careful,
        &format!("newinstance,ptmxmode=0666,mode=0620,gid={}", plan.on_host(TTY)),
    )?);
    let closed = careful | libc::MS_NODEV;
    steps.push(mount("tmpfs", "/dev/shm", "tmpfs", closed, &format!("mode=1777,{TMPFS_SIZE}"))?);
    steps.push(mount("mqueue", "/dev/mqueue", "mqueue", closed, "")?);
    Ok(())
}

/// Masks, read-only covers, and what is shown of cgroups.
fn kernel_paths(plan: &Plan<'_>, steps: &mut Steps) -> Result<(), ConfineError> {
    let closed = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // A new one shows the interfaces of the network namespace it is mounted in; and a directory has none to take it from.
    let fresh = plan.process.network == Network::None || plan.process.rootfs != Rootfs::Host;
    if fresh {
        steps.push(mount("sysfs", "/sys", "sysfs", closed, "")?);
    }
    let mut cover = |source: CString, target: CString, set| {
        steps.push(Step::Bind { source, target, set, optional: 1 });
    };
    if !fresh {
        cover(c"/sys".into(), c"/sys".into(), ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
    }
    for path in READ_ONLY {
        cover(text(path)?, text(path)?, ATTR_RDONLY);
    }
    for path in MASKED_FILES {
        cover(c"/dev/null".into(), text(path)?, 0);
    }
    for path in MASKED_FOLDERS {
        cover(EMPTY.into(), text(path)?, ATTR_RDONLY);
    }
    for path in &plan.hidden.root {
        cover(EMPTY.into(), path_text(path)?, ATTR_RDONLY);
    }
    if plan.shows_cgroup {
        steps.push(mount("cgroup2", "/sys/fs/cgroup", "cgroup2", closed, "")?);
    }
    Ok(())
}

/// In the two folders that start empty, and in a root that may be changed, a target is made; elsewhere it has to exist.
fn make_way(plan: &Plan<'_>, target: &str, steps: &mut Steps) -> Result<bool, ConfineError> {
    let private = target.starts_with("/tmp/") || target.starts_with("/run/");
    let make = private || plan.process.rootfs.is_writable();
    if make {
        let parents: Vec<&Path> = Path::new(target).ancestors().skip(1).collect();
        for folder in parents.into_iter().rev().skip(if private { 2 } else { 1 }) {
            steps.push(Step::Mkdir { path: path_text(folder)?, mode: 0o755 });
        }
    }
    Ok(make)
}

fn attach_volume(plan: &Plan<'_>, slot: u64, volume: &Volume, steps: &mut Steps) -> Result<(), ConfineError> {
    let make = make_way(plan, &volume.target, steps)?;
    let target = &volume.target;
    match &volume.source {
        VolumeSource::Host(source) => {
            root::map_owners(plan, slot, Path::new(source), steps)?;
            steps.push(Step::Attach { slot, target: text(target)?, make: u64::from(make) });
        }
        VolumeSource::Tmpfs { size } => {
            if make {
                steps.push(Step::Mkdir { path: text(target)?, mode: 0o755 });
            }
            let unless = |allowed: bool, flag| if allowed { 0 } else { flag };
            let flags = unless(volume.suid, libc::MS_NOSUID)
                | unless(volume.dev, libc::MS_NODEV)
                | unless(!volume.read_only, libc::MS_RDONLY);
            let (uid, gid) = (plan.on_host(plan.process.user.uid), plan.on_host(plan.process.user.gid));
            let data = format!("mode=755,size={},uid={uid},gid={gid}", size.0);
            steps.push(mount("tmpfs", target, "tmpfs", flags, &data)?);
        }
    }
    Ok(())
}

/// What to execute at the end.
pub fn run(plan: &Plan<'_>, filters: Vec<Vec<u64>>) -> Result<RunOrder, ConfineError> {
    let Process { command, workdir, user, security, .. } = plan.process;
    let program = command.first().map_or("", String::as_str);
    let path = plan.env.get("PATH").map_or("", String::as_str);
    let variables = plan.env.iter().map(|(key, value)| text(format!("{key}={value}")));
    Ok(RunOrder {
        log_bytes_max: if plan.foreground { 0 } else { plan.logs.max_size.0 },
        log_files_max: plan.logs.max_files.into(),
        terminal: false,
        uid: user.uid,
        gid: user.gid,
        host_uid: plan.on_host(user.uid),
        host_gid: plan.on_host(user.gid),
        capabilities: security.capabilities.iter().fold(0, |bits, capability| bits | capability.bit()),
        no_new_privileges: security.no_new_privileges,
        filters,
        groups: Vec::new(),
        workdir: text(workdir)?,
        candidates: candidates(program, path).into_iter().map(text).collect::<Result<_, _>>()?,
        argv: command.iter().map(text).collect::<Result<_, _>>()?,
        envp: variables.collect::<Result<_, _>>()?,
    })
}

/// Where a program may be: itself if it is a path, else in each folder of PATH in order (execvp(3)).
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let folder = |folder: &str| if folder.is_empty() { ".".to_owned() } else { folder.to_owned() };
    path.split(':').map(|part| format!("{}/{program}", folder(part))).collect()
}

/// A step in words, for the message when it fails.
pub fn describe(step: &Step<CString>) -> String {
    let shown = |text: &CString| text.to_string_lossy().into_owned();
    match step {
        Step::WriteFile { path, content } => format!("write {} to {}", shown(content), shown(path)),
        Step::ResetScheduling { .. } => "reset CPU affinity, niceness and OOM score".to_owned(),
        Step::LimitResource { resource, .. } => format!("set resource limit {resource}"),
        Step::NewSession {} => "begin a session".to_owned(),
        Step::DieWithParent {} => "tie it to the caller's life".to_owned(),
        Step::Unshare { flags } => format!("make namespaces ({flags:#x})"),
        Step::Hostname { name } => format!("set the host name {}", shown(name)),
        Step::Mount { target, fstype, .. } if fstype.is_empty() => format!("change the mount {}", shown(target)),
        Step::Mount { target, fstype, .. } => format!("mount {} at {}", shown(fstype), shown(target)),
        Step::Grab { path, .. } => format!("take hold of {}", shown(path)),
        Step::MapUsers { first, count } => {
            format!("make a user namespace of {count} ids from {first} (see the sysctl user.max_user_namespaces)")
        }
        Step::MapOwners { source, .. } => format!(
            "show the owners of {} through the user namespace; its file system cannot: use another, or `security: {{userNamespace: false}}`",
            shown(source)
        ),
        Step::Attach { target, .. } => format!("mount it at {}", shown(target)),
        Step::Bind { source, target, .. } => format!("lay {} over {}", shown(source), shown(target)),
        Step::ActAs { id } => format!("make files as uid {id}"),
        Step::Overlay { place, .. } => {
            format!("lay a writable layer over the root directory at {}; the kernel log says why", shown(place))
        }
        Step::Folder { path, .. } => format!(
            "find the folder {} in the root directory to mount on; make it there, no link, or write `security: {{readOnlyRootfs: false}}`",
            shown(path)
        ),
        Step::EnterRoot { mountpoint } => format!("make the new root at {}", shown(mountpoint)),
        Step::Loopback {} => "bring up the loopback interface".to_owned(),
        Step::Join { pid, .. } => format!("join the namespaces of pid {pid}"),
        Step::Wall { .. } => "set up Landlock".to_owned(),
        Step::Door { path, .. } => format!("allow changes below {} with Landlock", shown(path)),
        Step::Mkdir { path, .. } => format!("make the folder {}", shown(path)),
    }
}

fn mount(source: &str, target: &str, fstype: &str, flags: u64, data: &str) -> Result<Step<CString>, ConfineError> {
    Ok(Step::Mount { source: text(source)?, target: text(target)?, fstype: text(fstype)?, flags, data: text(data)? })
}

fn text(text: impl AsRef<str>) -> Result<CString, ConfineError> {
    CString::new(text.as_ref()).map_err(|_| ConfineError::Nul { text: text.as_ref().to_owned() })
}

fn path_text(path: &Path) -> Result<CString, ConfineError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| ConfineError::Nul { text: path.display().to_string() })
}

mod root;
mod shown;

#[cfg(test)]
mod tests;
