//! Every resource, changed in the manifest of a running workload: the same process, the new value in the kernel, and back again.

use super::kernel;
use super::world::{World, eventually_or};

/// What one line of a manifest comes to in the kernel.
struct Change {
    line: &'static str,
    /// File and value on v2, then on v1; none where that generation has nothing of the kind, which the workload then has to say.
    unified: Option<(&'static str, &'static str)>,
    legacy: Option<(&'static str, &'static str)>,
}

const CHANGES: [Change; 15] = [
    Change {
        line: "cpu: 250m",
        unified: Some(("cpu.max", "25000 100000")),
        legacy: Some(("cpu.cfs_quota_us", "25000")),
    },
    Change {
        line: "cpu: 1500m",
        unified: Some(("cpu.max", "150000 100000")),
        legacy: Some(("cpu.cfs_quota_us", "150000")),
    },
    Change { line: "cpu: {weight: 300}", unified: Some(("cpu.weight", "300")), legacy: Some(("cpu.shares", "3072")) },
    Change {
        line: "cpu: {limit: 500m, burst: 40ms}",
        unified: Some(("cpu.max.burst", "40000")),
        legacy: Some(("cpu.cfs_burst_us", "40000")),
    },
    Change { line: "cpu: {class: idle}", unified: Some(("cpu.idle", "1")), legacy: Some(("cpu.idle", "1")) },
    Change {
        line: "memory: 96Mi",
        unified: Some(("memory.max", "100663296")),
        legacy: Some(("memory.limit_in_bytes", "100663296")),
    },
    Change {
        line: "memory: 48Mi",
        unified: Some(("memory.max", "50331648")),
        legacy: Some(("memory.limit_in_bytes", "50331648")),
    },
    Change {
        line: "memory: {limit: 64Mi, swap: 32Mi}",
        unified: Some(("memory.swap.max", "33554432")),
        legacy: Some(("memory.memsw.limit_in_bytes", "100663296")),
    },
    Change { line: "memory: {high: 80Mi}", unified: Some(("memory.high", "83886080")), legacy: None },
    Change { line: "memory: {min: 8Mi}", unified: Some(("memory.min", "8388608")), legacy: None },
    Change { line: "memory: {request: 16Mi}", unified: Some(("memory.low", "16777216")), legacy: None },
    Change { line: "memory: {limit: 64Mi, oomGroup: true}", unified: Some(("memory.oom.group", "1")), legacy: None },
    Change { line: "pids: 77", unified: Some(("pids.max", "77")), legacy: Some(("pids.max", "77")) },
    Change {
        line: "io: {weight: 40}",
        unified: Some(("io.weight", "default 40")),
        legacy: Some(("blkio.bfq.weight", "40")),
    },
    Change {
        line: "hugepages: {2Mi: 4Mi}",
        unified: Some(("hugetlb.2MB.max", "4194304")),
        legacy: Some(("hugetlb.2MB.limit_in_bytes", "4194304")),
    },
];

/// What the kernel holds, none where it has no such file.
fn held(world: &World, file: &str) -> Option<String> {
    let directories = kernel::directories(&world.group("web"));
    let mut texts = directories.iter().filter_map(|directory| std::fs::read_to_string(directory.join(file)).ok());
    texts.next().map(|text| text.trim().to_owned())
}

fn in_force(world: &World) -> bool {
    let status = world.status("web");
    status["generation"] == status["observedGeneration"]
}

#[test]
fn each_resource_is_changed_under_the_same_process_and_changed_back() {
    let world = World::running();
    let base = "command: sleep infinity\n";
    world.put("web.yaml", base);
    let pid = world.wait_running("web");
    let ticks = kernel::start_ticks(pid);
    let (mut changed, mut said) = (Vec::new(), Vec::new());
    for Change { line, unified, legacy } in &CHANGES {
        let wanted = if kernel::is_unified() { unified } else { legacy };
        let before = wanted.and_then(|(file, _)| held(&world, file));
        world.put("web.yaml", &format!("{base}{line}\n"));
        match wanted.filter(|(file, _)| before.is_some() || *file == "blkio.bfq.weight" && has_bfq(&world)) {
            Some((file, value)) => {
                let holds = || held(&world, file).as_deref() == Some(value) && in_force(&world);
                eventually_or(holds, || {
                    format!("{line}: {file} is {:?}, not {value}\n{}", held(&world, file), world.log())
                });
                changed.push(*line);
            }
            None => {
                // Not on this host: said, not passed over.
                let degraded = || world.status("web")["conditions"].to_string().contains("Degraded");
                eventually_or(degraded, || {
                    format!("{line} is neither in force nor said not to be: {:#}", world.status("web"))
                });
                said.push(*line);
            }
        }
        assert_eq!((world.wait_running("web"), kernel::start_ticks(pid)), (pid, ticks), "{line} restarted it");
        world.put("web.yaml", base);
        if let (Some((file, _)), Some(before)) = (wanted, before) {
            let back = || held(&world, file).as_ref() == Some(&before) && in_force(&world);
            eventually_or(back, || format!("{line} taken back: {file} is {:?}, not {before}", held(&world, file)));
        }
    }
    assert_eq!((world.wait_running("web"), world.status("web")["restarts"].as_u64()), (pid, Some(0)));
    assert!(changed.len() >= 8, "only {changed:?} were changed; not honoured here: {said:?}");
    println!("changed live: {changed:?}\nsaid not to be honoured by this host: {said:?}");
}

/// Whether v1 groups have an I/O weight here.
fn has_bfq(world: &World) -> bool {
    kernel::directories(&world.parent).iter().any(|parent| parent.join("blkio.bfq.weight").exists())
}
