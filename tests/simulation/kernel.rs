//! The simulated kernel: cgroups as locks on names, runs with an init and a command, traces. `life` has the rules it obeys.

use containerctl::host::traces::{Boxed, Process, Trace};
use containerctl::model::cgroup::Settings;
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::time::Timestamp;
use std::collections::BTreeMap;

/// What a fresh group holds.
const FRESH: [(&str, &str); 10] = [
    ("cpu.max", "max 100000"),
    ("cpu.max.burst", "0"),
    ("cpu.idle", "0"),
    ("cpu.weight", "100"),
    ("memory.low", "0"),
    ("memory.high", "max"),
    ("memory.max", "max"),
    ("memory.swap.max", "max"),
    ("cpuset.cpus", ""),
    ("pids.max", "max"),
];

pub type RunId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    SettingUp,
    Running,
    /// The command is gone, init has yet to leave.
    Leaving,
    Gone,
}

/// One run of a workload, as the kernel and the laws know it.
#[allow(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct Run {
    pub name: Name,
    pub number: u64,
    pub record: Record,
    pub boot: u64,
    pub init: Process,
    pub command: Process,
    /// Which controller is its parent.
    pub parent: u64,
    pub stage: Stage,
    /// Whether any process of it is still counted in the group.
    pub in_group: bool,
    /// The folder that init has open for its reports.
    pub folder: u64,
    /// Virtual time it was born.
    pub born: u64,
    pub born_wall: Timestamp,
    pub end: Option<Outcome>,
    /// When it ended, and whether by itself.
    pub ended_at: Option<u64>,
    pub own_end: bool,
    /// Whether the end is in the trace.
    pub reported: bool,
    pub asked_to_stop: bool,
    /// Which controller asked it to end, and when one first tried to.
    pub asked_by: Option<u64>,
    pub tried_at: Option<u64>,
    pub killed: bool,
    /// It was stopped to make room for another, and for nothing else.
    pub gave_way: bool,
    /// From when on it is ready, and until when it is not well.
    pub ready_at: u64,
    pub sick_until: u64,
    /// Whether a probe has found it ready, or nobody asks and it runs.
    pub served: bool,
    /// How often it has answered what it may be ended for badly, and how old it was when it last was not ready.
    pub bad_answers: u32,
    pub bad_for: u64,
    /// Something has happened that makes its end unknowable; laws about ends let it pass.
    pub excused: bool,
}

#[derive(Default)]
pub struct Group {
    pub settings: Settings,
    pub strangers: Vec<u32>,
    pub oom_kills: u64,
    pub frozen: bool,
    /// Somebody else has written to its files.
    pub meddled: bool,
}

/// The file `box` of a run, and what is in it: whoever looks reads it, and it does not change.
#[derive(Clone)]
pub struct BoxFile {
    pub bytes: Vec<u8>,
    pub read: Boxed,
}

impl BoxFile {
    pub fn of(bytes: Vec<u8>) -> BoxFile {
        BoxFile { read: Trace::parse(1, &bytes, None, None).boxed, bytes }
    }
}

/// The files of one run in the runtime directory.
#[derive(Clone, Default)]
pub struct Files {
    pub folder: u64,
    pub boxed: Option<BoxFile>,
    pub started: Option<Vec<u8>>,
    pub exit: Option<Vec<u8>>,
}

#[derive(Default)]
pub struct Kernel {
    pub boot: u64,
    /// When the clock that nobody sets began.
    pub booted_at: u64,
    pub groups: BTreeMap<Name, Group>,
    pub runs: Vec<Run>,
    /// Those of them that have a process, or are still counted in their group.
    pub there: Vec<RunId>,
    pub traces: BTreeMap<Name, BTreeMap<u64, Files>>,
    pub next_pid: u32,
    /// Processes of the system that have the pid and the start time that an init had in the boot before.
    pub daemons: Vec<Process>,
    pub next_folder: u64,
    pub runtime_full_until: u64,
    /// Which log folder each workload has, and until when it has none.
    pub log_folders: BTreeMap<Name, (u64, u64)>,
}

#[derive(Clone, Debug)]
pub enum KernelEvent {
    SetUp(RunId),
    Ends(RunId, Outcome),
    Leaves(RunId),
    Empties(RunId),
    StrangerGone(Name),
    /// The controller that watches it is told.
    Noticed(RunId),
}

impl Group {
    pub fn new() -> Group {
        Group { settings: Settings::from_iter(FRESH), ..Group::default() }
    }
}

impl Kernel {
    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    pub fn populated(&self, name: &Name) -> bool {
        self.groups.get(name).is_some_and(|group| !group.strangers.is_empty())
            || self.there.iter().map(|id| &self.runs[*id]).any(|run| run.in_group && run.name == *name)
    }

    /// The run of a name that has a process.
    pub fn live(&self, name: &Name) -> Option<RunId> {
        let is_live = |id: &&RunId| self.runs[**id].stage != Stage::Gone && self.runs[**id].name == *name;
        self.there.iter().rfind(is_live).copied()
    }

    /// The run that was born last as this number, whatever has become of it.
    pub fn born_as(&self, name: &Name, number: u64) -> Option<RunId> {
        self.runs.iter().rposition(|run| run.name == *name && run.number == number)
    }

    /// By pid and start time, whichever workload it belongs to.
    pub fn by_init(&self, init: Process) -> Option<RunId> {
        let is_it = |run: &Run| run.init == init && run.stage != Stage::Gone && run.boot == self.boot;
        self.there.iter().rfind(|id| is_it(&self.runs[**id])).copied()
    }

    /// Lets go of runs of which nothing is there any more.
    pub fn sweep(&mut self) {
        let runs = &self.runs;
        self.there.retain(|id| runs[*id].in_group || runs[*id].stage != Stage::Gone);
    }

    /// Where a workload is, for people and for counting.
    pub fn phase(&self, name: &Name) -> &'static str {
        let traces = self.traces.get(name).and_then(|runs| runs.values().next_back());
        match (self.live(name).map(|id| &self.runs[id]), self.groups.contains_key(name), traces) {
            (Some(run), ..) if run.killed => "killed",
            (Some(run), ..) if run.asked_to_stop => "stopping",
            (Some(Run { stage: Stage::SettingUp, .. }), ..) => "being set up",
            (Some(Run { stage: Stage::Leaving, .. }), ..) => "leaving",
            (Some(_), ..) => "running",
            (None, true, _) if self.populated(name) => "emptying",
            (None, true, Some(Files { exit: Some(_), .. })) => "ended",
            (None, true, Some(_)) => "lost",
            (None, true, None) => "an empty group",
            (None, false, Some(_)) => "traces only",
            (None, false, None) => "absent",
        }
    }
}
