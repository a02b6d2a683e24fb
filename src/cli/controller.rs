//! `containerctl controller`: sets the parts up in order, runs the loop, leaves workloads running when it ends.

use super::SOCKET;
use super::controller_args::{ControllerArgs, LogFormat, RebalanceMode, Switch};
use super::keeper::Keeper;
use crate::api::{Api, socket};
use crate::control::balance::{self, Mode};
use crate::control::folder::{Folder, FolderError};
use crate::control::trust::{Owner, Trust};
use crate::control::{Changes, Controller, Options, Parts, SILENT_AFTER, Threads};
use crate::host::gpu::Source;
use crate::host::heap;
use crate::host::lease::ignore_lease_breaks;
use crate::host::linux::{self, Linux};
use crate::host::lock::{self, Held};
use crate::host::runtime::Home;
use crate::host::{Host, chain};
use crate::model::admission::Admission;
use crate::model::label::{HostLabels, Label};
use crate::store::{Place, Store};
use anyhow::{Context, anyhow, bail};
use nix::unistd::geteuid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::env::consts::ARCH;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal as caught};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

/// How long an idle thread is kept. Short: an idle controller is one thread that sleeps.
const THREAD_KEPT: Duration = Duration::from_secs(2);

/// The host's name, as the kernel has it (proc_sys_kernel(5)).
const HOSTNAME: &str = "/proc/sys/kernel/hostname";

pub fn run(args: &ControllerArgs) -> anyhow::Result<ExitCode> {
    heap::share();
    start_log(args.log_format);
    if !geteuid().is_root() {
        bail!("the controller needs root: it makes cgroups and namespaces\n  help: sudo containerctl controller ...");
    }
    let balance = balance(args)?;
    raise_descriptors();
    ignore_lease_breaks().context("cannot ignore SIGIO")?;
    let manifests = absolute(&args.manifests).context("cannot find the current directory")?;
    let state = absolute(&args.state).context("cannot find the current directory")?;
    let runtime_dir = absolute(&args.runtime_dir).context("cannot find the current directory")?;
    let (folder, away) = open_folder(&manifests, &state, &args.trust_owner)?;
    let home = Arc::new(Home::take(&runtime_dir).map_err(told)?);
    let changes = Arc::new(Changes::default());
    let (turned, spare) = (Arc::clone(&changes), runtime_dir.join("state-copy"));
    let place = Place { state: &state, spare: &spare, turned: Box::new(move || turned.ring()) };
    let _held = hold_state(&state)?;
    let (store, found) = Store::open(place).map_err(told)?;
    // A folder that is away keeps nothing from being looked after; one that never held anything is a slip of the pen.
    if let Some(error) = away.filter(|_| found.records.is_empty()) {
        return Err(error.into());
    }
    for loss in &found.losses {
        tracing::error!(loss, "the database");
    }
    let logs = state.join("logs");
    let host = open_host(args, &manifests, &state, &runtime_dir, &logs, &changes)?;
    let options = Options {
        resync: args.resync,
        prune_guard: args.prune_guard == Switch::On,
        fence_system: args.fence_system,
        balance,
        stop_workloads: args.stop_workloads,
        job_threshold_percent: args.job_cpu_threshold,
        entropy: RandomState::new().hash_one(std::process::id()),
        labels: host_labels(&args.label)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEPT)
        .build()
        .context("cannot start the runtime")?;
    let threads = Threads::default();
    let parts =
        Parts { host: Arc::new(host), store, source: Box::new(folder), changes, spawn: Box::new(threads.spawner()) };
    let mut controller = Controller::new(parts, found, options).map_err(told)?;
    let path = args.socket.clone().unwrap_or_else(|| runtime_dir.join(SOCKET));
    runtime.block_on(async {
        controller.watch(&manifests);
        serve(controller, threads, home, logs, &path, args).await
    })?;
    // Requests that are still being answered do not hold us up.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// As many descriptors as it is allowed: each workload takes some. Workloads get limits of their own.
fn raise_descriptors() {
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::warn!(error = %errno, "cannot raise the limit on open files; many workloads may be too many");
    }
}

async fn serve(
    controller: Controller,
    threads: Threads,
    home: Arc<Home>,
    logs: PathBuf,
    socket: &Path,
    args: &ControllerArgs,
) -> anyhow::Result<()> {
    let (commands, handle) = controller.handle();
    // One at a time: who makes it waits until it is listened at.
    let (fresh, refreshed) = mpsc::channel(1);
    let commands_too = handle.commands.clone();
    let keeper = Keeper { home, socket: socket.to_owned(), fresh, commands: commands_too, said: None };
    let api = Api::new(handle, logs);
    let listener = socket::listen(socket)?;
    let mut terminate = caught(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = caught(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    // Two are heard, the second as impatience; more say nothing new.
    let (end, ends) = mpsc::channel(2);
    let signals = tokio::spawn(async move {
        loop {
            // Signals keep their mark until they are received, so neither is lost to the other.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if end.send(()).await.is_err() {
                return;
            }
        }
    });
    let running = api.snapshots();
    let api = tokio::spawn(socket::serve(listener, refreshed, api, args.cgroup_parent.clone()));
    tracing::info!(manifests = %args.manifests.display(), socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "watching");
    let keeper = tokio::spawn(keeper.run(args.resync));
    let all_down = controller.run(threads, commands, ends).await;
    signals.abort();
    keeper.abort();
    api.abort();
    // The next controller replaces it if this fails.
    let _ = fs::remove_file(socket);
    let left = match (args.stop_workloads, all_down) {
        (true, true) => "stopped, and the workloads with it",
        (true, false) => "stopped, but not all workloads could be stopped with it",
        (false, _) => "stopped; workloads go on",
    };
    tracing::info!(workloads_running = running.borrow().health().running, "{left}");
    Ok(())
}

/// The log goes to standard error; `RUST_LOG` chooses what, `info` by default.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for people who look at a terminal and have not said no (no-color.org).
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// How running workloads are rebalanced.
fn balance(args: &ControllerArgs) -> anyhow::Result<balance::Options> {
    let mode = match args.rebalance {
        RebalanceMode::On => Mode::On,
        RebalanceMode::Off => Mode::Off,
        RebalanceMode::DryRun => Mode::DryRun,
    };
    let record = args.record_balance.as_ref().map(absolute).transpose().context("cannot find the current directory")?;
    if let Some(path) = &record {
        if mode == Mode::Off {
            bail!(
                "--record-balance {}: with --rebalance off nothing is decided that could be recorded\n  help: --rebalance dry-run decides and moves nobody",
                path.display()
            );
        }
        balance::check_record(path).map_err(|error| {
            let path = path.display();
            anyhow!("--record-balance {path}: cannot write it: {error}\n  help: name a file, there or not, in a folder that is there")
        })?;
    }
    Ok(balance::Options { mode, record })
}

/// The labels of this host: those given, its name and its architecture.
pub(super) fn host_labels(given: &[Label]) -> anyhow::Result<HostLabels> {
    let hostname = fs::read_to_string(HOSTNAME).with_context(|| format!("cannot read {HOSTNAME}"))?;
    Ok(HostLabels::new(hostname.trim_end(), ARCH, given))
}

/// The folder, and why it cannot be read now.
fn open_folder(path: &Path, state: &Path, trusted: &[u32]) -> anyhow::Result<(Folder, Option<FolderError>)> {
    let sudo = std::env::var("SUDO_UID").ok();
    let trust = Trust::new(geteuid().as_raw(), trusted, sudo.as_deref());
    let folder = Folder::new(path.to_owned(), trust).remembering(state.join("folder"));
    let away = match folder.check_within(SILENT_AFTER) {
        Ok(Owner::Trusted) => None,
        Ok(Owner::Sudo(uid)) => {
            tracing::warn!(path = %path.display(), uid, "the manifests folder belongs to the user behind sudo, who can run anything as root");
            None
        }
        Err(error @ (FolderError::Read { .. } | FolderError::Silent { .. })) => Some(error),
        Err(error) => return Err(error.into()),
    };
    Ok((folder, away))
}

fn open_host(
    args: &ControllerArgs,
    manifests: &Path,
    state: &Path,
    runtime: &Path,
    logs: &Path,
    changes: &Arc<Changes>,
) -> anyhow::Result<Linux> {
    let options = linux::Options {
        runtime: runtime.to_owned(),
        logs: logs.to_owned(),
        layers: Some(state.join("rootfs")),
        cgroup_parent: args.cgroup_parent.clone(),
        reserved: args.reserved_cpus.clone().unwrap_or_default(),
        admission: Admission { memory_reserved: args.reserved_memory, overcommit: args.overcommit },
        gpus: args.simulate_gpus.clone().map_or(Source::Machine, Source::Simulated),
        cdi: args.cdi_spec_dir.clone(),
        hidden: vec![manifests.to_owned(), state.to_owned(), runtime.to_owned()],
        fence: Some(state.join("fence")),
        foreground: false,
    };
    let changes = Arc::clone(changes);
    let host = Linux::open(options, move |name| changes.push(name)).map_err(told)?;
    let topology = host.survey().map_err(told)?.topology;
    if topology.usable.is_empty() {
        bail!(
            "no CPU is left for workloads: {} are online, {} reserved\n  help: give fewer --reserved-cpus",
            topology.online,
            args.reserved_cpus.clone().unwrap_or_default()
        );
    }
    Ok(host)
}

/// Keeps other controllers off the state folder, however it fares: sled's own lock is let go while a database is set aside or opened again.
/// A folder that cannot be made has no database to share either, and the store says so.
fn hold_state(state: &Path) -> anyhow::Result<Option<Held>> {
    if fs::create_dir_all(state).is_err() {
        return Ok(None);
    }
    lock::folder(state, "state folder", "--state").map(Some).map_err(told)
}

/// An error with its causes in one line.
fn told(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("{}", chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ControllerArgs,
    }

    #[test]
    fn a_recording_of_nothing_or_nowhere_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let said = |mode: &str, file: &str| {
            let path = folder.path().join(file);
            let line = ["containerctl", "--rebalance", mode, "--record-balance", path.to_str().unwrap()];
            balance(&Line::try_parse_from(line).unwrap().args).map_err(|error| error.to_string())
        };
        let error = said("off", "b.jsonl").unwrap_err();
        assert!(error.contains("nothing is decided") && error.contains("\n  help: --rebalance dry-run"), "{error}");
        let error = said("on", "none/b.jsonl").unwrap_err();
        assert!(
            error.contains("none/b.jsonl: cannot write it: No such file") && error.contains("\n  help: "),
            "{error}"
        );
        let options = said("dry-run", "b.jsonl").unwrap();
        assert_eq!((options.mode, options.record), (Mode::DryRun, Some(folder.path().join("b.jsonl"))));
        assert!(folder.path().join("b.jsonl").exists());
    }
}
