//! `containerctl exec NAME -- COMMAND`: a command in the box of a workload that runs, on the caller's terminal.

use super::{ExecArgs, run};
use crate::host::chain;
use crate::host::exec::{Session, begin, find};
use crate::model::spec::Signal;
use crate::plan;
use anyhow::{Context, anyhow, bail};
use nix::unistd::geteuid;
use std::future::poll_fn;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::task::Poll;
use tokio::signal::unix::signal;

pub fn run(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    if !geteuid().is_root() {
        bail!("joining a workload needs root\n  help: sudo containerctl exec {} -- ...", args.name);
    }
    let told = |error: crate::host::exec::ExecError| anyhow!("{}", chain(&error));
    let name = args.name.parse().map_err(|reason| anyhow!("no workload is called {}: its name {reason}", args.name))?;
    let target = find(&args.runtime_dir, &name).map_err(told)?;
    let mut env = plan::environment(&target.record);
    if let Ok(terminal) = std::env::var("TERM")
        && io::stdin().is_terminal()
    {
        env.entry("TERM".to_owned()).or_insert(terminal);
    }
    let folder = args.runtime_dir.join("run").join(std::process::id().to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot wait for the command")?;
    let exit = runtime.block_on(async {
        let mut signals = Vec::new();
        for kind in run::FORWARDED {
            signals.push((kind, signal(kind).context("cannot catch signals")?));
        }
        // On this thread, which lives as long as we do: init dies with the thread that started it.
        let session = begin(&target, &args.command, &env, &args.runtime_dir, folder).map_err(told)?;
        follow(&session, &mut signals).await?;
        Ok::<_, anyhow::Error>(session.finish())
    })?;
    Ok(run::code(&exit.outcome))
}

/// Passes signals on until the command has ended.
async fn follow(session: &Session, signals: &mut run::Signals) -> anyhow::Result<()> {
    let wait = session.waiter().context("cannot wait for the command")?;
    let mut ended = tokio::task::spawn_blocking(wait);
    loop {
        let caught = poll_fn(|context| {
            let ready =
                signals.iter_mut().find_map(|(kind, signal)| signal.poll_recv(context).is_ready().then_some(*kind));
            ready.map_or(Poll::Pending, Poll::Ready)
        });
        // Neither loses anything to the other: the thread that waits is asked again, a signal keeps its mark.
        tokio::select! {
            _ = &mut ended => return Ok(()),
            kind = caught => {
                if !run::is_from_terminal(kind) {
                    session.signal(Signal(kind.as_raw_value()));
                }
            }
        }
    }
}
