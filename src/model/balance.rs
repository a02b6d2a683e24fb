//! What the rebalancer is told and what it answers: one measured tick, its settings, its decision, and how all of it is recorded.
//!
//! Everything here is a plain value that reads back as it was written, so that an hour can be recorded on one machine and decided again
//! on another (`place::rebalance::replay`). Utilisations are in thousandths (permille), loads in thousandths of a CPU, times in
//! milliseconds of a clock that never steps back.

use super::cpuset::CpuSet;
use super::name::Name;
use super::spec::Cpu;
use super::topology::Topology;
use super::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What one tick measured, each figure since the tick before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Steady time.
    pub at_ms: u64,
    /// How busy each online CPU was with anybody's work, without irq, softirq and steal, in permille. CPUs that were not measured are
    /// missing, never 0.
    pub busy: BTreeMap<u32, u32>,
    /// Every workload that runs, those that may not move included: they explain what keeps a CPU busy.
    pub members: BTreeMap<Name, Member>,
}

/// One running workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// What its manifest asks for: class, limit, SMT, alignment.
    pub cpu: Cpu,
    /// The CPUs it may use now: what its cpuset was last set to, without what is fenced for others.
    pub cpus: CpuSet,
    /// CPUs nobody else may use because of it. Empty unless `exclusive`.
    #[serde(default)]
    pub fenced: CpuSet,
    /// CPUs it has to stay within whatever happens: the node of its GPU, say. None is anywhere.
    #[serde(default)]
    pub within: Option<CpuSet>,
    /// Why it may not be moved now (policy, starting, stopping, an update); none if it may.
    #[serde(default)]
    pub fixed: Option<String>,
    /// CPU time per time; none while there are not yet two readings.
    pub usage: Option<MilliCpu>,
    /// Time its threads were ready to run and did not, per time and added up over threads (schedstat, PSI); none where nobody counts it.
    #[serde(default)]
    pub wait: Option<MilliCpu>,
    /// Memory that would be far after a move to another node; unknown counts as a lot.
    #[serde(default)]
    pub resident: Option<Bytes>,
    /// As in the manifest; of two that would help as much the lower one moves.
    #[serde(default)]
    pub priority: i32,
}

/// When the rebalancer acts. The defaults are DESIGN section 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// How often it looks. Ticks further apart than three of these are a gap: what was counted in a row begins anew.
    pub tick_ms: u64,
    /// After this long a change of demand counts half.
    pub half_life_ms: u64,
    /// The fullest group stands this far above the mean before anything is done, in permille of its CPUs,
    pub enter_permille: u32,
    /// and is left alone once it is this near.
    pub leave_permille: u32,
    /// Ticks in a row that have to say so.
    pub dwell_ticks: u32,
    /// Moves of one tick, each half of a swap and a move taken back included.
    pub moves_max: usize,
    /// How long a workload that was moved is left alone.
    pub cooldown_ms: u64,
    /// How long it does not return to where it was.
    pub no_return_ms: u64,
    /// How long waits are compared for, before and after a move.
    pub watch_ms: u64,
    /// A move is taken back if the wait became worse by this much of itself,
    pub worse_percent: u32,
    /// and by this much of a CPU for each CPU it uses, in permille (two points).
    pub worse_permille: u32,
    /// How long the pair of places is then not tried again.
    pub ban_ms: u64,
    /// Across NUMA nodes the imbalance has to be this large
    pub far_enter_permille: u32,
    /// for this long,
    pub far_dwell_ms: u64,
    /// and the resident set at most this large.
    pub far_resident_max: Bytes,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            tick_ms: 5_000,
            half_life_ms: 30_000,
            enter_permille: 150,
            leave_permille: 80,
            dwell_ticks: 2,
            moves_max: 2,
            cooldown_ms: 120_000,
            no_return_ms: 600_000,
            watch_ms: 60_000,
            worse_percent: 20,
            worse_permille: 20,
            ban_ms: 3_600_000,
            far_enter_permille: 250,
            far_dwell_ms: 60_000,
            // Copied by the kernel's NUMA balancing, page by page, at some hundred MB/s: about a second of a memory channel.
            far_resident_max: Bytes(256 << 20),
        }
    }
}

/// What one tick comes to. It only proposes: a move counts as made once a later sample shows its CPUs in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// In the order to carry them out; both halves of a swap follow each other.
    pub moves: Vec<Move>,
    /// What would help and is not the rebalancer's to do.
    pub advice: Vec<Advice>,
    /// What became of earlier moves.
    pub verdicts: Vec<Verdict>,
    pub figures: Figures,
}

/// Another set of CPUs for one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    pub name: Name,
    pub from: CpuSet,
    pub to: CpuSet,
    pub rung: Rung,
    /// The other half of a swap: one without the other makes things worse.
    #[serde(default)]
    pub with: Option<Name>,
    /// By how much the objective falls, and what the move costs, in thousandths of a CPU; of a swap, of both halves together.
    pub gain: u64,
    pub cost: u64,
    /// For people: what stood where, and what is expected of the move.
    pub reason: String,
}

/// The kinds of move, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Idle work leaves a crowded group, or returns to one that is not any more.
    Squeeze,
    /// A workload too large to be moved gets a second group beside its own, or gives it back.
    Widen,
    /// To other CPUs of the same NUMA node.
    Near,
    /// Two change places.
    Swap,
    /// To another NUMA node.
    Far,
    /// Back to where it was, because it waits more, or because what it made room for is over.
    Revert,
}

/// What somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// The crowded CPUs.
    pub cpus: CpuSet,
    /// One word for programs.
    pub reason: AdviceReason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum AdviceReason {
    /// A group stands out and nothing that may be moved would help.
    Imbalanced,
    /// Every group is full: there is nothing to even out.
    Overloaded,
    /// Pinned workloads share a CPU on a machine whose CPUs are all of one group.
    SharedSeat,
}

/// How an earlier move turned out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub name: Name,
    pub from: CpuSet,
    pub to: CpuSet,
    /// Wait before and after, in permille of what it asked for; none where nobody counts it.
    pub before: Option<u32>,
    pub after: Option<u32>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Outcome {
    /// It stays.
    Kept,
    /// It waits more, goes back, and does not come here again for as long as a ban lasts.
    Reverted,
    /// It waits more, and so it would where it came from: it stays, and the pair is banned.
    WorseEverywhere,
}

/// What the decision was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// The fullest group above the mean, in permille of its CPUs.
    pub imbalance: u32,
    /// The objective: the sum of load^2/capacity, with what splits cost.
    pub objective: u64,
    pub groups: Vec<GroupFigures>,
}

/// One group of CPUs: a last-level cache, where the machine says what shares one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupFigures {
    /// Those that are open to everybody.
    pub cpus: CpuSet,
    /// Smoothed demand, of others than ours as well; idle work apart.
    pub load: u64,
    pub idle: u64,
    /// The part of the load that is nobody's workload.
    pub foreign: u64,
    pub capacity: u64,
    /// Whether it is to be relieved.
    pub hot: bool,
}

/// One line of a recording. A recording begins with the machine, the settings and the rebalancer's memory; each is written again when it
/// changes by anything but a tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line<State> {
    Machine(Topology),
    Settings(Settings),
    State(State),
    Tick { sample: Sample, decision: Decision },
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Rung::Squeeze => "squeeze idle work",
            Rung::Widen => "widen",
            Rung::Near => "move",
            Rung::Swap => "swap",
            Rung::Far => "move across nodes",
            Rung::Revert => "take back",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Kept => "kept",
            Outcome::Reverted => "taken back",
            Outcome::WorseEverywhere => "worse, and no better where it was",
        })
    }
}
