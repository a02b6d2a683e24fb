//! Block devices and huge pages to cgroup files.
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{blkio-controller,hugetlb}.rst.

use super::Wanted;
use crate::model::cgroup::Generation;
use crate::model::machine::Machine;
use crate::model::spec::{Io, IoLimit};
use crate::model::units::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A file that holds a line for each device it says something about.
struct PerDevice {
    file: &'static str,
    value: fn(&IoLimit) -> Option<String>,
}

/// v2 has one file for all limits of a device, v1 one for each.
const IO_MAX: [PerDevice; 1] = [PerDevice { file: "io.max", value: |limit| Some(io_max(limit)) }];
const BLKIO: [PerDevice; 4] = [
    PerDevice {
        file: "blkio.throttle.read_bps_device",
        value: |limit| limit.read_bps.at().map(|most| most.to_string()),
    },
    PerDevice {
        file: "blkio.throttle.write_bps_device",
        value: |limit| limit.write_bps.at().map(|most| most.to_string()),
    },
    PerDevice {
        file: "blkio.throttle.read_iops_device",
        value: |limit| limit.read_iops.at().map(|most| most.to_string()),
    },
    PerDevice {
        file: "blkio.throttle.write_iops_device",
        value: |limit| limit.write_iops.at().map(|most| most.to_string()),
    },
];

fn io_max(limit: &IoLimit) -> String {
    let IoLimit { read_bps, write_bps, read_iops, write_iops } = limit;
    format!("rbps={read_bps} wbps={write_bps} riops={read_iops} wiops={write_iops}")
}

pub(super) fn want(wanted: &mut Wanted, io: &Io, machine: &Machine) {
    let Io { weight, limits } = io;
    let support = &machine.cgroup;
    for device in limits.keys().filter(|device| !machine.disks.contains_key(*device)) {
        let known: Vec<&str> = machine.disks.keys().map(String::as_str).collect();
        let known = known.join(", ");
        wanted
            .unhonoured
            .push(format!("io.limits: {device} is no disk of this host (whole disks by the kernel's name: {known})"));
    }
    let files: &[PerDevice] = match support.generation {
        Generation::Unified => &IO_MAX,
        Generation::Legacy => &BLKIO,
    };
    for PerDevice { file, value } in files {
        let line =
            |(device, limit): (&String, &IoLimit)| Some(format!("{} {}", machine.disks.get(device)?.0, value(limit)?));
        let mut lines: Vec<String> = limits.iter().filter_map(line).collect();
        lines.sort();
        super::want(wanted, support, file, lines.join("\n"));
    }
    if *weight > bfq(*weight) && !support.files.contains("io.weight") {
        wanted
            .unhonoured
            .push(format!("io.weight {weight}: the I/O controller of this host counts to 1000, which is in force"));
    }
    // Which of them there is depends on the kernel's I/O controller; the first that is there is used.
    let (file, value) = match support.generation {
        Generation::Unified if !support.files.contains("io.weight") && support.files.contains("io.bfq.weight") => {
            ("io.bfq.weight", format!("default {}", bfq(*weight)))
        }
        Generation::Unified => ("io.weight", format!("default {weight}")),
        Generation::Legacy => ("blkio.bfq.weight", bfq(*weight).to_string()),
    };
    super::want(wanted, support, file, value);
}

/// BFQ counts weights to 1000 only.
fn bfq(weight: u32) -> u32 {
    weight.min(1000)
}

pub(super) fn want_huge_pages(wanted: &mut Wanted, asked: &BTreeMap<Bytes, Bytes>, machine: &Machine) {
    for size in machine.huge_pages.iter().chain(asked.keys()).collect::<BTreeSet<_>>() {
        let name = if size.0 < 1 << 30 { format!("{}MB", size.0 >> 20) } else { format!("{}GB", size.0 >> 30) };
        let bytes = asked.get(size).copied().unwrap_or_default();
        let file = match machine.cgroup.generation {
            Generation::Unified => format!("hugetlb.{name}.max"),
            Generation::Legacy => format!("hugetlb.{name}.limit_in_bytes"),
        };
        if machine.cgroup.files.contains(&file) {
            wanted.settings.set(file, bytes.0.to_string());
        } else if bytes > Bytes(0) {
            wanted
                .unhonoured
                .push(format!("hugepages {size}: this host has no such pages, or cannot limit them ({file})"));
        }
    }
}
