//! The best place there is, by going through all of them: branch and bound over single CPUs, every leaf judged by adding the objective up
//! from nothing. Shares no code with placement but the objective itself.

use super::cases::{is_aligned, seated};
use containerctl::model::cpuset::CpuSet;
use containerctl::model::record::Requested;
use containerctl::model::spec::{CpuClass, Smt, Spec};
use containerctl::model::topology::Topology;
use containerctl::place::objective::{self, Seated};

/// A newcomer, and whom it finds.
pub struct Question<'a> {
    pub topology: &'a Topology,
    pub others: &'a [Seated],
    /// What each of them was promised, and whether of the pool.
    pub requested: &'a [(Requested, bool)],
    /// The most CPUs of one node that another pinned workload was promised.
    pub aligned: usize,
    pub spec: &'a Spec,
    pub previous: Option<&'a CpuSet>,
}

/// A place and what it costs.
#[derive(Clone, Debug)]
pub struct Found {
    pub cpus: CpuSet,
    pub misplaced: usize,
    pub cost: u64,
    /// The load of the most loaded block, in thousandths of what it can do.
    pub worst_permille: u64,
}

impl Found {
    fn is_better(&self, than: Option<&Found>) -> bool {
        let rank = |found: &Found| (found.misplaced, found.cost, found.worst_permille);
        than.is_none_or(|than| rank(self) < rank(than))
    }
}

/// The best place; `None` outside if there is nothing to choose, inside if there is no place.
#[allow(clippy::option_option, reason = "two questions, each answered yes or no")]
pub fn best(question: &Question<'_>) -> Option<Option<Found>> {
    match question.spec.resources.cpu.class {
        CpuClass::Idle => None,
        CpuClass::Shared => question.best_domain().map(Some),
        CpuClass::Pinned | CpuClass::Exclusive => Some(question.best_set()),
    }
}

impl Question<'_> {
    fn pool(&self) -> CpuSet {
        self.others.iter().fold(self.topology.usable.clone(), |pool, other| pool.difference(&other.fenced))
    }

    /// Whether the request may still be promised; exclusive CPUs are counted one by one.
    pub fn is_admitted(&self) -> bool {
        let cpu = &self.spec.resources.cpu;
        let of_pool = self.requested.iter().filter(|(_, of_pool)| *of_pool);
        let promised: u64 = of_pool.map(|(requested, _)| u64::from(requested.cpu.0)).sum();
        let wanted = u64::from(cpu.request.0);
        cpu.class == CpuClass::Exclusive || wanted == 0 || promised + wanted <= 1000 * self.pool().len() as u64
    }

    fn with(&self, newcomer: Seated) -> Vec<Seated> {
        self.others.iter().cloned().chain([newcomer]).collect()
    }

    pub fn judged(&self, cpus: &CpuSet, fenced: &CpuSet) -> Found {
        let workloads = self.with(seated(self.spec, cpus, fenced, self.previous));
        let blocks = objective::blocks(self.topology);
        let loads = objective::loads(&blocks, &workloads);
        let worst = loads.iter().zip(&blocks).map(|(load, block)| load / block.cpus.len() as u64).max().unwrap_or(0);
        Found {
            cpus: cpus.clone(),
            misplaced: self.misplaced(cpus),
            cost: objective::of(self.topology, &workloads).micropoints(),
            worst_permille: worst,
        }
    }

    /// The usable threads of a CPU's core.
    fn core(&self, cpu: u32) -> CpuSet {
        let core = self.topology.cores.iter().find(|core| core.contains(cpu));
        core.map_or_else(|| CpuSet::from_iter([cpu]), |core| core.intersection(&self.topology.usable))
    }

    fn misplaced(&self, cpus: &CpuSet) -> usize {
        let cpu = &self.spec.resources.cpu;
        if !matches!(cpu.class, CpuClass::Pinned | CpuClass::Exclusive) {
            return 0;
        }
        match cpu.smt() {
            Smt::Any => 0,
            Smt::Spread => cpus.iter().filter(|cpu| self.core(*cpu).intersection(cpus).len() > 1).count(),
            Smt::FullCore => {
                let mut parts: Vec<CpuSet> =
                    cpus.iter().map(|cpu| self.core(cpu)).filter(|core| !core.is_subset(cpus)).collect();
                parts.sort();
                parts.dedup();
                usize::from(parts.len() > 1)
            }
        }
    }

    fn is_in_one_node(&self, cpus: &CpuSet) -> bool {
        let nodes = &self.topology.nodes;
        nodes.is_empty() || nodes.values().any(|node| cpus.is_subset(node))
    }

    fn leaves_a_node(&self, left: &CpuSet) -> bool {
        let nodes = &self.topology.nodes;
        nodes.is_empty() || nodes.values().any(|node| node.intersection(left).len() >= self.aligned)
    }

    /// Of the domains with room. None if none has: then sharers go wherever there is something, which is no choice.
    fn best_domain(&self) -> Option<Found> {
        let cpu = &self.spec.resources.cpu;
        let claim = u64::from(cpu.limit.at()?.max(cpu.request).0);
        let pool = self.pool();
        let open: Vec<CpuSet> = self.topology.domains().iter().map(|domain| domain.cpus.intersection(&pool)).collect();
        let allowed = |cpus: &&CpuSet| !cpus.is_empty() && (!is_aligned(self.spec) || self.is_in_one_node(cpus));
        let widest = open.iter().filter(allowed).map(CpuSet::len).max().unwrap_or(0);
        let needed = usize::try_from(claim.div_ceil(1000)).unwrap();
        let needed = if is_aligned(self.spec) { needed.min(widest) } else { needed };
        let mut best: Option<Found> = None;
        for cpus in open.iter().filter(allowed).filter(|cpus| cpus.len() >= needed) {
            let load: u64 = self.others.iter().map(|other| shared_load(other, cpus)).sum();
            if (load + claim * 1000) / 1000 <= 1000 * cpus.len() as u64 {
                let found = self.judged(cpus, &CpuSet::new());
                if found.is_better(best.as_ref()) {
                    best = Some(found);
                }
            }
        }
        best
    }

    fn best_set(&self) -> Option<Found> {
        let cpu = &self.spec.resources.cpu;
        let takes_core = cpu.class == CpuClass::Exclusive && cpu.smt() != Smt::Any;
        let pool = self.pool();
        let open = pool.iter().filter(|cpu| !takes_core || self.core(*cpu).is_subset(&pool)).collect::<Vec<u32>>();
        let mut search = Search { question: self, open, pool, best: None, is_whole: false };
        search.is_whole = cpu.request.cpus_ceil() == self.topology.usable.len();
        search.branch(0, &CpuSet::new());
        search.best
    }

    /// CPUs of the pool that have to stay in it.
    fn staying(&self) -> usize {
        let pinned = self.others.iter().zip(self.requested).filter(|(other, _)| other.class == CpuClass::Pinned);
        let widest = pinned.map(|(_, (requested, _))| requested.cpu.cpus_ceil()).max().unwrap_or(0);
        let of_pool = self.requested.iter().filter(|(_, of_pool)| *of_pool);
        let promised: u64 = of_pool.map(|(requested, _)| u64::from(requested.cpu.0)).sum();
        widest.max(usize::try_from(promised.div_ceil(1000)).unwrap()).max(1)
    }
}

/// What a workload claims of CPUs that are open to sharing, in millionths.
fn shared_load(other: &Seated, cpus: &CpuSet) -> u64 {
    if other.fenced.is_empty() {
        other.load() * 1000 / other.cpus.len() as u64 * other.cpus.intersection(cpus).len() as u64
    } else {
        0
    }
}

struct Search<'a> {
    question: &'a Question<'a>,
    /// CPUs that may be taken.
    open: Vec<u32>,
    pool: CpuSet,
    best: Option<Found>,
    /// Whether every CPU is asked for: then nobody is placed anywhere, and no part of it says what all of it costs.
    is_whole: bool,
}

impl Search<'_> {
    fn branch(&mut self, from: usize, taken: &CpuSet) {
        let cpu = &self.question.spec.resources.cpu;
        let count = cpu.request.cpus_ceil();
        if taken.len() == count {
            self.leaf(taken);
            return;
        }
        if self.open.len() - from + taken.len() < count || !self.is_whole && self.is_hopeless(taken) {
            return;
        }
        let mut with = taken.clone();
        with.insert(self.open[from]);
        self.branch(from + 1, &with);
        self.branch(from + 1, taken);
    }

    fn fence(&self, cpus: &CpuSet) -> CpuSet {
        let cpu = &self.question.spec.resources.cpu;
        match (cpu.class, cpu.smt()) {
            (CpuClass::Exclusive, Smt::Any) => cpus.clone(),
            (CpuClass::Exclusive, _) => cpus.iter().fold(CpuSet::new(), |all, cpu| all.union(&self.question.core(cpu))),
            _ => CpuSet::new(),
        }
    }

    fn leaf(&mut self, cpus: &CpuSet) {
        let question = self.question;
        let fenced = self.fence(cpus);
        let is_exclusive = question.spec.resources.cpu.class == CpuClass::Exclusive;
        if is_aligned(question.spec) && !question.is_in_one_node(cpus)
            || is_exclusive && fenced.len() + question.staying() > self.pool.len()
            || is_exclusive && !question.leaves_a_node(&self.pool.difference(&fenced))
            || is_exclusive && question.misplaced(cpus) > 0
        {
            return;
        }
        let found = question.judged(cpus, &fenced);
        if found.is_better(self.best.as_ref()) {
            self.best = Some(found);
        }
    }

    /// Whether everything that begins like this costs more than the best: every term but moves only grows with CPUs, and a part of the
    /// CPUs has that part of the claim.
    fn is_hopeless(&self, taken: &CpuSet) -> bool {
        let question = self.question;
        let Some(best) = self.best.as_ref().filter(|best| best.misplaced == 0) else { return false };
        let mut part = seated(question.spec, taken, &self.fence(taken), None);
        part.claim = part.claim * taken.len() as u64 / question.spec.resources.cpu.request.cpus_ceil() as u64;
        // Rounding each load down may lose a thousandth of a CPU a block.
        let slack = objective::POINT / 100;
        objective::of(question.topology, &question.with(part)).micropoints() > best.cost + slack
    }
}
