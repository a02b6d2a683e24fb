//! `containerctl run FILE`: one workload in the foreground, in the same box and under the same limits as with a controller, on the caller's
//! terminal. It ends when the command does, and takes the command with it if it is killed.

mod manifest;

use super::{MANIFESTS, RunArgs, STATE, output};
use crate::host::gpu::{CDI_FOLDERS, Gpus, Simulated, Source};
use crate::host::linux::{Linux, Options};
use crate::host::{Host, HostError, Start, cgroup, chain};
use crate::model::admission::Admission;
use crate::model::cpuset::CpuSet;
use crate::model::desired::Wanted;
use crate::model::exit::{Exit, Outcome};
use crate::model::name::Name;
use crate::model::observed::Life;
use crate::model::spec::Signal;
use crate::plan::foreground;
use anyhow::{Context, anyhow, bail};
use nix::unistd::{geteuid, getpgrp, tcgetpgrp};
use std::fs;
use std::future::{pending, poll_fn};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The exit code when the command could not be run at all, as with Docker.
pub const NOT_RUN: u8 = 125;
/// What a host without GPUs pretends to have, so that the smallest example runs anywhere.
const PRETENDED_GPUS: &str = "1x16Gi";
/// Signals that are caught, by kind.
pub type Signals = Vec<(SignalKind, tokio::signal::unix::Signal)>;

/// Signals that are passed on to the command.
pub const FORWARDED: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];
/// Those among them that ask a command to end.
const ENDING: [SignalKind; 4] =
    [SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate(), SignalKind::hangup()];
/// How long a killed cgroup may take to be empty before it is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// Cgroups of a run that has ended are empty a few milliseconds later.
const CLEAR_TRIES: u32 = 50;
const CLEAR_AGAIN: Duration = Duration::from_millis(20);

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("running a workload needs root\n  help: sudo containerctl run {}", args.file.display());
    }
    let wanted = manifest::read(&args.file)?;
    let name = wanted.spec.name.clone();
    // Open to all, as the controller makes it: what is inside is not.
    fs::create_dir_all(&args.runtime_dir).with_context(|| format!("cannot make {}", args.runtime_dir.display()))?;
    sweep(args);
    // A place of its own for each run: several may go on at once.
    let (own, parent) = place(args, &std::process::id().to_string());
    let ended = Arc::new(Notify::new());
    let bell = Arc::clone(&ended);
    let options = Options {
        logs: own.join("logs"),
        layers: None,
        runtime: own.clone(),
        cgroup_parent: parent.clone(),
        gpus: gpus(args, &wanted),
        reserved: CpuSet::new(),
        admission: Admission::default(),
        cdi: CDI_FOLDERS.map(PathBuf::from).into(),
        // Its own folder, and where a controller of this host would have its secrets.
        hidden: vec![own.clone(), PathBuf::from(MANIFESTS), PathBuf::from(STATE)],
        fence: None,
        foreground: true,
    };
    let host = Linux::open(options, move |_: &Name| bell.notify_one()).map_err(|error| anyhow!("{}", chain(&error)))?;
    let exit = start_and_follow(&host, wanted, &ended);
    clear(&host, &name);
    drop(host);
    remove(&own, &parent);
    Ok(code(&exit?.outcome))
}

/// The GPUs to choose from. A host that has none gets a simulated one, said aloud, where the workload asks for one: that is what makes
/// the smallest example run everywhere.
fn gpus(args: &RunArgs, wanted: &Wanted) -> Source {
    match (&args.simulate_gpus, &wanted.spec.gpu) {
        (Some(gpus), _) => Source::Simulated(gpus.clone()),
        (None, Some(_)) if has_gpus() => Source::Machine,
        (None, Some(request)) => {
            output::complain(&format!(
                "containerctl: {request} asked for, this host has none: simulating {PRETENDED_GPUS}; choose with --simulate-gpus"
            ));
            Source::Simulated(PRETENDED_GPUS.parse().unwrap_or_default())
        }
        (None, None) => Source::Simulated(Simulated::default()),
    }
}

/// Whether it has any, or has a driver that cannot say: that is told, and not made up for.
fn has_gpus() -> bool {
    let (gpus, troubles) = Gpus::open(Source::Machine, Vec::new()).read();
    !gpus.is_empty() || !troubles.is_empty()
}

fn start(host: &Linux, wanted: Wanted) -> anyhow::Result<()> {
    let told = |error: HostError| anyhow!("{}", chain(&error));
    let machine = host.survey().map_err(told)?;
    let plan =
        foreground(&machine, wanted, std::process::id()).map_err(|refusal| anyhow!("no room: {}", refusal.message))?;
    for unhonoured in &plan.unhonoured {
        output::complain(&format!("containerctl: warning: {unhonoured}"));
    }
    let mut env = plan.env;
    // A program on a terminal wants to know which kind; nothing else of the caller's environment gets in.
    if let Ok(terminal) = std::env::var("TERM")
        && io::stdin().is_terminal()
    {
        env.entry("TERM".to_owned()).or_insert(terminal);
    }
    // On this thread, which lives as long as we do: init dies with the thread that started it.
    host.start(&Start { record: &plan.record, writes: &plan.writes, env: &env }).map_err(told)
}

/// Starts the command, and passes signals on until it has ended; from the first that asks it to, it has its grace and no longer.
fn start_and_follow(host: &Linux, wanted: Wanted, ended: &Notify) -> anyhow::Result<Exit> {
    let name = &wanted.spec.name.clone();
    let mut ending = Ending::new(wanted.spec.stop.grace);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot wait for the command")?;
    runtime.block_on(async {
        let mut signals = Vec::new();
        for kind in FORWARDED {
            signals.push((kind, signal(kind).context("cannot catch signals")?));
        }
        // Now, that no signal finds the command running and nobody to pass it on.
        start(host, wanted)?;
        loop {
            let seen = host.observe(name).map_err(|error| anyhow!("{}", chain(&error)))?;
            match seen.instance.map(|instance| instance.life) {
                Some(Life::Ended(exit)) => return Ok(ending.conclude(exit)),
                None => bail!("{name} is gone without a trace"),
                Some(Life::Starting | Life::Running { .. }) => {}
            }
            let caught = poll_fn(|context| {
                let ready =
                    signals.iter_mut().find_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind));
                ready.map_or(Poll::Pending, Poll::Ready)
            });
            // Both can be dropped and made again: a Notify keeps its permit, a signal its mark.
            tokio::select! {
                () = ended.notified() => {}
                kind = caught => {
                    forward(host, name, kind)?;
                    ending.asked(kind);
                }
                () = ending.over() => {
                    host.kill(name).map_err(|error| anyhow!("{}", chain(&error)))?;
                    ending.killed();
                }
            }
        }
    })
}

/// When a command that was asked to end has to be gone.
struct Ending {
    grace: Duration,
    asked: bool,
    kill_at: Option<Instant>,
    killed: bool,
}

impl Ending {
    fn new(grace: Duration) -> Ending {
        Ending { grace, asked: false, kill_at: None, killed: false }
    }

    /// The first signal begins the grace, a second one ends it. Not a hangup: the shell and the kernel each send one when a terminal is
    /// lost, and systemd one right after SIGTERM (`SendSIGHUP=`), so a second one is nobody's impatience.
    fn asked(&mut self, kind: SignalKind) {
        if self.killed || !ENDING.contains(&kind) {
            return;
        }
        let now = Instant::now();
        if !self.asked {
            // Past the end of the clock: never.
            self.kill_at = now.checked_add(self.grace);
        } else if kind != SignalKind::hangup() {
            self.kill_at = Some(now);
        }
        self.asked = true;
    }

    /// Comes back when the grace is over. Can be dropped and made again: it holds nothing but the time.
    async fn over(&self) {
        match self.kill_at {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    }

    fn killed(&mut self) {
        self.killed = true;
        self.kill_at = Instant::now().checked_add(KILL_AGAIN);
    }

    /// Killed by us with its init, which could not say so any more.
    fn conclude(&self, exit: Exit) -> Exit {
        match exit.outcome {
            Outcome::Lost | Outcome::OutOfMemory if self.killed => {
                Exit { outcome: Outcome::Killed { signal: Signal::KILL }, ..exit }
            }
            _ => exit,
        }
    }
}

/// What a terminal sends, the command gets itself: it is in the same foreground group.
pub fn is_from_terminal(kind: SignalKind) -> bool {
    [SignalKind::interrupt(), SignalKind::quit()].contains(&kind)
        && io::stdin().is_terminal()
        && tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

fn forward(host: &Linux, name: &Name, kind: SignalKind) -> anyhow::Result<()> {
    if is_from_terminal(kind) {
        return Ok(());
    }
    host.stop(name, 1, Signal(kind.as_raw_value())).map_err(|error| anyhow!("{}", chain(&error)))
}

fn clear(host: &Linux, name: &Name) {
    for _ in 0..CLEAR_TRIES {
        match host.forget(name) {
            Ok(()) => return,
            Err(_) => std::thread::sleep(CLEAR_AGAIN),
        }
    }
    output::complain(&format!("containerctl: warning: cannot remove the cgroup {}", host.cgroup_path(name)));
}

/// The folder and the cgroup parent of a run.
fn place(args: &RunArgs, id: &str) -> (PathBuf, String) {
    (args.runtime_dir.join("run").join(id), format!("{}/{id}", args.cgroup_parent))
}

/// Clears away what runs that were killed have left.
fn sweep(args: &RunArgs) {
    for entry in fs::read_dir(args.runtime_dir.join("run")).into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        let alive = id.parse::<u32>().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
        if !alive {
            let (own, parent) = place(args, &id);
            remove(&own, &parent);
        }
    }
}

/// Removes the cgroup of a run, then its folder, which is how the next run knows of a cgroup that could not be removed.
fn remove(own: &Path, parent: &str) {
    for _ in 0..CLEAR_TRIES {
        if cgroup::remove_parent(parent).is_ok() {
            let _ = fs::remove_dir_all(own);
            return;
        }
        // What was killed with its run is still ending.
        std::thread::sleep(CLEAR_AGAIN);
    }
}

pub fn code(outcome: &Outcome) -> ExitCode {
    if let Outcome::NotFound { .. } | Outcome::NotStarted { .. } | Outcome::OutOfMemory = outcome {
        output::complain(&format!("containerctl: {outcome}"));
    }
    ExitCode::from(u8::try_from(outcome.code()).unwrap_or(u8::MAX))
}
