//! AMD devices as the amdgpu driver shows them in sysfs.
//!
//! Of each render node (`/sys/class/drm/renderD*`) whose device is AMD's: `unique_id`, `product_name`, `mem_info_vram_total` and
//! `mem_info_vram_used` (the kernel's documentation, "GPU sysfs", amdgpu/driver-misc and thermal). Nothing is opened but these files.

use super::{Provider, ProviderError, bus, node};
use crate::model::gpu::{Exposure, Gpu, GpuId, Vendor};
use crate::model::units::Bytes;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// AMD's number as a maker of PCI devices.
const MAKER: &str = "0x1002";
/// What every AMD device is computed on through, beside its render node.
const KFD: &str = "/dev/kfd";

/// Reads below `root`.
#[derive(Clone, Debug)]
pub struct Amd {
    pub root: PathBuf,
}

impl Provider for Amd {
    fn name(&self) -> &'static str {
        "amd"
    }

    fn devices(&self) -> Result<Vec<Gpu>, ProviderError> {
        let folder = self.root.join("sys/class/drm");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ProviderError::Read { path: folder, message: error.to_string() }),
        };
        let mut nodes: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        nodes.retain(|name| name.starts_with("renderD"));
        nodes.sort();
        let device = |name: &String| self.device(name, &folder.join(name).join("device"));
        Ok(nodes.iter().filter_map(device).collect())
    }
}

impl Amd {
    /// One render node's device; none if it is not AMD's, or has no memory of its own to give.
    fn device(&self, name: &str, device: &Path) -> Option<Gpu> {
        if text(device, "vendor")? != MAKER {
            return None;
        }
        let bytes = |file: &str| text(device, file)?.parse().ok().map(Bytes);
        let memory = bytes("mem_info_vram_total").filter(|memory: &Bytes| memory.0 > 0)?;
        let bus = bus(device);
        let unique = text(device, "unique_id").filter(|id| id.chars().any(|digit| !matches!(digit, '0' | 'x')));
        let mut exposure = Exposure::default();
        // As ROCm spells it: 16 digits, so that `ROCR_VISIBLE_DEVICES` takes it.
        let id = match unique {
            Some(unique) => format!("GPU-{:0>16}", unique.trim_start_matches("0x")),
            None => {
                exposure.unhonoured.push(format!(
                    "{name} has no unique_id, so ROCR_VISIBLE_DEVICES cannot name it; its device nodes are all that tells"
                ));
                format!("PCI-{}", bus.last().map_or(name, String::as_str))
            }
        };
        for path in [format!("/dev/dri/{name}"), KFD.to_owned()] {
            if self.root.join(path.trim_start_matches('/')).exists() {
                exposure.nodes.insert(path.clone(), path);
            } else {
                exposure.unhonoured.push(format!("{path} is not there; load the amdgpu driver"));
            }
        }
        let used = bytes("mem_info_vram_used");
        let model = text(device, "product_name").filter(|name| !name.is_empty());
        Some(Gpu {
            foreign: used.unwrap_or_default(),
            fault: used.is_none().then(|| format!("{name}: mem_info_vram_used cannot be read")),
            node: node(device),
            bus,
            exposure,
            ..Gpu::new(GpuId(id), Vendor::Amd, model.unwrap_or_else(|| "AMD GPU".to_owned()), memory)
        })
    }
}

fn text(device: &Path, file: &str) -> Option<String> {
    Some(fs::read_to_string(device.join(file)).ok()?.trim().to_owned())
}
