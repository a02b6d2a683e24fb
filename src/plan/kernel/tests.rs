//! What manifests become in the kernel's own words, and in which order it is written.

use super::*;
use crate::manifest;
use crate::model::admission::Admission;
use crate::model::machine::{Ceilings, Disk};

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
    Support { generation, files: files.iter().map(|file| (*file).to_owned()).collect(), nodes: "0-1".parse().unwrap() }
}

fn machine(support: &Support) -> Machine {
    Machine {
        topology: crate::model::topology::tests::flat(4),
        memory: Bytes(8 << 30),
        gpus: Vec::new(),
        gpu_trouble: Vec::new(),
        disks: [("/dev/vda".to_owned(), Disk("254:0".to_owned())), ("/dev/vdb".to_owned(), Disk("254:16".to_owned()))]
            .into(),
        huge_pages: [Bytes(2 << 20)].into(),
        cgroup: support.clone(),
        boot_id: "boot".to_owned(),
        ceilings: Ceilings::default(),
        admission: Admission::default(),
    }
}

fn resources(fields: &str) -> Resources {
    let parsed = manifest::parse("x.yaml", format!("command: x\n{fields}").as_bytes());
    assert_eq!(parsed.diagnostics, []);
    parsed.workloads.into_iter().next().unwrap().0.resources.clone()
}

fn check(fields: &str, support: &Support) -> String {
    let Wanted { settings, unhonoured } = wanted(&resources(fields), &"0-3".parse().unwrap(), &machine(support));
    let writes = first_writes(&settings, support.generation);
    writes.iter().map(|write| format!("{write}\n")).chain(unhonoured.iter().map(|text| format!("! {text}\n"))).collect()
}

/// What turning one manifest's limits into another's writes, in order.
fn change(from: &str, to: &str, support: &Support) -> String {
    let settings = |fields: &str| wanted(&resources(fields), &"0-3".parse().unwrap(), &machine(support)).settings;
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
    insta::assert_snapshot!(check("cpu: {class: idle}\nmemory: {limit: 1G, swap: max, force: true}", &support), @"
    cpu.idle = 1
    cpuset.cpus = 0-3
    cpuset.mems = 0-1
    memory.limit_in_bytes = 999997440
    pids.max = 512
    ! memory.force: legacy cgroups refuse a limit below what is in use, whatever is to end
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
    assert_eq!(check("memory: 18446744073709551615\npids: max", &support), "cpuset.cpus = 0-3\nmemory.swap.max = 0\n");
}

#[test]
fn disks_and_huge_pages_are_limited_a_line_and_a_file_each() {
    let with = |generation, files: &[&str], more: &[&str]| support(generation, &[files, more].concat());
    let unified = with(Generation::Unified, UNIFIED, &["io.max", "io.weight", "hugetlb.2MB.max"]);
    let blkio = ["blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device", "blkio.bfq.weight"];
    let legacy = with(Generation::Legacy, LEGACY, &blkio);
    let fields = "io: {weight: 2000, limits: [{device: /dev/vdb, readBps: 50M}, {device: /dev/vda, writeIops: 100}, {device: /dev/sda, readBps: 1}]}\nhugepages: {2Mi: 4Mi}";
    insta::assert_snapshot!(check(fields, &unified), @"
    cpuset.cpus = 0-3
    hugetlb.2MB.max = 4194304
    io.max = 254:0 rbps=max wbps=max riops=max wiops=100
    io.max = 254:16 rbps=50000000 wbps=max riops=max wiops=max
    io.weight = default 2000
    pids.max = 512
    ! io.limits: /dev/sda is no disk of this host (whole disks by the kernel's name: /dev/vda, /dev/vdb)
    ");
    insta::assert_snapshot!(check(fields, &legacy), @"
    blkio.bfq.weight = 1000
    blkio.throttle.read_bps_device = 254:16 50000000
    blkio.throttle.write_iops_device = 254:0 100
    cpuset.cpus = 0-3
    cpuset.mems = 0-1
    pids.max = 512
    ! io.limits: /dev/sda is no disk of this host (whole disks by the kernel's name: /dev/vda, /dev/vdb)
    ! io.weight 2000: the I/O controller of this host counts to 1000, which is in force
    ! hugepages 2Mi: this host has no such pages, or cannot limit them (hugetlb.2MB.limit_in_bytes)
    ");
    insta::assert_snapshot!(change(fields, "io: {limits: [{device: /dev/vda, writeIops: 200}]}", &unified), @"
    hugetlb.2MB.max = 0
    io.max = 254:16 rbps=max wbps=max riops=max wiops=max
    io.max = 254:0 rbps=max wbps=max riops=max wiops=200
    io.weight = default 100
    ");
    insta::assert_snapshot!(change(fields, "pids: 3", &legacy), @"
    blkio.bfq.weight = 100
    blkio.throttle.read_bps_device = 254:16 0
    blkio.throttle.write_iops_device = 254:0 0
    pids.max = 3
    ");
    insta::assert_snapshot!(change("pids: 3", fields, &support(Generation::Unified, UNIFIED)), @"pids.max = 512");
}

#[test]
fn memory_is_bound_to_the_nodes_of_the_cpus_only_where_that_is_required() {
    let files = [UNIFIED, &["cpuset.mems"]].concat();
    let support = support(Generation::Unified, &files);
    let mut machine = machine(&support);
    machine.topology.nodes = [(0, "0-1".parse().unwrap()), (1, "2-3".parse().unwrap())].into();
    let mems = |fields: &str, cpus: &str, machine: &Machine| {
        wanted(&resources(fields), &cpus.parse().unwrap(), machine).settings.get("cpuset.mems").map(str::to_owned)
    };
    let required = "cpu: {limit: 1, align: required}";
    assert_eq!(mems(required, "2-3", &machine).as_deref(), Some("1"));
    assert_eq!(mems("cpu: 1", "2-3", &machine).as_deref(), Some("0-1"));
    machine.cgroup.nodes = "0".parse().unwrap();
    assert_eq!(mems(required, "2-3", &machine).as_deref(), Some("0"), "a node without memory binds nobody");
}

#[test]
fn each_class_has_a_weight_of_its_own() {
    let line = |class: &str, support: &Support, file: &str| {
        let written = check(&format!("cpu: {{request: 1, class: {class}}}"), support);
        written.lines().find(|line| line.starts_with(file)).unwrap_or("as the kernel makes it").to_owned()
    };
    let (unified, legacy) = (support(Generation::Unified, UNIFIED), support(Generation::Legacy, LEGACY));
    let classes = ["shared", "pinned", "exclusive"];
    assert_eq!(
        classes.map(|class| line(class, &unified, "cpu.weight")),
        ["as the kernel makes it", "cpu.weight = 500", "cpu.weight = 500"]
    );
    assert_eq!(
        classes.map(|class| line(class, &legacy, "cpu.shares")),
        ["as the kernel makes it", "cpu.shares = 5120", "cpu.shares = 5120"]
    );
    // One that yields to everybody has no weight to say.
    assert_eq!(check("cpu: {class: idle}", &unified).lines().find(|line| line.contains("cpu.weight")), None);
    // Who names one has that, whatever the class.
    assert_eq!(check("cpu: {request: 1, class: pinned, weight: 7}", &unified).matches("cpu.weight = 7").count(), 1);
}

#[test]
fn a_partition_is_asked_for_after_its_cpus_and_given_up_before_others() {
    let support = support(Generation::Unified, &[UNIFIED, &["cpuset.mems", PARTITION]].concat());
    let written = |from: &str, to: &str| {
        let held = wanted(&resources(from), &"0-1".parse().unwrap(), &machine(&support)).settings;
        let writes = writes(&held, &wanted(&resources(to), &"2".parse().unwrap(), &machine(&support)).settings);
        writes
            .into_iter()
            .filter(|write| write.file.starts_with("cpuset.cpus"))
            .map(|write| write.to_string())
            .collect::<Vec<_>>()
    };
    let (shared, exclusive) = ("cpu: 1", "cpu: {class: exclusive, request: 1}");
    assert_eq!(written(shared, exclusive), ["cpuset.cpus = 2", "cpuset.cpus.partition = root"]);
    assert_eq!(written(exclusive, shared), ["cpuset.cpus.partition = member", "cpuset.cpus = 2"]);
}

#[test]
fn a_partition_that_is_not_granted_is_a_wish_that_is_held() {
    let mut held = Settings::default();
    for (text, is_held) in [("root", true), ("root invalid (Parent is not a partition root)", true), ("member", false)]
    {
        held.set(PARTITION, text);
        let mut wanted = Settings::default();
        wanted.set(PARTITION, "root");
        assert_eq!(writes(&held, &wanted).is_empty(), is_held, "{text}");
        assert_eq!(Write { file: PARTITION.to_owned(), value: "root".to_owned() }.is_in(&held), is_held, "{text}");
    }
}
