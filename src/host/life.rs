//! Where a run is in its life, from whatever is left of it: its traces, its processes, its group.
//!
//! Owns the reasoning, not the looking: a [`Witness`] answers the questions, one at a time, while the run goes on living. So the order of
//! the questions matters, and each order is argued where it is.

use super::HostError;
use super::processes::{Init, Reaped, Run};
use super::traces::{Process, Trace};
use crate::init::wire::Step;
use crate::model::clock::Steady;
use crate::model::exit::{Exit, Outcome};
use crate::model::name::Name;
use crate::model::observed::{Group, Instance, Life, Observed};
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::time::Timestamp;
use std::ffi::CString;

/// What a host can say about runs.
pub trait Witness {
    /// Whether a boot id is that of the boot this is.
    fn is_this_boot(&self, boot_id: &str) -> bool;

    /// The traces of the newest run.
    fn newest(&self, name: &Name) -> Result<Option<Trace>, HostError>;

    /// Watches an init unless it is watched already. False if it is not that process, or has ended.
    fn adopt(&self, run: &Run, init: Process) -> Result<bool, HostError>;

    /// When a process of this boot began.
    fn began(&self, process: Process) -> Steady;

    /// Whether the run's init is watched and has not been seen to end.
    fn is_running(&self, run: &Run) -> bool;

    /// How a child of ours was seen to end.
    fn reaped(&self, run: &Run) -> Option<Reaped>;

    /// An init of ours among the processes of the group.
    fn init_in_group(&self, name: &Name) -> Result<Option<Init>, HostError>;

    /// Processes the kernel killed in the group for want of memory.
    fn oom_kills(&self, name: &Name) -> u64;

    /// The steps a run was started with.
    fn steps(&self, record: &Record) -> Vec<Step<CString>>;

    /// When something ended that does not say so itself: now.
    fn ended_at(&self) -> Timestamp;
}

/// What is there of a workload, given its group: with the newest run, if there is one.
pub fn observe(witness: &impl Witness, name: &Name, group: Option<Group>) -> Result<Observed, HostError> {
    let Some(trace) = witness.newest(name)? else {
        let instance = untraced(witness, name, group.as_ref())?;
        return Ok(Observed { instance, group, left_traces: false });
    };
    let here = trace.started.filter(|_| witness.is_this_boot(&trace.boxed.boot_id));
    // Zero is what init says of itself where it could not read it.
    let command = here.map(|started| started.command).filter(|command| command.start_ticks > 0);
    let instance = life(witness, name, &trace, group.as_ref())?.map(|(life, init)| Instance {
        number: trace.number,
        started: trace.started.map(|started| started.at),
        began: command.or(init).map(|process| witness.began(process)),
        record: trace.boxed.record,
        life,
    });
    let left_traces = instance.is_none();
    Ok(Observed { instance, group, left_traces })
}

/// Where a run is, and the init that was found in its group where that was asked for: what has left no report began no earlier than its init.
type Found = (Life, Option<Process>);

/// The life of a run that left traces.
fn life(witness: &impl Witness, name: &Name, trace: &Trace, group: Option<&Group>) -> Result<Option<Found>, HostError> {
    let run: Run = (name.clone(), trace.number);
    let alive = match trace.started {
        Some(started) if witness.is_this_boot(&trace.boxed.boot_id) => witness.adopt(&run, started.init)?,
        Some(_) => false,
        None => witness.is_running(&run),
    };
    if alive {
        let Some(started) = trace.started else {
            // Init could not leave its report: the runtime directory is full.
            let found = witness.init_in_group(name)?;
            return Ok(Some(found.map_or((Life::Starting, None), |found| (life_of(&found), Some(found.init)))));
        };
        return Ok(Some((Life::Running { pid: started.command.pid }, None)));
    }
    // What init says last it says before it ends: now that it has, the trace read before may be short of that.
    let again = if trace.end.is_none() { witness.newest(name)? } else { None };
    let again = again.as_ref().filter(|again| again.number == trace.number);
    // It began between the two looks, under a controller that did not start it: only now is there an init to look for.
    if let Some(again) = again.filter(|again| trace.started.is_none() && again.started.is_some()) {
        return life(witness, name, again, group);
    }
    let trace = again.unwrap_or(trace);
    let oom_kills = witness.oom_kills(name);
    let steps = trace.boxed.record.as_ref().map(|record| witness.steps(record)).unwrap_or_default();
    if let Some(exit) = trace.exit(&steps, oom_kills) {
        return Ok(Some((Life::Ended(exit), None)));
    }
    let reaped = witness.reaped(&run);
    if trace.started.is_none() && reaped.is_none() {
        // An earlier controller was killed while init set up, or init could not leave its report, or nothing was started at all and whoever
        // populates the group was put there by somebody else.
        return in_group(witness, &run, group);
    }
    let outcome = match reaped {
        Some(Reaped::Killed(9)) if oom_kills > 0 => Outcome::OutOfMemory,
        Some(Reaped::Killed(signal)) => Outcome::Killed { signal: Signal(signal) },
        // Init left without a word: its runtime directory was full or gone.
        Some(Reaped::Exited(code)) => Outcome::Exited { code },
        None if !witness.is_this_boot(&trace.boxed.boot_id) => Outcome::HostRestarted,
        None => Outcome::Lost,
    };
    let started = trace.started.map(|started| started.at);
    let exit = Exit { instance: trace.number, outcome, started, at: witness.ended_at() };
    Ok(Some((Life::Ended(exit), None)))
}

/// A run whose traces are lost, told by what is in its group: an init of ours, and the command that init started.
fn untraced(witness: &impl Witness, name: &Name, group: Option<&Group>) -> Result<Option<Instance>, HostError> {
    let found = in_group(witness, &(name.clone(), 0), group)?;
    let began = |init: Option<Process>| init.map(|init| witness.began(init));
    Ok(found.map(|(life, init)| Instance { number: 0, record: None, started: None, began: began(init), life }))
}

/// The life of an init of ours in the group, which is watched from then on.
fn in_group(witness: &impl Witness, run: &Run, group: Option<&Group>) -> Result<Option<Found>, HostError> {
    if !group.is_some_and(|group| group.populated) {
        return Ok(None);
    }
    let Some(found) = witness.init_in_group(&run.0)? else { return Ok(None) };
    Ok(witness.adopt(run, found.init)?.then_some((life_of(&found), Some(found.init))))
}

fn life_of(found: &Init) -> Life {
    found.command.map_or(Life::Starting, |pid| Life::Running { pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::traces::box_bytes;
    use crate::manifest::parse;
    use std::cell::Cell;

    /// A host with the traces of one run and nothing else, but for how a child of ours was reaped.
    #[derive(Default)]
    struct Remains {
        started: Option<&'static str>,
        exit: Option<&'static str>,
        reaped: Option<Reaped>,
        /// Who is in its group, and lives.
        inside: Option<Init>,
        /// How many looks at the traces come before the reports.
        early: Cell<u32>,
    }

    impl Witness for Remains {
        fn is_this_boot(&self, boot_id: &str) -> bool {
            boot_id == "boot"
        }

        fn newest(&self, _: &Name) -> Result<Option<Trace>, HostError> {
            let (spec, origin) = parse("web.yaml", b"command: x").workloads.remove(0);
            let boxed = box_bytes("boot", &Record { instance: 3, ..Record::new(spec, origin) }).unwrap();
            let is_early = self.early.replace(self.early.get().saturating_sub(1)) > 0;
            let reports = if is_early { [None, None] } else { [self.started, self.exit] };
            let [started, exit] = reports.map(|report| report.map(str::as_bytes));
            Ok(Some(Trace::parse(3, &boxed, started, exit)))
        }

        fn adopt(&self, _: &Run, init: Process) -> Result<bool, HostError> {
            Ok(self.inside.is_some_and(|inside| inside.init == init))
        }

        fn began(&self, process: Process) -> Steady {
            Steady(i64::try_from(process.start_ticks).unwrap())
        }

        fn is_running(&self, _: &Run) -> bool {
            false
        }

        fn reaped(&self, _: &Run) -> Option<Reaped> {
            self.reaped
        }

        fn init_in_group(&self, _: &Name) -> Result<Option<Init>, HostError> {
            Ok(self.inside)
        }

        fn oom_kills(&self, _: &Name) -> u64 {
            0
        }

        fn steps(&self, _: &Record) -> Vec<Step<CString>> {
            Vec::new()
        }

        fn ended_at(&self) -> Timestamp {
            Timestamp(9)
        }
    }

    /// How it ended, or that nobody knows.
    fn check(started: Option<&'static str>, exit: Option<&'static str>, reaped: Option<Reaped>) -> String {
        let remains = Remains { started, exit, reaped, ..Remains::default() };
        let seen = observe(&remains, &"web".parse().unwrap(), None).unwrap();
        match seen.instance.map(|instance| instance.life) {
            Some(Life::Ended(exit)) => exit.outcome.to_string(),
            other => format!("{other:?}, left traces: {}", seen.left_traces),
        }
    }

    #[test]
    fn an_end_is_told_by_the_best_word_there_is_of_it() {
        let (started, exited) = (Some("started 100 5 101 6 1 2\n"), Some("exited 3 1 2\n"));
        assert_eq!(check(started, exited, Some(Reaped::Exited(125))), "exited with code 3");
        assert_eq!(check(started, None, Some(Reaped::Exited(5))), "exited with code 5");
        assert_eq!(check(started, None, None), "gone without an exit status");
        assert_eq!(check(None, exited, None), "exited with code 3");
        // Neither report could be left, but its parent has waited for it.
        assert_eq!(check(None, None, Some(Reaped::Exited(125))), "exited with code 125");
        assert_eq!(check(None, None, Some(Reaped::Killed(9))), "killed by SIGKILL");
    }

    const INSIDE: Init = Init { init: Process { pid: 100, start_ticks: 5 }, command: Some(101) };

    fn running(remains: &Remains) -> Instance {
        let group = Group { populated: true, ..Group::default() };
        observe(remains, &"web".parse().unwrap(), Some(group)).unwrap().instance.unwrap()
    }

    #[test]
    fn a_run_that_begins_between_two_looks_has_not_ended() {
        let remains = Remains {
            started: Some("started 100 5 101 6 1 2\n"),
            inside: Some(INSIDE),
            early: Cell::new(1),
            ..Remains::default()
        };
        assert_eq!(running(&remains).life, Life::Running { pid: 101 });
    }

    #[test]
    fn a_run_without_a_report_began_with_its_init() {
        let seen = running(&Remains { inside: Some(INSIDE), ..Remains::default() });
        assert_eq!((seen.life, seen.began), (Life::Running { pid: 101 }, Some(Steady(5))));
    }

    #[test]
    fn a_box_that_nothing_tells_of_is_something_to_clear_away() {
        assert_eq!(check(None, None, None), "None, left traces: true");
    }
}
