//! Where GPUs come from. So far: nowhere, or out of `--simulate-gpus`.

use crate::model::gpu::{Gpu, GpuId, Vendor};
use crate::model::units::Bytes;
use std::str::FromStr;

/// Devices one machine may be said to have.
const GPUS_MAX: u32 = 64;

/// Devices without hardware: scheduled and granted like real ones, by environment only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Simulated(pub Vec<Gpu>);

/// Why a text describes no simulated devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not like `2x16Gi`: a number of devices from 1 to {GPUS_MAX}, `x`, the memory of each")]
pub struct InvalidSimulation {
    text: String,
}

impl FromStr for Simulated {
    type Err = InvalidSimulation;

    /// Reads `2x16Gi`, or several such, separated by commas.
    fn from_str(text: &str) -> Result<Simulated, InvalidSimulation> {
        let invalid = || InvalidSimulation { text: text.to_owned() };
        let mut memories = Vec::new();
        for part in text.split(',') {
            let (count, memory) = part.split_once('x').ok_or_else(invalid)?;
            let count: u32 = count.parse().map_err(|_| invalid())?;
            let memory: Bytes = memory.parse().map_err(|_| invalid())?;
            if !(1..=GPUS_MAX).contains(&count) || memory.0 == 0 {
                return Err(invalid());
            }
            memories.extend((0..count).map(|_| memory));
        }
        if memories.len() > GPUS_MAX as usize {
            return Err(invalid());
        }
        let device = |(index, memory): (usize, Bytes)| Gpu {
            // The form of NVIDIA's identities, with zeros no real device has.
            id: GpuId(format!("GPU-00000000-0000-0000-0000-{index:012x}")),
            vendor: Vendor::Simulated,
            model: "Simulated GPU".to_owned(),
            memory,
        };
        Ok(Simulated(memories.into_iter().enumerate().map(device).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_devices_are_described_in_a_word() {
        let Simulated(gpus) = "2x16Gi,1x80Gi".parse().unwrap();
        let memories: Vec<String> = gpus.iter().map(|gpu| gpu.memory.to_string()).collect();
        assert_eq!(memories, ["16Gi", "16Gi", "80Gi"]);
        assert_eq!(gpus[2].id.0, "GPU-00000000-0000-0000-0000-000000000002");
        for text in ["", "2", "x16Gi", "0x16Gi", "2x0", "99x1Gi", "-1x1Gi", "2x16Gb", "60x1Gi,60x1Gi"] {
            assert!(text.parse::<Simulated>().is_err(), "{text:?}");
        }
    }
}
