//! A try that runs a command in a workload's box: begun, followed, ended with everything it has started.

use super::{Refusal, left, unasked};
use crate::host::cgroup::{PROBE_GROUPS, read_at, write_at};
use crate::host::exec::{Input, Joining, joining};
use crate::host::linux::Linux;
use crate::host::spawn::{Namespaces, Spawn, Spawned, Stdio, spawn};
use crate::host::traces::{outcome, parse_report};
use crate::host::{Ask, HostError};
use crate::model::exit::Outcome;
use crate::model::probe::ProbeKind;
use nix::fcntl::OFlag;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchown, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// How much of what a command printed last is told.
const TOLD_BYTES_MAX: usize = 200;
/// A killed group is empty a few milliseconds later.
const REMOVE_TRIES: u32 = 50;
const REMOVE_AGAIN: Duration = Duration::from_millis(2);

impl Linux {
    /// Runs it, for as long as it may.
    pub(super) fn execute(&self, ask: &Ask<'_>, command: &[String], deadline: Instant) -> Result<(), Refusal> {
        let target = self.target(ask)?;
        let joining = joining(&target, command, ask.env, &self.options.runtime, &self.seccomp, Input::Stream)
            .map_err(|error| unasked(&error))?;
        let group = self.group(ask)?;
        let (output, output_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| unasked(&errno))?;
        let first =
            target.record.ids.filter(|_| target.record.spec.process.security.user_namespace).map_or(0, |ids| ids.first);
        let user = target.record.spec.process.user;
        // Programs open /dev/stderr by its name, which is then checked against the pipe's owner.
        let owner = (Uid::from_raw(first.saturating_add(user.uid)), Gid::from_raw(first.saturating_add(user.gid)));
        fchown(&output_end, Some(owner.0), Some(owner.1)).map_err(|errno| unasked(&errno))?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|errno| unasked(&errno))?;
        // What init would leave there is not needed: its report comes through the pipe, its exit code is the command's.
        let nowhere = File::open("/dev/null").map_err(|error| unasked(&error))?;
        let spawned = spawn(
            &self.image,
            &Spawn {
                name: ask.name.as_str(),
                order: &joining.order,
                cgroup: Some(group.directory.as_fd()),
                namespaces: Namespaces::Inherited,
                instance: nowhere.as_fd(),
                logs: nowhere.as_fd(),
                stdio: Stdio::Output(output_end.as_fd()),
            },
        );
        drop(output_end);
        let mut command =
            Command { spawned: spawned.map_err(|error| unasked(&error))?, group, output, told: Vec::new() };
        let in_time = command.follow(deadline);
        command.end(in_time, &joining)
    }

    /// A group for this try.
    fn group(&self, ask: &Ask<'_>) -> Result<Group, Refusal> {
        let workload = self.backend.directory(ask.name).map_err(|error| unasked(&HostError::from(error)))?;
        let Some(workload) = workload else {
            let message = "no cgroup v2 tree is mounted, without which a command could not be ended with all it has started \
                           (help: mount -t cgroup2 none /sys/fs/cgroup/unified)";
            return Err(Refusal::Unasked(message.to_owned()));
        };
        let name = PROBE_GROUPS[match ask.kind {
            ProbeKind::Startup => 0,
            ProbeKind::Readiness => 1,
            ProbeKind::Liveness => 2,
        }];
        Group::make(workload, name)
            .map_err(|errno| Refusal::Unasked(format!("cannot make the cgroup {name} for it: {errno}")))
    }
}

/// A group inside a workload's, for one try. Made anew each time: a process that is born into a group that was killed before is killed
/// too, on kernels that take the kill for one that came during the birth (seen on Linux 6.18, with `CLONE_INTO_CGROUP` from another group).
struct Group {
    workload: OwnedFd,
    name: &'static str,
    directory: OwnedFd,
}

impl Group {
    fn make(workload: OwnedFd, name: &'static str) -> Result<Group, Errno> {
        let make = || mkdirat(&workload, name, Mode::from_raw_mode(0o755));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Err(errno) = make() {
            if errno != Errno::EXIST {
                return Err(errno);
            }
            // An earlier controller was killed in the middle of a try, or what was left of one takes its time to end.
            Group::end(&workload, name, &openat(&workload, name, flags, Mode::empty())?);
            make()?;
        }
        let directory = openat(&workload, name, flags, Mode::empty())?;
        Ok(Group { workload, name, directory })
    }

    fn kill(&self) {
        // Fails only where the group is gone, and with it whatever was in it.
        let _ = write_at(&self.directory, "cgroup.kill", "1");
    }

    /// Ends whatever is in it, and removes it. What takes longer than a moment to go is met again by the next try.
    fn end(workload: &OwnedFd, name: &str, directory: &OwnedFd) {
        if read_at(directory, "cgroup.procs").is_ok_and(|pids| !pids.is_empty()) {
            let _ = write_at(directory, "cgroup.kill", "1");
        }
        for _ in 0..REMOVE_TRIES {
            if unlinkat(workload, name, AtFlags::REMOVEDIR) != Err(Errno::BUSY) {
                return;
            }
            thread::sleep(REMOVE_AGAIN);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        Group::end(&self.workload, self.name, &self.directory);
    }
}

/// A command that was begun in a box.
struct Command {
    spawned: Spawned,
    group: Group,
    /// Where its output comes, without waiting.
    output: OwnedFd,
    /// The end of it.
    told: Vec<u8>,
}

impl Command {
    /// Reads what it prints until it has ended or the time is up. Answers whether it has ended.
    fn follow(&mut self, deadline: Instant) -> bool {
        loop {
            let Ok(left) = left(deadline) else { return false };
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            let mut places =
                [PollFd::new(&self.spawned.pidfd, PollFlags::IN), PollFd::new(&self.output, PollFlags::IN)];
            match poll(&mut places, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
            let (ended, spoken) = (!places[0].revents().is_empty(), !places[1].revents().is_empty());
            let closed = spoken && self.listen();
            if ended {
                self.listen();
                return true;
            }
            if closed {
                return self.wait(deadline);
            }
        }
    }

    /// It has closed its output and may still run.
    fn wait(&self, deadline: Instant) -> bool {
        loop {
            let Ok(left) = left(deadline) else { return false };
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.spawned.pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(1..) => return true,
                Ok(0) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Takes what there is to read, once around the pipe. Answers whether nothing more will come.
    fn listen(&mut self) -> bool {
        let mut part = [0; 4096];
        // A pipe holds sixteen of these (pipe(7)); whoever prints without end does not keep us from looking at the clock.
        for _ in 0..16 {
            match rustix::io::read(&self.output, &mut part) {
                Ok(0) => return true,
                Ok(len) => {
                    self.told.extend_from_slice(&part[..len]);
                    let excess = self.told.len().saturating_sub(TOLD_BYTES_MAX);
                    self.told.drain(..excess);
                }
                Err(_) => return false,
            }
        }
        false
    }

    /// Ends what is left of it, and says how it went.
    fn end(self, in_time: bool, joining: &Joining) -> Result<(), Refusal> {
        if !in_time {
            self.group.kill();
        }
        let status = waitid(WaitId::PidFd(self.spawned.pidfd.as_fd()), WaitIdOptions::EXITED).ok().flatten();
        drop(self.group);
        if !in_time {
            return Err(Refusal::Late);
        }
        let mut report = Vec::new();
        let _ = File::from(self.spawned.report).read_to_end(&mut report);
        let report = parse_report(&report);
        if let Some(report) = report.filter(|report| report.word != "started") {
            let outcome = outcome(&report, &joining.steps, &joining.command, &joining.workdir, 0);
            return Err(match outcome {
                Outcome::NotStarted { reason } if report.word == "failed" => Refusal::Unasked(reason),
                outcome => Refusal::Bad(outcome.to_string()),
            });
        }
        let told = told(&self.told);
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            Some(code) => Err(Refusal::Bad(format!("exited with code {code}{told}"))),
            None => Err(Refusal::Unasked("it was killed".to_owned())),
        }
    }
}

/// What was printed last, fit for one line.
pub(super) fn told(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() { String::new() } else { format!(": {}", words.join(" ").escape_debug()) }
}
