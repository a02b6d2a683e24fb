//! `containerctl describe`: everything about one workload.

use super::output::{Format, print, print_value};
use super::ps::{age, now};
use super::{DescribeArgs, client};
use crate::manifest::diagnostic::shown;
use crate::model::status::{LastExit, LastMove, Status};
use crate::model::time::Timestamp;
use crate::model::units::Bytes;
use crate::model::usage::Usage;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

pub fn run(args: &DescribeArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/workloads/{}", client::encode(&args.name));
    let status: Status = client::talk(client::get(&args.client, &path))?;
    match args.format.output {
        Format::Table => print(&render(&status, now()))?,
        format => print_value(&status, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key:<12}{}", shown(&value));
        }
    };
    line("Name:", status.name.to_string());
    line("Kind:", status.kind.clone());
    line("Manifest:", format!("{} (revision {})", status.manifest, status.revision));
    line("Folder:", status.folder_revision.as_ref().map(|revision| format!("revision {revision}")).unwrap_or_default());
    line("Generation:", format!("{}, in force: {}", status.generation, status.observed_generation));
    line("Labels:", status.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", "));
    line("Command:", shell_words::join(&status.command));
    line("Phase:", status.phase.to_string());
    line("Pid:", status.pid.map(|pid| pid.to_string()).unwrap_or_default());
    let since = |at: Timestamp| format!("{at} ({} ago)", age(now.since(at)));
    line("Started:", status.started.map(since).unwrap_or_default());
    line("Restarts:", status.restarts.to_string());
    let ended = |exit: &LastExit| format!("{} (code {}), {}", exit.message, exit.code, since(exit.at));
    line("Last exit:", status.last_exit.as_ref().map(ended).unwrap_or_default());
    for exit in status.earlier_exits.iter().rev() {
        line("  before:", ended(exit));
    }
    line("CPUs:", status.cpus.to_string());
    let moved = |moved: &LastMove| format!("{} -> {}, {}: {}", moved.from, moved.to, since(moved.at), moved.reason);
    line("Moved:", status.moved.as_ref().map(moved).unwrap_or_default());
    line("Memory:", status.memory.map(|bytes| Bytes(bytes).to_string()).unwrap_or_default());
    line("GPUs:", status.gpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    line("Cgroup:", status.cgroup.clone());
    if let Some(usage) = &status.usage {
        text.push_str("Used, as of the last resync:\n");
        for (what, value) in used(usage) {
            let _ = writeln!(text, "  {what:<28}{value}");
        }
    }
    if !status.limits.is_empty() {
        text.push_str("Limits in the kernel:\n");
        for (file, value) in &status.limits {
            let _ = writeln!(text, "  {file:<28}{value}");
        }
    }
    if !status.probes.is_empty() {
        text.push_str("Probes:\n");
        for probe in &status.probes {
            let last = probe.last.as_deref().unwrap_or("not asked yet");
            let ago = probe.at.map(|at| format!(" {} ago", age(now.since(at)))).unwrap_or_default();
            let counts = format!("{} tries, {} failed in a row", probe.tries, probe.failures);
            let _ = writeln!(text, "  {:<16}{}: {last}{ago} ({counts})", probe.kind, probe.asks);
        }
    }
    text.push_str("Conditions:\n");
    for condition in &status.conditions {
        let kind = format!("{:?}={}", condition.kind, condition.status);
        let _ = writeln!(
            text,
            "  {kind:<16}{} ({} ago): {}",
            condition.reason,
            age(now.since(condition.since)),
            shown(&condition.message)
        );
    }
    text
}

/// What the kernel has counted, in words and units; what it does not count here is left out.
fn used(usage: &Usage) -> Vec<(&'static str, String)> {
    let seconds = |us: u64| format!("{:.1} s", Duration::from_micros(us).as_secs_f64());
    let optional = [
        ("CPU time", usage.cpu_us.map(seconds)),
        ("memory", usage.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20))),
        ("processes and threads", usage.pids.map(|pids| pids.to_string())),
        ("waited for a CPU", usage.cpu_stalled_us.map(seconds)),
        ("waited for memory", usage.memory_stalled_us.map(seconds)),
        ("waited for a disk", usage.io_stalled_us.map(seconds)),
    ];
    let mut rows: Vec<_> = optional.into_iter().filter_map(|(what, value)| Some((what, value?))).collect();
    let Usage { periods, throttled_periods, throttled_us, oom_kills, pids_refused, .. } = *usage;
    if periods > 0 {
        rows.push(("throttled", format!("in {throttled_periods} of {periods} periods, {}", seconds(throttled_us))));
    }
    rows.push(("killed for want of memory", oom_kills.to_string()));
    rows.push(("forks refused", pids_refused.to_string()));
    rows
}
