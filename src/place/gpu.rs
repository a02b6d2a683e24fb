//! GPU placement: whole devices and memory shares, both best fit.
//!
//! Best fit keeps what is left over in one piece: the device whose remaining memory is smallest still enough takes a share, and of the
//! free devices the smallest suitable one is taken whole. Most-free-first, the obvious rule, breaks into every device early and then
//! rejects whole-device requests that best fit still serves.

use super::{Ask, Ledger, Refusal};
use crate::model::gpu::{Gpu, GpuLease, GpuRequest, Share};
use crate::model::machine::Machine;
use crate::model::record::Grant;
use crate::model::units::Bytes;

/// Finds devices.
pub fn place(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    request: &GpuRequest,
) -> Result<Vec<GpuLease>, Refusal> {
    let count = usize::try_from(request.count).unwrap_or(usize::MAX);
    let suitable: Vec<&Gpu> = machine.gpus.iter().filter(|gpu| suits(gpu, request)).collect();
    if suitable.len() < count {
        let help = if machine.gpus.is_empty() {
            "; start the controller with --simulate-gpus 1x16Gi to try without one"
        } else {
            ""
        };
        let message =
            format!("{request} asked for, this host has {} suitable of {}{help}", suitable.len(), machine.gpus.len());
        return Err(Refusal { reason: "NoSuchGpu", message });
    }
    let mut free: Vec<(&Gpu, u64)> =
        suitable.iter().filter_map(|gpu| Some((*gpu, room(gpu, ledger, ask, request)?))).collect();
    if free.len() < count {
        let message = format!(
            "{request} asked for, {} of {} suitable are free now; held by {}",
            free.len(),
            suitable.len(),
            holders(ledger, ask)
        );
        return Err(Refusal { reason: "GpuBusy", message });
    }
    let held = |gpu: &Gpu| ask.previous.is_some_and(|grant| grant.gpus.iter().any(|lease| lease.gpu == gpu.id));
    free.sort_by(|(a, room_a), (b, room_b)| (room_a, !held(a), &a.id).cmp(&(room_b, !held(b), &b.id)));
    let share = request.memory.map_or(Share::Whole, Share::Memory);
    Ok(free.into_iter().take(count).map(|(gpu, _)| GpuLease { gpu: gpu.id.clone(), share }).collect())
}

/// Whether devices leased earlier are still what is asked for, and still there.
pub fn still_good(machine: &Machine, ask: &Ask<'_>, grant: &Grant) -> bool {
    let Some(request) = ask.gpu else { return grant.gpus.is_empty() };
    let share = request.memory.map_or(Share::Whole, Share::Memory);
    let good = |lease: &GpuLease| {
        lease.share == share && machine.gpus.iter().any(|gpu| gpu.id == lease.gpu && suits(gpu, request))
    };
    u32::try_from(grant.gpus.len()) == Ok(request.count) && grant.gpus.iter().all(good)
}

fn suits(gpu: &Gpu, request: &GpuRequest) -> bool {
    let model = request.model.as_ref().is_none_or(|model| gpu.model.to_lowercase().contains(&model.to_lowercase()));
    model && request.memory.is_none_or(|memory| memory <= gpu.memory)
}

/// The memory free on a device for this request, or none if it cannot be had.
fn room(gpu: &Gpu, ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest) -> Option<u64> {
    let leases =
        ledger.others(ask.name).flat_map(|(_, holding)| &holding.grant.gpus).filter(|lease| lease.gpu == gpu.id);
    let mut used = 0u64;
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

fn holders(ledger: &Ledger, ask: &Ask<'_>) -> String {
    let holders: Vec<&str> = ledger
        .others(ask.name)
        .filter(|(_, holding)| !holding.grant.gpus.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    holders.join(", ")
}
