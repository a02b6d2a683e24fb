//! Jobs that take longer than any should: whose, which and since when. The thread they are on cannot be called off, and whatever it waits for
//! holds nobody else up ([`super::places`]); what is left to do is to say so: of a workload's step or look in its conditions, of what is
//! done for all of them, the sweep and the measurement, in the log and in what `health` says is unsettled.

use super::Job;
use crate::model::clock::{Steady, Time};
use crate::model::status::ConditionKind;
use crate::plan::{Finding, Plan};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A step takes milliseconds, and seconds on a host that is short of memory or disk. Ten of them are no step but something that hangs.
const OVERDUE: Duration = Duration::from_secs(10);
/// What looks at everything takes a second for a thousand workloads, and longer on a host that is busy. After this the next resync is due, and
/// six turns of the rebalancer have gone without a measurement.
const OVERDUE_ALL: Duration = Duration::from_secs(30);

pub const HANGS: &str = "Hangs";
/// What the jobs for all workloads are called.
pub const SWEEP: &str = "look at all workloads";
pub const MEASUREMENT: &str = "rebalancer's measurement";

/// When a job began, as its thread says. What waits for a place among the threads does not hang.
pub type Began = Arc<OnceLock<Time>>;

/// What is being done, and since when.
#[derive(Debug, Default)]
pub struct UnderWay(BTreeMap<Job, Doing>);

#[derive(Debug)]
struct Doing {
    what: &'static str,
    began: Began,
    is_logged: bool,
}

impl UnderWay {
    /// What it answers is to be told when the job's thread begins.
    pub fn begin(&mut self, job: Job, what: &'static str) -> Began {
        let began = Began::default();
        self.0.insert(job, Doing { what, began: Arc::clone(&began), is_logged: false });
        began
    }

    pub fn end(&mut self, job: &Job) {
        self.0.remove(job);
    }

    /// Tells of what is overdue, and asks to be asked again when the next will be.
    pub fn tell(&mut self, plan: &mut Plan, now: Time) {
        for (job, doing) in &mut self.0 {
            let (what, since, due) = (doing.what, doing.since(now), doing.due(job, now));
            if now.steady < due {
                let due = now.wall_at(due);
                plan.wake_at = Some(plan.wake_at.map_or(due, |at| at.min(due)));
                continue;
            }
            let Job::Workload(name) = job else {
                if !std::mem::replace(&mut doing.is_logged, true) {
                    tracing::error!("{}", doing.of_all(now));
                }
                continue;
            };
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

    /// What is overdue and nobody's in particular.
    pub fn of_all(&self, now: Time) -> impl Iterator<Item = String> {
        let is_overdue =
            move |(job, doing): &(&Job, &Doing)| !matches!(job, Job::Workload(_)) && now.steady >= doing.due(job, now);
        self.0.iter().filter(is_overdue).map(move |(_, doing)| doing.of_all(now))
    }
}

impl Doing {
    fn since(&self, now: Time) -> Time {
        self.began.get().copied().unwrap_or(now)
    }

    fn due(&self, job: &Job, now: Time) -> Steady {
        self.since(now).steady.plus(if matches!(job, Job::Workload(_)) { OVERDUE } else { OVERDUE_ALL })
    }

    fn of_all(&self, now: Time) -> String {
        format!(
            "the {} has been under way since {}: the kernel or a file system does not answer; what runs goes on; help: the kernel's log \
             (dmesg) names tasks that are blocked",
            self.what,
            self.since(now).wall
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::Phase;
    use crate::model::time::Timestamp;
    use crate::plan::Verdict;

    fn at(seconds: u64) -> Time {
        let since = Duration::from_secs(seconds);
        Time { wall: Timestamp::default().plus(since), steady: Steady::default().plus(since) }
    }

    /// What is told of a step at a time, and how soon that is to be asked again.
    fn told(under_way: &mut UnderWay, now: Time) -> (Vec<&'static str>, Option<Duration>) {
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
        let web = Job::Workload("web".parse().unwrap());
        let began = under_way.begin(web.clone(), "start");
        assert_eq!(told(&mut under_way, at(60)), (vec![], Some(OVERDUE)), "it waits for its turn");
        began.get_or_init(|| at(60));
        assert_eq!(told(&mut under_way, at(63)), (vec![], Some(Duration::from_secs(7))));
        assert_eq!(told(&mut under_way, at(70)), (vec![HANGS], None));
        assert_eq!(under_way.of_all(at(70)).count(), 0);
        under_way.end(&web);
        assert_eq!(told(&mut under_way, at(70)), (vec![], None));
    }

    #[test]
    fn a_measurement_that_hangs_is_told_of_the_host_and_until_it_is_over() {
        let mut under_way = UnderWay::default();
        under_way.begin(Job::Meter, MEASUREMENT).get_or_init(|| at(60));
        assert_eq!(told(&mut under_way, at(80)), (vec![], Some(Duration::from_secs(10))));
        assert_eq!(under_way.of_all(at(89)).count(), 0);
        assert_eq!(told(&mut under_way, at(90)), (vec![], None));
        let said: Vec<String> = under_way.of_all(at(90)).collect();
        assert!(
            said.len() == 1 && said[0].starts_with("the rebalancer's measurement has been under way since"),
            "{said:?}"
        );
        under_way.end(&Job::Meter);
        assert_eq!(under_way.of_all(at(90)).count(), 0);
    }
}
