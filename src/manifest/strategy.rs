//! How edits reach replicas: `strategy`.

use super::diagnostic::Problems;
use super::fields::{Map, Schema};
use super::tree::Value;
use crate::model::replica::{REPLICAS_MAX, Rolling, Strategy};
use crate::model::spec::Kind;
use std::time::Duration;

pub const STRATEGY: Schema = Schema { fields: &["type", "maxUnavailable", "progressDeadline"], later: &[] };

/// Kubernetes' ten minutes: long enough for a database that replays its log, short enough that a release of the evening is back before
/// the night.
const PROGRESS_DEADLINE: Duration = Duration::from_mins(10);

/// Reads `strategy`.
pub fn strategy(map: &Map<'_>, kind: Kind, problems: &mut Problems) -> Option<Strategy> {
    let field = map.get("strategy", problems)?;
    let mut rolling = Rolling { max_unavailable: 1, progress_deadline: PROGRESS_DEADLINE };
    let table = [("recreate", false), ("rolling", true)];
    let (rolls, at) = if matches!(field.node.value, Value::Map(_)) {
        let map = Map::open(field.node, "strategy.", &STRATEGY, problems)?;
        let Some(kind) = map.get("type", problems) else {
            problems.error(map.at(), "strategy.type is missing", "write `type: rolling` or `type: recreate`");
            return None;
        };
        let rolls = kind.one_of(&table, problems)?;
        let max_unavailable = map.get("maxUnavailable", problems);
        let deadline = map.get("progressDeadline", problems);
        for given in [&max_unavailable, &deadline].into_iter().flatten().filter(|_| !rolls) {
            let message = format!("{} is for `type: rolling`", given.name);
            problems.error(given.at(), message, "delete the line, or write `type: rolling`");
        }
        if let Some(field) = max_unavailable {
            rolling.max_unavailable = field.integer(1..=REPLICAS_MAX, problems)?;
        }
        if let Some(field) = deadline {
            rolling.progress_deadline = field.duration(problems)?;
            if rolling.progress_deadline.is_zero() {
                field.wrong("more than nothing", "write for example `progressDeadline: 10m`", problems);
            }
        }
        (rolls, kind.at())
    } else {
        (field.one_of(&table, problems)?, field.at())
    };
    if rolls && kind == Kind::Job {
        let help = "delete the line; an edit of a job stops the run and starts it anew";
        problems.error(at, "strategy rolling is for services, and this is a job", help);
    }
    Some(if rolls { Strategy::Rolling(rolling) } else { Strategy::Recreate })
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse;

    fn check(text: &str) -> String {
        let parsed = parse("web.yaml", format!("command: a\n{text}").as_bytes());
        let read = parsed.workloads.iter().map(|(spec, _)| format!("{:?}\n", spec.strategy));
        read.chain(parsed.diagnostics.iter().map(|found| format!("{found}\n"))).collect()
    }

    #[test]
    fn updates_recreate_unless_they_are_to_roll() {
        insta::assert_snapshot!(check(""), @"Recreate");
        insta::assert_snapshot!(check("strategy: rolling"), @"Rolling(Rolling { max_unavailable: 1, progress_deadline: 600s })");
        insta::assert_snapshot!(check("strategy: {type: rolling, maxUnavailable: 2, progressDeadline: 30s}"), @"Rolling(Rolling { max_unavailable: 2, progress_deadline: 30s })");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        insta::assert_snapshot!(check("strategy: canary"), @"
        web.yaml:2:11: strategy is `canary`, expected one of recreate, rolling
          help: known here: recreate, rolling
        ");
        insta::assert_snapshot!(check("strategy: {maxUnavailable: 1}"), @"
        web.yaml:2:11: strategy.type is missing
          help: write `type: rolling` or `type: recreate`
        ");
        insta::assert_snapshot!(check("strategy: {type: recreate, maxUnavailable: 1}"), @"
        web.yaml:2:44: strategy.maxUnavailable is for `type: rolling`
          help: delete the line, or write `type: rolling`
        ");
        insta::assert_snapshot!(check("strategy: {type: rolling, maxUnavailable: 0}"), @"
        web.yaml:2:43: strategy.maxUnavailable is `0`, expected 1..=256
          help: write a whole number from 1 to 256
        ");
        insta::assert_snapshot!(check("strategy: {type: rolling, progressDeadline: 0s}"), @"
        web.yaml:2:45: strategy.progressDeadline is `0s`, expected more than nothing
          help: write for example `progressDeadline: 10m`
        ");
        insta::assert_snapshot!(check("kind: job\nstrategy: rolling"), @"
        web.yaml:3:11: strategy rolling is for services, and this is a job
          help: delete the line; an edit of a job stops the run and starts it anew
        ");
    }
}
