//! `exec`: another command in the box of a workload that runs.
//!
//! The same init does it that makes boxes, with an order that joins one instead: the cgroups, the namespaces, the user namespace, then the
//! same limits, filters, capabilities and identity as the workload's own command. Nothing of the caller gets in but three standard
//! streams, none of them a terminal of the host's. What runs this way ends with the workload.

use super::cgroup::membership;
use super::confine::{self, Plan};
use super::facts::{ceilings, landlock_version};
use super::processes::is_alive;
use super::seccomp::Compiler;
use super::sources::Hidden;
use super::spawn::{Image, Namespaces, Spawn, Spawned, Stdio, spawn};
use super::traces::{Process, TraceError, Traces, make_private, report_in};
use super::{HostError, dev};
use crate::init;
use crate::init::wire;
use crate::model::exit::{Exit, Outcome};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::spec::Signal;
use crate::model::time::Timestamp;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Why nothing can be executed there.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error(
        "no run of {name} is known in {runtime}\n  help: `containerctl ps` lists what runs; another controller has another --runtime-dir"
    )]
    Unknown { name: Name, runtime: PathBuf },
    #[error("{name} is not running\n  help: `containerctl describe {name}` says why")]
    NotRunning { name: Name },
    #[error(
        "what {name} was started from cannot be read in {runtime}\n  help: it goes on; restart it to be able to join it"
    )]
    Unreadable { name: Name, runtime: PathBuf },
    #[error(
        "cannot make a terminal in the box of {name}\n  help: `containerctl exec --no-tty` does without one; inside, /dev/pts has to be as it was made"
    )]
    Terminal { name: Name, source: io::Error },
    #[error("cannot open the cgroup {path}")]
    Group { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<TraceError> for ExecError {
    fn from(error: TraceError) -> ExecError {
        ExecError::Host(error.into())
    }
}

/// A workload that can be joined.
#[derive(Debug)]
pub struct Target {
    pub record: Record,
    /// The workload's own command.
    pub(super) process: Process,
}

/// Finds a running workload by its traces.
pub fn find(runtime: &Path, name: &Name) -> Result<Target, ExecError> {
    let lacking = || ExecError::Unknown { name: name.clone(), runtime: runtime.to_owned() };
    if !runtime.join("workloads").join(name.as_str()).is_dir() {
        return Err(lacking());
    }
    let trace = Traces::open(runtime)?.newest(name)?.ok_or_else(lacking)?;
    let running = trace.started.filter(|started| trace.end.is_none() && is_alive(started.command));
    let Some(started) = running else { return Err(ExecError::NotRunning { name: name.clone() }) };
    let unreadable = || ExecError::Unreadable { name: name.clone(), runtime: runtime.to_owned() };
    Ok(Target { record: trace.boxed.record.ok_or_else(unreadable)?, process: started.command })
}

/// A command that was begun in somebody's box.
#[derive(Debug)]
pub struct Session {
    spawned: Spawned,
    folder: PathBuf,
    command: String,
    workdir: String,
    steps: Vec<wire::Step<std::ffi::CString>>,
}

/// What to run in a box, and on what.
#[derive(Debug)]
pub struct Begin<'a> {
    pub command: &'a [String],
    pub env: &'a BTreeMap<String, String>,
    /// Standard input, output and error. None may be a terminal of the host's.
    pub streams: [BorrowedFd<'a>; 3],
    /// What standard input is to the command.
    pub input: Input,
    pub runtime: &'a Path,
    /// For what its init has to say.
    pub folder: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Something to read from.
    Stream,
    /// A terminal of the box, which will control its session.
    Terminal,
}

/// What it takes to join a box.
pub(super) struct Joining {
    pub steps: Vec<wire::Step<std::ffi::CString>>,
    pub order: Vec<u8>,
    /// The box's group in the v2 tree.
    pub unified: Option<PathBuf>,
    pub command: String,
    pub workdir: String,
}

/// Prepares `command` for the box of `target`.
pub(super) fn joining(
    target: &Target,
    command: &[String],
    env: &BTreeMap<String, String>,
    runtime: &Path,
    compiler: &Compiler,
    input: Input,
) -> Result<Joining, HostError> {
    let Record { spec, ids, .. } = &target.record;
    let mut process = spec.process.clone();
    command.clone_into(&mut process.command);
    let groups = membership(target.process.pid, &spec.name);
    // Started in our own group instead it would be held to nothing.
    if !groups.lacking.is_empty() {
        return Err(HostError::OutOfGroup { name: spec.name.clone(), hierarchies: groups.lacking.join(" and ") });
    }
    let ceilings = ceilings()?;
    let (nowhere, dev, hidden) = (PathBuf::new(), dev::path(runtime), Hidden::default());
    let plan = Plan {
        name: &spec.name,
        process: &process,
        env,
        tasks: &groups.tasks,
        shows_cgroup: false,
        mountpoint: &nowhere,
        layer: None,
        dev: &dev,
        mounts: &[],
        hidden: &hidden,
        ids: ids.filter(|_| process.security.user_namespace),
        ceilings: &ceilings,
        landlock: landlock_version(),
        logs: spec.logs,
        foreground: true,
    };
    let filters = compiler.filters(&process.security.seccomp, &process.security.capabilities)?;
    let steps = confine::join_steps(&plan, target.process.pid, target.process.start_ticks)?;
    let mut run = confine::run(&plan, filters)?;
    run.terminal = input == Input::Terminal;
    let order = wire::order(&steps, &run);
    let (command, workdir) = (process.command.first().cloned().unwrap_or_default(), process.workdir);
    Ok(Joining { steps, order, unified: groups.unified, command, workdir })
}

/// Begins a command in the box of `target`.
pub fn begin(target: &Target, begin: Begin<'_>) -> Result<Session, ExecError> {
    let Begin { command, env, streams, input, runtime, folder } = begin;
    let Joining { steps, order, unified, command, workdir } =
        joining(target, command, env, runtime, &Compiler::default(), input)?;
    let group = match &unified {
        Some(path) => Some(File::open(path).map_err(|source| ExecError::Group { path: path.clone(), source })?),
        None => None,
    };
    make_private(&folder)?;
    let place = File::open(&folder).map_err(|source| HostError::Logs { path: folder.clone(), source })?;
    let image = Image::load(init::PROGRAM).map_err(HostError::from)?;
    let spawned = spawn(
        &image,
        &Spawn {
            name: target.record.spec.name.as_str(),
            order: &order,
            cgroup: group.as_ref().map(AsFd::as_fd),
            namespaces: Namespaces::Inherited,
            instance: place.as_fd(),
            logs: place.as_fd(),
            stdio: Stdio::Given(streams),
        },
    )
    .map_err(HostError::from)?;
    Ok(Session { spawned, folder, command, workdir, steps })
}

impl Session {
    /// Something that returns when it has ended, for a thread of its own. Leaves it to [`Session::finish`] to collect it.
    pub fn waiter(&self) -> io::Result<impl FnOnce() + Send + 'static> {
        let pidfd = self.spawned.pidfd.try_clone()?;
        Ok(move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            // It is our child, so there is nothing else to wait for and nothing to fail but an interruption.
            while matches!(waitid(WaitId::PidFd(pidfd.as_fd()), options), Err(Errno::INTR)) {}
        })
    }

    /// Passes a signal on to the command. One that has ended needs none.
    pub fn signal(&self, signal: Signal) {
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal.0) {
            // Ended already is the only way for this to fail on a child of ours.
            let _ = rustix::process::pidfd_send_signal(&self.spawned.pidfd, signal);
        }
    }

    /// Leaves it to end as a hang-up ends it, or its init with us; cleans up behind it.
    pub fn abandon(self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// How it ended, once it has; cleans up behind it.
    pub fn finish(self) -> Exit {
        let waited = waitid(WaitId::PidFd(self.spawned.pidfd.as_fd()), WaitIdOptions::EXITED);
        let exit = report_in(&self.folder, &self.steps, &self.command, &self.workdir);
        // What cannot be removed now is removed by the next run or exec.
        let _ = fs::remove_dir_all(&self.folder);
        // Its init had no room to write what it has to say, and ended with the command's code; or it was killed with the workload.
        let code = waited.ok().flatten().and_then(|status| status.exit_status());
        let outcome = code.map_or(Outcome::Killed { signal: Signal::KILL }, |code| Outcome::Exited { code });
        exit.unwrap_or(Exit { instance: 0, outcome, started: None, at: Timestamp::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Command, Stdio};

    /// How a session ends whose init does this and writes no report.
    fn finish(script: &str) -> Outcome {
        #[allow(clippy::zombie_processes, reason = "finish() waits for it by its descriptor")]
        let child = Command::new("sh").args(["-c", script]).stderr(Stdio::null()).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let report = File::open("/dev/null").unwrap().into();
        let folder = tempfile::tempdir().unwrap().keep();
        let spawned = Spawned { pid: child.id(), pidfd, report };
        let session = Session { spawned, folder, command: String::new(), workdir: String::new(), steps: Vec::new() };
        session.finish().outcome
    }

    #[test]
    fn a_code_counts_without_a_report_too() {
        assert_eq!(finish("exit 7"), Outcome::Exited { code: 7 });
        assert_eq!(finish("exit 0"), Outcome::Exited { code: 0 });
        assert_eq!(finish("kill -KILL $$"), Outcome::Killed { signal: Signal::KILL });
    }
}
