//! GPUs: what a device is, what a workload asks for, what it was granted.

use super::units::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Environment variables through which a grant reaches a workload: the devices, as NVIDIA's libraries read them, and for a memory share
/// its bytes, which nothing but the workload itself keeps to.
pub const GPU_VARIABLES: [&str; 2] = [VISIBLE_DEVICES, SHARE_BYTES];
pub const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
pub const SHARE_BYTES: &str = "CONTAINERCTL_GPU_MEMORY_BYTES";

/// A device's stable identity, the way its driver spells it (`GPU-<uuid>`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuId(pub String);

/// Who makes a device, which decides how it is handed to a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// No hardware behind it: scheduled like one, granted by environment only (`--simulate-gpus`).
    Simulated,
}

/// One device of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub id: GpuId,
    pub vendor: Vendor,
    pub model: String,
    pub memory: Bytes,
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
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GpuRequest { count, memory, model } = self;
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
