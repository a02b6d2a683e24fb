//! The fields about what is kept of a workload's output.

use super::diagnostic::Problems;
use super::fields::{Map, Schema};
use crate::model::spec::Logs;
use crate::model::units::Bytes;
use std::ops::RangeInclusive;

pub const LOGS: Schema = Schema { fields: &["maxSize", "maxFiles"], later: &[] };

/// Below a page a file would turn over with nearly every write; beyond a gibibyte nobody reads a file through, and nine of them are more
/// than a log disk should lose to one workload: ship logs away instead.
const SIZES: RangeInclusive<Bytes> = Bytes(4 << 10)..=Bytes(1 << 30);
/// Names end in one digit, `log.1` to `log.8` behind `log`.
const FILES: RangeInclusive<u32> = 1..=9;

pub fn read(map: &Map<'_>, problems: &mut Problems) -> Logs {
    let mut logs = Logs::default();
    let Some(map) = map.get("logs", problems).and_then(|field| Map::open(field.node, "logs.", &LOGS, problems)) else {
        return logs;
    };
    if let Some(field) = map.get("maxSize", problems)
        && let Some(size) = field.amount("10M", problems)
    {
        if SIZES.contains(&size) {
            logs.max_size = size;
        } else {
            field.wrong("4Ki to 1Gi", "it is the size of one file; `maxFiles` says how many there are", problems);
        }
    }
    if let Some(files) = map.get("maxFiles", problems).and_then(|field| field.integer(FILES, problems)) {
        logs.max_files = files;
    }
    logs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn check(logs: &str) -> Result<Logs, String> {
        let parsed = parse("web.yaml", format!("command: x\nlogs: {logs}\n").as_bytes());
        match parsed.workloads.first() {
            Some((spec, _)) => Ok(spec.logs),
            None => Err(parsed.diagnostics.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn what_is_not_said_is_as_usual() {
        assert_eq!(check("{maxSize: 1Mi, maxFiles: 9}"), Ok(Logs { max_size: Bytes(1 << 20), max_files: 9 }));
        assert_eq!(check("{maxFiles: 1}"), Ok(Logs { max_files: 1, ..Logs::default() }));
    }

    #[test]
    fn bounds_out_of_bounds_are_refused() {
        for (logs, part) in [
            ("{maxSize: 4095}", "logs.maxSize is `4095`, expected 4Ki to 1Gi"),
            ("{maxSize: 2Gi}", "logs.maxSize is `2Gi`, expected 4Ki to 1Gi"),
            ("{maxFiles: 0}", "logs.maxFiles is `0`, expected 1..=9"),
            ("{maxFiles: 10}", "logs.maxFiles is `10`, expected 1..=9"),
            ("{size: 1M}", "unknown field logs.size"),
        ] {
            let refusal = check(logs).unwrap_err();
            assert!(refusal.contains(part), "{logs}: {refusal}");
        }
    }
}
