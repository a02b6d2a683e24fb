//! `containerctl approve`: consent to deletions that wait because too many manifests are gone at once.

use super::output::print;
use super::{ClientArgs, client};
use crate::model::name::Name;
use clap::Args;
use std::collections::BTreeSet;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct ApproveArgs {
    #[command(flatten)]
    client: ClientArgs,
}

pub fn run(args: &ApproveArgs) -> anyhow::Result<ExitCode> {
    let names: BTreeSet<Name> = client::talk(client::post(&args.client, "/v1/approve", &()))?;
    let text = if names.is_empty() {
        "no deletion waits for consent\n".to_owned()
    } else {
        names.iter().map(|name| format!("{name} is deleted\n")).collect()
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
