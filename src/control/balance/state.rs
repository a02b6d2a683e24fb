//! What the loop knows of moves: those that are proposed, and what the rebalancer is shown.

use crate::control::state::State;
use crate::model::balance::{Move, Sample};
use crate::model::clock::Time;
use crate::model::cpuset::CpuSet;
use crate::model::name::Name;
use crate::plan::balance::{self, Rates};
use std::collections::BTreeSet;

impl State {
    /// Whether anybody runs who could be moved.
    pub fn is_any_movable(&self, now: Time) -> bool {
        balance::is_any_movable(&self.input(&self.desired, now))
    }

    /// What the rebalancer is shown.
    pub fn sample(&self, rates: &Rates, now: Time) -> Sample {
        balance::sample(&self.input(&self.desired, now), rates, now.steady)
    }

    /// Takes proposals in place of those before; what of them is being carried out goes on. Answers whose are dropped.
    pub fn propose(&mut self, moves: Vec<Move>) -> BTreeSet<Name> {
        let (mut kept, dropped): (Vec<Move>, Vec<Move>) =
            self.moves.drain(..).partition(|proposed| self.in_flight.contains(&proposed.name));
        let is_new = |proposed: &Move| !kept.iter().any(|known| known.name == proposed.name);
        let new: Vec<Move> = moves.into_iter().filter(is_new).collect();
        kept.extend(new);
        self.moves = kept;
        dropped.into_iter().map(|proposed| proposed.name).collect()
    }

    /// The proposal that a step for `name` with these CPUs was about; it is none any more.
    pub fn take_proposal(&mut self, name: &Name, cpus: &CpuSet) -> Option<Move> {
        let index = self.moves.iter().position(|proposed| proposed.name == *name && proposed.to == *cpus)?;
        Some(self.moves.remove(index))
    }
}
