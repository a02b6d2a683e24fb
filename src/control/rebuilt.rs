//! What the database has lost, told: as events, and of each workload whose record was made again from what runs.

use super::state::State;
use crate::model::event::News;
use crate::model::name::Name;
use crate::model::observed::Observed;
use crate::model::record::Record;
use crate::model::status::ConditionKind;
use crate::plan::{Finding, Plan};
use std::collections::BTreeMap;

pub const STATE_LOST: &str = "StateLost";

/// Losses that are told one by one. Each damaged record is one; a hundred of them say no more than the first and their number.
const TOLD_MAX: usize = 16;

/// Runs that the database knew nothing of, or less than they themselves say: by workload, which run.
#[derive(Debug, Default)]
pub struct Rebuilt(BTreeMap<Name, u64>);

/// The losses of the database as events.
pub fn news(losses: &[String]) -> Vec<News> {
    let mut news: Vec<News> =
        losses.iter().take(TOLD_MAX).map(|loss| News::of_host(STATE_LOST, loss.clone())).collect();
    if losses.len() > TOLD_MAX {
        news.push(News::of_host(
            STATE_LOST,
            format!("and {} more losses, which are in the log", losses.len() - TOLD_MAX),
        ));
    }
    news
}

impl Rebuilt {
    /// Of a database that has lost something: whose runs are ahead of their records.
    pub fn find(records: &BTreeMap<Name, Record>, observed: &BTreeMap<Name, Observed>) -> Rebuilt {
        let is_ahead = |name: &Name, run: u64, started_as: Option<&Record>| {
            records.get(name).is_none_or(|known| {
                known.instance < run || started_as.is_some_and(|started_as| started_as.generation > known.generation)
            })
        };
        let runs = observed.iter().filter_map(|(name, seen)| Some((name, seen.instance.as_ref()?)));
        let ahead = runs.filter(|(name, run)| is_ahead(name, run.number, run.record.as_ref()));
        Rebuilt(ahead.map(|(name, run)| (name.clone(), run.number)).collect())
    }
}

impl State {
    /// Tells it of those that still run as they were found.
    pub fn add_rebuilt(&self, plan: &mut Plan) {
        for (name, run) in &self.rebuilt.0 {
            let goes_on =
                self.observed.get(name).and_then(|seen| seen.instance.as_ref()).is_some_and(|now| now.number == *run);
            if let Some(verdict) = plan.verdicts.get_mut(name).filter(|_| goes_on) {
                verdict.findings.push(Finding {
                    kind: ConditionKind::Degraded,
                    status: true,
                    reason: STATE_LOST,
                    message: "its record was lost and made again from what runs: restarts, ends and refusals before are forgotten".to_owned(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;
    use crate::model::observed::{Instance, Life};

    fn record(instance: u64, generation: u64) -> Record {
        let (spec, origin) = parse("web.yaml", b"command: x").workloads.remove(0);
        Record { generation, instance, ..Record::new(spec, origin) }
    }

    #[test]
    fn a_run_that_is_ahead_of_its_record_had_another() {
        let name: Name = "web".parse().unwrap();
        let is_rebuilt = |known: Option<Record>, started_as: Option<Record>| {
            let life = Life::Running { pid: 7 };
            let instance = Some(Instance { number: 3, record: started_as, started: None, began: None, life });
            let observed = BTreeMap::from([(name.clone(), Observed { instance, ..Observed::default() })]);
            let records = known.into_iter().map(|known| (name.clone(), known)).collect();
            !Rebuilt::find(&records, &observed).0.is_empty()
        };
        assert!(is_rebuilt(None, Some(record(3, 1))) && is_rebuilt(None, None));
        assert!(is_rebuilt(Some(record(2, 1)), Some(record(3, 1))), "an earlier run");
        assert!(is_rebuilt(Some(record(3, 1)), Some(record(3, 2))), "an earlier manifest");
        assert!(!is_rebuilt(Some(record(3, 2)), Some(record(3, 1))), "it was resized since");
    }

    #[test]
    fn many_losses_are_told_as_some_and_a_number() {
        let losses: Vec<String> = (0..TOLD_MAX + 5).map(|number| format!("loss {number}")).collect();
        let news = news(&losses);
        assert_eq!(
            (news.len(), news[TOLD_MAX].message.as_str()),
            (TOLD_MAX + 1, "and 5 more losses, which are in the log")
        );
    }
}
