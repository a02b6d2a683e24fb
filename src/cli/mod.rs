//! The command line. What was typed is here; each verb has a file of its own for what it means.
//!
//! Exit codes: 0 done; 1 it failed, or the answer is no; 64 wrong usage (EX_USAGE of sysexits.h). `plan` exits with 2 when there is something
//! to do, `replay` when something is decided otherwise, `run` and `exec` with the command's own code, or 125 when it could
//! not be run at all.

mod approve;
mod client;
mod controller;
mod controller_args;
mod describe;
mod events;
mod exec;
mod explain;
mod gpus;
mod keeper;
mod logs;
mod output;
mod plan;
mod ps;
mod rebalance;
mod rehearse;
mod replay;
mod run;
mod terminal;
mod topology;
mod validate;
mod wait;

use crate::api::Goal;
use crate::host::gpu::Simulated;
use crate::model::label::Label;
use crate::model::shape::Shape;
use crate::model::units::{Bytes, parse_duration};
use clap::{Args, Parser, Subcommand, ValueEnum};
use controller_args::ControllerArgs;
use output::Format;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Where the controller keeps sockets, locks and what runs.
const RUNTIME: &str = "/run/containerctl";
/// Where manifests and the database are kept by default.
const MANIFESTS: &str = "/etc/containerctl/manifests";
const STATE: &str = "/var/lib/containerctl";
/// The name of the socket in there.
const SOCKET: &str = "containerctl.sock";

const USAGE: u8 = 64;

/// YAML files in a folder become confined processes on this host.
#[derive(Debug, Parser)]
#[command(name = "containerctl", version, disable_help_subcommand = true, max_term_width = 100)]
struct Typed {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Watch a folder of manifests and keep the host as they say
    Controller(ControllerArgs),
    /// Run one workload in the foreground, without a controller; exits with its code
    Run(RunArgs),
    /// Check manifests; exits with 1 if any is refused
    Validate(ValidateArgs),
    /// Show what the next pass would do, and why; exits with 2 if that is anything
    Plan(PlanArgs),
    /// List workloads
    Ps(PsArgs),
    /// Show everything about one workload
    Describe(DescribeArgs),
    /// Tell why a workload is as it is: its place, what it waits for, what became of it
    Explain(explain::ExplainArgs),
    /// Consent to deletions that wait because too many manifests are gone at once
    Approve(approve::ApproveArgs),
    /// Print what has happened, oldest first
    Events(EventsArgs),
    /// Print a workload's output
    Logs(LogsArgs),
    /// Run a command in the box of a workload; exits with its code
    Exec(ExecArgs),
    /// Draw the machine's CPUs, and who sits where
    Topology(TopologyArgs),
    /// Show what the rebalancer sees, would do and has done, and why
    Rebalance(rebalance::RebalanceArgs),
    /// Decide a recorded time of the rebalancer again; exits with 2 where that comes out otherwise
    Replay(replay::ReplayArgs),
    /// List GPUs, who holds what of them, and what is enforced
    Gpus(gpus::GpusArgs),
    /// Wait until a workload, or everything, is as it should be; exits with 1 if it is not in time
    Wait(WaitArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The manifest
    file: PathBuf,
    /// GPUs to pretend to have instead of those there are: 2x16Gi, or the path of an inventory (docs/MANIFEST.md)
    #[arg(long, value_name = "NxMEM|FILE")]
    simulate_gpus: Option<Simulated>,
    /// The cgroup that holds foreground runs, below the hierarchy's root
    #[arg(long, value_name = "NAME", default_value = "containerctl-run", value_parser = cgroup_parent)]
    cgroup_parent: String,
    /// Where to keep what a run needs while it lasts
    #[arg(long, value_name = "DIR", default_value = RUNTIME)]
    runtime_dir: PathBuf,
}

#[derive(Debug, Args)]
struct ValidateArgs {
    /// Files, or folders as the controller would read them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// A label of the host to check for, instead of this one without labels; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<Label>,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// A folder to plan for, instead of the one that is watched
    dir: Option<PathBuf>,
    /// A machine to plan for, with nobody on it yet and no controller asked, for example "2 packages x 2 numa x 2 llc x 4 cores x 2 threads"
    #[arg(long, value_name = "SHAPE")]
    topology: Option<Shape>,
    /// The memory of that machine; this one's if not given
    #[arg(long, value_name = "SIZE", requires = "topology")]
    memory: Option<Bytes>,
    /// The GPUs of that machine, for example 2x16Gi
    #[arg(long, value_name = "NxMEM", requires = "topology")]
    simulate_gpus: Option<Simulated>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct PsArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct DescribeArgs {
    name: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct EventsArgs {
    /// Only of this workload
    name: Option<String>,
    /// Go on printing what comes
    #[arg(short, long)]
    follow: bool,
    /// How to print it; json is one event a line
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: EventFormat,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EventFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
struct LogsArgs {
    name: String,
    /// Go on printing what comes
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only what is newer: a duration such as 10m, or a time such as 2026-11-24T10:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "previous")]
    since: Option<String>,
    /// Only what the run that has ended last wrote
    #[arg(long, conflicts_with = "follow")]
    previous: bool,
    /// Each line as it is on disk: time, stream, tag, text
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct ExecArgs {
    name: String,
    /// Give the command a terminal, inside its box, even if standard input or output is none
    #[arg(short, long, conflicts_with = "no_tty")]
    tty: bool,
    /// Give it none; it reads nothing from a terminal then, and what it writes to one is carried there
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// The controller's
    #[arg(long, value_name = "DIR", default_value = RUNTIME)]
    runtime_dir: PathBuf,
}

#[derive(Debug, Args)]
struct TopologyArgs {
    /// A saved machine instead of this one: the folder that holds its sys and proc
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct WaitArgs {
    /// The workload; none with --for converged
    name: Option<String>,
    /// What to wait for
    #[arg(long = "for", value_name = "STATE", default_value = "ready")]
    goal: GoalArg,
    /// How long at most
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GoalArg {
    /// Its command runs
    Running,
    /// It runs and can serve
    Ready,
    /// It has ended well
    Completed,
    /// Everything is as the manifests say
    Converged,
}

#[derive(Debug, Args)]
struct ClientArgs {
    /// Where the controller listens
    #[arg(long, value_name = "PATH", default_value = "/run/containerctl/containerctl.sock")]
    socket: PathBuf,
}

#[derive(Debug, Args)]
struct FormatArgs {
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl From<GoalArg> for Goal {
    fn from(typed: GoalArg) -> Goal {
        match typed {
            GoalArg::Running => Goal::Running,
            GoalArg::Ready => Goal::Ready,
            GoalArg::Completed => Goal::Completed,
            GoalArg::Converged => Goal::Converged,
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let typed = match Typed::try_parse() {
        Ok(typed) => typed,
        Err(error) => {
            // Help and version are errors to clap, and go to standard output with code 0.
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            let _ = error.print();
            return code;
        }
    };
    let (result, failed) = match typed.verb {
        Verb::Controller(args) => (controller::run(&args), 1),
        Verb::Run(args) => (run::run(&args), run::NOT_RUN),
        Verb::Validate(args) => (validate::run(&args), 1),
        Verb::Plan(args) => (plan::run(&args), 1),
        Verb::Ps(args) => (ps::run(&args), 1),
        Verb::Describe(args) => (describe::run(&args), 1),
        Verb::Explain(args) => (explain::run(&args), 1),
        Verb::Approve(args) => (approve::run(&args), 1),
        Verb::Events(args) => (events::run(&args), 1),
        Verb::Logs(args) => (logs::run(&args), 1),
        Verb::Exec(args) => (exec::run(&args), run::NOT_RUN),
        Verb::Topology(args) => (topology::run(&args), 1),
        Verb::Gpus(args) => (gpus::run(&args), 1),
        Verb::Rebalance(args) => (rebalance::run(&args), 1),
        Verb::Replay(args) => (replay::run(&args), 1),
        Verb::Wait(args) => (wait::run(&args), 1),
    };
    result.unwrap_or_else(|error| {
        // The whole chain, once, here.
        output::complain(&format!("containerctl: {error:#}"));
        ExitCode::from(failed)
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn cgroup_parent(text: &str) -> Result<String, String> {
    let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    let trimmed = text.trim_matches('/');
    if trimmed.split('/').all(good) {
        Ok(trimmed.to_owned())
    } else {
        Err("is no path below the hierarchy's root".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Typed::command().debug_assert();
    }

    #[test]
    fn defaults_agree_about_where_the_socket_is() {
        assert_eq!(PathBuf::from(RUNTIME).join(SOCKET), PathBuf::from("/run/containerctl/containerctl.sock"));
    }

    #[test]
    fn a_cgroup_parent_stays_below_the_root() {
        assert_eq!(cgroup_parent("/a/b/"), Ok("a/b".to_owned()));
        for bad in ["", "/", "..", "a/../..", "a//b"] {
            assert!(cgroup_parent(bad).is_err(), "{bad:?}");
        }
    }
}
