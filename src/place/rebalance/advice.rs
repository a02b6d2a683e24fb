//! What somebody should look at, where the rebalancer can do nothing or should not.

use super::heat::{Heats, Means};
use super::ladder::Ladder;
use crate::model::balance::{Advice, AdviceReason};

/// Levels above this are as good as full.
const FULL_PERMILLE: u64 = 950;

/// Of groups that stand out while nothing that may be moved would help.
pub fn of_stuck(ladder: &Ladder<'_>) -> Vec<Advice> {
    let means = Means::of(ladder.groups, &ladder.picture);
    let advise = |group: &usize| {
        let here = &ladder.groups.list()[*group];
        let (level, mean) = (ladder.picture.loads[*group].level(), means.of_kind(here.kind));
        let shown = format!("CPUs {} are at {} %, the mean is {} %", here.cpus, level / 10, mean / 10);
        let (reason, message) = if mean >= FULL_PERMILLE {
            (AdviceReason::Overloaded, format!("{shown}: there is no room to move to; stop or limit something"))
        } else {
            let message = match ladder.largest(*group) {
                Some((name, demand, why)) => {
                    format!(
                        "{shown}: nothing that may be moved would help; the largest there is {name} with {demand}m ({why})"
                    )
                }
                None => format!(
                    "{shown}: no workload is kept there; it is work of others, or of workloads that go anywhere"
                ),
            };
            (AdviceReason::Imbalanced, message)
        };
        Advice { cpus: here.cpus.clone(), reason, message }
    };
    ladder.stuck.iter().map(advise).collect()
}

/// Of pinned work that shares a CPU on a machine of one group. There the kernel levels best, so the answer is not to pin.
pub fn of_seats(ladder: &Ladder<'_>, heats: &Heats) -> Vec<Advice> {
    let Some(group) = ladder.groups.list().first() else { return Vec::new() };
    if !heats.get(&group.id()).is_some_and(|heat| heat.seat_hot) {
        return Vec::new();
    }
    let Some((name, from, to)) = ladder.would_reseat(0) else { return Vec::new() };
    let message = format!(
        "{name} shares CPUs {from} with others while {to} have room; all CPUs of this machine are one group, where pinned work is never \
         moved: `cpu.class: shared` lets the kernel do it"
    );
    vec![Advice { cpus: from, reason: AdviceReason::SharedSeat, message }]
}
