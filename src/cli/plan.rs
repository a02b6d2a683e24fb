//! `containerctl plan`: what a pass of the running controller would do, and why.

use super::output::{Format, print, print_value, table};
use super::{PlanArgs, client, rehearse};
use crate::api::Files;
use crate::control::folder::Folder;
use crate::control::report::Preview;
use crate::control::trust::Trust;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// There is something to do.
pub const CHANGES: u8 = 2;

pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    if let Some(shape) = args.topology {
        return rehearse::run(args, shape);
    }
    let preview: Preview = client::talk(async {
        match &args.dir {
            None => client::get(&args.client, "/v1/plan").await,
            Some(dir) => client::post(&args.client, "/v1/plan", &files(dir)?).await,
        }
    })?;
    match args.format.output {
        Format::Table => print(&render(&preview))?,
        format => print_value(&preview, format)?,
    }
    let changes = preview.steps.iter().any(|step| step.step != "wait");
    Ok(if changes { ExitCode::from(CHANGES) } else { ExitCode::SUCCESS })
}

/// The manifests of a folder as the controller would find them.
fn files(dir: &Path) -> anyhow::Result<Files> {
    let scan = Folder::new(dir.to_owned(), Trust::anyone()).scan()?;
    let mut files = Files::default();
    for (name, parsed) in scan.files {
        match fs::read(dir.join(&name)).map(String::from_utf8) {
            Ok(Ok(text)) => {
                files.files.insert(name, text);
            }
            _ => {
                let why = parsed
                    .diagnostics
                    .first()
                    .map_or_else(|| "cannot be read".to_owned(), |found| found.message.clone());
                files.unreadable.insert(name, why);
            }
        }
    }
    Ok(files)
}

fn render(preview: &Preview) -> String {
    let mut text = String::new();
    if preview.steps.is_empty() {
        text.push_str("nothing to do\n");
    } else {
        let rows = preview.steps.iter().flat_map(|step| {
            let first = vec![step.step.clone(), step.workload.to_string(), step.reason.clone()];
            let writes = step.writes.iter().map(|write| vec![String::new(), String::new(), write.clone()]);
            std::iter::once(first).chain(writes)
        });
        text.push_str(&table(&["STEP", "WORKLOAD", "WHY"], rows));
    }
    for diagnostic in &preview.diagnostics {
        text.push_str(&format!("{diagnostic}\n"));
    }
    text
}
