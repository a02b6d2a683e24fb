//! Facts about the kernel and this process that are asked for once or rarely.

use super::{HostError, KERNEL_MIN_MAJOR, KERNEL_MIN_MINOR};
use crate::init::sys;
use crate::model::isolation::Resource;
use crate::model::machine::{Ceilings, Disk};
use crate::model::units::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Whether the kernel is new enough.
pub fn check_kernel(release: &str) -> Result<(), HostError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < (KERNEL_MIN_MAJOR, KERNEL_MIN_MINOR) {
        return Err(HostError::Kernel { release: release.to_owned() });
    }
    Ok(())
}

/// The version of Landlock the kernel offers; none if it has it not, or switched off.
pub fn landlock_version() -> u32 {
    sys::landlock_version().map_or(0, |version| u32::try_from(version).unwrap_or(0))
}

/// What this process cannot let others exceed.
pub fn ceilings() -> Result<Ceilings, HostError> {
    /// linux/capability.h
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    const OOM_SCORE_ADJ_MIN: i32 = -1000;
    let mut hard = BTreeMap::new();
    if let (Some(nofile), Ok(most)) =
        (Resource::named("nofile"), read_fact("fs.nr_open", "/proc/sys/fs/nr_open")?.parse())
    {
        hard.insert(nofile, most);
    }
    let own = procfs::process::Process::myself().map_err(|error| facts("/proc/self", error))?;
    let status = own.status().map_err(|error| facts("/proc/self/status", error))?;
    if status.capeff & CAP_SYS_RESOURCE != 0 {
        return Ok(Ceilings { hard, oom_score_adj_min: OOM_SCORE_ADJ_MIN });
    }
    for resource in Resource::NAMES.into_iter().filter_map(Resource::named) {
        match sys::resource_limit(resource.number()) {
            Ok(limit) if limit.hard != libc::RLIM_INFINITY => {
                hard.insert(resource, limit.hard);
            }
            _ => {}
        }
    }
    // Raising the score and lowering it again to what it was is all that is allowed then (proc(5)); at 0 it begins.
    Ok(Ceilings { hard, oom_score_adj_min: 0 })
}

/// Where each CPU counts how often it was too hot, below `/sys/devices/system/cpu`. None where sysfs tells nothing.
pub fn throttle_counts(cpus: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cpus).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// The whole disks there are, below `/sys/block`. None where sysfs tells nothing.
pub fn disks(block: &Path) -> BTreeMap<String, Disk> {
    let entries = fs::read_dir(block).into_iter().flatten().flatten();
    let disk = |entry: fs::DirEntry| {
        let number = fs::read_to_string(entry.path().join("dev")).ok()?;
        // Slashes of a device's name are exclamation marks there.
        let name = entry.file_name().into_string().ok()?.replace('!', "/");
        Some((format!("/dev/{name}"), Disk(number.trim().to_owned())))
    };
    entries.filter_map(disk).collect()
}

/// The sizes of huge pages the kernel can give.
pub fn huge_pages(folder: &Path) -> BTreeSet<Bytes> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(Bytes(kib << 10))
    };
    entries.filter_map(size).collect()
}

pub fn facts(what: &'static str, error: procfs::ProcError) -> HostError {
    HostError::Facts { what, source: io::Error::other(error) }
}

pub fn read_fact(what: &'static str, path: &str) -> Result<String, HostError> {
    let text = fs::read_to_string(path).map_err(|source| HostError::Facts { what, source })?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_by_name() {
        for release in ["5.14.0", "6.1.0-56-cloud-amd64", "6.18.44-fc-v657", "10.0"] {
            check_kernel(release).unwrap();
        }
        for release in ["5.13.19", "4.19.0-8-amd64", "nonsense"] {
            assert!(
                check_kernel(release)
                    .unwrap_err()
                    .to_string()
                    .starts_with(&format!("the kernel is {release}, expected 5.14"))
            );
        }
    }
}
