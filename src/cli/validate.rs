//! `containerctl validate`: what the controller would say of manifests, with the lines they are about.

use super::controller::host_labels;
use super::{ValidateArgs, output};
use crate::control::folder::{Folder, no_file};
use crate::control::trust::Trust;
use crate::manifest::diagnostic::{Diagnostic, Severity, shown};
use crate::manifest::gather::gather;
use crate::manifest::{Parsed, parse};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

pub fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let mut found = Found::default();
    for path in &args.paths {
        found.read(path)?;
    }
    let Found { files, mut remarks } = found;
    let (desired, diagnostics) = gather(&files, &BTreeSet::new(), &BTreeMap::new(), &host_labels(&args.label)?);
    remarks.extend(diagnostics);
    let mut text = String::new();
    for diagnostic in &remarks {
        text.push_str(&render(diagnostic, source_line(diagnostic).as_deref()));
    }
    let errors = remarks.iter().filter(|found| found.severity == Severity::Error).count();
    let good = desired.wanted.len();
    let elsewhere = match remarks.iter().filter(|found| found.severity == Severity::Info).count() {
        0 => String::new(),
        others => format!("{others} for other hosts, "),
    };
    text.push_str(&format!("{good} workload{} accepted, {elsewhere}{errors} error{}\n", plural(good), plural(errors)));
    output::print(&text)?;
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Manifests by the names they go by in messages, and remarks about what else is there.
#[derive(Default)]
struct Found {
    files: BTreeMap<String, Arc<Parsed>>,
    remarks: Vec<Diagnostic>,
}

impl Found {
    /// Reads a file, or a folder as the controller would.
    fn read(&mut self, path: &Path) -> anyhow::Result<()> {
        let named = path.display().to_string();
        let failed = || format!("cannot read {}", shown(&named));
        let found = fs::metadata(path).with_context(failed)?;
        // Opening a pipe waits for somebody to write, for ever if nobody does; a device may never end. What the caller has handed over as
        // an open pipe (`/dev/stdin`, `<(...)`) has a writer and no place in the tree: that is read.
        if !found.is_file() && !found.is_dir() && fs::canonicalize(path).is_ok() {
            self.remarks.push(no_file(&named, &found, "name a file, or pipe its text to `validate /dev/stdin`"));
            return Ok(());
        }
        if !found.is_dir() {
            let bytes = fs::read(path).with_context(failed)?;
            self.files.insert(named.clone(), Arc::new(parse(&named, &bytes)));
            return Ok(());
        }
        // Who may write here is for the controller to judge, on the host where it runs.
        let scan = Folder::new(path.to_owned(), Trust::anyone()).scan()?;
        let full = |name: &str| path.join(name).display().to_string();
        for (name, parsed) in &scan.files {
            let mut parsed = parsed.as_ref().clone();
            for found in &mut parsed.diagnostics {
                found.path = full(&found.path);
            }
            for (_, origin) in &mut parsed.workloads {
                origin.path = full(&origin.path);
            }
            self.files.insert(full(name), Arc::new(parsed));
        }
        self.remarks.extend(scan.remarks.into_iter().map(|remark| Diagnostic { path: full(&remark.path), ..remark }));
        Ok(())
    }
}

/// The line of the file that a finding is about, if it can be read.
fn source_line(diagnostic: &Diagnostic) -> Option<String> {
    let path = PathBuf::from(&diagnostic.path);
    // A remark about a pipe has no line to show, and opening it would wait for a writer.
    let text = fs::metadata(&path).is_ok_and(|found| found.is_file()).then(|| fs::read(&path).ok()).flatten()?;
    let line = usize::try_from(diagnostic.line).ok()?.checked_sub(1)?;
    let line = text.split(|&byte| byte == b'\n').nth(line)?;
    Some(String::from_utf8_lossy(line).trim_end().to_owned())
}

fn render(diagnostic: &Diagnostic, source: Option<&str>) -> String {
    const SHOWN_MAX: usize = 160;
    let Diagnostic { path, line, column, severity, message, help } = diagnostic;
    let (path, message, help) = (shown(path), shown(message), shown(help));
    let mut text = format!("{path}:{line}:{column}: {severity}{message}\n");
    let column = usize::try_from(*column).unwrap_or(1);
    if let Some(source) = source.filter(|source| !source.is_empty() && column <= SHOWN_MAX) {
        let shown: String = source.chars().take(SHOWN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        text.push_str(&format!("{line:>5} | {shown}\n      | {:>column$}\n", "^"));
    }
    text.push_str(&format!("  help: {help}\n"));
    text
}
