//! Admission: whether what is asked for may still be promised; if not, what is missing, who holds it, and what would fit instead.
//!
//! A promise is a request: of memory against what the machine has, less a reserve, times the overcommit factor; of CPU time against the
//! CPUs that are nobody's exclusively, times theirs. Counted CPUs and GPUs are found one by one, and never promised twice
//! (`cpu::counted`, `gpu`). Whoever asks for nothing is always admitted.
//!
//! A refusal names the nearest configuration that would fit: the largest request that would, and the fewest others to stop instead, the
//! smallest of these that do. It is what would fit now; whoever else waits may be first.

use super::{Advice, Ask, Holding, Ledger, Refusal, cpu, gpu};
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::spec::{CpuClass, Spec};
use crate::model::units::{Bytes, MilliCpu};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

/// Holders that are named in a refusal: the largest are most of what is held nearly always, and a line has to be read.
const NAMED_MAX: usize = 3;
/// Holders that are tried as the ones that may stay. Each try is a search of its own, in every pass that refuses.
const TRIED_MAX: usize = 16;

/// A kind of thing that is given out and may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scarce {
    Memory,
    Cpu,
    Gpu,
}

impl Scarce {
    /// Whether a workload sets any of it aside for itself.
    pub fn is_asked_for(self, spec: &Spec) -> bool {
        match self {
            Scarce::Memory => spec.resources.memory.request.0 > 0,
            Scarce::Cpu => spec.resources.cpu.request.0 > 0,
            Scarce::Gpu => spec.gpu.is_some(),
        }
    }
}

impl fmt::Display for Scarce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Scarce::Memory => "memory",
            Scarce::Cpu => "CPUs",
            Scarce::Gpu => "GPUs",
        })
    }
}

/// What there is not enough of for this.
pub fn lacks(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> BTreeSet<Scarce> {
    let ask = &ask.on_trial();
    let missing = [
        (Scarce::Memory, memory(machine, ledger, ask).is_err()),
        (Scarce::Cpu, cpu_time(machine, ledger, ask).is_err() || cpu::place(machine, ledger, ask).is_err()),
        (Scarce::Gpu, ask.gpu.is_some_and(|request| gpu::place(machine, ledger, ask, request).is_err())),
    ];
    missing.into_iter().filter(|(_, is_missing)| *is_missing).map(|(what, _)| what).collect()
}

/// Requests have to fit the machine.
pub fn admit(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<(), Refusal> {
    memory(machine, ledger, ask)?;
    cpu_time(machine, ledger, ask)
}

fn memory(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<(), Refusal> {
    let held = ledger.memory_requested_by_others(ask.name);
    let wanted = ask.resources.memory.request.0;
    let all = machine.admission.memory(machine.memory).0;
    if wanted == 0 || held.saturating_add(wanted) <= all {
        return Ok(());
    }
    let reason = "InsufficientMemory";
    if ask.advice == Advice::Spared {
        return Err(Refusal { reason, message: String::new() });
    }
    let shortage = Shortage {
        what: "memory.request",
        wanted: Bytes(wanted).to_string(),
        held: Bytes(held).rounded(),
        of: machine.admission.memory_told(machine.memory),
        free: all.saturating_sub(held),
        missing: held.saturating_add(wanted).saturating_sub(all),
        holders: holders(ledger, ask, |holding| holding.grant.requested.memory.0),
        // In whole Mi, rounded down: what is named has to fit, and to be written without counting bytes.
        nearest: |free| {
            Some(Bytes(free >> 20 << 20)).filter(|nearest| nearest.0 > 0).map(|nearest| nearest.to_string())
        },
        told: |held| Bytes(held).rounded(),
    };
    Err(Refusal { reason, message: shortage.told() })
}

/// Exclusive CPUs are counted where whole cores are looked for.
fn cpu_time(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<(), Refusal> {
    if ask.resources.cpu.class == CpuClass::Exclusive {
        return Ok(());
    }
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    let held = ledger.pool_requested_by_others(ask.name);
    let wanted = u64::from(ask.resources.cpu.request.0);
    let all = machine.admission.cpu_milli(pool.len());
    if wanted == 0 || held + wanted <= all {
        return Ok(());
    }
    let reason = "InsufficientCpu";
    if ask.advice == Advice::Spared {
        return Err(Refusal { reason, message: String::new() });
    }
    let milli = |milli: u64| MilliCpu(u32::try_from(milli).unwrap_or(u32::MAX)).to_string();
    let shortage = Shortage {
        what: "cpu.request",
        wanted: milli(wanted),
        held: milli(held),
        of: machine.admission.cpus_told(pool.len()),
        free: all.saturating_sub(held),
        missing: (held + wanted).saturating_sub(all),
        holders: holders(ledger, ask, Holding::pool_request),
        nearest: |free| (free > 0).then(|| MilliCpu(u32::try_from(free).unwrap_or(u32::MAX)).to_string()),
        told: milli,
    };
    Err(Refusal { reason, message: shortage.told() })
}

/// The others who hold any of it, the largest first.
fn holders<'a>(ledger: &'a Ledger, ask: &'a Ask<'_>, held: impl Fn(&Holding) -> u64) -> Vec<(&'a Name, u64)> {
    let others = ledger.others(ask.name).map(|(name, holding)| (name, held(holding)));
    let mut holders: Vec<(&Name, u64)> = others.filter(|(_, held)| *held > 0).collect();
    holders.sort_by_key(|(name, held)| (Reverse(*held), *name));
    holders
}

/// Something that is promised in sums and is not left.
struct Shortage<'a> {
    what: &'static str,
    wanted: String,
    held: String,
    of: String,
    free: u64,
    missing: u64,
    holders: Vec<(&'a Name, u64)>,
    /// How a request for so much is written, if any may be made.
    nearest: fn(u64) -> Option<String>,
    told: fn(u64) -> String,
}

impl Shortage<'_> {
    fn told(&self) -> String {
        let Shortage { what, wanted, held, of, free, missing, holders, nearest, told } = self;
        let mut message = format!("{what} {wanted} does not fit: {held} of {of} are set aside for others");
        if !holders.is_empty() {
            let named: Vec<String> =
                holders.iter().take(NAMED_MAX).map(|(name, held)| format!("{name} {}", told(*held))).collect();
            let more = holders.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(", {more} more") } else { String::new() };
            message += &format!(" ({}{more})", named.join(", "));
        }
        message + &advice(nearest(*free), &fewest(holders, *missing))
    }
}

/// The fewest holders that hold so much together; of single ones the smallest that does. None if not even all of them do.
fn fewest<'a>(largest_first: &[(&'a Name, u64)], missing: u64) -> Vec<&'a Name> {
    if let Some((name, _)) = largest_first.iter().rev().find(|(_, held)| *held >= missing) {
        return vec![name];
    }
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for (name, held) in largest_first {
        if freed >= missing {
            break;
        }
        freed = freed.saturating_add(*held);
        chosen.push(*name);
    }
    if freed >= missing { chosen } else { Vec::new() }
}

/// Of these holders, as few as make it fit when they are gone, if all of them do: whoever may stay stays, the last named first.
pub(super) fn least<'a>(holders: &[&'a Name], fits_without: impl Fn(&BTreeSet<&Name>) -> bool) -> Vec<&'a Name> {
    let mut gone: BTreeSet<&'a Name> = holders.iter().copied().collect();
    if gone.is_empty() || !fits_without(&gone) {
        return Vec::new();
    }
    for name in holders.iter().rev().take(TRIED_MAX) {
        gone.remove(name);
        if !fits_without(&gone) {
            gone.insert(name);
        }
    }
    gone.into_iter().collect()
}

/// What to do about it: the largest request that would fit, or whom to stop.
pub(super) fn advice(nearest: Option<String>, to_stop: &[&Name]) -> String {
    let stop = match to_stop {
        [] => None,
        few if few.len() <= NAMED_MAX => {
            Some(format!("stop {}", few.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" and ")))
        }
        many => Some(format!("stop {} others", many.len())),
    };
    match (nearest, stop) {
        (Some(nearest), Some(stop)) => format!("; {nearest} would fit, or {stop}"),
        (Some(nearest), None) => format!("; {nearest} would fit"),
        (None, Some(stop)) => format!("; {stop}"),
        (None, None) => "; it cannot fit this host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::model::admission::Admission;
    use crate::model::topology::tests::flat;
    use crate::model::units::Bytes;
    use crate::place::tests::{machine, place_all};

    #[test]
    fn a_refusal_names_what_would_fit_and_the_fewest_to_stop() {
        let (_, shown) = place_all(
            &machine(flat(4)),
            &[
                ("small", "memory: {request: 1Gi}"),
                ("db", "memory: {request: 5Gi}"),
                ("web", "memory: {request: 7500Mi}"),
                ("one", "memory: {request: 4Gi}"),
                ("either", "memory: {request: 9Gi}"),
                ("both", "memory: {request: 15Gi}"),
                ("never", "memory: {request: 17Gi}"),
                ("fits", "memory: {request: 2740Mi}"),
            ],
        );
        insta::assert_snapshot!(shown, @"
        small: 0-3 (no cpu.limit: all shared CPUs)
        db: 0-3 (no cpu.limit: all shared CPUs)
        web: 0-3 (no cpu.limit: all shared CPUs)
        one: InsufficientMemory: memory.request 4Gi does not fit: 13.3Gi of 16Gi are set aside for others (web 7.3Gi, db 5Gi, small 1Gi); 2740Mi would fit, or stop db
        either: InsufficientMemory: memory.request 9Gi does not fit: 13.3Gi of 16Gi are set aside for others (web 7.3Gi, db 5Gi, small 1Gi); 2740Mi would fit, or stop web
        both: InsufficientMemory: memory.request 15Gi does not fit: 13.3Gi of 16Gi are set aside for others (web 7.3Gi, db 5Gi, small 1Gi); 2740Mi would fit, or stop web and db
        never: InsufficientMemory: memory.request 17Gi does not fit: 13.3Gi of 16Gi are set aside for others (web 7.3Gi, db 5Gi, small 1Gi); 2740Mi would fit
        fits: 0-3 (no cpu.limit: all shared CPUs)
        ");
    }

    #[test]
    fn a_reserve_lowers_and_a_factor_raises_what_may_be_promised() {
        let mut host = machine(flat(2));
        host.admission = Admission { memory_reserved: Bytes(2 << 30), overcommit: "cpu=1.5,memory=2".parse().unwrap() };
        let (_, shown) = place_all(
            &host,
            &[
                ("a", "memory: {request: 14Gi}\ncpu: {request: 2}"),
                ("b", "memory: {request: 14Gi}"),
                ("c", "memory: {request: 1Mi}"),
                ("d", "cpu: {request: 1500m}"),
                ("e", "cpu: {request: 1}"),
                ("f", "cpu: {request: 10m}"),
            ],
        );
        insta::assert_snapshot!(shown, @"
        a: 0-1 (no cpu.limit: all shared CPUs)
        b: 0-1 (no cpu.limit: all shared CPUs)
        c: InsufficientMemory: memory.request 1Mi does not fit: 28Gi of 28Gi (16Gi less 2Gi reserved, times 2) are set aside for others (a 14Gi, b 14Gi); stop b
        d: InsufficientCpu: cpu.request 1500m does not fit: 2 of 2 CPUs times 1.5 are set aside for others (a 2); 1 would fit, or stop a
        e: 0-1 (no cpu.limit: all shared CPUs)
        f: InsufficientCpu: cpu.request 10m does not fit: 3 of 2 CPUs times 1.5 are set aside for others (a 2, e 1); stop e
        ");
        host.admission.overcommit = "memory=1".parse().unwrap();
        let (_, shown) = place_all(&host, &[("a", "memory: {request: 14Gi}"), ("b", "memory: {request: 1Gi}")]);
        insta::assert_snapshot!(shown, @"
        a: 0-1 (no cpu.limit: all shared CPUs)
        b: InsufficientMemory: memory.request 1Gi does not fit: 14Gi of 14Gi (16Gi less 2Gi reserved) are set aside for others (a 14Gi); stop a
        ");
    }

    #[test]
    fn who_is_to_be_alone_keeps_what_the_factor_has_promised_of_the_rest() {
        // Three CPUs' worth is promised of four at twice their number: two have to stay, and two may go.
        let mut host = machine(flat(4));
        host.admission.overcommit = "cpu=2".parse().unwrap();
        let (_, shown) = place_all(
            &host,
            &[
                ("shared", "cpu: {request: 3}"),
                ("alone", "cpu: {class: exclusive, request: 3}"),
                ("two", "cpu: {class: exclusive, request: 2}"),
            ],
        );
        insta::assert_snapshot!(shown, @"
        shared: 0-3 (no cpu.limit: all shared CPUs)
        alone: InsufficientCpu: 3 CPUs asked for exclusively, on whole cores; 4 CPUs open (0-3), of which 2 must stay shared; 2 would fit
        two: 0-1 (class exclusive: 0-1 of machine 0-3, fenced 0-1)
        ");
    }
}
