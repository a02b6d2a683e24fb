//! Who could be started anew on other devices so that somebody fits: `gpu.rebalance: restart`.
//!
//! Problem: shares lie scattered over devices, and a workload that needs a whole one waits although there is memory enough for all.
//! Approach: devices are cleared one by one, the one with the least on it first, if all who hold any of it said that they may be started
//! anew; as soon as the one who waits fits, and they do too, whoever of them is placed first, that is the answer.
//! Gain rule: a restart loses work that is in memory, the more the larger the share. What is moved has to be less than what the newcomer gets, both
//! in thousandths of a device; a move that only makes the picture tidier gains nothing and is never made.
//! Guarantee: nobody is moved who would not have a place afterwards.

use super::{Ask, Bytes, Gpu, GpuId, GpuRequest, Ledger, Share, suits};
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::place::{Holding, Scarce, lacks, place};
use std::collections::{BTreeMap, BTreeSet};

/// The workloads to start anew, of those that may be, for `ask` to be placed. None if nothing is gained.
pub fn movers<'a>(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    movable: &BTreeMap<&'a Name, Ask<'_>>,
) -> BTreeSet<&'a Name> {
    let (Some(request), false) = (ask.gpu, movable.is_empty()) else { return BTreeSet::new() };
    if lacks(machine, ledger, ask) != BTreeSet::from([Scarce::Gpu]) {
        return BTreeSet::new();
    }
    let gain = wanted(machine, request);
    let mut devices: Vec<(u64, &GpuId, BTreeSet<&'a Name>)> = Vec::new();
    for gpu in machine.gpus.iter().filter(|gpu| gpu.health.takes_work() && suits(gpu, request)) {
        let holds = |holding: &Holding| holding.grant.gpus.iter().any(|lease| lease.gpu == gpu.id);
        let holders: Vec<&Name> =
            ledger.others(ask.name).filter(|(_, holding)| holds(holding)).map(|(name, _)| name).collect();
        let known: BTreeSet<&'a Name> =
            holders.iter().filter_map(|name| movable.get_key_value(*name)).map(|(name, _)| *name).collect();
        if !holders.is_empty() && known.len() == holders.len() {
            devices.push((cost(machine, ledger, &known), &gpu.id, known));
        }
    }
    devices.sort();
    let mut moved = BTreeSet::new();
    for (_, _, holders) in &devices {
        moved.extend(holders.iter().copied());
        if cost(machine, ledger, &moved) >= gain {
            return BTreeSet::new();
        }
        if all_fit(machine, ledger, ask, movable, &moved) {
            return moved;
        }
    }
    BTreeSet::new()
}

/// Whether the newcomer and those that move have places, whoever comes first.
fn all_fit(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    movable: &BTreeMap<&Name, Ask<'_>>,
    moved: &BTreeSet<&Name>,
) -> bool {
    let movers: Vec<&Ask<'_>> = moved.iter().filter_map(|name| movable.get(*name)).collect();
    let newcomer_first = std::iter::once(ask).chain(movers.iter().copied());
    let newcomer_last = movers.iter().copied().chain([ask]);
    [newcomer_first.collect::<Vec<_>>(), newcomer_last.collect()].iter().all(|order| {
        let mut trial = ledger.clone();
        for name in moved {
            trial.remove(name);
        }
        order.iter().all(|ask| match place(machine, &trial, &ask.on_trial()) {
            Ok(grant) => {
                trial.put(ask.name.clone(), Holding { resources: ask.resources.clone(), grant });
                true
            }
            Err(_) => false,
        })
    })
}

/// What these hold, in thousandths of a device.
fn cost(machine: &Machine, ledger: &Ledger, names: &BTreeSet<&Name>) -> u64 {
    let leases = names.iter().filter_map(|name| ledger.get(name)).flat_map(|holding| &holding.grant.gpus);
    leases.map(|lease| part(machine.gpus.iter().find(|gpu| gpu.id == lease.gpu), lease.share)).sum()
}

/// What a request gets, on the largest device it may be given: there it is the least.
fn wanted(machine: &Machine, request: &GpuRequest) -> u64 {
    let largest = machine.gpus.iter().filter(|gpu| suits(gpu, request)).max_by_key(|gpu| gpu.memory);
    u64::from(request.count) * part(largest, request.memory.map_or(Share::Whole, Share::Memory))
}

fn part(gpu: Option<&Gpu>, share: Share) -> u64 {
    match (share, gpu) {
        (Share::Whole, _) | (_, None) => 1000,
        (Share::Memory(Bytes(bytes)), Some(gpu)) => {
            u64::try_from(u128::from(bytes) * 1000 / u128::from(gpu.memory.0.max(1))).unwrap_or(1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::Spec;
    use crate::model::topology::tests::flat;
    use crate::place::tests::{machine, place_all, spec};

    /// Who moves for `ask`, on two devices of 16 Gi and one of 80 Gi.
    fn check(running: &[(&str, &str)], ask: &str) -> String {
        let host = machine(flat(4));
        let (ledger, _) = place_all(&host, running);
        let specs: Vec<Spec> = running.iter().map(|(name, fields)| spec(name, fields)).collect();
        let may_move =
            |spec: &&Spec| spec.gpu.as_ref().is_some_and(|gpu| gpu.rebalance == crate::model::gpu::Rebalance::Restart);
        let movable = specs.iter().filter(may_move).map(|spec| (&spec.name, Ask::of(spec, None))).collect();
        let asker = spec("asker", ask);
        let moved = movers(&host, &ledger, &Ask::of(&asker, None), &movable);
        moved.into_iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_share_moves_where_that_makes_a_device_whole() {
        let small = "gpu: {memory: 6Gi, rebalance: restart}";
        let (a, b, whole) = (("a", small), ("b", "gpu: {memory: 12Gi}"), ("c", "gpu: {memory: 70Gi}"));
        // a is alone on the first device, b on the second, c on the large one, which has 10 Gi left.
        assert_eq!(check(&[a, b, whole], "gpu: true"), "a");
        assert_eq!(check(&[a, b, ("c", "gpu: {memory: 79Gi}")], "gpu: true"), "", "it would have no place itself");
        assert_eq!(check(&[("a", "gpu: {memory: 6Gi}"), b, whole], "gpu: true"), "", "it did not say that it may");
        assert_eq!(check(&[a, b, whole], "gpu: {memory: 11Gi, model: simulated}"), "", "it fits without");
        assert_eq!(check(&[a, b, whole], "memory: {request: 99Gi}\ngpu: true"), "", "devices are not all it lacks");
    }

    #[test]
    fn what_is_moved_is_less_than_what_is_gained() {
        let large = "gpu: {memory: 9Gi, rebalance: restart}";
        let held = [("a", large), ("b", "gpu: {memory: 12Gi}"), ("c", "gpu: {memory: 70Gi}")];
        assert_eq!(check(&held, "gpu: true"), "a");
        assert_eq!(check(&held, "gpu: {memory: 15Gi}"), "", "0.56 of a device for 0.19 of the largest");
        let two = [("a", "gpu: {rebalance: restart}"), ("b", "gpu: true"), ("c", "gpu: {memory: 60Gi}")];
        assert_eq!(check(&two, "gpu: true"), "", "one whole device for another");
    }
}
