//! Resources to cgroup files: which file holds what, in the kernel's own notation, for both generations.
//!
//! The values are spelled as the kernel gives them back, so that wanted and held compare as text and a difference is either work to do or
//! drift. Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{cpusets,memory,pids}.rst, scheduler/sched-bwc.rst.

mod io;

use crate::model::cgroup::{Generation, PARTITION, Settings, Support, Write, is_met, is_per_device, no_limit};
use crate::model::cpuset::{CpuSet, NodeSet};
use crate::model::machine::Machine;
use crate::model::spec::{Align, Cpu, CpuClass, Memory, Resources};
use crate::model::units::{Bytes, Limit, MilliCpu};

/// The period of CPU quotas, the kernel's default. A shorter one costs more timer interrupts, a longer one throttles in longer gaps.
pub const CPU_PERIOD_US: u64 = 100_000;
/// Memory limits are kept in pages (x86-64), rounded down.
const PAGE_BYTES: u64 = 4096;
/// What v1 shows for a memory limit of none: LONG_MAX rounded down to a page. On v2 a limit of this size is none too.
const MEMORY_UNLIMITED: u64 = 9_223_372_036_854_771_712;
/// `cpu.shares` of a group of default weight; v1 counts in 1024ths where v2 counts in 100ths.
const SHARES_DEFAULT: u64 = 1024;
const SHARES_MIN: u64 = 2;

/// The control files of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub settings: Settings,
    /// What this host cannot do, in sentences.
    pub unhonoured: Vec<String>,
}

/// What the kernel is to hold for `resources` on `cpus`.
pub fn wanted(resources: &Resources, cpus: &CpuSet, machine: &Machine) -> Wanted {
    let mut wanted = Wanted::default();
    let support = &machine.cgroup;
    let Resources { cpu, memory, pids, io, hugepages } = resources;
    let files = match support.generation {
        Generation::Unified => unified(cpu, memory),
        Generation::Legacy => legacy(cpu, memory),
    };
    for (file, value) in files {
        want(&mut wanted, support, file, value);
    }
    want(&mut wanted, support, "cpuset.cpus", cpus.to_string());
    if support.generation == Generation::Legacy || support.files.contains("cpuset.mems") {
        want(&mut wanted, support, "cpuset.mems", nodes(cpu.align, cpus, machine).to_string());
    }
    // Where there is no such file there is nothing to wish for; what an exclusive workload has all the same is told by its condition.
    if support.files.contains(PARTITION) {
        let wish = if cpu.class == CpuClass::Exclusive { "root" } else { "member" };
        wanted.settings.set(PARTITION, wish);
    }
    io::want(&mut wanted, io, machine);
    io::want_huge_pages(&mut wanted, hugepages, machine);
    want(&mut wanted, support, "pids.max", pids.to_string());
    if support.generation == Generation::Legacy {
        wanted.unhonoured.extend(beyond_legacy(memory));
    }
    wanted
}

/// The nodes whose memory a workload may have. A node without memory of its own, or with none that groups may use, binds nobody.
fn nodes(align: Align, cpus: &CpuSet, machine: &Machine) -> NodeSet {
    let usable = &machine.cgroup.nodes;
    let has_some = |(_, set): &(&u32, &CpuSet)| !set.is_disjoint(cpus);
    let near: NodeSet = machine.topology.nodes.iter().filter(has_some).map(|(number, _)| *number).collect();
    let near = near.intersection(usable);
    if align == Align::Required && !near.is_empty() { near } else { usable.clone() }
}

/// What v1 has no words for.
fn beyond_legacy(memory: &Memory) -> Vec<String> {
    let Memory { request, min, high: _, limit, swap, oom_group, force } = memory;
    let mut missing = Vec::new();
    if *request > Bytes(0) {
        missing
            .push(format!("memory.request {request} is set aside, but legacy cgroups cannot protect it from reclaim"));
    }
    if *min > Bytes(0) {
        missing.push(format!("memory.min {min} is not protected: legacy cgroups have no such thing"));
    }
    if *oom_group {
        missing.push("memory.oomGroup: legacy cgroups end only the process that the kernel picks".to_owned());
    }
    if *force {
        missing.push("memory.force: legacy cgroups refuse a limit below what is in use, whatever is to end".to_owned());
    }
    if let (Limit::Max, Limit::At(swap)) = (limit, swap) {
        missing.push(format!("memory.swap {swap} needs a memory.limit on legacy cgroups, which bound both together"));
    }
    missing
}

/// Wants a value, or notes that it cannot be had. A file that is missing and would only hold "no limit" is nothing to report.
fn want(wanted: &mut Wanted, support: &Support, file: &'static str, value: String) {
    if support.files.contains(file) {
        wanted.settings.set(file, value);
    } else if fresh(support.generation, file) != Some(value.as_str()) {
        wanted
            .unhonoured
            .push(format!("{file} = {value}: this host's {} cgroups have no such file", support.generation));
    }
}

fn unified(cpu: &Cpu, memory: &Memory) -> Vec<(&'static str, String)> {
    let Cpu { request: _, limit, weight, burst, class, smt: _, align: _ } = cpu;
    let Memory { request, min, high, limit: memory_limit, swap, oom_group, force: _ } = memory;
    let quota = limit.map(quota_us);
    let mut files = vec![
        ("cpu.max", format!("{quota} {CPU_PERIOD_US}")),
        ("cpu.max.burst", burst.as_micros().to_string()),
        ("cpu.idle", idle(*class)),
        ("memory.min", pages(*min).to_string()),
        ("memory.low", pages(*request).to_string()),
        ("memory.oom.group", u8::from(*oom_group).to_string()),
        ("memory.high", limit_bytes(*high)),
        ("memory.max", limit_bytes(*memory_limit)),
        ("memory.swap.max", limit_bytes(*swap)),
    ];
    // An idle group has no weight; the kernel refuses one.
    if *class != CpuClass::Idle {
        files.push(("cpu.weight", weight.to_string()));
    }
    files
}

fn legacy(cpu: &Cpu, memory: &Memory) -> Vec<(&'static str, String)> {
    let Cpu { request: _, limit, weight, burst, class, smt: _, align: _ } = cpu;
    let Memory { request: _, min: _, high, limit: memory_limit, swap, oom_group: _, force: _ } = memory;
    let with_swap = match (memory_limit, swap) {
        (Limit::At(limit), Limit::At(swap)) => Limit::At(Bytes(limit.0.saturating_add(swap.0))),
        _ => Limit::Max,
    };
    let bytes = |limit: Limit<Bytes>| limit.at().map_or(MEMORY_UNLIMITED, |bytes| pages(bytes).min(MEMORY_UNLIMITED));
    let mut files = vec![
        ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
        ("cpu.cfs_quota_us", limit.at().map_or("-1".to_owned(), |limit| quota_us(limit).to_string())),
        ("cpu.cfs_burst_us", burst.as_micros().to_string()),
        ("cpu.idle", idle(*class)),
        ("memory.limit_in_bytes", bytes(*memory_limit).to_string()),
        ("memory.memsw.limit_in_bytes", bytes(with_swap).to_string()),
        ("memory.high", limit_bytes(*high)),
    ];
    if *class != CpuClass::Idle {
        files.push(("cpu.shares", (u64::from(*weight) * SHARES_DEFAULT / 100).max(SHARES_MIN).to_string()));
    }
    files
}

/// CPU time in each period.
fn quota_us(limit: MilliCpu) -> u64 {
    u64::from(limit.0) * CPU_PERIOD_US / 1000
}

fn idle(class: CpuClass) -> String {
    u8::from(class == CpuClass::Idle).to_string()
}

fn pages(Bytes(bytes): Bytes) -> u64 {
    bytes / PAGE_BYTES * PAGE_BYTES
}

fn limit_bytes(limit: Limit<Bytes>) -> String {
    match limit.map(pages) {
        Limit::At(bytes) if bytes < MEMORY_UNLIMITED => bytes.to_string(),
        _ => "max".to_owned(),
    }
}

/// What a file holds in a group that was just made.
fn fresh(generation: Generation, file: &str) -> Option<&'static str> {
    match (generation, file) {
        (Generation::Unified, "cpu.max") => Some("max 100000"),
        (Generation::Legacy, "cpu.cfs_period_us") => Some("100000"),
        (Generation::Legacy, "cpu.cfs_quota_us") => Some("-1"),
        (Generation::Legacy, "cpu.shares") => Some("1024"),
        (Generation::Legacy, "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes") => Some("9223372036854771712"),
        (_, "cpu.max.burst" | "cpu.cfs_burst_us" | "cpu.idle" | "memory.low" | "memory.min" | "memory.oom.group") => {
            Some("0")
        }
        (_, "io.weight" | "io.bfq.weight") => Some("default 100"),
        (_, "cpu.weight" | "blkio.bfq.weight") => Some("100"),
        (_, file) if is_per_device(file) => Some(""),
        (_, "memory.high" | "memory.max" | "memory.swap.max" | "pids.max") => Some("max"),
        (_, "cpuset.cpus" | "cpuset.mems") => Some(""),
        (Generation::Unified, PARTITION) => Some("member"),
        _ => None,
    }
}

/// The writes that make a new group hold `wanted`.
pub fn first_writes(wanted: &Settings, generation: Generation) -> Vec<Write> {
    writes_into_new(&Settings::default(), wanted, generation)
}

/// The same where a part of the group is there and holds `held`; files that are missing there are those of a new one.
pub fn writes_into_new(held: &Settings, wanted: &Settings, generation: Generation) -> Vec<Write> {
    let mut before = held.clone();
    for (file, _, now) in wanted.beside(held) {
        if let (None, Some(value)) = (now, fresh(generation, file)) {
            before.set(file.to_owned(), value);
        }
    }
    writes(&before, wanted)
}

/// The writes that turn `held` into `wanted`, in an order the kernel accepts at every step.
pub fn writes(held: &Settings, wanted: &Settings) -> Vec<Write> {
    let mut writes = Vec::new();
    for (file, value, now) in wanted.beside(held).filter(|(file, value, now)| !is_met(file, value, *now)) {
        if is_per_device(file) {
            writes.extend(device_writes(file, now.unwrap_or_default(), value));
        } else {
            writes.push(Write { file: file.to_owned(), value: value.to_owned() });
        }
    }
    writes.sort_by_key(|write| rank(write, held));
    writes
}

/// One write a device whose line differs; a device that is no longer limited is written the words for that.
fn device_writes(file: &str, held: &str, wanted: &str) -> Vec<Write> {
    let device = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let kept: Vec<String> = wanted.lines().map(device).collect();
    let none = no_limit(file);
    let freed =
        held.lines().map(device).filter(|device| !kept.contains(device)).map(|device| format!("{device} {none}"));
    let set = wanted.lines().filter(|line| !held.lines().any(|other| other == *line)).map(str::to_owned);
    freed.chain(set).map(|value| Write { file: file.to_owned(), value }).collect()
}

/// Earlier is smaller. A bound that contains another one grows before it and shrinks after it: quota and burst, memory with swap and
/// memory; an idle group takes a weight only once it is idle no more.
fn rank(write: &Write, held: &Settings) -> u8 {
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let grows = held.get(&write.file).is_none_or(|value| number(&write.value) > number(value));
    match write.file.as_str() {
        "memory.memsw.limit_in_bytes" => {
            if grows {
                0
            } else {
                5
            }
        }
        "cpu.max.burst" | "cpu.cfs_burst_us" => {
            if grows {
                5
            } else {
                0
            }
        }
        "cpu.idle" => 1,
        // Asked for once it has the CPUs, and given up before it has others.
        PARTITION if write.value == "member" => 2,
        PARTITION => 4,
        "memory.high" | "cpu.cfs_period_us" => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests;
