//! How many CPUs to take of each of several blocks.

use super::row::{Price, Row, misplaced_parts};
use super::{Choice, Demand, Thrift};
use crate::place::cpu::Search;
use crate::place::objective::CACHE_SPLIT;

/// Cores used in part that are told apart: none, one, and more than may be.
const PARTS: usize = 3;

/// Where a cell of the table comes from.
#[derive(Clone, Copy, Default)]
struct Step {
    taken: u16,
    parts: u8,
}

impl Search<'_> {
    /// The cheapest set over these blocks, for an extra price. Exact: the table holds, for each number of CPUs and of cores used in part,
    /// the least that the blocks so far can give them for.
    pub(super) fn several(&self, demand: &Demand, blocks: &[usize], extra: u64) -> Option<Choice> {
        let count = demand.count;
        let open: usize = blocks.iter().map(|at| self.wear.open_of_block(*at)).sum();
        if open < count {
            return None;
        }
        let mut rows: Vec<Row> = Vec::new();
        for at in blocks.iter().filter(|at| self.wear.open_of_block(**at) > 0) {
            match demand.thrift {
                Thrift::None => rows.push(self.row(demand, *at)),
                Thrift::Fence => rows.extend(self.rows_of_cores(demand, *at)),
            }
        }
        rows.retain(|row| row.len() > 0);
        let at = |count: usize, parts: usize| count * PARTS + parts;
        let mut table: Vec<Option<Price>> = vec![None; (count + 1) * PARTS];
        table[0] = Some(Price::default());
        let mut steps: Vec<Vec<Step>> = Vec::with_capacity(rows.len());
        let mut most = 0;
        for row in &rows {
            let mut from: Vec<Step> = (0..table.len())
                .map(|cell| Step { taken: 0, parts: u8::try_from(cell % PARTS).unwrap_or(0) })
                .collect();
            let before = table.clone();
            for had in 0..=most.min(count) {
                for parts in 0..PARTS {
                    let Some(price) = before[at(had, parts)] else { continue };
                    for taken in 1..=row.len().min(count - had) {
                        let price = price.and(row.part_price(taken)).and(Price::of(CACHE_SPLIT));
                        let cell = at(had + taken, (parts + row.parts(taken)).min(PARTS - 1));
                        if table[cell].is_none_or(|known| price < known) {
                            table[cell] = Some(price);
                            from[cell] = Step {
                                taken: u16::try_from(taken).unwrap_or(u16::MAX),
                                parts: u8::try_from(parts).unwrap_or(0),
                            };
                        }
                    }
                }
            }
            most += row.len();
            steps.push(from);
        }
        let ends = (0..PARTS).filter_map(|parts| {
            let mut price = table[at(count, parts)]?;
            price.misplaced += misplaced_parts(parts);
            // One block is no split.
            price.micropoints = price.micropoints + extra - CACHE_SPLIT;
            Some((price, parts))
        });
        let (price, mut parts) = ends.min()?;
        let (mut left, mut cpus) = (count, Vec::with_capacity(count));
        for (row, from) in rows.iter().zip(&steps).rev() {
            let Step { taken, parts: before } = from[at(left, parts)];
            cpus.extend(row.first(usize::from(taken)));
            left -= usize::from(taken);
            parts = usize::from(before);
        }
        Some(Choice { cpus: cpus.into_iter().collect(), price })
    }
}
