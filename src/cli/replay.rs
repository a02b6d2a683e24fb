//! `containerctl replay FILE`: decides a recorded time again, and says where it comes out otherwise.
//!
//! Exit codes: 0 every turn was decided as it was; 2 some were not; 1 the file cannot be read, or has no turn.

use super::FormatArgs;
use super::output::{Format, print, print_value};
use crate::model::balance::{Decision, Line, Move};
use crate::plan::balance::Balancer;
use crate::plan::balance::replay::{Comparison, Difference, replay};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Differences that are told: the first is where to look, and what follows often only follows from it.
const SHOWN_MAX: usize = 10;
/// What a difference exits with, as `plan` does.
const DIFFERS: u8 = 2;

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// What `controller --record-balance` has written
    file: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

pub fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let path = args.file.display();
    let mut unreadable = None;
    let comparison = replay(lines(&args.file, &mut unreadable)?);
    if let Some(error) = unreadable {
        return Err(error);
    }
    let comparison = comparison.with_context(|| format!("cannot replay {path}"))?;
    if comparison.ticks == 0 {
        bail!("{path} has no turn to decide again\n  help: record a while with controller --record-balance");
    }
    match args.format.output {
        Format::Table => print(&render(&comparison))?,
        format => print_value(&comparison, format)?,
    }
    Ok(if comparison.different == 0 { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// The lines of a recording, up to the first that is none; why it is none is left in `unreadable`.
fn lines<'a>(
    path: &'a Path,
    unreadable: &'a mut Option<anyhow::Error>,
) -> anyhow::Result<impl Iterator<Item = Line<Balancer>> + 'a> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut texts = BufReader::new(file).lines().zip(1..).peekable();
    Ok(std::iter::from_fn(move || {
        let (text, number) = texts.next()?;
        let line = text.map_err(anyhow::Error::from).and_then(|text| Ok(serde_json::from_str(&text)?));
        line.map_err(|error: anyhow::Error| {
            let is_eof = error.downcast_ref::<serde_json::Error>().is_some_and(serde_json::Error::is_eof);
            // The last line may be half: the controller was killed as it wrote it.
            if !is_eof || texts.peek().is_some() {
                let help = "it is to be a recording of `controller --record-balance`, by this version";
                *unreadable = Some(anyhow!("{}:{number}: {error}\n  help: {help}", path.display()));
            }
        })
        .ok()
    }))
}

fn render(comparison: &Comparison) -> String {
    let Comparison { ticks, different, moves_recorded, moves_decided, differences } = comparison;
    let shown = differences.iter().take(SHOWN_MAX).map(|found| difference(found) + "\n").collect::<String>();
    format!(
        "{shown}{ticks} turns decided again, {different} of them otherwise; {moves_recorded} moves recorded, {moves_decided} decided\n"
    )
}

fn difference(found: &Difference) -> String {
    let Difference { at_ms, recorded, decided } = found;
    let what = if recorded.moves == decided.moves {
        "the same moves, other figures, advice or verdicts".to_owned()
    } else {
        format!("recorded {}, decided {}", moves(recorded), moves(decided))
    };
    format!("at {}.{:03} s: {what}", at_ms / 1000, at_ms % 1000)
}

fn moves(decision: &Decision) -> String {
    let shown = decision.moves.iter().map(|Move { name, from, to, rung, .. }| format!("{rung} {name} {from} -> {to}"));
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() { "no move".to_owned() } else { shown.join(", ") }
}
