//! `containerctl explain`: why a workload is as it is.

use super::output::{Format, print, print_value};
use super::{ClientArgs, FormatArgs, client};
use crate::control::explain::{About, Explanation};
use crate::manifest::diagnostic::shown;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct ExplainArgs {
    name: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/workloads/{}/explain", client::encode(&args.name));
    let explanation: Explanation = client::talk(client::get(&args.client, &path))?;
    match args.format.output {
        Format::Table => print(&render(&explanation))?,
        format => print_value(&explanation, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A sentence a line, what happened lately below its heading.
fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    let mut lately = false;
    for sentence in &explanation.sentences {
        let says = shown(&sentence.says);
        if sentence.about == About::Lately {
            text += if lately { "" } else { "lately:\n" };
            lately = true;
            text += &format!("  {says}\n");
        } else {
            text += &format!("{says}\n");
        }
    }
    text
}
