//! What a workload is kept away from: namespaces, capabilities, system calls, resource limits by process.
//!
//! Fixed for the life of a process; an edit means a new one.

use super::units::{Bytes, Limit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// User and group ids of one workload: what its user namespace maps. 65536 as in Kubernetes and Podman: the 16-bit ids every
/// distribution's packages stay within, `nobody` (65534) included.
pub const IDS: u32 = 65_536;

/// A range of [`IDS`] ids of the host that belong to one workload alone; id 0 inside is `first` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdRange {
    pub first: u32,
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.first.saturating_add(IDS - 1))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's interfaces and ports.
    #[default]
    Host,
    /// A loopback of its own and nothing else.
    None,
}

/// What a workload has as `/`. Images will be a third kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rootfs {
    /// A read-only view of everything the host has mounted.
    #[default]
    Host,
    /// A directory of the host, absolute, without what is mounted below it.
    Directory { path: String, changes: Changes },
}

/// What becomes of what a workload changes in a root directory. The directory itself never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Changes {
    /// There are none.
    Refused,
    /// They are memory of the workload's, gone with the instance.
    Discarded,
    /// They lie in the state folder until the workload is forgotten.
    Kept,
}

impl Rootfs {
    /// The directory, and what becomes of changes.
    pub fn directory(&self) -> Option<(&str, Changes)> {
        match self {
            Rootfs::Host => None,
            Rootfs::Directory { path, changes } => Some((path, *changes)),
        }
    }

    pub fn is_writable(&self) -> bool {
        self.directory().is_some_and(|(_, changes)| changes != Changes::Refused)
    }
}

/// The walls around a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Its ids are others on the host: root inside is nobody outside.
    pub user_namespace: bool,
    pub capabilities: BTreeSet<Capability>,
    pub seccomp: Seccomp,
    /// Nothing it executes gets more than it has (set-user-id bits, file capabilities).
    pub no_new_privileges: bool,
}

impl Default for Security {
    fn default() -> Security {
        Security {
            user_namespace: true,
            capabilities: BTreeSet::new(),
            seccomp: Seccomp::Default,
            no_new_privileges: true,
        }
    }
}

/// Which system calls there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// What programs use, without what administers the machine.
    Default,
    /// All of them.
    Unconfined,
    /// A profile in Docker's format, at this path of the host.
    Profile(String),
}

/// Names by number, from linux/capability.h.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A capability (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Capability(u8);

impl Capability {
    /// A capability by its name, with or without `CAP_`, in any case.
    pub fn named(name: &str) -> Option<Capability> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let index = CAPABILITIES.iter().position(|known| *known == bare)?;
        u8::try_from(index).ok().map(Capability)
    }

    /// Its bit in the kernel's sets.
    pub fn bit(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(CAPABILITIES.get(usize::from(self.0)).copied().unwrap_or("unknown"))
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> String {
        capability.to_string()
    }
}

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(name: String) -> Result<Capability, String> {
        Capability::named(&name).ok_or_else(|| format!("{name} is no capability"))
    }
}

/// What a resource is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceUnit {
    Bytes,
    Number,
}

/// Names and units by number, from asm-generic/resource.h.
const RESOURCES: [(&str, ResourceUnit); 16] = [
    ("cpu", ResourceUnit::Number),
    ("fsize", ResourceUnit::Bytes),
    ("data", ResourceUnit::Bytes),
    ("stack", ResourceUnit::Bytes),
    ("core", ResourceUnit::Bytes),
    ("rss", ResourceUnit::Bytes),
    ("nproc", ResourceUnit::Number),
    ("nofile", ResourceUnit::Number),
    ("memlock", ResourceUnit::Bytes),
    ("as", ResourceUnit::Bytes),
    ("locks", ResourceUnit::Number),
    ("sigpending", ResourceUnit::Number),
    ("msgqueue", ResourceUnit::Bytes),
    ("nice", ResourceUnit::Number),
    ("rtprio", ResourceUnit::Number),
    ("rttime", ResourceUnit::Number),
];

/// A resource of setrlimit(2), by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Resource(u8);

impl Resource {
    pub const NAMES: [&str; 16] = {
        let mut names = [""; 16];
        let mut at = 0;
        while at < names.len() {
            names[at] = RESOURCES[at].0;
            at += 1;
        }
        names
    };

    pub fn named(name: &str) -> Option<Resource> {
        let index = Resource::NAMES.iter().position(|known| *known == name)?;
        u8::try_from(index).ok().map(Resource)
    }

    pub fn number(self) -> u32 {
        u32::from(self.0)
    }

    pub fn unit(self) -> ResourceUnit {
        RESOURCES.get(usize::from(self.0)).map_or(ResourceUnit::Number, |(_, unit)| *unit)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Resource::NAMES.get(usize::from(self.0)).copied().unwrap_or("unknown"))
    }
}

impl From<Resource> for String {
    fn from(resource: Resource) -> String {
        resource.to_string()
    }
}

impl TryFrom<String> for Resource {
    type Error = String;

    fn try_from(name: String) -> Result<Resource, String> {
        Resource::named(&name).ok_or_else(|| format!("{name} is no resource"))
    }
}

/// Soft and hard limit of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    pub soft: Limit<u64>,
    pub hard: Limit<u64>,
}

/// What a process may use of what the kernel limits by process, as far as the manifest says.
pub type ResourceLimits = BTreeMap<Resource, ResourceLimit>;

/// What a volume shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum VolumeSource {
    /// A directory or file of the host, by its absolute path.
    Host(String),
    /// Memory of its own, empty at each start.
    Tmpfs { size: Bytes },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_names_and_numbers() {
        for (name, bit) in [("CHOWN", 0), ("CAP_NET_ADMIN", 12), ("net_bind_service", 10), ("CHECKPOINT_RESTORE", 40)] {
            assert_eq!(Capability::named(name).map(Capability::bit), Some(1 << bit));
        }
        assert_eq!(Capability::named("CAP_CAP_CHOWN"), None);
    }

    #[test]
    fn resources_have_the_kernels_names_and_numbers() {
        for (name, number) in [("cpu", 0), ("nofile", 7), ("rttime", 15)] {
            assert_eq!(Resource::named(name).map(Resource::number), Some(number));
        }
    }
}
