//! The life of runs in the simulated kernel: born, set up, running, asked to end, killed, gone, noticed.

use crate::kernel::{Files, KernelEvent, Run, RunId, Stage};
use crate::vocabulary::{FAILS, SLOW};
use crate::world::{Event, World};
use containerctl::host::processes::{Reaped, Run as Watched};
use containerctl::host::traces::Process;
use containerctl::model::exit::Outcome;
use containerctl::model::name::Name;
use containerctl::model::record::Record;
use containerctl::model::spec::{Kind, Signal, Spec};
use std::collections::BTreeSet;

impl World {
    pub fn runtime_is_full(&self) -> bool {
        self.now < self.kernel.runtime_full_until
    }

    /// The clock that nobody sets. It begins with the boot, or in one that takes no time, with the controller.
    pub fn steady(&self) -> u64 {
        self.now.saturating_sub(self.kernel.booted_at)
    }

    /// A process is born in the group of `record`'s workload.
    pub fn spawn_run(&mut self, record: &Record, folder: u64) {
        let name = &record.spec.name;
        self.laws_of_a_start(record);
        let pid = self.kernel.next_pid;
        self.kernel.next_pid += 2;
        let ticks = self.steady() / 10;
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
            born_wall: self.wall(),
            end: None,
            ended_at: None,
            own_end: false,
            reported: false,
            asked_to_stop: false,
            asked_by: None,
            tried_at: None,
            killed: false,
            gave_way: false,
            ready_at: u64::MAX,
            sick_until: 0,
            served: false,
            bad_answers: 0,
            bad_for: 0,
            excused: false,
        };
        self.say(|| format!("kernel: run {} of {name} is born, pid {pid}", record.instance));
        self.kernel.runs.push(run);
        let (id, delay) = (self.kernel.runs.len() - 1, self.rng.below(40));
        self.kernel.there.push(id);
        // Somebody has been at its traces already.
        let boxed = self.files_of(id).and_then(|files| files.boxed.as_ref());
        let whole = boxed.is_some_and(|boxed| boxed.read.record.is_some());
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
            KernelEvent::Empties(id) => {
                self.kernel.runs[id].in_group = false;
                self.kernel.sweep();
            }
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
            self.note_end(id, outcome);
            return self.leave_soon(id);
        }
        self.come_up(id);
        let run = &self.kernel.runs[id];
        let (init, command) = (run.init, run.command);
        let words = format!("started {} {} {} {}", init.pid, init.start_ticks, command.pid, command.start_ticks);
        let line = self.report(&words);
        let full = self.runtime_is_full();
        if let Some(files) = self.files_of(id).filter(|_| !full) {
            files.started = Some(line);
        }
        self.kernel.runs[id].stage = Stage::Running;
        let name = self.kernel.runs[id].name.clone();
        self.say(|| format!("kernel: {name} runs its command"));
        self.after(0, Event::Kernel(KernelEvent::Noticed(id)));
        self.plan_the_end(id);
    }

    fn note_end(&mut self, id: RunId, outcome: Outcome) {
        let (now, run) = (self.now, &mut self.kernel.runs[id]);
        run.own_end = !run.asked_to_stop && !run.killed;
        (run.end, run.ended_at) = (Some(outcome), Some(now));
    }

    /// Jobs end; services only while the storm lasts.
    fn plan_the_end(&mut self, id: RunId) {
        let Spec { kind, process, .. } = self.kernel.runs[id].record.spec.as_ref();
        let (job, says) = (*kind == Kind::Job, |word: &str| process.command.iter().any(|said| said == word));
        if says(FAILS) {
            let wait = self.rng.below(500);
            return self.after(wait, Event::Kernel(KernelEvent::Ends(id, Outcome::Exited { code: 1 })));
        }
        if says(SLOW) {
            return self.after(20_000, Event::Kernel(KernelEvent::Ends(id, Outcome::Exited { code: 0 })));
        }
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
        self.note_end(id, outcome);
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
        self.kernel.sweep();
        self.excuse_if_untold(id);
        let (emptied, noticed) = (self.rng.below(8), self.rng.below(4));
        self.after(emptied, Event::Kernel(KernelEvent::Empties(id)));
        self.after(noticed, Event::Kernel(KernelEvent::Noticed(id)));
    }

    /// A pidfd or a report pipe of the controller has something to say.
    fn noticed(&mut self, id: RunId) {
        let run = &self.kernel.runs[id];
        let key = (run.name.clone(), run.number);
        // A run without traces is watched as number 0.
        for key in [key.clone(), (key.0.clone(), 0)] {
            if self.watched.get(&key) == Some(&id) && !self.untold.contains(&key) {
                self.end_watch(&key, false);
            }
        }
        self.tell_controller(&key.0);
    }

    /// Lets go of an init that has ended, and reaps it if it is the controller's own. If it is yet `to_be_told`, that comes first.
    pub fn end_watch(&mut self, key: &Watched, to_be_told: bool) {
        let Some(id) = self.watched.get(key).copied() else { return };
        let run = &self.kernel.runs[id];
        if run.stage != Stage::Gone {
            return;
        }
        if to_be_told {
            return self.after(0, Event::Kernel(KernelEvent::Noticed(id)));
        }
        self.watched.remove(key);
        self.untold.remove(key);
        if run.parent == self.incarnation {
            self.reaped.insert(key.clone(), reaped(run));
        }
    }

    pub fn signal(&mut self, id: RunId) {
        let run = &mut self.kernel.runs[id];
        // What has ended already was not ended by this.
        run.asked_to_stop |= run.end.is_none();
        run.asked_by = Some(self.incarnation);
        if run.stage == Stage::Running && self.rng.chance(8_000) {
            let delay = self.rng.below(300);
            let polite = self.rng.chance(5_000);
            let outcome = if polite { Outcome::Exited { code: 0 } } else { Outcome::Killed { signal: Signal::TERM } };
            self.after(delay, Event::Kernel(KernelEvent::Ends(id, outcome)));
        }
    }

    /// Everything in the group dies, init with it.
    pub fn kill_group(&mut self, name: &Name) {
        for id in self.kernel.there.clone() {
            let run = &mut self.kernel.runs[id];
            if run.name == *name && run.in_group && run.stage != Stage::Gone {
                run.killed = true;
                run.end.get_or_insert(Outcome::Killed { signal: Signal::KILL });
                run.ended_at.get_or_insert(self.now);
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

    /// The power fails: nothing runs any more, and a tmpfs is empty. Pids and the clock begin anew, mostly as at the boot before, so that a
    /// process may be as one of then was in both.
    pub fn reboot(&mut self) {
        self.kernel.boot += 1;
        self.kernel.next_pid = *self.rng.pick(&[98, 100, 100, 102]);
        self.kernel.booted_at = if self.rng.chance(5_000) { self.now } else { u64::MAX };
        self.kernel.groups.clear();
        self.kernel.daemons.clear();
        for run in self.kernel.runs.iter_mut().filter(|run| run.stage != Stage::Gone) {
            if self.rng.chance(5_000) {
                self.kernel.daemons.push(run.init);
            }
            // One that was being set up never began.
            run.excused |= run.stage == Stage::SettingUp;
            (run.stage, run.in_group) = (Stage::Gone, false);
            run.end.get_or_insert(Outcome::HostRestarted);
            run.ended_at.get_or_insert(self.now);
        }
        for run in &mut self.kernel.runs {
            run.in_group = false;
        }
        self.kernel.sweep();
        // Most often the runtime directory is a tmpfs.
        if self.rng.chance(7_000) {
            self.wipe_runtime();
        }
    }

    /// All traces are gone.
    pub fn wipe_runtime(&mut self) {
        self.kernel.traces.clear();
        let names: BTreeSet<Name> = self.kernel.runs.iter().map(|run| run.name.clone()).collect();
        for name in names {
            self.excuse(&name);
        }
    }
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
