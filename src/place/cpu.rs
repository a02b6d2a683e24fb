//! CPU placement: the smallest topology domain with room for sharers, counted CPUs for the rest.
//!
//! Algorithm, for each class:
//! * `shared`: of the domains large enough for the limit, the smallest whose claims leave room; among equals the least loaded, then the
//!   one held before, then the lowest CPU. Without a limit, or where no domain has room, the whole pool.
//! * `idle`: the whole pool; it only runs where nobody else wants to.
//! * `pinned`: as many CPUs as requested, the least loaded of the least loaded smallest domain that has them.
//! * `exclusive`: as many CPUs as requested on cores nobody else has fenced, in the smallest domain that has them; where possible not the
//!   CPUs of pinned workloads. The cores are fenced whole, so that no neighbour shares one of their threads.

use super::{Ask, Ledger, Refusal, is_counted};
use crate::model::cpuset::CpuSet;
use crate::model::machine::Machine;
use crate::model::record::Grant;
use crate::model::spec::{CpuClass, Resources};
use crate::model::topology::Domain;
use crate::model::units::MilliCpu;
use std::cmp::Reverse;

/// CPUs set aside for one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuGrant {
    pub cpus: CpuSet,
    /// Empty unless exclusive.
    pub fenced: CpuSet,
    pub reason: String,
}

/// Finds CPUs.
pub fn place(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<CpuGrant, Refusal> {
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    match ask.resources.cpu.class {
        CpuClass::Shared => Ok(shared(machine, ledger, ask, &pool)),
        CpuClass::Idle => Ok(CpuGrant {
            reason: "class idle: all shared CPUs".to_owned(),
            cpus: everywhere(machine),
            fenced: CpuSet::new(),
        }),
        CpuClass::Pinned => pinned(machine, ledger, ask, &pool),
        CpuClass::Exclusive => exclusive(machine, ledger, ask, &pool),
    }
}

/// Requests have to fit the CPUs that are nobody's exclusively. Exclusive ones are counted where whole cores are looked for.
pub fn admit(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<(), Refusal> {
    if ask.resources.cpu.class == CpuClass::Exclusive {
        return Ok(());
    }
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    let held = ledger.pool_requested_by_others(ask.name);
    let wanted = u64::from(ask.resources.cpu.request.0);
    if wanted == 0 || held + wanted <= 1000 * pool.len() as u64 {
        return Ok(());
    }
    let message = format!(
        "cpu.request {} does not fit: {held}m of {} are set aside for others; lower a request, or stop others",
        ask.resources.cpu.request,
        counted(pool.len())
    );
    Err(Refusal { reason: "InsufficientCpu", message })
}

fn counted(cpus: usize) -> String {
    if cpus == 1 { "1 CPU".to_owned() } else { format!("{cpus} CPUs") }
}

/// Whether CPUs granted earlier still do.
pub fn still_good(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, grant: &Grant) -> bool {
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    let open = grant.cpus.intersection(&pool);
    let class = ask.resources.cpu.class;
    if (class == CpuClass::Exclusive) == grant.fenced.is_empty() {
        return false;
    }
    if is_counted(class) {
        open == grant.cpus && open.len() == ask.resources.cpu.request.cpus_ceil() && grant.fenced.is_subset(&pool)
    } else {
        // A sharer stays while its domain is not fenced below its own limit, or below what the machine can offer at all.
        !open.is_empty() && open.len() >= needed(ask.resources).min(pool.len())
    }
}

/// The grant of those who take whatever is shared: every CPU, so that they return to those an exclusive neighbour has left. What is
/// fenced at the moment is taken out when the grant is applied.
fn everywhere(machine: &Machine) -> CpuSet {
    machine.topology.usable.clone()
}

/// CPUs a sharer can keep busy.
fn needed(resources: &Resources) -> usize {
    let limit = resources.cpu.limit.at().map_or(usize::MAX, MilliCpu::cpus_ceil);
    limit.max(1)
}

/// What a workload is expected to use, in thousandths of a CPU.
fn claim(resources: &Resources) -> u64 {
    u64::from(resources.cpu.limit.at().unwrap_or(resources.cpu.request).max(resources.cpu.request).0)
}

/// What others claim of these CPUs, each spreading its claim evenly over its own.
fn load(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, cpus: &CpuSet) -> u64 {
    let share = |holding: &super::Holding| {
        let own = holding.grant.cpus.intersection(&machine.topology.usable);
        let overlap = own.intersection(cpus).len() as u64;
        // Idle work yields to everyone, so it is no load.
        if own.is_empty() || holding.resources.cpu.class == CpuClass::Idle {
            0
        } else {
            claim(&holding.resources) * overlap / own.len() as u64
        }
    };
    ledger.others(ask.name).map(|(_, holding)| share(holding)).sum()
}

/// The domains of the machine as far as they are open.
fn open_domains(machine: &Machine, pool: &CpuSet) -> Vec<Domain> {
    let narrowed = machine
        .topology
        .domains()
        .into_iter()
        .map(|Domain { level, cpus }| Domain { level, cpus: cpus.intersection(pool) });
    narrowed.filter(|domain| !domain.cpus.is_empty()).collect()
}

fn shared(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, pool: &CpuSet) -> CpuGrant {
    let (needed, claim) = (needed(ask.resources), claim(ask.resources));
    let previous = ask.previous.map(|grant| &grant.cpus);
    let fitting =
        open_domains(machine, pool).into_iter().filter(|domain| domain.cpus.len() >= needed).filter_map(|domain| {
            let load = load(machine, ledger, ask, &domain.cpus);
            let has_room = load + claim <= 1000 * domain.cpus.len() as u64;
            has_room.then_some((domain, load))
        });
    let best = fitting.min_by_key(|(domain, load)| {
        (domain.cpus.len(), *load, previous != Some(&domain.cpus), domain.cpus.iter().next())
    });
    let (cpus, reason) = match best {
        Some((domain, load)) => {
            let reason = format!(
                "smallest domain with room: {} {}, {load}m of {} CPUs claimed by others",
                domain.level,
                domain.cpus,
                domain.cpus.len()
            );
            (domain.cpus, reason)
        }
        None if ask.resources.cpu.limit.at().is_none() => {
            (everywhere(machine), "no cpu.limit: all shared CPUs".to_owned())
        }
        None => (everywhere(machine), format!("no domain has room for {claim}m: all shared CPUs")),
    };
    CpuGrant { cpus, fenced: CpuSet::new(), reason }
}

fn pinned(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, pool: &CpuSet) -> Result<CpuGrant, Refusal> {
    let count = ask.resources.cpu.request.cpus_ceil();
    let load_of = |cpus: &CpuSet| load(machine, ledger, ask, cpus);
    let best = open_domains(machine, pool)
        .into_iter()
        .filter(|domain| domain.cpus.len() >= count)
        // Loads compare per CPU, in thousandths, so that a large domain does not look busier for being large.
        .min_by_key(|domain| {
            (domain.cpus.len(), load_of(&domain.cpus) / domain.cpus.len() as u64, domain.cpus.iter().next())
        });
    let Some(domain) = best else {
        return Err(too_few(count, pool));
    };
    let held = |cpu: u32| ask.previous.is_some_and(|grant| grant.cpus.contains(cpu));
    let mut cpus: Vec<u32> = domain.cpus.iter().collect();
    cpus.sort_by_key(|&cpu| (!held(cpu), load_of(&CpuSet::from_iter([cpu])), cpu));
    let cpus: CpuSet = cpus.into_iter().take(count).collect();
    let reason = format!("class pinned: {count} least loaded CPUs of {} {}", domain.level, domain.cpus);
    Ok(CpuGrant { cpus, fenced: CpuSet::new(), reason })
}

fn too_few(count: usize, pool: &CpuSet) -> Refusal {
    let message = format!(
        "{} asked for, {} open to sharing ({pool}); lower cpu.request, or stop an exclusive workload",
        counted(count),
        counted(pool.len())
    );
    Refusal { reason: "InsufficientCpu", message }
}

fn exclusive(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, pool: &CpuSet) -> Result<CpuGrant, Refusal> {
    let count = ask.resources.cpu.request.cpus_ceil();
    // Cores that are entirely open: one whose sibling is fenced would share its pipeline with an exclusive neighbour.
    let mut cores: Vec<CpuSet> = Vec::new();
    for cpu in pool.iter() {
        let core = machine.topology.core_of(cpu).intersection(&machine.topology.usable);
        if core.is_subset(pool) && !cores.contains(&core) {
            cores.push(core);
        }
    }
    // Somebody has to run everything else, the controller included, and what others were promised of the pool has to stay in it.
    let others = ledger.others(ask.name).filter(|(_, holding)| holding.resources.cpu.class == CpuClass::Pinned);
    let widest_pinned = others.map(|(_, holding)| holding.grant.requested.cpu.cpus_ceil()).max().unwrap_or(0);
    let promised = usize::try_from(ledger.pool_requested_by_others(ask.name).div_ceil(1000)).unwrap_or(usize::MAX);
    let staying = widest_pinned.max(promised).max(1);
    let chosen = open_domains(machine, pool).into_iter().filter_map(|domain| {
        let inside: Vec<&CpuSet> = cores.iter().filter(|core| core.is_subset(&domain.cpus)).collect();
        let taken = take_cores(machine, ledger, ask, inside, count)?;
        (taken.len() + staying <= pool.len()).then_some((domain, taken))
    });
    let best = chosen.min_by_key(|(domain, taken)| {
        let moved = ask.previous.map_or(0, |grant| grant.cpus.difference(taken).len());
        (pinned_inside(ledger, ask, taken), domain.cpus.len(), moved, taken.iter().next())
    });
    let Some((domain, fenced)) = best else {
        let message = format!(
            "{} asked for exclusively, on whole cores; {} open ({pool}), of which {staying} must stay shared; \
             lower cpu.request, or stop another workload",
            counted(count),
            counted(pool.len())
        );
        return Err(Refusal { reason: "InsufficientCpu", message });
    };
    let held = |cpu: u32| ask.previous.is_some_and(|grant| grant.cpus.contains(cpu));
    let mut cpus: Vec<u32> = fenced.iter().collect();
    cpus.sort_by_key(|&cpu| (!held(cpu), cpu));
    let cpus: CpuSet = cpus.into_iter().take(count).collect();
    let reason = format!("class exclusive: {cpus} of {} {}, fenced {fenced}", domain.level, domain.cpus);
    Ok(CpuGrant { cpus, fenced, reason })
}

/// Enough whole cores for `count` CPUs, those held before and those without pinned neighbours first.
fn take_cores(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    mut cores: Vec<&CpuSet>,
    count: usize,
) -> Option<CpuSet> {
    cores.sort_by_key(|core| {
        let held = ask.previous.map_or(0, |grant| grant.cpus.intersection(core).len());
        (pinned_inside(ledger, ask, core), Reverse(held), load(machine, ledger, ask, core), core.iter().next())
    });
    let mut taken = CpuSet::new();
    for core in cores {
        if taken.len() >= count {
            break;
        }
        taken = taken.union(core);
    }
    (taken.len() >= count).then_some(taken)
}

/// How many CPUs of pinned workloads would have to move away.
fn pinned_inside(ledger: &Ledger, ask: &Ask<'_>, cpus: &CpuSet) -> usize {
    let pinned = ledger.others(ask.name).filter(|(_, holding)| holding.resources.cpu.class == CpuClass::Pinned);
    pinned.map(|(_, holding)| holding.grant.cpus.intersection(cpus).len()).sum()
}
