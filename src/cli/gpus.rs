//! `containerctl gpus`: the devices, who holds what of them, and what keeps whom to it.

use super::output::{Format, print, print_value, table};
use super::{ClientArgs, FormatArgs, client};
use crate::model::gpu::{GpuHolder, GpuStatus, Share};
use crate::model::units::Bytes;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct GpusArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub fn run(args: &GpusArgs) -> anyhow::Result<ExitCode> {
    let gpus: Vec<GpuStatus> = client::talk(client::get(&args.client, "/v1/gpus"))?;
    match args.format.output {
        Format::Table => print(&render(&gpus))?,
        format => print_value(&gpus, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for each lease, and one for each device that nobody holds.
fn render(gpus: &[GpuStatus]) -> String {
    let head = ["GPU", "MODEL", "MEMORY", "OTHERS", "NODE", "HEALTH", "WORKLOAD", "SHARE", "ENFORCED BY"];
    let rows = gpus.iter().flat_map(|gpu| {
        let holders: Vec<Option<&GpuHolder>> =
            if gpu.leases.is_empty() { vec![None] } else { gpu.leases.iter().map(Some).collect() };
        holders.into_iter().map(|holder| row(gpu, holder)).collect::<Vec<_>>()
    });
    let mut text = table(&head, rows);
    for gpu in gpus {
        for unhonoured in &gpu.unhonoured {
            text.push_str(&format!("{}: not done: {unhonoured}\n", gpu.id));
        }
    }
    text
}

fn row(gpu: &GpuStatus, holder: Option<&GpuHolder>) -> Vec<String> {
    let dash = || "-".to_owned();
    let share = |share| match share {
        Share::Whole => "whole".to_owned(),
        Share::Memory(bytes) => bytes.to_string(),
    };
    vec![
        gpu.id.to_string(),
        gpu.model.clone(),
        Bytes(gpu.memory).rounded(),
        if gpu.used_by_others == 0 { dash() } else { Bytes(gpu.used_by_others).rounded() },
        gpu.node.map_or_else(dash, |node| node.to_string()),
        gpu.health.to_string(),
        holder.map_or_else(dash, |holder| holder.workload.to_string()),
        holder.map_or_else(dash, |holder| share(holder.share)),
        holder.map_or_else(dash, |holder| holder.enforced.to_string()),
    ]
}
