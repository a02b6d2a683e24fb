//! Deciding again what was decided: a recording's lines against the rebalancer as it is now.
//!
//! A decision is a function of the machine, the settings, the memory and the sample, and a recording holds all four, so every difference
//! is a difference of the program, or of the recording.

use super::Balancer;
use crate::model::balance::{Decision, Line, Settings};
use crate::model::topology::Topology;
use serde::Serialize;

/// Differences that are told in full: enough to see what is wrong, little enough to read.
const DIFFERENCES_MAX: usize = 100;

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    pub ticks: u64,
    /// Ticks that came out otherwise.
    pub different: u64,
    /// Moves in the recording, and of this program.
    pub moves_recorded: u64,
    pub moves_decided: u64,
    /// The first hundred of those ticks.
    pub differences: Vec<Difference>,
}

/// One tick that came out otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    pub at_ms: u64,
    pub recorded: Decision,
    pub decided: Decision,
}

/// Why a recording cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreplayable {
    #[error("line {line} is a tick before any line says what the machine is; record from the beginning")]
    NoMachine { line: u64 },
}

/// Decides every tick of a recording again. The memory is the recording's where it has some, else it begins empty.
///
/// # Errors
/// A tick comes before its machine.
pub fn replay(lines: impl IntoIterator<Item = Line<Balancer>>) -> Result<Comparison, Unreplayable> {
    let mut balancer = Balancer::default();
    let mut settings = Settings::default();
    let mut machine: Option<Topology> = None;
    let mut comparison = Comparison::default();
    for (line, number) in lines.into_iter().zip(1..) {
        match line {
            Line::Machine(topology) => machine = Some(topology),
            Line::Settings(next) => settings = next,
            Line::State(next) => balancer = next,
            Line::Tick { sample, decision } => {
                let machine = machine.as_ref().ok_or(Unreplayable::NoMachine { line: number })?;
                let decided = balancer.tick(machine, &sample, &settings);
                comparison.add(sample.at_ms, decision, decided);
            }
        }
    }
    Ok(comparison)
}

impl Comparison {
    fn add(&mut self, at_ms: u64, recorded: Decision, decided: Decision) {
        self.ticks += 1;
        self.moves_recorded += recorded.moves.len() as u64;
        self.moves_decided += decided.moves.len() as u64;
        if recorded != decided {
            self.different += 1;
            if self.differences.len() < DIFFERENCES_MAX {
                self.differences.push(Difference { at_ms, recorded, decided });
            }
        }
    }
}
