//! `containerctl exec NAME -- COMMAND`: a command in the box of a workload that runs.
//!
//! Where the caller is on a terminal the command gets one too, a terminal of the box's; the caller's own is never handed in, nor is any
//! stream that is a terminal (`docs/decisions/0013-terminals.md`).

use super::terminal::{self, Raw, Relay};
use super::{ExecArgs, run};
use crate::host::chain;
use crate::host::exec::{Begin, ExecError, Input, Session, Target, begin, find};
use crate::host::terminal::make;
use crate::model::spec::Signal;
use crate::plan;
use anyhow::{Context, anyhow, bail};
use nix::unistd::geteuid;
use rustix::fs::{FileType, fstat};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::task::Poll;
use tokio::signal::unix::{SignalKind, signal};

/// Signals that end a session on a terminal, as losing the line does.
const HANG_UP: [SignalKind; 2] = [SignalKind::terminate(), SignalKind::hangup()];

pub fn run(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("joining a workload needs root\n  help: sudo containerctl exec {} -- ...", args.name);
    }
    let name = args.name.parse().map_err(|reason| anyhow!("no workload is called {}: its name {reason}", args.name))?;
    let target = find(&args.runtime_dir, &name).map_err(|error| told(&error))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot wait for the command")?;
    let code = runtime.block_on(converse(args, &target));
    // A thread that still waits for the command's end must not keep us from ours.
    runtime.shutdown_background();
    code
}

fn told(error: &ExecError) -> anyhow::Error {
    anyhow!("{}", chain(error))
}

/// Whether the command is to have a terminal.
fn on_terminal(args: &ExecArgs) -> bool {
    args.tty || !args.no_tty && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Runs the command to its end.
async fn converse(args: &ExecArgs, target: &Target) -> anyhow::Result<ExitCode> {
    let mut signals = Vec::new();
    for kind in run::FORWARDED.into_iter().chain([SignalKind::window_change()]) {
        signals.push((kind, signal(kind).context("cannot catch signals")?));
    }
    let mut env = plan::environment(&target.record);
    let folder = args.runtime_dir.join("run").join(std::process::id().to_string());
    let mut relay = Relay::default();
    let (streams, master) = if on_terminal(args) {
        if let Ok(kind) = std::env::var("TERM") {
            env.entry("TERM".to_owned()).or_insert(kind);
        }
        let (streams, master) = terminal_streams(target)?;
        (streams, Some(master))
    } else {
        (plain_streams(&mut relay)?, None)
    };
    let input = if master.is_some() { Input::Terminal } else { Input::Stream };
    let fds = [streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()];
    let (command, env, runtime) = (&args.command, &env, args.runtime_dir.as_path());
    // On this thread, which lives as long as we do: init dies with the thread that started it.
    let session =
        begin(target, Begin { command, env, streams: fds, input, runtime, folder }).map_err(|error| told(&error))?;
    drop(streams);
    let raw = match &master {
        Some(master) => {
            relay.carry(copy(master.as_fd())?, copy(io::stdout().as_fd())?)?;
            terminal::feed(copy(master.as_fd())?);
            Raw::enter()?
        }
        None => None,
    };
    let end = follow(&session, master.as_ref().map(AsFd::as_fd), &relay, &mut signals).await?;
    let code = match end {
        End::Command => {
            relay.finish();
            drop(raw);
            run::code(&session.finish().outcome)
        }
        End::HungUp(signal) => {
            drop(raw);
            session.abandon();
            ExitCode::from(128 + u8::try_from(signal.as_raw_value()).unwrap_or(0))
        }
    };
    Ok(code)
}

fn copy(fd: BorrowedFd<'_>) -> anyhow::Result<OwnedFd> {
    fd.try_clone_to_owned().context("cannot copy a descriptor")
}

/// The three streams of a command on a terminal of the box, and the terminal's other side. Errors that the caller sends elsewhere still go
/// there.
fn terminal_streams(target: &Target) -> anyhow::Result<([OwnedFd; 3], OwnedFd)> {
    let made = make(target).map_err(|error| told(&error))?;
    terminal::copy_size(made.master.as_fd());
    let error = if io::stderr().is_terminal() { copy(made.peer.as_fd())? } else { copy(io::stderr().as_fd())? };
    Ok(([copy(made.peer.as_fd())?, made.peer, error], made.master))
}

/// The caller's own streams, but for those that are terminals: nothing is read from one, and what is to be shown on one is carried there.
fn plain_streams(relay: &mut Relay) -> anyhow::Result<[OwnedFd; 3]> {
    let input = if io::stdin().is_terminal() {
        File::open("/dev/null").context("cannot open /dev/null")?.into()
    } else {
        copy(io::stdin().as_fd())?
    };
    let mut output = |is_terminal: bool, own: BorrowedFd<'_>| {
        if !is_terminal {
            return copy(own);
        }
        let (read, write) = terminal::pipe()?;
        relay.carry(read, copy(own)?)?;
        Ok(write)
    };
    let out = output(io::stdout().is_terminal(), io::stdout().as_fd())?;
    let error = output(io::stderr().is_terminal(), io::stderr().as_fd())?;
    let streams = [input, out, error];
    streams.iter().try_for_each(refuse_folder)?;
    Ok(streams)
}

/// From a folder's descriptor everything below and above it on the host can be opened, whatever the box shows.
fn refuse_folder(stream: &OwnedFd) -> anyhow::Result<()> {
    let kind = FileType::from_raw_mode(fstat(stream).context("cannot look at a standard stream")?.st_mode);
    if kind == FileType::Directory {
        bail!("a standard stream is a folder, and would let the command out of its box\n  help: write `</dev/null`");
    }
    Ok(())
}

/// Why a session is over.
enum End {
    Command,
    HungUp(SignalKind),
}

/// Passes signals and sizes on until the command has ended.
async fn follow(
    session: &Session,
    master: Option<BorrowedFd<'_>>,
    relay: &Relay,
    signals: &mut run::Signals,
) -> anyhow::Result<End> {
    let wait = session.waiter().context("cannot wait for the command")?;
    let mut ended = tokio::task::spawn_blocking(wait);
    loop {
        let caught = poll_fn(|context| {
            let ready =
                signals.iter_mut().find_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind));
            ready.map_or(Poll::Pending, Poll::Ready)
        });
        // None loses anything to the others: the thread that waits is asked again, a Notify keeps its permit, a signal its mark.
        let kind = tokio::select! {
            _ = &mut ended => return Ok(End::Command),
            () = relay.gone.notified() => SignalKind::hangup(),
            kind = caught => kind,
        };
        if kind == SignalKind::window_change() {
            master.into_iter().for_each(terminal::copy_size);
            continue;
        }
        session.signal(Signal(kind.as_raw_value()));
        if master.is_some() && HANG_UP.contains(&kind) {
            return Ok(End::HungUp(kind));
        }
    }
}
