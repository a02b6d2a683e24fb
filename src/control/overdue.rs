//! Steps and looks that take longer than any should: whose, which and since when. The thread they are on cannot be called off, and whatever
//! it waits for is its own workload's alone ([`super::places`]); what is left to do is to say so.

use super::state::State;
use crate::model::clock::Time;
use crate::model::name::Name;
use crate::model::status::ConditionKind;
use crate::plan::{Finding, Plan};
use std::collections::BTreeMap;
use std::time::Duration;

/// A step takes milliseconds, and seconds on a host that is short of memory or disk. Ten of them are no step but something that hangs.
const OVERDUE: Duration = Duration::from_secs(10);

pub const HANGS: &str = "Hangs";

/// What is being done to each workload, and since when.
#[derive(Debug, Default)]
pub struct UnderWay(BTreeMap<Name, (&'static str, Time)>);

impl UnderWay {
    pub fn begin(&mut self, name: &Name, what: &'static str, now: Time) {
        self.0.insert(name.clone(), (what, now));
    }

    pub fn end(&mut self, name: &Name) {
        self.0.remove(name);
    }
}

impl State {
    /// Tells of what is overdue, and asks to be asked again when the next will be.
    pub fn add_overdue(&self, plan: &mut Plan, now: Time) {
        for (name, (what, since)) in &self.under_way.0 {
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
