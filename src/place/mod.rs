//! Where workloads go: which CPUs, which GPUs, or why not yet. Pure, integers only.
//!
//! Problem: give each workload CPUs and devices so that promises hold (requests fit, exclusive is exclusive) and neighbours on the same
//! core or cache disturb each other as little as possible ([`objective`]).
//! Approach: one workload at a time against a ledger of what the others hold; a grant that is still good is kept, so that nothing moves
//! because something unrelated changed.
//! Terms: *claim*, what a workload is expected to use (its limit, else its request); *pool*, the CPUs that are nobody's exclusively;
//! *fenced*, exclusive CPUs with the idle siblings of their cores.
//! Guarantees: exclusive sets are disjoint from every other set once applied; every granted set is non-empty and usable; at least one
//! CPU stays in the pool; the requests of the ledger never exceed the machine; equal inputs give equal answers.

mod admit;
mod align;
pub mod cpu;
pub mod gpu;
pub mod ids;
mod layout;
pub mod objective;
pub mod rebalance;
mod victims;
mod wear;

pub use admit::{Scarce, lacks};
pub use align::{kept_to, still_good};
pub use gpu::movers;
pub use victims::{Candidate, victims};

use crate::model::cpuset::CpuSet;
use crate::model::gpu::GpuRequest;
use crate::model::isolation::IdRange;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::record::{Grant, Requested};
use crate::model::spec::{Align, CpuClass, Resources, Spec};
use crate::model::topology::Topology;
use layout::Layout;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use wear::Wear;

/// What every placed workload holds.
#[derive(Clone, Debug)]
pub struct Ledger {
    holdings: BTreeMap<Name, Holding>,
    /// What is expected of each CPU and of each group of CPUs, kept so that a placement does not ask every workload.
    wear: Wear,
    /// Of every workload that is known, whether it runs or not.
    ids: BTreeSet<IdRange>,
    /// Sums over all holdings, kept so that a pass over many workloads does not add everything up for each.
    fenced: CpuSet,
    memory_requested: u128,
    pool_requested: u64,
    /// How many CPUs pinned workloads ask for, and those of them that ask for CPUs of one node.
    pinned_widths: Widths,
    aligned_widths: Widths,
}

/// By a number of CPUs, how many workloads ask for so many.
#[derive(Clone, Debug, Default)]
struct Widths(BTreeMap<usize, usize>);

/// What one workload holds, and what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub resources: Resources,
    pub grant: Grant,
}

/// What one workload asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub name: &'a Name,
    pub resources: &'a Resources,
    pub gpu: Option<&'a GpuRequest>,
    /// What it held before, preferred among equals.
    pub previous: Option<&'a Grant>,
    pub advice: Advice,
}

/// Whether a refusal says what would fit instead. That takes up to two dozen searches more, and holders put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The refusal is for people.
    Wanted,
    /// It is only asked whether there is a place: the refusal's message is for nobody, and may say nothing.
    Spared,
}

/// Why a workload has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One word for programs.
    pub reason: &'static str,
    /// What is missing, and what would make it fit.
    pub message: String,
}

impl<'a> Ask<'a> {
    pub fn of(spec: &'a Spec, previous: Option<&'a Grant>) -> Ask<'a> {
        let (resources, gpu) = (&spec.resources, spec.gpu.as_ref());
        Ask { name: &spec.name, resources, gpu, previous, advice: Advice::Wanted }
    }

    /// The same question by somebody who only wants to know whether.
    #[must_use]
    pub fn on_trial(self) -> Ask<'a> {
        Ask { advice: Advice::Spared, ..self }
    }
}

impl Ledger {
    pub fn of(topology: &Topology) -> Ledger {
        Ledger {
            holdings: BTreeMap::new(),
            wear: Wear::of(Arc::new(Layout::of(topology))),
            ids: BTreeSet::new(),
            fenced: CpuSet::new(),
            memory_requested: 0,
            pool_requested: 0,
            pinned_widths: Widths::default(),
            aligned_widths: Widths::default(),
        }
    }

    pub fn put(&mut self, name: Name, holding: Holding) {
        if self.holdings.get(&name) == Some(&holding) {
            return;
        }
        self.remove(&name);
        self.fenced = self.fenced.union(&holding.grant.fenced);
        self.memory_requested += u128::from(holding.grant.requested.memory.0);
        self.pool_requested += holding.pool_request();
        self.pinned_widths.add(holding.pinned_width());
        self.aligned_widths.add(holding.aligned_width());
        self.wear.add(&holding);
        self.holdings.insert(name, holding);
    }

    pub fn remove(&mut self, name: &Name) {
        let Some(holding) = self.holdings.remove(name) else { return };
        self.memory_requested -= u128::from(holding.grant.requested.memory.0);
        self.pool_requested -= holding.pool_request();
        self.wear.take(&holding);
        self.pinned_widths.take(holding.pinned_width());
        self.aligned_widths.take(holding.aligned_width());
        // A set that two claim by mistake must not vanish with the first.
        let fenced_still = holding.grant.fenced.iter().filter(|cpu| self.wear.fences(*cpu) > 0).collect();
        self.fenced = self.fenced.difference(&holding.grant.fenced).union(&fenced_still);
    }

    pub fn put_ids(&mut self, ids: IdRange) {
        self.ids.insert(ids);
    }

    pub fn has_ids(&self, ids: IdRange) -> bool {
        self.ids.contains(&ids)
    }

    pub fn get(&self, name: &Name) -> Option<&Holding> {
        self.holdings.get(name)
    }

    /// Everyone's holdings but one's own.
    pub fn others<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = (&'a Name, &'a Holding)> {
        self.holdings.iter().filter(move |(holder, _)| *holder != name)
    }

    /// What everyone but one workload expects.
    fn wear_without(&self, name: &Name) -> Cow<'_, Wear> {
        let Some(own) = self.holdings.get(name) else { return Cow::Borrowed(&self.wear) };
        let mut wear = self.wear.clone();
        wear.take(own);
        Cow::Owned(wear)
    }

    /// CPUs that others have fenced off.
    pub fn fenced_by_others(&self, name: &Name) -> CpuSet {
        match self.holdings.get(name).map(|own| &own.grant.fenced) {
            Some(own) if !own.is_empty() => {
                let by_others_too = own.iter().filter(|cpu| self.wear.fences(*cpu) > 1).collect();
                self.fenced.difference(own).union(&by_others_too)
            }
            _ => self.fenced.clone(),
        }
    }

    /// The most CPUs another pinned workload was promised.
    fn widest_pinned_of_others(&self, name: &Name) -> usize {
        self.pinned_widths.widest_but(self.holdings.get(name).and_then(Holding::pinned_width))
    }

    /// The most CPUs of one node another pinned workload was promised.
    fn widest_aligned_of_others(&self, name: &Name) -> usize {
        self.aligned_widths.widest_but(self.holdings.get(name).and_then(Holding::aligned_width))
    }

    /// Memory set aside for others, in bytes.
    fn memory_requested_by_others(&self, name: &Name) -> u64 {
        let own = self.holdings.get(name).map_or(0, |own| own.grant.requested.memory.0);
        u64::try_from(self.memory_requested - u128::from(own)).unwrap_or(u64::MAX)
    }

    /// CPU time of the pool set aside for others, in thousandths of a CPU.
    fn pool_requested_by_others(&self, name: &Name) -> u64 {
        self.pool_requested - self.holdings.get(name).map_or(0, Holding::pool_request)
    }
}

impl Widths {
    fn add(&mut self, width: Option<usize>) {
        if let Some(width) = width {
            *self.0.entry(width).or_default() += 1;
        }
    }

    fn take(&mut self, width: Option<usize>) {
        let Some((width, count)) = width.and_then(|width| Some((width, self.0.get_mut(&width)?))) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&width);
        }
    }

    /// The largest, but for one's own.
    fn widest_but(&self, own: Option<usize>) -> usize {
        let others = self.0.iter().rev().find(|(width, count)| own != Some(**width) || **count > 1);
        others.map_or(0, |(width, _)| *width)
    }
}

impl Holding {
    /// The CPUs a pinned workload was promised.
    fn pinned_width(&self) -> Option<usize> {
        (self.resources.cpu.class == CpuClass::Pinned).then(|| self.grant.requested.cpu.cpus_ceil())
    }

    /// The same, if they have to be of one node.
    fn aligned_width(&self) -> Option<usize> {
        self.pinned_width().filter(|_| self.resources.cpu.align == Align::Required)
    }

    /// The kinds of things it keeps from others.
    pub fn takes(&self) -> impl Iterator<Item = Scarce> {
        let Requested { cpu, memory } = self.grant.requested;
        let held = [
            (Scarce::Memory, memory.0 > 0),
            (Scarce::Cpu, cpu.0 > 0 || !self.grant.fenced.is_empty()),
            (Scarce::Gpu, !self.grant.gpus.is_empty()),
        ];
        held.into_iter().filter(|(_, holds)| *holds).map(|(what, _)| what)
    }

    /// What this sets aside of the CPUs that are nobody's exclusively.
    fn pool_request(&self) -> u64 {
        if self.grant.fenced.is_empty() { u64::from(self.grant.requested.cpu.0) } else { 0 }
    }
}

/// Finds a place, the one held before if it still serves.
pub fn place(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>) -> Result<Grant, Refusal> {
    admit::admit(machine, ledger, ask)?;
    align::place(machine, ledger, ask)
}

/// Other CPUs for a workload that runs, if those it holds no longer serve; its devices stay what they are.
pub fn replace_cpus(machine: &Machine, ledger: &Ledger, ask: &Ask<'_>, grant: &Grant) -> Result<Grant, Refusal> {
    admit::admit(machine, ledger, ask)?;
    align::with_cpus(machine, ledger, ask, grant.gpus.clone())
}

/// The cpuset to write for a grant: without what has become exclusive to others since.
pub fn cpus_in_force(machine: &Machine, ledger: &Ledger, name: &Name, grant: &Grant) -> CpuSet {
    let open = open_to(machine, ledger, name);
    let cpus = grant.cpus.intersection(&open);
    // A domain that went entirely to exclusive neighbours: anywhere in the pool is better than nowhere; the next pass finds a place.
    if !cpus.is_empty() {
        cpus
    } else if open.is_empty() {
        // No CPU is left that may be used at all: what it has is as good as anything, and the kernel runs it where it can.
        grant.cpus.clone()
    } else {
        open
    }
}

/// The CPUs that are nobody else's exclusively. Where CPUs that went away have left none, all that are left: a set of none would stop a
/// workload, and be refused by the kernel.
pub fn open_to(machine: &Machine, ledger: &Ledger, name: &Name) -> CpuSet {
    let usable = &machine.topology.usable;
    let open = usable.difference(&ledger.fenced_by_others(name));
    if open.is_empty() { usable.clone() } else { open }
}

/// Whether CPUs of this class are counted out one by one.
pub fn is_counted(class: CpuClass) -> bool {
    match class {
        CpuClass::Pinned | CpuClass::Exclusive => true,
        CpuClass::Shared | CpuClass::Idle => false,
    }
}

#[cfg(test)]
mod tests;
