//! CPUs beside devices: `gpu.align`.
//!
//! Devices and CPUs are chosen together. `preferred`, the default: the devices that fit best, then CPUs of their NUMA node where what is asked
//! for fits there, else wherever it does; a workload without `cpu.limit` may use every shared CPU as before. `required`: of one node with all
//! devices, or it waits; other devices are tried where the best ones have no CPUs left beside them, and memory is that node's too. A device
//! whose node nobody knows is beside any CPU of a machine of one node, and beside none of a larger one.

use super::cpu::Within;
use super::{Ask, Grant, Ledger, Refusal, Requested, cpu, gpu};
use crate::model::cpuset::CpuSet;
use crate::model::gpu::{GpuAlign, GpuId, GpuLease, GpuRequest, Rebalance};
use crate::model::machine::Machine;
use std::collections::BTreeSet;

/// Finds devices and CPUs, those held before if they still serve.
pub fn place(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<Grant, Refusal> {
    let Some(request) = ask.gpu else { return with_cpus(machine, ledger, ask, Vec::new()) };
    // Who is content to move takes the occasion of a start.
    let stays = ask.previous.filter(|_| request.rebalance == Rebalance::Never);
    let again = stays.and_then(|previous| gpu::again(machine, ledger, ask, previous));
    let first = match again {
        Some(again) => again,
        None => gpu::place(machine, ledger, ask, request)?,
    };
    match with_cpus(machine, ledger, ask, first) {
        Err(refusal) if request.align == GpuAlign::Required => together(machine, ledger, ask, request).ok_or(refusal),
        placed => placed,
    }
}

/// Devices and CPUs of one node, where the devices that fit best have no CPUs beside them.
fn together(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest) -> Option<Grant> {
    let ask = &ask.on_trial();
    let nodes: BTreeSet<u32> = machine.gpus.iter().filter_map(|gpu| gpu.node).collect();
    nodes.into_iter().find_map(|node| {
        let gpus = gpu::place_on(machine, ledger, ask, request, node).ok()?;
        with_cpus(machine, ledger, ask, gpus).ok()
    })
}

/// CPUs for these devices.
pub fn with_cpus(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, gpus: Vec<GpuLease>) -> Result<Grant, Refusal> {
    let requested = Requested { cpu: ask.resources.cpu.request, memory: ask.resources.memory.request };
    let align = ask.gpu.map_or(GpuAlign::None, |request| request.align);
    let ids: Vec<&GpuId> = gpus.iter().map(|lease| &lease.gpu).collect();
    let near = match align {
        GpuAlign::None => None,
        GpuAlign::Preferred | GpuAlign::Required => beside(machine, &ids),
    };
    if align == GpuAlign::Required && near.is_none() {
        return Err(unaligned(&ids, "they are not on one known NUMA node with CPUs"));
    }
    let must = near.as_ref().filter(|_| align == GpuAlign::Required);
    let same_devices = |previous: &&Grant| previous.gpus.iter().map(|lease| &lease.gpu).eq(ids.iter().copied());
    let good = ask.previous.filter(|previous| cpu::still_good(machine, ledger, ask, previous, must));
    let is_near = |previous: &&Grant| near.as_ref().is_none_or(|near| previous.cpus.is_subset(near));
    if let Some(previous) = good.filter(|previous| same_devices(previous) || is_near(previous)) {
        return Ok(Grant { gpus, requested, ..previous.clone() });
    }
    let found = match (&near, must) {
        (_, Some(must)) => {
            let found = cpu::place_within(machine, ledger, ask, Within::Only(must));
            found.map_err(|refusal| unaligned(&ids, &refusal.message))?
        }
        (Some(near), None) => {
            let beside = cpu::place_within(machine, ledger, &ask.on_trial(), Within::IfRoom(near)).ok();
            match beside.filter(|found| found.cpus.is_subset(near)) {
                Some(found) => found,
                None => cpu::place(machine, ledger, ask)?,
            }
        }
        (None, None) => cpu::place(machine, ledger, ask)?,
    };
    let cpu::CpuGrant { cpus, fenced, mut reason } = found;
    if near.is_some_and(|near| cpus.is_subset(&near) && near != machine.topology.usable) {
        reason += &format!(", beside {}", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "));
    }
    Ok(Grant { cpus, fenced, gpus, requested, reason, moved: None })
}

/// Whether CPUs granted earlier still do, beside the devices of the grant where they have to be.
pub fn still_good(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, grant: &Grant) -> bool {
    if !ask.gpu.is_some_and(|request| request.align == GpuAlign::Required) {
        return cpu::still_good(machine, ledger, ask, grant, None);
    }
    let ids: Vec<&GpuId> = grant.gpus.iter().map(|lease| &lease.gpu).collect();
    beside(machine, &ids).is_some_and(|near| cpu::still_good(machine, ledger, ask, grant, Some(&near)))
}

/// The CPUs that running work is kept to because of its devices: those beside them where that is required, and where it is preferred and it lies
/// beside them now. Where it lies elsewhere it has nothing to lose. Where devices that have to be near are near nothing any more, as after a
/// change of the machine, it is the planner's to end that: until then it stays where it is.
pub fn kept_to(machine: &Machine, request: Option<&GpuRequest>, gpus: &[GpuLease], cpus: &CpuSet) -> Option<CpuSet> {
    let near = || beside(machine, &gpus.iter().map(|lease| &lease.gpu).collect::<Vec<_>>());
    match request?.align {
        GpuAlign::None => None,
        GpuAlign::Preferred => near().filter(|near| cpus.is_subset(near)),
        GpuAlign::Required => Some(near().unwrap_or_else(|| cpus.clone())),
    }
}

/// The usable CPUs of the node that all these devices are on.
fn beside(machine: &Machine, ids: &[&GpuId]) -> Option<CpuSet> {
    let nodes = &machine.topology.nodes;
    let node_of = |id: &&GpuId| machine.gpus.iter().find(|gpu| gpu.id == **id).and_then(|gpu| gpu.node);
    let mut of: BTreeSet<Option<u32>> = ids.iter().map(node_of).collect();
    let cpus = match (of.pop_first(), of.is_empty()) {
        // Wherever it is, it is there.
        (Some(_), _) if nodes.len() <= 1 => machine.topology.usable.clone(),
        (Some(Some(node)), true) => nodes.get(&node)?.intersection(&machine.topology.usable),
        _ => return None,
    };
    (!cpus.is_empty()).then_some(cpus)
}

fn unaligned(ids: &[&GpuId], why: &str) -> Refusal {
    let ids = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let message =
        format!("gpu.align required: no CPUs beside {ids}: {why}; choose `align: preferred` to run elsewhere");
    Refusal { reason: "NotAligned", message }
}

#[cfg(test)]
mod tests {
    use crate::model::topology::tests::two_sockets;
    use crate::place::tests::{machine, place_all};

    /// Two devices on each of two nodes of eight CPUs; the fifth says nothing of where it is.
    fn check(workloads: &[(&str, &str)]) -> String {
        let mut host = machine(two_sockets());
        let template = host.gpus[0].clone();
        host.gpus = (0..5)
            .map(|index| {
                let id = crate::model::gpu::GpuId(format!("GPU-{index}"));
                let model = if index == 4 { "Lost" } else { "Known" }.to_owned();
                crate::model::gpu::Gpu {
                    id,
                    model,
                    node: [Some(1), Some(1), Some(0), Some(0), None][index],
                    ..template.clone()
                }
            })
            .collect();
        place_all(&host, workloads).1
    }

    #[test]
    fn cpus_are_beside_the_devices_where_they_fit() {
        insta::assert_snapshot!(check(&[
            ("shared", "cpu: 2\ngpu: true"),
            ("pinned", "cpu: {class: pinned, request: 2}\ngpu: true"),
            ("elsewhere", "cpu: {class: pinned, request: 12}\ngpu: {model: known}"),
            ("free", "gpu: {align: none, model: known}\ncpu: 2"),
            ("unlimited", "gpu: {model: lost}"),
        ]), @"
        shared: 4,12 GPU-0 (whole) (cheapest domain with room: core 4,12, 0m of 2 CPUs claimed by others, beside GPU-0)
        pinned: 5,13 GPU-1 (whole) (class pinned: 5,13 of core 5,13, beside GPU-1)
        elsewhere: 0-3,6-11,14-15 GPU-2 (whole) (class pinned: 0-3,6-11,14-15 of machine 0-15, last-level caches: 3)
        free: 0-15 GPU-3 (whole) (no domain has room for 2000m: all shared CPUs)
        unlimited: 0-15 GPU-4 (whole) (no cpu.limit: all shared CPUs)
        ");
    }

    #[test]
    fn required_means_one_node_with_all_devices_or_waiting() {
        insta::assert_snapshot!(check(&[
            ("fills", "cpu: {class: exclusive, request: 6, align: required}\ngpu: {memory: 1Gi, align: required}"),
            ("other", "cpu: {class: pinned, request: 4}\ngpu: {align: required, memory: 1Gi}"),
            ("unlimited", "gpu: {align: required, memory: 1Gi}"),
            ("idle", "cpu: {class: idle}\ngpu: {align: required, memory: 1Gi}"),
            ("two", "gpu: {count: 2, align: required, memory: 1Gi}"),
            ("three", "gpu: {count: 3, align: required, memory: 1Gi}"),
            ("many", "cpu: {class: pinned, request: 9}\ngpu: {align: required, memory: 1Gi}"),
            ("lost", "gpu: {align: required, model: lost}"),
        ]), @"
        fills: 4,6-7,12,14-15 GPU-0 (1Gi) (class exclusive: 4,6-7,12,14-15 of package 4-7,12-15, last-level caches: 2, fenced 4,6-7,12,14-15, beside GPU-0)
        other: 0-1,8-9 GPU-2 (1Gi) (class pinned: 0-1,8-9 of last-level cache 0-1,8-9, beside GPU-2)
        unlimited: 5,13 GPU-0 (1Gi) (cheapest domain with room: last-level cache 5,13, 0m of 2 CPUs claimed by others, beside GPU-0)
        idle: 5,13 GPU-0 (1Gi) (cheapest domain with room: last-level cache 5,13, 0m of 2 CPUs claimed by others, beside GPU-0)
        two: 5,13 GPU-0 (1Gi) GPU-1 (1Gi) (cheapest domain with room: last-level cache 5,13, 0m of 2 CPUs claimed by others, beside GPU-0 and GPU-1)
        three: NotAligned: gpu.align required: no CPUs beside GPU-0 and GPU-1 and GPU-4: they are not on one known NUMA node with CPUs; choose `align: preferred` to run elsewhere
        many: InsufficientCpu: cpu.request 9 does not fit: 4 of 10 CPUs are set aside for others (other 4); 6 would fit, or stop other
        lost: NotAligned: gpu.align required: no CPUs beside GPU-4: they are not on one known NUMA node with CPUs; choose `align: preferred` to run elsewhere
        ");
    }
}
