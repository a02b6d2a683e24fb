//! The simulated kernel: cgroups as locks on names, runs with an init and a command, traces, boots. It obeys nobody but its own rules.

use crate::world::{Event, World};
use containerctl::host::processes::Reaped;
use containerctl::host::traces::{Process, Trace};
use containerctl::model::cgroup::Settings;
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::spec::{Kind, Signal};
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
    pub end: Option<Outcome>,
    /// Whether the end is in the trace.
    pub reported: bool,
    pub asked_to_stop: bool,
    pub killed: bool,
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

/// The files of one run in the runtime directory.
#[derive(Clone, Default)]
pub struct Files {
    pub folder: u64,
    pub boxed: Option<Vec<u8>>,
    pub started: Option<Vec<u8>>,
    pub exit: Option<Vec<u8>>,
}

#[derive(Default)]
pub struct Kernel {
    pub boot: u64,
    pub groups: BTreeMap<Name, Group>,
    pub runs: Vec<Run>,
    pub traces: BTreeMap<Name, BTreeMap<u64, Files>>,
    pub next_pid: u32,
    pub next_folder: u64,
    pub runtime_full_until: u64,
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
        let settings = FRESH.map(|(file, value)| (file.to_owned(), value.to_owned()));
        Group { settings: Settings(settings.into()), ..Group::default() }
    }
}

impl Kernel {
    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    pub fn populated(&self, name: &Name) -> bool {
        self.groups.get(name).is_some_and(|group| !group.strangers.is_empty())
            || self.runs.iter().any(|run| run.in_group && run.name == *name)
    }

    /// The run of a name that has a process.
    pub fn live(&self, name: &Name) -> Option<RunId> {
        self.runs.iter().rposition(|run| run.name == *name && run.stage != Stage::Gone)
    }

    /// By pid and start time, whichever workload it belongs to.
    pub fn by_init(&self, init: Process) -> Option<RunId> {
        self.runs.iter().rposition(|run| run.init == init && run.stage != Stage::Gone && run.boot == self.boot)
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

impl World {
    pub fn runtime_is_full(&self) -> bool {
        self.now < self.kernel.runtime_full_until
    }

    /// A process is born in the group of `record`'s workload.
    pub fn spawn_run(&mut self, record: &Record, folder: u64) {
        let name = &record.spec.name;
        self.law_one_at_a_time(name, record);
        self.law_jobs_complete_once(record);
        let pid = self.kernel.next_pid;
        self.kernel.next_pid += 2;
        let ticks = self.now / 10;
        let run = Run {
            name: name.clone(),
            number: record.instance,
            record: record.clone(),
            boot: self.kernel.boot,
            init: Process { pid, start_ticks: ticks },
            command: Process { pid: pid + 1, start_ticks: ticks },
            parent: self.incarnation,
            stage: Stage::SettingUp,
            in_group: true,
            folder,
            born: self.now,
            end: None,
            reported: false,
            asked_to_stop: false,
            killed: false,
            excused: false,
        };
        self.say(|| format!("kernel: run {} of {name} is born, pid {pid}", record.instance));
        self.kernel.runs.push(run);
        let (id, delay) = (self.kernel.runs.len() - 1, self.rng.below(40));
        // Somebody has been at its traces already.
        let whole = self.files_of(id).and_then(|files| files.boxed.as_deref()).is_some_and(is_whole);
        self.kernel.runs[id].excused = !whole;
        self.after(delay, Event::Kernel(KernelEvent::SetUp(id)));
    }

    fn files_of(&mut self, id: RunId) -> Option<&mut Files> {
        let Run { name, number, folder, .. } = &self.kernel.runs[id];
        let files = self.kernel.traces.get_mut(name)?.get_mut(number)?;
        (files.folder == *folder).then_some(files)
    }

    fn report(&self, words: &str) -> Vec<u8> {
        let at = self.wall().0;
        format!("{words} {} {}\n", at / 1000, at % 1000 * 1_000_000).into_bytes()
    }

    pub fn kernel_event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::SetUp(id) => self.set_up(id),
            KernelEvent::Ends(id, outcome) => self.ends(id, outcome),
            KernelEvent::Leaves(id) => self.leaves(id),
            KernelEvent::Empties(id) => self.kernel.runs[id].in_group = false,
            KernelEvent::StrangerGone(name) => {
                if let Some(group) = self.kernel.groups.get_mut(&name) {
                    group.strangers.clear();
                }
            }
            KernelEvent::Noticed(id) => self.noticed(id),
        }
    }

    fn set_up(&mut self, id: RunId) {
        if self.kernel.runs[id].stage != Stage::SettingUp {
            return;
        }
        if self.stormy && self.rng.chance(300) {
            let fails = self.rng.below(2);
            let (words, outcome) = match fails {
                0 => (
                    "unexecutable 2",
                    Outcome::NotFound { command: self.kernel.runs[id].record.spec.process.command[0].clone() },
                ),
                _ => ("workdir 13", Outcome::NotStarted { reason: "workdir".to_owned() }),
            };
            self.write_exit(id, words);
            self.kernel.runs[id].end = Some(outcome);
            return self.leave_soon(id);
        }
        let run = &self.kernel.runs[id];
        let (init, command) = (run.init, run.command);
        let words = format!("started {} {} {} {}", init.pid, init.start_ticks, command.pid, command.start_ticks);
        let line = self.report(&words);
        let full = self.runtime_is_full();
        match self.files_of(id).filter(|_| !full) {
            Some(files) => files.started = Some(line),
            // Once its controller is gone too, nothing tells that it ever began.
            None => self.kernel.runs[id].excused = true,
        }
        self.kernel.runs[id].stage = Stage::Running;
        let name = self.kernel.runs[id].name.clone();
        self.say(|| format!("kernel: {name} runs its command"));
        self.after(0, Event::Kernel(KernelEvent::Noticed(id)));
        self.plan_the_end(id);
    }

    /// Jobs end; services only while the storm lasts.
    fn plan_the_end(&mut self, id: RunId) {
        let job = self.kernel.runs[id].record.spec.kind == Kind::Job;
        let dies = self.stormy && self.rng.chance(2_500);
        if !job && !dies {
            return;
        }
        let wait = if self.rng.chance(3_000) { self.rng.below(30) } else { self.rng.below(8_000) };
        let fails = self.stormy && self.rng.chance(if job { 3_000 } else { 7_000 });
        let outcome = self.outcome(fails);
        self.after(wait, Event::Kernel(KernelEvent::Ends(id, outcome)));
    }

    pub fn outcome(&mut self, fails: bool) -> Outcome {
        match (fails, self.rng.below(4)) {
            (false, _) => Outcome::Exited { code: 0 },
            (true, 0) => Outcome::OutOfMemory,
            (true, 1) => Outcome::Killed { signal: Signal(11) },
            (true, n) => Outcome::Exited { code: i32::try_from(n).unwrap_or(1) },
        }
    }

    fn write_exit(&mut self, id: RunId, words: &str) {
        let line = self.report(words);
        let full = self.runtime_is_full();
        let Some(files) = self.files_of(id).filter(|_| !full) else { return };
        files.exit = Some(line);
        self.kernel.runs[id].reported = true;
    }

    /// The command is over; init says how, and leaves.
    pub fn ends(&mut self, id: RunId, outcome: Outcome) {
        let run = &self.kernel.runs[id];
        if run.stage != Stage::Running || run.boot != self.kernel.boot {
            return;
        }
        let name = run.name.clone();
        self.say(|| format!("kernel: {name} {outcome}"));
        let words = match &outcome {
            Outcome::Exited { code } => format!("exited {code}"),
            Outcome::Killed { signal } => format!("killed {}", signal.0),
            _ => {
                if let Some(group) = self.kernel.groups.get_mut(&name) {
                    group.oom_kills += 1;
                }
                "killed 9".to_owned()
            }
        };
        self.write_exit(id, &words);
        self.kernel.runs[id].end = Some(outcome);
        self.note_completion(id);
        self.leave_soon(id);
    }

    fn leave_soon(&mut self, id: RunId) {
        self.kernel.runs[id].stage = Stage::Leaving;
        let delay = self.rng.below(4);
        self.after(delay, Event::Kernel(KernelEvent::Leaves(id)));
    }

    fn leaves(&mut self, id: RunId) {
        let run = &mut self.kernel.runs[id];
        if run.stage == Stage::Gone {
            return;
        }
        run.stage = Stage::Gone;
        let (emptied, noticed) = (self.rng.below(8), self.rng.below(4));
        self.after(emptied, Event::Kernel(KernelEvent::Empties(id)));
        self.after(noticed, Event::Kernel(KernelEvent::Noticed(id)));
    }

    /// A pidfd or a report pipe of the controller has something to say.
    fn noticed(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let key = (run.name.clone(), run.number);
        if run.stage == Stage::Gone {
            // A run without traces is watched as number 0.
            for key in [key.clone(), (key.0.clone(), 0)] {
                if self.watched.get(&key) == Some(&id) {
                    self.watched.remove(&key);
                    if run.parent == self.incarnation {
                        self.reaped.insert(key, reaped(run));
                    }
                }
            }
        }
        self.tell_controller(&key.0);
    }

    pub fn signal(&mut self, id: RunId) {
        let run = &mut self.kernel.runs[id];
        run.asked_to_stop = true;
        if run.stage == Stage::Running && self.rng.chance(8_000) {
            let delay = self.rng.below(300);
            let polite = self.rng.chance(5_000);
            let outcome = if polite { Outcome::Exited { code: 0 } } else { Outcome::Killed { signal: Signal::TERM } };
            self.after(delay, Event::Kernel(KernelEvent::Ends(id, outcome)));
        }
    }

    /// Everything in the group dies, init with it.
    pub fn kill_group(&mut self, name: &Name) {
        for id in 0..self.kernel.runs.len() {
            let run = &mut self.kernel.runs[id];
            if run.name == *name && run.in_group && run.stage != Stage::Gone {
                run.killed = true;
                run.end.get_or_insert(Outcome::Killed { signal: Signal::KILL });
                if run.stage != Stage::Leaving {
                    run.stage = Stage::Leaving;
                }
                let delay = self.rng.below(30);
                self.after(delay, Event::Kernel(KernelEvent::Leaves(id)));
            }
        }
        if self.kernel.groups.get(name).is_some_and(|group| !group.strangers.is_empty()) {
            let delay = self.rng.below(30);
            self.after(delay, Event::Kernel(KernelEvent::StrangerGone(name.clone())));
        }
    }

    /// The power fails: nothing runs any more, and a tmpfs is empty.
    pub fn reboot(&mut self) {
        self.kernel.boot += 1;
        self.kernel.next_pid = 100;
        self.kernel.groups.clear();
        for run in self.kernel.runs.iter_mut().filter(|run| run.stage != Stage::Gone) {
            // One that was being set up never began.
            run.excused |= run.stage == Stage::SettingUp;
            (run.stage, run.in_group) = (Stage::Gone, false);
            run.end.get_or_insert(Outcome::Lost);
        }
        for run in &mut self.kernel.runs {
            run.in_group = false;
        }
        // Most often the runtime directory is a tmpfs.
        if self.rng.chance(7_000) {
            self.kernel.traces.clear();
            for run in &mut self.kernel.runs {
                run.excused = true;
            }
        }
    }
}

fn is_whole(boxed: &[u8]) -> bool {
    Trace::parse(1, boxed, None, None).boxed.record.is_some()
}

/// What waiting for init tells.
fn reaped(run: &Run) -> Reaped {
    match &run.end {
        _ if run.killed => Reaped::Killed(9),
        Some(Outcome::Exited { code }) => Reaped::Exited(*code),
        Some(outcome) => Reaped::Exited(outcome.code()),
        None => Reaped::Killed(9),
    }
}
