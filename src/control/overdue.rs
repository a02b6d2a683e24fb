//! Steps and looks that take longer than any should: whose, which and since when. The thread they are on cannot be called off, and whatever
//! it waits for is its own workload's alone ([`super::places`]); what is left to do is to say so.

use crate::model::clock::Time;
use crate::model::name::Name;
use crate::model::status::ConditionKind;
use crate::plan::{Finding, Plan};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A step takes milliseconds, and seconds on a host that is short of memory or disk. Ten of them are no step but something that hangs.
const OVERDUE: Duration = Duration::from_secs(10);

pub const HANGS: &str = "Hangs";

/// When a job began, as its thread says. What waits for a place among the threads does not hang.
pub type Began = Arc<OnceLock<Time>>;

/// What is being done to each workload, and since when.
#[derive(Debug, Default)]
pub struct UnderWay(BTreeMap<Name, (&'static str, Began)>);

impl UnderWay {
    /// What it answers is to be told when the job's thread begins.
    pub fn begin(&mut self, name: &Name, what: &'static str) -> Began {
        let began = Began::default();
        self.0.insert(name.clone(), (what, Arc::clone(&began)));
        began
    }

    pub fn end(&mut self, name: &Name) {
        self.0.remove(name);
    }

    /// Tells of what is overdue, and asks to be asked again when the next will be.
    pub fn tell(&self, plan: &mut Plan, now: Time) {
        for (name, (what, began)) in &self.0 {
            let since = began.get().copied().unwrap_or(now);
            let due = since.steady.plus(OVERDUE);
            if now.steady < due {
                let due = now.wall_at(due);
                plan.wake_at = Some(plan.wake_at.map_or(due, |at| at.min(due)));
                continue;
            }
            if let Some(verdict) = plan.verdicts.get_mut(name) {
                let message = format!(
                    "its {what} has been under way since {}: a disk, a file system or the kernel does not answer; help: see what \
                     its volumes, root directory and logs lie on",
                    since.wall
                );
                verdict.findings.push(Finding { kind: ConditionKind::Degraded, status: true, reason: HANGS, message });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::clock::Steady;
    use crate::model::status::Phase;
    use crate::model::time::Timestamp;
    use crate::plan::Verdict;

    fn at(seconds: u64) -> Time {
        let since = Duration::from_secs(seconds);
        Time { wall: Timestamp::default().plus(since), steady: Steady::default().plus(since) }
    }

    /// What is told of a step at a time, and how soon that is to be asked again.
    fn told(under_way: &UnderWay, now: Time) -> (Vec<&'static str>, Option<Duration>) {
        let (phase, findings) = (Phase::Running, Vec::new());
        let verdict = Verdict { phase, generation: 1, observed_generation: 1, last_exit: None, findings };
        let mut plan = Plan { verdicts: [("web".parse().unwrap(), verdict)].into(), ..Plan::default() };
        under_way.tell(&mut plan, now);
        let found = plan.verdicts.values().flat_map(|verdict| &verdict.findings).map(|finding| finding.reason);
        (found.collect(), plan.wake_at.map(|at| at.since(now.wall)))
    }

    #[test]
    fn a_step_hangs_by_the_time_on_its_thread_and_not_by_that_in_the_queue() {
        let mut under_way = UnderWay::default();
        let began = under_way.begin(&"web".parse().unwrap(), "start");
        assert_eq!(told(&under_way, at(60)), (vec![], Some(OVERDUE)), "it waits for its turn");
        began.get_or_init(|| at(60));
        assert_eq!(told(&under_way, at(63)), (vec![], Some(Duration::from_secs(7))));
        assert_eq!(told(&under_way, at(70)), (vec![HANGS], None));
        under_way.end(&"web".parse().unwrap());
        assert_eq!(told(&under_way, at(70)), (vec![], None));
    }
}
