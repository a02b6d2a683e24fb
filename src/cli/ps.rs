//! `containerctl ps`: one line a workload.

use super::output::{Format, print, print_value, table};
use super::{PsArgs, client};
use crate::model::status::{ConditionKind, Status};
use crate::model::time::Timestamp;
use crate::model::units::Bytes;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn run(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let statuses: Vec<Status> = client::talk(client::get(&args.client, "/v1/workloads"))?;
    match args.format.output {
        Format::Table => print(&render(&statuses, now()))?,
        format => print_value(&statuses, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub fn now() -> Timestamp {
    Timestamp::default().plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn render(statuses: &[Status], now: Timestamp) -> String {
    let head = ["NAME", "KIND", "PHASE", "READY", "PID", "RESTARTS", "AGE", "CPUS", "MEMORY", "GPUS", "WHY"];
    table(&head, statuses.iter().map(|status| row(status, now)))
}

fn row(status: &Status, now: Timestamp) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        status.name.to_string(),
        status.kind.clone(),
        status.phase.to_string(),
        if status.ready { "yes" } else { "no" }.to_owned(),
        or_dash(status.pid.map(|pid| pid.to_string())),
        status.restarts.to_string(),
        or_dash(status.started.map(|started| age(now.since(started)))),
        or_dash(Some(status.cpus.to_string()).filter(|cpus| !cpus.is_empty())),
        or_dash(status.memory.map(|bytes| Bytes(bytes).to_string())),
        or_dash(Some(status.gpus.len()).filter(|count| *count > 0).map(|count| count.to_string())),
        why(status),
    ]
}

/// What a person should know: why it is not ready, or what is wrong although it is.
pub fn why(status: &Status) -> String {
    let wrong = |kind: ConditionKind, bad: bool| {
        let found = status.conditions.iter().find(|condition| condition.kind == kind && condition.status == bad);
        found.map(|condition| condition.message.clone())
    };
    let not_placed = wrong(ConditionKind::Placed, false);
    let degraded = wrong(ConditionKind::Degraded, true);
    let refused = wrong(ConditionKind::Accepted, false);
    let not_ready = if status.ready { None } else { wrong(ConditionKind::Ready, false) };
    let not_alone = wrong(ConditionKind::Exclusive, false);
    not_placed.or(not_ready).or(degraded).or(refused).or(not_alone).unwrap_or_default()
}

/// A duration in its largest unit: `3s`, `5m`, `2h`, `4d`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_their_largest_unit() {
        let shown: Vec<String> = [5, 119, 120, 7199, 7200, 172_800].map(|s| age(Duration::from_secs(s))).into();
        assert_eq!(shown, ["5s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
