//! CPU placement: the smallest topology domain with room for sharers, counted CPUs for the rest.
//!
//! Algorithm, for each class:
//! * `shared`: of the domains large enough for the limit, the smallest whose claims leave room; among equals the least loaded, then the
//!   one held before, then the lowest CPU. Without a limit, or where no domain has room, the whole pool.
//! * `idle`: the whole pool; it only runs where nobody else wants to.
//! * `pinned`: as many CPUs as requested, the least loaded of the least loaded smallest domain that has them (`counted`).
//! * `exclusive`: as many CPUs as requested that nobody else uses (`counted`).
//!
//! Whoever requires alignment gets CPUs of one NUMA node: the same choice among the domains that lie in one, or a refusal.

mod counted;
mod nearest;

use super::wear::claim;
use super::{Ask, Ledger, Refusal, is_counted};
use crate::model::cpuset::CpuSet;
use crate::model::machine::Machine;
use crate::model::record::Grant;
use crate::model::spec::{Align, CpuClass, Resources};
use crate::model::topology::Domain;
use crate::model::units::MilliCpu;

/// CPUs set aside for one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuGrant {
    pub cpus: CpuSet,
    /// Empty unless exclusive.
    pub fenced: CpuSet,
    pub reason: String,
}

/// Where one workload may go, and what others expect of the CPUs there.
struct Search<'a> {
    machine: &'a Machine,
    ledger: &'a Ledger,
    ask: &'a Ask<'a>,
    /// Usable, and nobody else's exclusively.
    pool: CpuSet,
}

/// Finds CPUs.
pub fn place(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<CpuGrant, Refusal> {
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    let search = Search { machine, ledger, ask, pool };
    match ask.resources.cpu.class {
        CpuClass::Shared => search.shared(),
        CpuClass::Idle if ask.resources.cpu.align == Align::Required => search.shared(),
        CpuClass::Idle => Ok(CpuGrant {
            reason: "class idle: all shared CPUs".to_owned(),
            cpus: search.everywhere(),
            fenced: CpuSet::new(),
        }),
        CpuClass::Pinned => search.pinned(),
        CpuClass::Exclusive => search.exclusive(),
    }
}

fn number(cpus: usize) -> String {
    if cpus == 1 { "1 CPU".to_owned() } else { format!("{cpus} CPUs") }
}

/// Whether CPUs granted earlier still do.
pub fn still_good(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, grant: &Grant) -> bool {
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    let open = grant.cpus.intersection(&pool);
    let cpu = &ask.resources.cpu;
    if (cpu.class == CpuClass::Exclusive) == grant.fenced.is_empty() {
        return false;
    }
    if cpu.align == Align::Required && !is_in_one_node(machine, &open) {
        return false;
    }
    if is_counted(cpu.class) {
        let is_whole = open == grant.cpus && open.len() == cpu.request.cpus_ceil() && grant.fenced.is_subset(&pool);
        is_whole && counted::sits_as_asked(machine, cpu, grant)
    } else {
        // A sharer stays while its domain is not fenced below its own limit, or below what the machine can offer at all; idle work that was
        // squeezed stays squeezed until it is given its room back.
        let squeezed = cpu.class == CpuClass::Idle && grant.moved.is_some();
        !open.is_empty() && (squeezed || open.len() >= needed(ask.resources).min(widest(machine, cpu.align, &pool)))
    }
}

/// CPUs a sharer can keep busy.
fn needed(resources: &Resources) -> usize {
    let limit = resources.cpu.limit.at().map_or(usize::MAX, MilliCpu::cpus_ceil);
    limit.max(1)
}

/// The most CPUs a sharer can have of the pool.
fn widest(machine: &Machine, align: Align, pool: &CpuSet) -> usize {
    match align {
        Align::Preferred => pool.len(),
        Align::Required => {
            machine.topology.nodes.values().map(|node| node.intersection(pool).len()).max().unwrap_or(pool.len())
        }
    }
}

/// A machine that shows no nodes is one.
fn is_in_one_node(machine: &Machine, cpus: &CpuSet) -> bool {
    let nodes = &machine.topology.nodes;
    nodes.is_empty() || nodes.values().any(|node| cpus.is_subset(node))
}

impl Search<'_> {
    /// The grant of those who take whatever is shared: every CPU, so that they return to those an exclusive neighbour has left. What is
    /// fenced at the moment is taken out when the grant is applied.
    fn everywhere(&self) -> CpuSet {
        self.machine.topology.usable.clone()
    }

    /// What others claim of these CPUs, each spreading its claim evenly over its own, in thousandths of a CPU.
    fn load(&self, cpus: &CpuSet) -> u64 {
        let all = self.ledger.wear.claimed(cpus);
        let own = self.ledger.get(self.ask.name).map_or(0, |own| {
            let overlap = own.grant.cpus.intersection(cpus).len() as u64;
            if own.resources.cpu.class == CpuClass::Idle || overlap == 0 {
                0
            } else {
                claim(&own.resources) * overlap / own.grant.cpus.len() as u64
            }
        });
        all.saturating_sub(own)
    }

    /// The domains of the machine as far as they are open, those that may be taken.
    fn domains(&self) -> impl Iterator<Item = Domain> + '_ {
        let one_node = self.ask.resources.cpu.align == Align::Required;
        let narrowed = self
            .ledger
            .domains
            .iter()
            .map(|domain| Domain { level: domain.level, cpus: domain.cpus.intersection(&self.pool) });
        narrowed
            .filter(move |domain| !domain.cpus.is_empty() && (!one_node || is_in_one_node(self.machine, &domain.cpus)))
    }

    fn shared(&self) -> Result<CpuGrant, Refusal> {
        let cpu = &self.ask.resources.cpu;
        let claim = claim(self.ask.resources);
        let needed = needed(self.ask.resources).min(match cpu.align {
            Align::Preferred => usize::MAX,
            Align::Required => widest(self.machine, cpu.align, &self.pool),
        });
        let previous = self.ask.previous.map(|grant| &grant.cpus);
        let large_enough = || self.domains().filter(|domain| domain.cpus.len() >= needed);
        let with_room = large_enough().filter_map(|domain| {
            let load = self.load(&domain.cpus);
            let has_room = load + claim <= 1000 * domain.cpus.len() as u64;
            has_room.then_some((domain, load))
        });
        let best = with_room.min_by_key(|(domain, load)| {
            (domain.cpus.len(), *load, previous != Some(&domain.cpus), domain.cpus.iter().next())
        });
        let (cpus, reason) = match best {
            Some((domain, load)) => {
                let reason = format!(
                    "smallest domain with room: {} {}, {load}m of {} claimed by others",
                    domain.level,
                    domain.cpus,
                    number(domain.cpus.len())
                );
                (domain.cpus, reason)
            }
            None if cpu.align == Align::Required => {
                let least = large_enough().min_by_key(|domain| (self.load(&domain.cpus), domain.cpus.iter().next()));
                let Some(domain) = least else { return Err(self.no_node()) };
                let reason = format!("no NUMA node has room for {claim}m: the least loaded, {}", domain.cpus);
                (domain.cpus, reason)
            }
            None if cpu.limit.at().is_none() => (self.everywhere(), "no cpu.limit: all shared CPUs".to_owned()),
            None => (self.everywhere(), format!("no domain has room for {claim}m: all shared CPUs")),
        };
        Ok(CpuGrant { cpus, fenced: CpuSet::new(), reason })
    }

    fn no_node(&self) -> Refusal {
        let message = format!(
            "cpu.align required, and no NUMA node has CPUs open to sharing ({} are); choose `align: preferred`, or stop an exclusive workload",
            number(self.pool.len())
        );
        Refusal { reason: "InsufficientCpu", message }
    }
}
