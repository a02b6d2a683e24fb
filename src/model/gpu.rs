//! GPUs: what a device is, what a workload asks for, what it was granted.

use super::name::Name;
use super::time::Timestamp;
use super::units::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Environment variables through which a grant reaches a workload: the devices, as NVIDIA's and AMD's libraries read them, and for a
/// memory share its bytes, which nothing but the workload itself keeps to.
pub const GPU_VARIABLES: [&str; 3] = [VISIBLE_DEVICES, VISIBLE_DEVICES_AMD, SHARE_BYTES];
pub const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
pub const VISIBLE_DEVICES_AMD: &str = "ROCR_VISIBLE_DEVICES";
pub const SHARE_BYTES: &str = "CONTAINERCTL_GPU_MEMORY_BYTES";

/// A device's stable identity, the way its driver spells it (`GPU-<uuid>`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuId(pub String);

/// Who makes a device, which decides how it is handed to a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// No hardware behind it: scheduled like one (`--simulate-gpus`). The default because leases of before there were others do not say.
    #[default]
    Simulated,
    Nvidia,
    Amd,
}

/// One device of the machine, or the part of one that its driver offers as a device (a MIG instance).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub id: GpuId,
    pub vendor: Vendor,
    pub model: String,
    pub memory: Bytes,
    /// Memory in use that no lease of ours explains. As a provider reports it: all that is in use.
    pub foreign: Bytes,
    /// The NUMA node it hangs on.
    pub node: Option<u32>,
    /// Its PCI address, and the switches on the way to it, outermost first: devices that share more of it are closer.
    pub bus: Vec<String>,
    /// Devices it reaches without PCI (NVLink, xGMI).
    pub links: BTreeSet<GpuId>,
    /// What its driver finds wrong with it now.
    pub fault: Option<String>,
    pub health: Health,
    pub exposure: Exposure,
}

impl Gpu {
    /// A device of which nothing else is known.
    pub fn new(id: GpuId, vendor: Vendor, model: impl Into<String>, memory: Bytes) -> Gpu {
        Gpu {
            id,
            vendor,
            model: model.into(),
            memory,
            foreign: Bytes(0),
            node: None,
            bus: Vec::new(),
            links: BTreeSet::new(),
            fault: None,
            health: Health::Healthy,
            exposure: Exposure::default(),
        }
    }
}

/// How far a device is trusted; the ladder itself is `plan::gpu`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Health {
    Healthy,
    /// Something was wrong at the last look: nothing new is put on it.
    Suspect {
        since: Timestamp,
        why: String,
    },
    /// It went on: workloads leave it, as `gpu.onUnhealthy` says.
    Draining {
        since: Timestamp,
        why: String,
    },
    /// All is well again: it is given last, until that has lasted.
    Probation {
        since: Timestamp,
    },
}

impl Health {
    /// Whether new work may be put on it.
    pub fn takes_work(&self) -> bool {
        matches!(self, Health::Healthy | Health::Probation { .. })
    }
}

/// What has to be in a workload's box for it to use a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// Device nodes: where in the box, and which of the host's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Files and folders to show read-only: where in the box, and which of the host's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, String>,
    /// What a description of the device asks for and is not done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unhonoured: Vec<String>,
}

impl Exposure {
    pub fn is_empty(&self) -> bool {
        *self == Exposure::default()
    }
}

/// What a workload asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRequest {
    /// Devices, at least one.
    pub count: u32,
    /// Memory on each device; none means the whole device, unshared.
    pub memory: Option<Bytes>,
    /// Only devices whose model contains this text, whatever the case.
    pub model: Option<String>,
    #[serde(default, rename = "onUnhealthy")]
    pub on_unhealthy: OnUnhealthy,
    #[serde(default)]
    pub align: GpuAlign,
    #[serde(default)]
    pub rebalance: Rebalance,
}

/// Whether CPUs have to be of the NUMA node that the devices are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuAlign {
    /// CPUs are chosen without regard to the devices.
    None,
    /// Of that node where they fit.
    #[default]
    Preferred,
    /// Of that node or not at all, memory too.
    Required,
}

/// Whether a workload may be given other devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rebalance {
    /// It keeps its devices over restarts for as long as they serve.
    #[default]
    Never,
    /// Each start chooses anew.
    OnRestart,
    /// It may be started anew for others to fit.
    Restart,
}

/// What becomes of a run whose device is draining.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnhealthy {
    /// It is started anew on another device as soon as one is free, and runs on until then.
    #[default]
    Restart,
    /// It runs on, and is told to be `Degraded`.
    Keep,
    /// It is stopped, and waits until a device that is well is free.
    Stop,
}

/// How much of a device a workload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    Whole,
    /// So much of its memory, beside others.
    Memory(Bytes),
}

/// A device given to a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuLease {
    pub gpu: GpuId,
    pub share: Share,
    #[serde(default)]
    pub vendor: Vendor,
    /// What the box of its run is given: written down with the lease, so that what is opened is what is remembered.
    #[serde(default, skip_serializing_if = "Exposure::is_empty")]
    pub exposure: Exposure,
    /// Why it is this device.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl GpuLease {
    pub fn of(gpu: &Gpu, share: Share, reason: &str) -> GpuLease {
        let (exposure, reason) = (gpu.exposure.clone(), reason.to_owned());
        GpuLease { gpu: gpu.id.clone(), share, vendor: gpu.vendor, exposure, reason }
    }

    /// What keeps the workload to what it was given.
    pub fn enforcement(&self) -> Enforcement {
        match self.share {
            _ if self.exposure.nodes.is_empty() => Enforcement::None,
            Share::Whole => Enforcement::Nodes,
            Share::Memory(_) => Enforcement::NodesNotMemory,
        }
    }
}

/// One device as it is told; `GET /v1/gpus`. Memory in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuStatus {
    pub id: GpuId,
    pub vendor: Vendor,
    pub model: String,
    pub memory: u64,
    pub used_by_others: u64,
    pub node: Option<u32>,
    pub health: Health,
    pub leases: Vec<GpuHolder>,
    /// Device nodes that a lease opens, where they are in the box.
    pub device_nodes: Vec<String>,
    /// What a description of the device asks for and is not done.
    pub unhonoured: Vec<String>,
}

/// Who holds how much of a device, and what keeps it to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuHolder {
    pub workload: Name,
    pub share: Share,
    pub enforced: Enforcement,
}

impl GpuStatus {
    pub fn of(gpu: &Gpu, leases: Vec<GpuHolder>) -> GpuStatus {
        let Gpu { id, vendor, model, memory, foreign, node, bus: _, links: _, fault: _, health, exposure } =
            gpu.clone();
        GpuStatus {
            id,
            vendor,
            model,
            memory: memory.0,
            used_by_others: foreign.0,
            node,
            health,
            leases,
            device_nodes: exposure.nodes.into_keys().collect(),
            unhonoured: exposure.unhonoured,
        }
    }
}

impl GpuHolder {
    pub fn of(workload: Name, lease: &GpuLease) -> GpuHolder {
        GpuHolder { workload, share: lease.share, enforced: lease.enforcement() }
    }
}

/// What of a lease is enforced, and what is left to the workload's good will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforcement {
    /// Only variables tell: there is no device node to withhold.
    #[serde(rename = "cooperative")]
    None,
    /// The box has the nodes of this device and of no other.
    #[serde(rename = "device nodes")]
    Nodes,
    /// The same; nothing but the workload itself keeps to its part of the memory.
    #[serde(rename = "device nodes; memory cooperative")]
    NodesNotMemory,
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl GpuRequest {
    /// Whether both are served by the same devices.
    pub fn is_same_device(&self, other: &GpuRequest) -> bool {
        let GpuRequest { count, memory, model, on_unhealthy: _, align: _, rebalance: _ } = self;
        (count, memory, model) == (&other.count, &other.memory, &other.model)
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GpuRequest { count, memory, model, on_unhealthy: _, align: _, rebalance: _ } = self;
        match memory {
            None => write!(f, "{count} whole GPU{}", if *count == 1 { "" } else { "s" })?,
            Some(memory) => write!(f, "{memory} on {count} GPU{}", if *count == 1 { "" } else { "s" })?,
        }
        match model {
            None => Ok(()),
            Some(model) => write!(f, " of model {model}"),
        }
    }
}

impl fmt::Display for GpuLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.share {
            Share::Whole => write!(f, "{} (whole)", self.gpu),
            Share::Memory(memory) => write!(f, "{} ({memory})", self.gpu),
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Enforcement::None => "cooperative",
            Enforcement::Nodes => "device nodes",
            Enforcement::NodesNotMemory => "device nodes; memory cooperative",
        })
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Vendor::Simulated => "simulated",
            Vendor::Nvidia => "nvidia",
            Vendor::Amd => "amd",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Healthy => f.write_str("healthy"),
            Health::Suspect { why, .. } => write!(f, "suspect: {why}"),
            Health::Draining { why, .. } => write!(f, "draining: {why}"),
            Health::Probation { .. } => f.write_str("on probation"),
        }
    }
}
