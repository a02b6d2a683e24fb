//! Resources to cgroup files: which file holds what, in the kernel's own notation, for both generations.
//!
//! The values are spelled as the kernel gives them back, so that wanted and held compare as text and a difference is either work to do or
//! drift. Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{cpusets,memory,pids}.rst, scheduler/sched-bwc.rst.

use crate::model::cgroup::{Generation, Settings, Support, Write};
use crate::model::cpuset::CpuSet;
use crate::model::spec::{Cpu, CpuClass, Memory, Resources};
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
pub fn wanted(resources: &Resources, cpus: &CpuSet, support: &Support) -> Wanted {
    let mut wanted = Wanted::default();
    let Resources { cpu, memory, pids } = resources;
    let files = match support.generation {
        Generation::Unified => unified(cpu, memory),
        Generation::Legacy => legacy(cpu, memory),
    };
    for (file, value) in files {
        want(&mut wanted, support, file, value);
    }
    want(&mut wanted, support, "cpuset.cpus", cpus.to_string());
    if support.generation == Generation::Legacy {
        want(&mut wanted, support, "cpuset.mems", support.nodes.to_string());
    }
    want(&mut wanted, support, "pids.max", pids.to_string());
    if support.generation == Generation::Legacy {
        wanted.unhonoured.extend(beyond_legacy(memory));
    }
    wanted
}

/// What v1 has no words for.
fn beyond_legacy(memory: &Memory) -> Vec<String> {
    let Memory { request, high: _, limit, swap } = memory;
    let mut missing = Vec::new();
    if *request > Bytes(0) {
        missing
            .push(format!("memory.request {request} is set aside, but legacy cgroups cannot protect it from reclaim"));
    }
    if let (Limit::Max, Limit::At(swap)) = (limit, swap) {
        missing.push(format!("memory.swap {swap} needs a memory.limit on legacy cgroups, which bound both together"));
    }
    missing
}

/// Wants a value, or notes that it cannot be had. A file that is missing and would only hold "no limit" is nothing to report.
fn want(wanted: &mut Wanted, support: &Support, file: &str, value: String) {
    if support.files.contains(file) {
        wanted.settings.set(file, value);
    } else if fresh(support.generation, file) != Some(value.as_str()) {
        wanted
            .unhonoured
            .push(format!("{file} = {value}: this host's {} cgroups have no such file", support.generation));
    }
}

fn unified(cpu: &Cpu, memory: &Memory) -> Vec<(&'static str, String)> {
    let Cpu { request: _, limit, weight, burst, class } = cpu;
    let Memory { request, high, limit: memory_limit, swap } = memory;
    let quota = limit.map(quota_us);
    let mut files = vec![
        ("cpu.max", format!("{quota} {CPU_PERIOD_US}")),
        ("cpu.max.burst", burst.as_micros().to_string()),
        ("cpu.idle", idle(*class)),
        ("memory.low", pages(*request).to_string()),
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
    let Cpu { request: _, limit, weight, burst, class } = cpu;
    let Memory { request: _, high, limit: memory_limit, swap } = memory;
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
        (Generation::Unified, "cpu.weight") => Some("100"),
        (Generation::Legacy, "cpu.cfs_period_us") => Some("100000"),
        (Generation::Legacy, "cpu.cfs_quota_us") => Some("-1"),
        (Generation::Legacy, "cpu.shares") => Some("1024"),
        (Generation::Legacy, "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes") => Some("9223372036854771712"),
        (_, "cpu.max.burst" | "cpu.cfs_burst_us" | "cpu.idle" | "memory.low") => Some("0"),
        (_, "memory.high" | "memory.max" | "memory.swap.max" | "pids.max") => Some("max"),
        (_, "cpuset.cpus" | "cpuset.mems") => Some(""),
        _ => None,
    }
}

/// The writes that make a new group hold `wanted`.
pub fn first_writes(wanted: &Settings, generation: Generation) -> Vec<Write> {
    let known = |file: &String| fresh(generation, file).map(|value| (file.clone(), value.to_owned()));
    writes(&Settings(wanted.0.keys().filter_map(known).collect()), wanted)
}

/// The writes that turn `held` into `wanted`, in an order the kernel accepts at every step.
pub fn writes(held: &Settings, wanted: &Settings) -> Vec<Write> {
    let differs = |(file, value): &(&String, &String)| held.get(file) != Some(value.as_str());
    let mut writes: Vec<Write> = wanted
        .0
        .iter()
        .filter(differs)
        .map(|(file, value)| Write { file: file.clone(), value: value.clone() })
        .collect();
    writes.sort_by_key(|write| rank(write, held));
    writes
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
        "memory.high" | "cpu.cfs_period_us" => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    const UNIFIED: &[&str] = &[
        "cpu.max",
        "cpu.max.burst",
        "cpu.idle",
        "cpu.weight",
        "memory.low",
        "memory.high",
        "memory.max",
        "memory.swap.max",
        "cpuset.cpus",
        "pids.max",
    ];
    const LEGACY: &[&str] = &[
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
        "cpu.cfs_burst_us",
        "cpu.idle",
        "cpu.shares",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
    ];

    fn support(generation: Generation, files: &[&str]) -> Support {
        Support {
            generation,
            files: files.iter().map(|file| (*file).to_owned()).collect(),
            nodes: "0-1".parse().unwrap(),
        }
    }

    fn resources(fields: &str) -> Resources {
        let parsed = manifest::parse("x.yaml", format!("command: x\n{fields}").as_bytes());
        assert_eq!(parsed.diagnostics, []);
        parsed.workloads.into_iter().next().unwrap().0.resources.clone()
    }

    fn check(fields: &str, support: &Support) -> String {
        let Wanted { settings, unhonoured } = wanted(&resources(fields), &"0-3".parse().unwrap(), support);
        let writes = first_writes(&settings, support.generation);
        writes
            .iter()
            .map(|write| format!("{write}\n"))
            .chain(unhonoured.iter().map(|text| format!("! {text}\n")))
            .collect()
    }

    /// What turning one manifest's limits into another's writes, in order.
    fn change(from: &str, to: &str, support: &Support) -> String {
        let settings = |fields: &str| wanted(&resources(fields), &"0-3".parse().unwrap(), support).settings;
        writes(&settings(from), &settings(to)).iter().map(|write| format!("{write}\n")).collect()
    }

    const FULL: &str = "cpu: {request: 1, limit: 1500m, weight: 250, burst: 20ms}\nmemory: {request: 64Mi, high: 200M, limit: 256M, swap: 16Mi}\npids: 99";

    #[test]
    fn unified_files_hold_what_a_manifest_says() {
        let support = support(Generation::Unified, UNIFIED);
        insta::assert_snapshot!(check(FULL, &support), @"
        memory.high = 199999488
        cpu.max = 150000 100000
        cpu.weight = 250
        cpuset.cpus = 0-3
        memory.low = 67108864
        memory.max = 256000000
        memory.swap.max = 16777216
        pids.max = 99
        cpu.max.burst = 20000
        ");
        insta::assert_snapshot!(check("cpu: {class: idle}\npids: max", &support), @"
        cpu.idle = 1
        cpuset.cpus = 0-3
        ");
    }

    #[test]
    fn legacy_files_hold_what_a_manifest_says() {
        let support = support(Generation::Legacy, LEGACY);
        insta::assert_snapshot!(check(FULL, &support), @"
        cpu.cfs_quota_us = 150000
        cpu.shares = 2560
        cpuset.cpus = 0-3
        cpuset.mems = 0-1
        memory.limit_in_bytes = 256000000
        pids.max = 99
        cpu.cfs_burst_us = 20000
        memory.memsw.limit_in_bytes = 272777216
        ! memory.high = 199999488: this host's legacy cgroups have no such file
        ! memory.request 64Mi is set aside, but legacy cgroups cannot protect it from reclaim
        ");
        insta::assert_snapshot!(check("cpu: {class: idle}\nmemory: {limit: 1G, swap: max}", &support), @"
        cpu.idle = 1
        cpuset.cpus = 0-3
        cpuset.mems = 0-1
        memory.limit_in_bytes = 999997440
        pids.max = 512
        ");
    }

    #[test]
    fn what_a_host_cannot_do_is_said_only_if_it_was_asked() {
        let bare = support(Generation::Unified, &["cpu.max", "cpu.weight", "memory.max", "pids.max", "cpuset.cpus"]);
        insta::assert_snapshot!(check("cpu: 2", &bare), @"
        cpu.max = 200000 100000
        cpuset.cpus = 0-3
        pids.max = 512
        ");
        insta::assert_snapshot!(check(FULL, &bare), @"
        cpu.max = 150000 100000
        cpu.weight = 250
        cpuset.cpus = 0-3
        memory.max = 256000000
        pids.max = 99
        ! cpu.max.burst = 20000: this host's unified cgroups have no such file
        ! memory.low = 67108864: this host's unified cgroups have no such file
        ! memory.high = 199999488: this host's unified cgroups have no such file
        ! memory.swap.max = 16777216: this host's unified cgroups have no such file
        ");
    }

    #[test]
    fn containing_bounds_grow_first_and_shrink_last() {
        let legacy = support(Generation::Legacy, LEGACY);
        insta::assert_snapshot!(change("memory: 256Mi", "memory: 512Mi", &legacy), @"
        memory.memsw.limit_in_bytes = 536870912
        memory.limit_in_bytes = 536870912
        ");
        insta::assert_snapshot!(change("memory: 512Mi", "memory: 256Mi", &legacy), @"
        memory.limit_in_bytes = 268435456
        memory.memsw.limit_in_bytes = 268435456
        ");
        let unified = support(Generation::Unified, UNIFIED);
        insta::assert_snapshot!(change("cpu: {limit: 1, burst: 50ms}", "cpu: {limit: 2, burst: 150ms}", &unified), @"
        cpu.max = 200000 100000
        cpu.max.burst = 150000
        ");
        insta::assert_snapshot!(change("cpu: {limit: 2, burst: 150ms}", "cpu: {limit: 1, burst: 50ms}", &unified), @"
        cpu.max.burst = 50000
        cpu.max = 100000 100000
        ");
        insta::assert_snapshot!(change("cpu: {class: idle}", "cpu: {weight: 7}", &unified), @"
        cpu.idle = 0
        cpu.weight = 7
        ");
        assert_eq!(change(FULL, FULL, &unified), "", "nothing to do writes nothing");
    }

    #[test]
    fn absurd_limits_are_none() {
        let support = support(Generation::Unified, UNIFIED);
        assert_eq!(
            check("memory: 18446744073709551615\npids: max", &support),
            "cpuset.cpus = 0-3\nmemory.swap.max = 0\n"
        );
    }
}
