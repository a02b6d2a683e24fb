//! Devices that cannot be had now: what could be, and who would have to leave.

use super::{Ask, GpuRequest, Ledger, beside, holders};
use crate::model::gpu::Gpu;
use crate::model::name::Name;
use crate::model::units::Bytes;
use crate::place::Advice;
use crate::place::admit::{advice, least};
use std::collections::BTreeMap;

/// What to do where no set of these devices serves the request. Nothing is said on trial.
pub(super) fn nearest(suitable: &[&Gpu], ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest) -> String {
    if ask.advice == Advice::Spared {
        return String::new();
    }
    let count = usize::try_from(request.count).unwrap_or(usize::MAX);
    let serves = |request: &GpuRequest, stays: &dyn Fn(&Name) -> bool| {
        let mut of_maker: BTreeMap<_, usize> = BTreeMap::new();
        for gpu in suitable.iter().filter(|gpu| beside(gpu, ledger, ask, request, stays).is_some()) {
            *of_maker.entry(gpu.vendor).or_default() += 1;
        }
        of_maker.into_values().max().unwrap_or(0)
    };
    let all_stay = |_: &Name| true;
    let could = match request.memory {
        None => Some(serves(request, &all_stay)).filter(|free| *free > 0).map(|free| free.to_string()),
        Some(_) => share(suitable, ledger, ask, request, count),
    };
    let holders: Vec<&Name> = holders(ledger, ask).collect();
    let to_stop = least(&holders, |gone| serves(request, &|other| !gone.contains(other)) >= count);
    match (could, to_stop.is_empty()) {
        // Not even alone: what is said of each device tells why.
        (None, true) => String::new(),
        (could, _) => advice(could, &to_stop),
    }
}

/// The largest share that could be had on each of `count` devices, in whole Mi.
fn share(suitable: &[&Gpu], ledger: &Ledger, ask: &Ask<'_>, request: &GpuRequest, count: usize) -> Option<String> {
    let any = GpuRequest { memory: Some(Bytes(1)), ..request.clone() };
    let mut free: Vec<u64> = suitable.iter().filter_map(|gpu| beside(gpu, ledger, ask, &any, &|_| true)).collect();
    free.sort_unstable_by(|a, b| b.cmp(a));
    let most = free.get(count.checked_sub(1)?)? >> 20 << 20;
    (most > 0).then(|| Bytes(most).to_string())
}
