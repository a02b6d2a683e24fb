//! CPU placement: the domain or the CPUs that cost least by [`super::objective`], of those that have room.
//!
//! Algorithm, for each class:
//! * `shared`: of the domains large enough for the limit whose claims leave room the cheapest; among equals the smallest, then the least
//!   loaded, then the one held before, then the lowest CPU. Without a limit, or where no domain has room, the whole pool.
//! * `idle`: the whole pool; it only runs where nobody else wants to.
//! * `pinned`: as many CPUs as requested, the cheapest there are (`counted`).
//! * `exclusive`: as many CPUs as requested that nobody else uses (`counted`).
//!
//! Whoever requires alignment gets CPUs of one NUMA node: the same choice among the domains that lie in one, or a refusal.
//!
//! Guarantees: for a newcomer, others being where they are, no other CPUs cost noticeably less (`tests/exact`: an exact solver finds none
//! in 99 of 100 cases); nothing is added up over workloads, so that a machine of 1,024 CPUs and 10,000 workloads takes microseconds.

mod counted;
mod nearest;

use super::layout::Span;
use super::objective::{BROKEN_BLOCK, CACHE_SPLIT, MOVE, NODE_SPLIT, load_cost};
use super::wear::{Wear, claim};
use super::{Ask, Ledger, Refusal, is_counted};
use crate::model::cpuset::CpuSet;
use crate::model::machine::Machine;
use crate::model::record::Grant;
use crate::model::spec::{Align, CpuClass, Resources};
use crate::model::units::MilliCpu;
use std::borrow::Cow;

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
    /// Those of the pool that it may have.
    reach: CpuSet,
    within: Within<'a>,
    /// What the others expect.
    wear: Cow<'a, Wear>,
}

/// Which CPUs may be looked at.
#[derive(Clone, Copy, Debug)]
pub enum Within<'a> {
    Anywhere,
    /// These, however busy they are.
    Only(&'a CpuSet),
    /// These if what is asked for has room there.
    IfRoom(&'a CpuSet),
}

impl Within<'_> {
    fn of(self, pool: &CpuSet) -> CpuSet {
        match self {
            Within::Anywhere => pool.clone(),
            Within::Only(within) | Within::IfRoom(within) => pool.intersection(within),
        }
    }
}

/// Finds CPUs.
pub fn place(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<CpuGrant, Refusal> {
    place_within(machine, ledger, ask, Within::Anywhere)
}

/// Finds CPUs among these.
pub fn place_within(
    machine: &Machine,
    ledger: &Ledger,
    ask: &Ask<'_>,
    within: Within<'_>,
) -> Result<CpuGrant, Refusal> {
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    if pool.is_empty() {
        let message = "no CPU is left that workloads may use: all are switched off, reserved or exclusive".to_owned();
        return Err(Refusal { reason: "InsufficientCpu", message });
    }
    let (reach, wear) = (within.of(&pool), ledger.wear_without(ask.name));
    let beyond = machine.topology.usable.difference(&within.of(&machine.topology.usable));
    // Those that are fenced now too: they stay beyond reach if it is asked what would fit without whoever has them.
    let wear = if beyond.is_empty() { wear } else { Cow::Owned(wear.into_owned().without(&beyond)) };
    let search = Search { machine, ledger, ask, pool, reach, within, wear };
    match ask.resources.cpu.class {
        CpuClass::Shared => search.shared(),
        CpuClass::Idle if search.is_bound() => search.shared(),
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
pub fn still_good(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, grant: &Grant, within: Option<&CpuSet>) -> bool {
    let pool = machine.topology.usable.difference(&ledger.fenced_by_others(ask.name));
    let pool = within.map_or(pool.clone(), |within| pool.intersection(within));
    let open = grant.cpus.intersection(&pool);
    if within.is_some_and(|within| !grant.cpus.is_subset(within)) {
        return false;
    }
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
    /// Whether it may not have just any CPUs.
    fn is_bound(&self) -> bool {
        self.ask.resources.cpu.align == Align::Required || matches!(self.within, Within::Only(_))
    }

    /// The grant of those who take whatever is shared: every CPU, so that they return to those an exclusive neighbour has left. What is
    /// fenced at the moment is taken out when the grant is applied.
    fn everywhere(&self) -> CpuSet {
        self.machine.topology.usable.clone()
    }

    /// The domains that may be taken, as far as they are open, by their place in the layout.
    fn domains(&self) -> impl Iterator<Item = (usize, &Span)> + '_ {
        let one_node = self.ask.resources.cpu.align == Align::Required;
        let spans = self.wear.layout.domains.iter().enumerate();
        spans.filter(move |(at, span)| self.wear.open_of_domain(*at) > 0 && (!one_node || span.is_in_one_node))
    }

    fn open_of(&self, span: &Span) -> CpuSet {
        span.domain.cpus.intersection(&self.reach)
    }

    fn shared(&self) -> Result<CpuGrant, Refusal> {
        let cpu = &self.ask.resources.cpu;
        let claim = claim(self.ask.resources);
        let most = if self.is_bound() { widest(self.machine, cpu.align, &self.reach) } else { usize::MAX };
        let needed = needed(self.ask.resources).min(most);
        let large_enough = || self.domains().filter(|(at, _)| self.wear.open_of_domain(*at) >= needed);
        let has_room = |at: usize| self.wear.load_of_domain(at) + claim <= 1000 * self.wear.open_of_domain(at) as u64;
        let least_loaded = |at: usize, span: &Span| (self.wear.load_of_domain(at), span.domain.cpus.iter().next());
        let previous = self.ask.previous.map(|grant| &grant.cpus);
        let left = |span: &Span| previous.is_some_and(|previous| *previous != self.open_of(span));
        let best = large_enough().filter(|(at, _)| has_room(*at)).min_by_key(|(at, span)| {
            let left = left(span);
            let cost = self.cost(*at, span, claim) + if left { MOVE } else { 0 };
            (cost, self.wear.open_of_domain(*at), self.wear.load_of_domain(*at), left, span.domain.cpus.iter().next())
        });
        let (cpus, reason) = match best {
            Some((at, span)) => {
                let cpus = self.open_of(span);
                let reason = format!(
                    "cheapest domain with room: {} {cpus}, {}m of {} claimed by others",
                    span.domain.level,
                    self.wear.load_of_domain(at),
                    number(cpus.len())
                );
                (cpus, reason)
            }
            None if matches!(self.within, Within::IfRoom(_)) => return Err(self.no_node()),
            None if self.is_bound() => {
                let least = large_enough().min_by_key(|(at, span)| least_loaded(*at, span));
                let Some((_, span)) = least else { return Err(self.no_node()) };
                let cpus = self.open_of(span);
                let reason = format!("no NUMA node has room for {claim}m: the least loaded, {cpus}");
                (cpus, reason)
            }
            None if cpu.limit.at().is_none() => (self.everywhere(), "no cpu.limit: all shared CPUs".to_owned()),
            None => (self.everywhere(), format!("no domain has room for {claim}m: all shared CPUs")),
        };
        Ok(CpuGrant { cpus, fenced: CpuSet::new(), reason })
    }

    /// What a sharer adds to the objective if it is placed in a domain, in millionths of a point.
    fn cost(&self, at: usize, span: &Span, claim: u64) -> u64 {
        let open = self.wear.open_of_domain(at);
        let is_everything = open == self.wear.layout.usable.len();
        let mut cost = if span.is_in_one_node { 0 } else { NODE_SPLIT };
        let mut touched = 0u64;
        for block in &span.blocks {
            let here = if span.is_part { open } else { self.wear.open_of_block(*block) };
            if here > 0 {
                touched += 1;
                cost += self.added_load(*block, claim * here as u64 / open as u64);
                cost += if self.wear.is_free(*block) && claim > 0 && !is_everything { BROKEN_BLOCK } else { 0 };
            }
        }
        cost + touched.saturating_sub(1) * CACHE_SPLIT
    }

    /// What a claim adds to the load term of a block.
    fn added_load(&self, block: usize, claim: u64) -> u64 {
        let (load, capacity) = (self.wear.load_of_block(block), self.wear.layout.blocks[block].cpus.len());
        load_cost(load + claim, capacity) - load_cost(load, capacity)
    }

    fn no_node(&self) -> Refusal {
        let message = format!(
            "cpu.align required, and no NUMA node has CPUs open to sharing ({} are); choose `align: preferred`, or stop an exclusive workload",
            number(self.pool.len())
        );
        Refusal { reason: "InsufficientCpu", message }
    }
}
