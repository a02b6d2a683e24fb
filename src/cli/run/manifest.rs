//! The manifest of a foreground run: the one workload of a file, and what of it only a controller does. What would make it another workload
//! is refused, the rest is said.

use crate::cli::controller::host_labels;
use crate::cli::output;
use crate::manifest::diagnostic::Severity;
use crate::manifest::parse;
use crate::manifest::tree::{self, Value};
use crate::model::desired::Wanted;
use crate::model::record::Origin;
use crate::model::spec::{RestartPolicy, Spec};
use crate::model::units::Limit;
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The one workload of a file, if it is one to be run here.
pub fn read(file: &Path) -> anyhow::Result<Wanted> {
    let path = file.display().to_string();
    let bytes = fs::read(file).with_context(|| format!("cannot read {path}"))?;
    let parsed = parse(&path, &bytes);
    for found in &parsed.diagnostics {
        output::complain(&found.to_string());
    }
    if parsed.diagnostics.iter().any(|found| found.severity == Severity::Error) {
        bail!("{path} is refused");
    }
    let (spec, origin) = only(&path, parsed.workloads)?;
    refuse(&path, &spec)?;
    for warning in left_out(&spec, &written(&bytes)) {
        output::complain(&format!("containerctl: warning: {warning}"));
    }
    Ok(Wanted { spec, origin })
}

fn only(path: &str, mut workloads: Vec<(Arc<Spec>, Origin)>) -> anyhow::Result<(Arc<Spec>, Origin)> {
    let names: BTreeSet<_> = workloads.iter().map(|(spec, _)| spec.workload()).collect();
    if names.len() != 1 {
        let help = "put the one to run into a file of its own";
        bail!("{path} has {} workloads, expected one\n  help: {help}", names.len());
    }
    match (workloads.pop(), workloads.len()) {
        (Some(one), 0) => Ok(one),
        (_, others) => bail!(
            "replicas: run starts one: {path} asks for {}\n  help: take `replicas` out of the file to run one of them; a controller runs them all",
            others + 1
        ),
    }
}

/// What says that it is not to run here.
fn refuse(path: &str, spec: &Spec) -> anyhow::Result<()> {
    if spec.suspend {
        bail!("suspend: {path} is not to run\n  help: write `suspend: false`, or delete the line");
    }
    match host_labels(&[])?.mismatch(&spec.hosts) {
        None => Ok(()),
        Some(mismatch) => bail!(
            "hosts: {path} {mismatch}\n  help: take `hosts` out of a copy to run it here; labels other than hostname and arch are given to controllers only"
        ),
    }
}

/// The fields that its document names: a `restart` that is written is a wish, the same one by default is not.
fn written(bytes: &[u8]) -> BTreeSet<String> {
    let documents = tree::parse(&String::from_utf8_lossy(bytes)).unwrap_or_default();
    let fields = documents.into_iter().filter_map(|document| match document.value {
        Value::Map(entries) => Some(entries.into_iter().map(|entry| entry.key)),
        _ => None,
    });
    fields.flatten().collect()
}

/// What only a controller does, and what happens instead.
fn left_out(spec: &Spec, written: &BTreeSet<String>) -> Vec<&'static str> {
    let restarts = written.contains("restart") && spec.restart.policy != RestartPolicy::Never;
    let retries = written.contains("retries") && spec.job.retries != Limit::At(0);
    let left_out = [
        (!spec.after.is_empty(), "after is kept by the controller: a run in the foreground waits for nothing"),
        (restarts, "restart is kept by the controller: a run in the foreground ends with its command"),
        (retries, "retries is kept by the controller: a run in the foreground is tried once"),
        (spec.job.schedule.is_some(), "schedule is kept by the controller: a run in the foreground starts now, once"),
        (!spec.strategy.is_usual(), "strategy is for updates by a controller: a run in the foreground has none"),
    ];
    left_out.into_iter().filter_map(|(named, warning)| named.then_some(warning)).collect()
}
