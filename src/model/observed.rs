//! What a host holds of one workload, as last seen.

use super::cgroup::Settings;
use super::clock::Steady;
use super::exit::Exit;
use super::record::Record;
use super::time::Timestamp;

/// Everything seen of one workload; all empty when there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub instance: Option<Instance>,
    pub group: Option<Group>,
    /// Whether there are traces of a run that nothing tells of: it never began, or its init could leave no word.
    pub left_traces: bool,
}

impl Observed {
    /// The record that what is seen was started from.
    pub fn started_as(&self) -> Option<&Record> {
        self.instance.as_ref()?.record.as_ref()
    }
}

/// The newest run there is a trace of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// 0 where the traces that number it are lost.
    pub number: u64,
    /// The record it was started from, left beside it for the case that the database is lost. None where it is lost or unreadable: then
    /// what runs is taken for what the database says.
    pub record: Option<Record>,
    /// When the command began.
    pub started: Option<Timestamp>,
    /// The same by the clock that nobody sets, of a run of this boot.
    pub began: Option<Steady>,
    pub life: Life,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Between the order and the command: its PID 1 is setting up.
    Starting,
    /// The command runs. `pid` is its number on the host.
    Running { pid: u32 },
    /// It has ended, and what is left can be cleared away.
    Ended(Exit),
}

/// The workload's cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The control files this program sets, as the kernel has them.
    pub settings: Settings,
    /// Whether any process is in it.
    pub populated: bool,
    /// Whether somebody has frozen it. Nothing of ours does.
    pub frozen: bool,
}
