//! `containerctl describe`: everything about one workload.

use super::output::{Format, print, print_value};
use super::ps::{age, now};
use super::{DescribeArgs, client};
use crate::model::status::Status;
use crate::model::time::Timestamp;
use crate::model::units::Bytes;
use std::fmt::Write;
use std::process::ExitCode;

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
            let _ = writeln!(text, "{key:<12}{value}");
        }
    };
    line("Name:", status.name.to_string());
    line("Kind:", status.kind.clone());
    line("Manifest:", format!("{} (revision {})", status.manifest, status.revision));
    line("Generation:", format!("{}, in force: {}", status.generation, status.observed_generation));
    line("Labels:", status.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", "));
    line("Command:", shell_words::join(&status.command));
    line("Phase:", status.phase.to_string());
    line("Pid:", status.pid.map(|pid| pid.to_string()).unwrap_or_default());
    let since = |at: Timestamp| format!("{at} ({} ago)", age(now.since(at)));
    line("Started:", status.started.map(since).unwrap_or_default());
    line("Restarts:", status.restarts.to_string());
    let exit = status.last_exit.as_ref();
    line(
        "Last exit:",
        exit.map(|exit| format!("{} (code {}), {}", exit.message, exit.code, since(exit.at))).unwrap_or_default(),
    );
    line("CPUs:", status.cpus.to_string());
    line("Memory:", status.memory.map(|bytes| Bytes(bytes).to_string()).unwrap_or_default());
    line("GPUs:", status.gpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    line("Cgroup:", status.cgroup.clone());
    if !status.limits.is_empty() {
        text.push_str("Limits in the kernel:\n");
        for (file, value) in &status.limits {
            let _ = writeln!(text, "  {file:<28}{value}");
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
            condition.message
        );
    }
    text
}
