//! `containerctl rebalance --dry-run`: what the rebalancer sees, what it would do now and why, and what it has done lately.

use super::output::{Format, print, print_value, table};
use super::ps::{age, now};
use super::{ClientArgs, FormatArgs, client};
use crate::control::balance::{Proposed, Report};
use crate::model::balance::GroupFigures;
use crate::model::time::Timestamp;
use anyhow::bail;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct RebalanceArgs {
    /// Show what would be done; the controller does it by itself (controller --rebalance)
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub fn run(args: &RebalanceArgs) -> anyhow::Result<ExitCode> {
    if !args.dry_run {
        bail!(
            "a running controller rebalances by itself\n  help: rebalance --dry-run shows what it would do and why; controller --rebalance off keeps it from it"
        );
    }
    let report: Report = client::talk(client::get(&args.client, "/v1/rebalance"))?;
    match args.format.output {
        Format::Table => print(&render(&report, now()))?,
        format => print_value(&report, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(report: &Report, now: Timestamp) -> String {
    let Report { mode, resting, record, at, decision, recent } = report;
    let mut text = format!("Rebalancer: {mode}");
    if let Some(why) = resting {
        text.push_str(&format!("; it rests: {why}"));
    }
    match record {
        Some(path) if resting.is_some() => {
            text.push_str(&format!("; nothing is recorded in {} meanwhile", path.display()));
        }
        Some(path) => text.push_str(&format!("; recorded in {}", path.display())),
        None => {}
    }
    text.push('\n');
    let (Some(at), Some(decision)) = (at, decision) else {
        if resting.is_none() {
            text.push_str("It has not decided anything yet: it takes two looks, five seconds apart.\n");
        }
        return text + &moves(recent, now);
    };
    let imbalance = percent(u64::from(decision.figures.imbalance), 1000);
    text.push_str(&format!(
        "Decided {} ago; the fullest group is {imbalance} above the mean.\n\n",
        age(now.since(*at))
    ));
    let head = ["CPUS", "LOAD", "OF WHICH OTHERS", "IDLE CLASS", "ROOM FOR", "FULL", ""];
    let row = |group: &GroupFigures| {
        let milli = |load: u64| format!("{load}m");
        let full = percent(group.load, group.capacity);
        let hot = if group.hot { "to be relieved" } else { "" };
        let figures = [milli(group.load), milli(group.foreign), milli(group.idle), milli(group.capacity), full];
        [vec![group.cpus.to_string()], figures.to_vec(), vec![hot.to_owned()]].concat()
    };
    text.push_str(&table(&head, decision.figures.groups.iter().map(row)));
    text.push('\n');
    if decision.moves.is_empty() && decision.advice.is_empty() {
        text.push_str("Nothing is to be done.\n");
    }
    for advice in &decision.advice {
        text.push_str(&format!("Advice for CPUs {}: {}\n", advice.cpus, advice.message));
    }
    text + &moves(recent, now)
}

fn moves(recent: &[Proposed], now: Timestamp) -> String {
    if recent.is_empty() {
        return String::new();
    }
    let head = ["AGO", "WORKLOAD", "FROM", "TO", "KIND", "GAIN", "COST", "WHAT BECAME OF IT", "WHY"];
    let rows = recent.iter().map(|Proposed { at, proposal, fate }| {
        vec![
            age(now.since(*at)),
            proposal.name.to_string(),
            proposal.from.to_string(),
            proposal.to.to_string(),
            proposal.rung.to_string(),
            format!("{}m", proposal.gain),
            format!("{}m", proposal.cost),
            fate.to_string(),
            proposal.reason.clone(),
        ]
    });
    format!("\n{}", table(&head, rows))
}

fn percent(part: u64, whole: u64) -> String {
    (100 * part).checked_div(whole).map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::balance::Mode;

    #[test]
    fn whoever_wants_a_recording_is_told_while_nothing_is_recorded() {
        let record = Some("/tmp/b.jsonl".into());
        let resting = Some("nobody runs who may be moved".to_owned());
        let mut report = Report { mode: Mode::On, resting, record, at: None, decision: None, recent: Vec::new() };
        assert_eq!(
            render(&report, Timestamp(0)),
            "Rebalancer: on; it rests: nobody runs who may be moved; nothing is recorded in /tmp/b.jsonl meanwhile\n"
        );
        report.resting = None;
        assert!(render(&report, Timestamp(0)).starts_with("Rebalancer: on; recorded in /tmp/b.jsonl\n"));
    }
}
