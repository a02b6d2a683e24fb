//! The processes of workloads: noticing when one has ended or finished its set-up, and signalling it.
//!
//! Owns one thread that sleeps in epoll on a pidfd for each running init and a pipe for each one being set up. An event only says "look
//! again at this workload". Idle it costs nothing.
//!
//! Guarantees: a process is proven by its start time before it is watched or signalled, so a pid that was used again is never hit; our own
//! children are reaped, those too that the kernel will not tell of.

use super::strays;
use super::traces::Process;
use crate::model::name::Name;
use crate::model::spec::Signal;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Events taken at once; more come with the next call.
const EVENTS_MAX: usize = 64;

/// What init calls itself (the kernel keeps 15 bytes of it).
const COMM: &str = "containerctl-init";

/// What cannot be watched or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("cannot watch processes")]
    Watch(#[source] io::Error),
    #[error("cannot send {signal} to pid {pid}")]
    Signal { signal: Signal, pid: u32, source: io::Error },
}

/// How a child of ours was seen to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    Exited(i32),
    Killed(i32),
}

/// A run of a workload.
pub type Run = (Name, u64);

/// The watched processes.
pub struct Processes {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_token: u64,
    /// What an event's token stands for.
    watched: BTreeMap<u64, Watched>,
    /// The watched inits, by run.
    inits: BTreeMap<Run, u64>,
    /// Ends of our own children, until the run is cleared.
    reaped: BTreeMap<Run, Reaped>,
}

struct Watched {
    run: Run,
    fd: OwnedFd,
    /// An init's pid, none for a report pipe.
    init: Option<u32>,
    /// The kernel would not take it into the epoll set: its end shows only when somebody looks.
    untold: bool,
}

impl Processes {
    /// Starts the thread. `changed` is called on it, with the workload to look at.
    pub fn watch(changed: impl Fn(&Name) + Send + 'static) -> Result<Processes, ProcessError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| ProcessError::Watch(errno.into()))?;
        let shared = Arc::new(Shared { epoll, state: Mutex::default() });
        let on_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("processes".to_owned())
            .spawn(move || on_thread.run(&changed))
            .map_err(ProcessError::Watch)?;
        Ok(Processes { shared })
    }

    /// Watches an init that was just started, and its report. One that cannot be watched is held all the same: its descriptor is the only
    /// way to learn how a child has ended that could leave no report.
    pub fn add(&self, run: &Run, pid: u32, pidfd: OwnedFd, report: Option<OwnedFd>) -> Result<(), ProcessError> {
        let told = self.shared.add(run, pidfd, Some(pid));
        let report = report.map_or(Ok(()), |fd| self.shared.add(run, fd, None));
        told.and(report)
    }

    /// Watches an init somebody else started, an earlier controller, unless it is watched already. False if it is not that process. One that
    /// is watched counts until its end has been taken note of: in between nobody could say how it ended.
    pub fn adopt(&self, run: &Run, init: Process) -> Result<bool, ProcessError> {
        if self.is_running(run) {
            return Ok(true);
        }
        let Some(pid) = i32::try_from(init.pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(ProcessError::Watch(errno.into())),
        };
        // Checked after the descriptor is had: from here on the number cannot be given to anybody else.
        if !is_alive(init) {
            return Ok(false);
        }
        self.add(run, init.pid, pidfd, None)?;
        Ok(true)
    }

    /// Whether the run's init is watched and has not ended. Tries again for a watch that could not be had.
    pub fn is_running(&self, run: &Run) -> bool {
        self.shared.look_at_untold(run);
        self.shared.state().inits.contains_key(run)
    }

    /// The pid namespace, by its inode, of everything that runs.
    pub fn namespaces(&self) -> BTreeMap<u64, Name> {
        let state = self.shared.state();
        let namespace = |(run, token): (&Run, &u64)| {
            let Watched { fd, init, .. } = state.watched.get(token)?;
            Some((strays::pid_namespace((*init)?)?, run.0.clone(), PollFd::new(fd, PollFlags::IN)))
        };
        let found: Vec<_> = state.inits.iter().filter_map(namespace).collect();
        // Asked after all were read: while a process has not ended, its number is nobody else's. In one call: this is what a sweep does.
        let mut ended: Vec<PollFd<'_>> = found.iter().map(|(_, _, ended)| ended.clone()).collect();
        if poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err() {
            // Whose processes are whose is then for the next sweep to say.
            return BTreeMap::new();
        }
        let alive = found.into_iter().zip(ended).filter(|(_, ended)| ended.revents().is_empty());
        alive.map(|((namespace, name, _), _)| (namespace, name)).collect()
    }

    pub fn reaped(&self, run: &Run) -> Option<Reaped> {
        self.shared.state().reaped.get(run).copied()
    }

    /// Signals the run's init, which passes it on to the command. One that has ended needs no signal.
    pub fn signal(&self, run: &Run, signal: Signal) -> Result<(), ProcessError> {
        let state = self.shared.state();
        let Some(Watched { fd, init: Some(pid), .. }) = state.inits.get(run).and_then(|token| state.watched.get(token))
        else {
            return Ok(());
        };
        let failed = |source| ProcessError::Signal { signal, pid: *pid, source };
        let number = rustix::process::Signal::from_named_raw(signal.0).ok_or_else(|| failed(Errno::EINVAL.into()))?;
        match pidfd_send_signal(fd, number) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Forgets a workload's ended runs.
    pub fn clear(&self, name: &Name) {
        self.shared.state().reaped.retain(|(of, _), _| of != name);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a bug elsewhere; the maps are consistent between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a descriptor. An init's is held even if the kernel refuses to tell of it, and then as the error says.
    fn add(&self, run: &Run, fd: OwnedFd, init: Option<u32>) -> Result<(), ProcessError> {
        let mut state = self.state();
        let token = state.next_token;
        state.next_token += 1;
        let told = self.have_told(&fd, token);
        if init.is_some() {
            state.inits.insert(run.clone(), token);
        } else if told.is_err() {
            return told;
        }
        state.watched.insert(token, Watched { run: run.clone(), fd, init, untold: told.is_err() });
        told
    }

    fn have_told(&self, fd: &OwnedFd, token: u64) -> Result<(), ProcessError> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)
            .map_err(|errno| ProcessError::Watch(errno.into()))
    }

    /// Tries again to be told of an init; until that works, looks whether it has ended.
    fn look_at_untold(&self, run: &Run) {
        let mut state = self.state();
        let Some(token) = state.inits.get(run).copied() else { return };
        let Some(watched) = state.watched.get_mut(&token).filter(|watched| watched.untold) else { return };
        watched.untold = self.have_told(&watched.fd, token).is_err();
        let ended = watched.untold && has_ended(&watched.fd) == Some(true);
        drop(state);
        if ended {
            self.take(token);
        }
    }

    fn run(&self, changed: &impl Fn(&Name)) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    // Without this the controller still looks at everything with each resync.
                    tracing::error!(error = %errno, "cannot wait for processes");
                    return;
                }
            }
            for event in &events {
                if let Some((name, _)) = self.take(event.data.u64()) {
                    changed(&name);
                }
            }
        }
    }

    /// Ends a watch; reaps the process if it was one and a child of ours.
    fn take(&self, token: u64) -> Option<Run> {
        let mut state = self.state();
        let Watched { run, fd, init, untold: _ } = state.watched.remove(&token)?;
        // Closing the descriptor would take it out of the epoll set too, but not while a duplicate of it is open somewhere.
        let _ = epoll::delete(&self.epoll, &fd);
        if init.is_some() {
            state.inits.remove(&run);
            if let Ok(Some(status)) = waitid(WaitId::PidFd(fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                let killed = status.terminating_signal().map(Reaped::Killed);
                if let Some(reaped) = killed.or_else(|| status.exit_status().map(Reaped::Exited)) {
                    state.reaped.insert(run.clone(), reaped);
                }
            }
        }
        Some(run)
    }
}

/// Whether the process behind a pidfd has ended; none if the kernel does not say.
fn has_ended(fd: &OwnedFd) -> Option<bool> {
    let mut ended = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).ok().map(|count| count > 0)
}

/// Whether a process of this number exists, has not ended, and is the one that started then.
pub fn is_alive(process: Process) -> bool {
    let stat = i32::try_from(process.pid)
        .ok()
        .and_then(|pid| procfs::process::Process::new(pid).ok())
        .and_then(|found| found.stat().ok());
    stat.is_some_and(|stat| stat.starttime == process.start_ticks && stat.state != 'Z' && stat.state != 'X')
}

/// An init of ours, and the host's number of the command it started, if it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    pub init: Process,
    pub command: Option<u32>,
}

/// The init among the processes of a group, told by what the kernel says of them: its name, and number 1 in a pid namespace. The command
/// has the lowest number beside it (a moment of set-up may have had one before), once it no longer bears init's name.
pub fn find_init(pids: &[u32]) -> Option<Init> {
    let mut found: Option<Process> = None;
    let mut command: Option<(i32, u32)> = None;
    for pid in pids {
        let process = i32::try_from(*pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
        let Some(status) = process.as_ref().and_then(|process| process.status().ok()) else { continue };
        let inner =
            status.nspid.as_ref().filter(|numbers| numbers.len() > 1).and_then(|numbers| numbers.last().copied());
        let is_ours = COMM.starts_with(&status.name);
        match inner {
            Some(1) if is_ours => {
                let stat = process.and_then(|process| process.stat().ok())?;
                found = Some(Process { pid: *pid, start_ticks: stat.starttime });
            }
            Some(number) if !is_ours && command.is_none_or(|(lowest, _)| number < lowest) => {
                command = Some((number, *pid));
            }
            _ => {}
        }
    }
    found.map(|init| Init { init, command: command.map(|(_, pid)| pid) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

    fn start_ticks(pid: u32) -> u64 {
        procfs::process::Process::new(i32::try_from(pid).unwrap()).unwrap().stat().unwrap().starttime
    }

    #[test]
    fn an_adopted_process_is_proven_by_its_start_time_and_its_end_is_noticed() {
        let (sender, receiver) = mpsc::channel();
        let processes = Processes::watch(move |name| sender.send(name.clone()).unwrap()).unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let run: Run = ("web".parse().unwrap(), 1);
        let process = Process { pid: child.id(), start_ticks: start_ticks(child.id()) };
        let other = Process { start_ticks: process.start_ticks + 1, ..process };
        assert!(!processes.adopt(&run, other).unwrap(), "another process of that number was adopted");
        assert!(processes.adopt(&run, process).unwrap());
        assert!(processes.is_running(&run));
        processes.signal(&run, Signal::TERM).unwrap();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap(), run.0);
        assert!(!processes.is_running(&run));
        assert_eq!(processes.reaped(&run), Some(Reaped::Killed(15)));
        processes.clear(&run.0);
        assert_eq!(processes.reaped(&run), None);
        assert!(!processes.adopt(&run, process).unwrap(), "an ended process was adopted");
        child.wait().unwrap_err();
    }

    #[test]
    fn a_child_that_cannot_be_watched_is_reaped_by_whoever_looks() {
        let (sender, receiver) = mpsc::channel();
        let processes = Processes::watch(move |name| sender.send(name.clone()).unwrap()).unwrap();
        let epoll = &processes.shared.epoll;
        let end_unwatched = |number| {
            let mut child = Command::new("sleep").arg("100").spawn().unwrap();
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            // It will be refused, because it is there already; like this, with nothing asked of it, it tells nothing.
            let other = epoll::EventData::new_u64(u64::MAX);
            epoll::add(epoll, &pidfd, other, epoll::EventFlags::ONESHOT).unwrap();
            let run: Run = ("web".parse().unwrap(), number);
            processes.add(&run, child.id(), pidfd, None).unwrap_err();
            assert!(processes.is_running(&run), "it was let go of");
            child.kill().unwrap();
            // Until it is a zombie, which nobody but us can reap.
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            (run, child)
        };
        let (run, mut child) = end_unwatched(1);
        assert!(!processes.is_running(&run));
        assert_eq!(processes.reaped(&run), Some(Reaped::Killed(9)));
        child.wait().unwrap_err();
        // One that can be watched by now is told of like any other.
        let (run, mut child) = end_unwatched(2);
        {
            let state = processes.shared.state();
            epoll::delete(epoll, &state.watched[&state.inits[&run]].fd).unwrap();
        }
        processes.is_running(&run);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap(), run.0);
        assert_eq!(processes.reaped(&run), Some(Reaped::Killed(9)));
        child.wait().unwrap_err();
    }
}
