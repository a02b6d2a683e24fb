//! GPU placement: whole devices and memory shares, both best fit; several devices close to each other.
//!
//! Best fit keeps what is left over in one piece: the device whose remaining memory is smallest still enough takes a share, and of the
//! free devices the smallest suitable one is taken whole. Most-free-first, the obvious rule, breaks into every device early and then
//! rejects whole-device requests that best fit still serves (`tests/allocation.rs` has the figures).
//!
//! Guarantees: a device is whole to one or shared by several whose shares fit its memory, never both; memory that strangers use is not
//! given away; nothing new is put on a device that is not well; the devices of one lease are of one maker.

mod nearest;
mod regroup;

pub use regroup::movers;

use super::{Ask, Ledger, Refusal};
use crate::model::gpu::{Gpu, GpuId, GpuLease, GpuRequest, Health, Share, Vendor};
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::record::Grant;
use crate::model::units::Bytes;
use std::collections::BTreeMap;

/// Memory that may be in use on a device that counts as free, as a part of it: drivers and displays keep some (NVIDIA's about 1 % of a
/// large device), and a stranger who computes uses far more.
const OVERHEAD_PART: u64 = 32;
/// Workloads, or kinds of devices, that one message names.
const NAMED_MAX: usize = 8;

/// Finds devices.
pub fn place(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    request: &GpuRequest,
) -> Result<Vec<GpuLease>, Refusal> {
    let suitable: Vec<&Gpu> = machine.gpus.iter().filter(|gpu| suits(gpu, request)).collect();
    place_among(machine, ledger, ask, request, &suitable)
}

/// Finds devices of one NUMA node.
pub fn place_on(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    request: &GpuRequest,
    node: u32,
) -> Result<Vec<GpuLease>, Refusal> {
    let is_there = |gpu: &&Gpu| gpu.node == Some(node) && suits(gpu, request);
    let suitable: Vec<&Gpu> = machine.gpus.iter().filter(is_there).collect();
    place_among(machine, ledger, ask, request, &suitable)
}

fn place_among(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    request: &GpuRequest,
    suitable: &[&Gpu],
) -> Result<Vec<GpuLease>, Refusal> {
    let count = usize::try_from(request.count).unwrap_or(usize::MAX);
    if suitable.len() < count {
        let has = format!("this host has {} suitable of {}", suitable.len(), machine.gpus.len());
        let message = format!("{request} asked for, {has}{}", instead(machine, ledger, ask, request));
        return Err(Refusal { reason: "NoSuchGpu", message });
    }
    let mut free: Vec<(&Gpu, u64)> =
        suitable.iter().filter_map(|gpu| Some((*gpu, room(gpu, ledger, ask, request)?))).collect();
    let held = |gpu: &Gpu| ask.previous.is_some_and(|grant| grant.gpus.iter().any(|lease| lease.gpu == gpu.id));
    let doubtful = |gpu: &Gpu| gpu.health != Health::Healthy;
    free.sort_by(|(a, room_a), (b, room_b)| {
        (doubtful(a), room_a, !held(a), &a.id).cmp(&(doubtful(b), room_b, !held(b), &b.id))
    });
    let mut makers: BTreeMap<Vendor, Vec<&Gpu>> = BTreeMap::new();
    for (gpu, _) in &free {
        makers.entry(gpu.vendor).or_default().push(gpu);
    }
    let mut sets = makers.values().filter(|of| of.len() >= count).map(|of| closest(of, count));
    let first = free.first().map(|(gpu, _)| gpu.vendor);
    // Of several makers the one whose device fits best.
    let set = sets.clone().find(|set| set.first().map(|gpu| gpu.vendor) == first).or_else(|| sets.next());
    let Some(set) = set else { return Err(busy(suitable, free.len(), ledger, ask, request)) };
    let share = request.memory.map_or(Share::Whole, Share::Memory);
    let fit = free.len();
    let reason = |gpu: &Gpu| match (set.len(), request.memory) {
        _ if held(gpu) => "it had it before".to_owned(),
        _ if suitable.len() == 1 => "the only one that suits".to_owned(),
        _ if fit == set.len() => format!("of {} that suit nothing else is free", suitable.len()),
        (1, None) => format!("the smallest of {fit} that are free"),
        (1, Some(_)) => format!("of {fit} with room the one with the least left over"),
        (count, _) => format!("of {fit} that are free the {count} closest to each other"),
    };
    Ok(set.iter().map(|gpu| GpuLease::of(gpu, share, &reason(gpu))).collect())
}

/// What there is where nothing suits, and what of it would do.
fn instead(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest) -> String {
    if !machine.gpu_trouble.is_empty() {
        return format!("; there may be others: {}", machine.gpu_trouble.join("; "));
    }
    if machine.gpus.is_empty() {
        return "; start the controller with --simulate-gpus 1x16Gi to try without one".to_owned();
    }
    let of_model: Vec<&Gpu> = machine.gpus.iter().filter(|gpu| is_of_model(gpu, request)).collect();
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for gpu in if of_model.is_empty() { machine.gpus.iter().collect() } else { of_model.clone() } {
        *kinds.entry(format!("{} of {}", gpu.model, gpu.memory.rounded())).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} x {kind}")).collect();
    format!("; there is {}{}", few(&kinds), nearest::nearest(&of_model, ledger, ask, request))
}

/// The first ones of a list, and how many more there are.
fn few(words: &[String]) -> String {
    let more = match words.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    words.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ") + &more
}

fn busy(suitable: &[&Gpu], free: usize, ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest) -> Refusal {
    let mut message = format!("{request} asked for, {free} of {} suitable are free now", suitable.len());
    let holds = |name: &&Name| {
        let leases = ledger.get(name).map(|holding| holding.grant.gpus.as_slice()).unwrap_or_default();
        leases.iter().any(|lease| suitable.iter().any(|gpu| gpu.id == lease.gpu))
    };
    let holders: Vec<String> = holders(ledger, ask).filter(holds).map(Name::to_string).collect();
    if !holders.is_empty() {
        message.push_str(&format!("; held by {}", few(&holders)));
    }
    for gpu in suitable {
        if !gpu.health.takes_work() {
            message.push_str(&format!("; {} is {}", gpu.id, gpu.health));
        } else if strangers(gpu) > 0 {
            message.push_str(&format!("; others use {} of {}", gpu.foreign.rounded(), gpu.id));
        }
    }
    message += &nearest::nearest(suitable, ledger, ask, request);
    Refusal { reason: "GpuBusy", message }
}

/// Of devices in order of preference, so many that are close: the first ones, unless others are closer to each other.
///
/// From each device in turn the nearest to those already taken is added; the set with the smallest sum of distances is the best, the
/// first of equals. That is no optimum for odd topologies, and exact where closeness is a tree, as with PCI.
fn closest<'a>(free: &[&'a Gpu], count: usize) -> Vec<&'a Gpu> {
    let grown = |start: usize| {
        let mut set = vec![start];
        let mut total = 0u32;
        while set.len() < count {
            let sum = |at: usize| set.iter().map(|in_it| distance(free[at], free[*in_it])).sum::<u32>();
            let next = (0..free.len()).filter(|at| !set.contains(at)).min_by_key(|at| (sum(*at), *at));
            let Some(next) = next else { break };
            total += sum(next);
            set.push(next);
        }
        set.sort_unstable();
        (total, set)
    };
    let best = (0..free.len()).map(grown).min();
    best.map_or_else(Vec::new, |(_, set)| set.into_iter().map(|at| free[at]).collect())
}

/// How far apart two devices are: linked, behind one switch, behind one root, on one node, or none of it.
fn distance(a: &Gpu, b: &Gpu) -> u32 {
    const LINKED: u32 = 0;
    const ROOT: u32 = 4;
    const NODE: u32 = 5;
    const FAR: u32 = 6;
    if a.links.contains(&b.id) {
        return LINKED;
    }
    let shared = a.bus.iter().zip(&b.bus).take_while(|(a, b)| a == b).count();
    match (shared, a.node, b.node) {
        // The more of the way is common, the closer; a switch deeper than three levels is not met in practice.
        (1.., _, _) => ROOT - u32::try_from(shared - 1).unwrap_or(u32::MAX).min(ROOT - 1),
        (0, Some(a), Some(b)) if a != b => FAR,
        (0, _, _) => NODE,
    }
}

/// Whether devices leased earlier are still what is asked for, and still there.
pub fn still_good(machine: &Machine, ask: &Ask<'_>, grant: &Grant) -> bool {
    let Some(request) = ask.gpu else { return grant.gpus.is_empty() };
    let share = request.memory.map_or(Share::Whole, Share::Memory);
    let good =
        |lease: &GpuLease| lease.share == share && find(machine, &lease.gpu).is_some_and(|gpu| suits(gpu, request));
    u32::try_from(grant.gpus.len()) == Ok(request.count) && grant.gpus.iter().all(good)
}

/// The leases of an earlier run for another one, if they serve: the devices well, and the room still there.
pub fn again(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, grant: &Grant) -> Option<Vec<GpuLease>> {
    let request = ask.gpu?;
    if !still_good(machine, ask, grant) {
        return None;
    }
    let renew = |lease: &GpuLease| {
        let gpu = find(machine, &lease.gpu)?;
        room(gpu, ledger, ask, request).map(|_| GpuLease::of(gpu, lease.share, &lease.reason))
    };
    grant.gpus.iter().map(renew).collect()
}

fn find<'a>(machine: &'a Machine, id: &GpuId) -> Option<&'a Gpu> {
    machine.gpus.iter().find(|gpu| gpu.id == *id)
}

fn is_of_model(gpu: &Gpu, request: &GpuRequest) -> bool {
    request.model.as_ref().is_none_or(|model| gpu.model.to_lowercase().contains(&model.to_lowercase()))
}

fn suits(gpu: &Gpu, request: &GpuRequest) -> bool {
    is_of_model(gpu, request) && request.memory.is_none_or(|memory| memory <= gpu.memory)
}

/// The memory that strangers use, where it is more than what drivers keep.
fn strangers(gpu: &Gpu) -> u64 {
    if gpu.foreign.0 > gpu.memory.0 / OVERHEAD_PART { gpu.foreign.0 } else { 0 }
}

/// The memory free on a device for this request, or none if it cannot be had.
fn room(gpu: &Gpu, ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest) -> Option<u64> {
    beside(gpu, ledger, ask, request, &|_| true)
}

/// The same, beside those of the others that stay.
fn beside(
    gpu: &Gpu,
    ledger: &Ledger,
    ask: &Ask<'_>,
    request: &GpuRequest,
    stays: &dyn Fn(&Name) -> bool,
) -> Option<u64> {
    if !gpu.health.takes_work() {
        return None;
    }
    let staying = ledger.others(ask.name).filter(|(name, _)| stays(name));
    let leases = staying.flat_map(|(_, holding)| &holding.grant.gpus).filter(|lease| lease.gpu == gpu.id);
    let mut used = strangers(gpu);
    for lease in leases {
        match lease.share {
            Share::Whole => return None,
            Share::Memory(Bytes(memory)) => used = used.saturating_add(memory),
        }
    }
    let free = gpu.memory.0.saturating_sub(used);
    let fits = request.memory.map_or(used == 0, |Bytes(memory)| memory <= free);
    fits.then_some(free)
}

fn holders<'a>(ledger: &'a Ledger, ask: &'a Ask<'_>) -> impl Iterator<Item = &'a Name> {
    ledger.others(ask.name).filter(|(_, holding)| !holding.grant.gpus.is_empty()).map(|(name, _)| name)
}

#[cfg(test)]
mod tests;
