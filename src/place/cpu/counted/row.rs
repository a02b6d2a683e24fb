//! The CPUs of one block in the order they would be taken in, and what the first so many cost.

use super::{Demand, Thrift};
use crate::model::spec::{CpuClass, Smt};
use crate::place::cpu::Search;
use crate::place::objective::{BROKEN_BLOCK, DISPLACED, MOVE, SHARED_CORE, WEAK_CPU};

/// What a set of CPUs costs; the first difference decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    /// CPUs that do not sit as asked.
    pub misplaced: u64,
    /// CPUs fenced, where that matters first.
    pub fenced: u64,
    /// What the objective grows by.
    pub micropoints: u64,
}

impl Price {
    pub fn of(micropoints: u64) -> Price {
        Price { micropoints, ..Price::default() }
    }

    #[must_use]
    pub fn and(self, other: Price) -> Price {
        Price {
            misplaced: self.misplaced + other.misplaced,
            fenced: self.fenced + other.fenced,
            micropoints: self.micropoints + other.micropoints,
        }
    }
}

/// One block's CPUs in order.
#[derive(Debug)]
pub struct Row {
    cpus: Vec<u32>,
    /// By how many are taken: what that costs, the block itself included.
    prices: Vec<Price>,
    /// By how many are taken: cores of which a part is used, where whole ones are asked for.
    parts: Vec<usize>,
}

impl Row {
    pub fn len(&self) -> usize {
        self.cpus.len()
    }

    pub fn first(&self, count: usize) -> impl Iterator<Item = u32> + '_ {
        self.cpus.iter().copied().take(count)
    }

    pub fn parts(&self, count: usize) -> usize {
        self.parts[count]
    }

    /// What the first `count` cost as a part of several blocks.
    pub fn part_price(&self, count: usize) -> Price {
        self.prices[count]
    }

    /// What the first `count` cost alone, if there are so many.
    pub fn price(&self, count: usize) -> Option<Price> {
        let price = *self.prices.get(count)?;
        Some(price.and(Price { misplaced: misplaced_parts(self.parts[count]), ..Price::default() }))
    }
}

/// One core used in part is what a number that is not a multiple of its threads takes.
pub fn misplaced_parts(parts: usize) -> u64 {
    u64::from(parts > 1)
}

/// One core's open CPUs, in the order they would be taken in.
struct Seat {
    threads: Vec<u32>,
    /// What the first of them costs, and what each does.
    fixed: u64,
    each: Vec<u64>,
    /// How many the core has, all of which are fenced with the first.
    size: usize,
    load: u64,
    core: usize,
}

impl Seat {
    fn is_whole(&self) -> bool {
        self.threads.len() == self.size
    }

    /// Each thread alone if the core itself costs nothing.
    fn by_thread(self) -> Vec<Seat> {
        if self.fixed > 0 || self.threads.len() < 2 {
            return vec![self];
        }
        let Seat { threads, each, size, load, core, .. } = self;
        let alone = |(cpu, each)| Seat { threads: vec![cpu], fixed: 0, each: vec![each], size, load, core };
        threads.into_iter().zip(each).map(alone).collect()
    }

    /// What its threads cost on the average.
    fn average(&self) -> u64 {
        (self.fixed + self.each.iter().sum::<u64>()) / self.threads.len() as u64
    }
}

impl Search<'_> {
    /// What `count` CPUs of a block cost at least, found without looking at each.
    pub(super) fn at_least(&self, demand: &Demand, block: usize) -> Price {
        let uneasy = demand.count.saturating_sub(self.wear.calm_of_block(block));
        // Each core that somebody counts CPUs of costs once, whatever is taken of it.
        let cores = uneasy.div_ceil(self.wear.layout.threads_max) as u64;
        Price::of(self.block_price(demand, block, demand.count) + cores * SHARED_CORE)
    }

    /// The same for those who drive pinned workloads out, with what that costs: where every core is somebody's, it is what tells one block
    /// from another.
    pub(super) fn at_least_alone(&self, demand: &Demand, block: usize) -> Price {
        let (wear, threads_max) = (&self.wear, self.wear.layout.threads_max);
        let least_of = |mut prices: Vec<u64>, needed: usize| {
            prices.sort_unstable();
            Price::of(prices.iter().take(needed).sum())
        };
        if demand.smt == Smt::Any {
            let open = wear.layout.blocks[block].cpus.iter().filter(|cpu| wear.fences(*cpu) == 0);
            let driven_out = open.map(|cpu| u64::from(wear.pinned(cpu)) * DISPLACED).collect();
            return self.at_least(demand, block).and(least_of(driven_out, demand.count));
        }
        let price = |core: usize| {
            let shared = if wear.counted(core) > 0 { SHARED_CORE } else { 0 };
            shared + u64::from(wear.pinned_of_core(core)) * DISPLACED
        };
        let open = wear.layout.cores_of_block[block].iter().copied().filter(|core| wear.is_open_core(*core));
        let of_each = if demand.smt == Smt::Spread { 1 } else { threads_max };
        let cores = least_of(open.map(price).collect(), demand.count.div_ceil(of_each));
        cores.and(Price::of(self.block_price(demand, block, demand.count)))
    }

    /// What taking some CPUs of a block costs whichever they are.
    fn block_price(&self, demand: &Demand, block: usize, taken: usize) -> u64 {
        let broken = if self.wear.is_free(block) { BROKEN_BLOCK } else { 0 };
        broken + self.added_load(block, demand.claim * taken as u64 / demand.count as u64)
    }

    pub(super) fn row(&self, demand: &Demand, block: usize) -> Row {
        let cores = self.wear.layout.cores_of_block[block].iter();
        self.line_up(demand, block, cores.filter_map(|core| self.seat(demand, block, *core)).collect())
    }

    /// Each core of a block alone: what is fenced goes by cores, and no order of them is the least for every number of CPUs.
    pub(super) fn rows_of_cores(&self, demand: &Demand, block: usize) -> Vec<Row> {
        let cores = self.wear.layout.cores_of_block[block].iter();
        let seats = cores.filter_map(|core| self.seat(demand, block, *core));
        seats.map(|seat| self.line_up(demand, block, vec![seat])).collect()
    }

    fn line_up(&self, demand: &Demand, block: usize, mut seats: Vec<Seat>) -> Row {
        if demand.smt == Smt::Any {
            // Threads as they come: where a core costs nothing itself, each is taken for what it costs.
            seats = seats.into_iter().flat_map(Seat::by_thread).collect();
        }
        seats.sort_by_cached_key(|seat| {
            let in_part = demand.smt == Smt::FullCore && !seat.is_whole();
            (in_part, seat.average(), seat.load, seat.core, seat.threads.first().copied())
        });
        let mut row = Row { cpus: Vec::new(), prices: vec![Price::default()], parts: vec![0] };
        if demand.smt == Smt::Spread {
            let deepest = seats.iter().map(|seat| seat.threads.len()).max().unwrap_or(0);
            for depth in 0..deepest {
                for seat in &seats {
                    row.take(demand, seat, depth);
                }
            }
        } else {
            for seat in &seats {
                (0..seat.threads.len()).for_each(|depth| row.take(demand, seat, depth));
            }
        }
        for taken in 1..row.prices.len() {
            let price = Price::of(self.block_price(demand, block, taken));
            row.prices[taken] = row.prices[taken].and(price);
        }
        row
    }

    /// What a core offers, if anything.
    fn seat(&self, demand: &Demand, block: usize, core: usize) -> Option<Seat> {
        let wear = &self.wear;
        let all = &wear.layout.cores[core];
        let here =
            |cpu: &u32| self.reach.contains(*cpu) && wear.layout.home(*cpu).is_some_and(|home| home.block == block);
        let mut threads: Vec<u32> = all.iter().filter(here).collect();
        let is_exclusive = demand.class == CpuClass::Exclusive;
        let takes_core = is_exclusive && demand.smt != Smt::Any;
        // A core of which a thread is fenced would be shared with an exclusive neighbour.
        if threads.is_empty() || takes_core && threads.len() < all.len() {
            return None;
        }
        let driven_out = |cpu: u32| u64::from(wear.pinned(cpu)) * DISPLACED;
        let was_held = |cpu: u32| self.ask.previous.is_none_or(|grant| grant.cpus.contains(cpu));
        let each = |cpu: u32| {
            let home = wear.layout.home(cpu).map_or(0, |home| u64::from(home.weakness));
            let moved = if was_held(cpu) { 0 } else { MOVE };
            home * WEAK_CPU + moved + if is_exclusive && !takes_core { driven_out(cpu) } else { 0 }
        };
        threads.sort_by_cached_key(|cpu| (each(*cpu), wear.claimed(*cpu), *cpu));
        let shared = if wear.counted(core) > 0 { SHARED_CORE } else { 0 };
        let fixed = shared + if takes_core { all.iter().map(driven_out).sum() } else { 0 };
        let load = threads.iter().map(|cpu| wear.claimed(*cpu)).sum::<u64>() / threads.len() as u64;
        let each = threads.iter().map(|cpu| each(*cpu)).collect();
        Some(Seat { each, fixed, size: all.len(), load, core, threads })
    }
}

impl Row {
    /// One thread more: the one at this depth of a core, if the core has so many and they may be used.
    fn take(&mut self, demand: &Demand, seat: &Seat, depth: usize) {
        let Some(cpu) = seat.threads.get(depth) else { return };
        let mut price = Price::of(seat.each[depth]);
        if depth == 0 {
            price.micropoints += seat.fixed;
            price.fenced = if demand.thrift == Thrift::Fence { seat.size as u64 } else { 0 };
        }
        if demand.smt == Smt::Spread && depth > 0 {
            if demand.class == CpuClass::Exclusive {
                return;
            }
            // The first one is no longer alone either.
            price.misplaced = if depth == 1 { 2 } else { 1 };
        }
        let last = self.prices.last().copied().unwrap_or_default();
        self.prices.push(last.and(price));
        let before = self.parts.last().copied().unwrap_or_default();
        let parts = match demand.smt {
            Smt::Any | Smt::Spread => 0,
            // In part from the first thread to the last but one.
            Smt::FullCore => {
                let opened = usize::from(depth == 0);
                let closed = usize::from(depth + 1 == seat.size);
                before + opened - closed
            }
        };
        self.parts.push(parts);
        self.cpus.push(*cpu);
    }
}
