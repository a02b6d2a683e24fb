//! Who else may run on exclusive CPUs: what is to be kept off, by which levers, and what really holds.
//!
//! Problem: a cpuset keeps our workloads off the exclusive CPUs of one of them. The host's own processes and interrupts run where they like,
//! and whoever asked for CPUs alone has to be told that, or have it changed.
//! Approach: two means. The kernel is asked for a partition with every exclusive workload ([`super::kernel`]); it says in the same file
//! whether it grants it. Where the controller is told to, the groups and interrupts of the host are kept off by their own control files.
//! Guarantees: nothing of the host's is left without a CPU; what stood before is remembered before it is changed, and put back unless
//! somebody else has changed it since; what cannot be had is told, and asked for only once.

use super::{Finding, Input, Shutdown};
use crate::model::cgroup::{Generation, PARTITION};
use crate::model::cpuset::CpuSet;
use crate::model::fence::{Fence, Pull, Refused, Stood, Surroundings, Was, is_interrupt, is_mask};
use crate::model::name::Name;
use crate::model::record::Record;
use crate::model::spec::CpuClass;
use crate::model::status::ConditionKind;
use std::collections::BTreeMap;

/// Interrupts that are named, lowest first: enough to find out which device, and one line of a terminal.
const INTERRUPTS_NAMED_MAX: usize = 8;

/// What to do to the host's levers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// What is to be remembered before anything is written.
    pub stood: Stood,
    pub pulls: Vec<Pull>,
}

/// The CPUs that the host is to be kept off: those that exclusive workloads hold, whether they run at this moment or not, so that a restart
/// does not open them. One that ends with its controller holds them until it is gone.
pub fn exclusive(input: &Input<'_>) -> CpuSet {
    let ends = matches!(input.shutdown, Some(Shutdown::Graceful | Shutdown::AtOnce));
    let is_there = |name: &Name| !ends || input.observed.contains_key(name) || input.busy.contains(name);
    let held = input.records.iter().filter(|(name, _)| is_there(name)).filter_map(|(_, record)| record.held());
    held.fold(CpuSet::new(), |all, grant| all.union(&grant.fenced))
}

/// The pulls that keep the host off `fenced`, and off nothing else.
pub fn steps(seen: &Surroundings, stood: &Stood, fenced: &CpuSet, refused: &BTreeMap<String, Refused>) -> Steps {
    let mut steps = Steps { stood: Stood { boot_id: stood.boot_id.clone(), ..Stood::default() }, pulls: Vec::new() };
    // What is not known to be gone is remembered on.
    let unread = stood.levers.iter().filter(|(lever, _)| seen.unread.contains(*lever));
    steps.stood.levers.extend(unread.map(|(lever, was)| (lever.clone(), was.clone())));
    let nothing = CpuSet::new();
    let levers = seen.levers.iter().map(|lever| (lever, fenced));
    for ((lever, held), fenced) in levers.chain(seen.strays.iter().map(|lever| (lever, &nothing))) {
        let now = parse(lever, held);
        // What somebody else has made of it since is what stands from now on.
        let known = stood.levers.get(lever).filter(|was| was.given.contains(&now));
        let before = known.map_or(held, |was| &was.before);
        let Some(rest) = rest(seen, lever, before, fenced) else {
            if let Some(was) = known {
                let (value, cpus) = (text_of(before), parse(lever, before));
                steps.pulls.push(Pull { lever: lever.clone(), value, cpus, then: None });
                steps.stood.levers.insert(lever.clone(), was.clone());
            }
            continue;
        };
        if refused.get(lever).is_some_and(|refused| refused.cpus == rest) {
            steps.stood.levers.extend(known.map(|was| (lever.clone(), was.clone())));
            continue;
        }
        let then = Was { before: before.clone(), given: vec![rest.clone()] };
        let mut during = then.clone();
        if rest != now {
            // A crash may leave it at the one or the other.
            during.given.extend(known.map(|_| now));
            let value = if is_mask(lever) { rest.to_mask() } else { rest.to_string() };
            steps.pulls.push(Pull { lever: lever.clone(), value, cpus: rest, then: Some(then) });
        }
        steps.stood.levers.insert(lever.clone(), during);
    }
    steps
}

/// What a lever that held `before` is to have without `fenced`; none where that changes nothing, or would leave it no CPU that is switched on.
fn rest(seen: &Surroundings, lever: &str, before: &str, fenced: &CpuSet) -> Option<CpuSet> {
    // A group without a set of its own has what there is, and what there may be: one that is switched on later is the host's too.
    let all = Some(parse(lever, before)).filter(|cpus| !cpus.is_empty()).unwrap_or_else(|| seen.possible.clone());
    let mut rest = all.difference(fenced);
    // An interrupt has no CPUs that it counts on: one that could come on exclusive ones alone comes elsewhere.
    if rest.is_disjoint(&seen.online) && is_interrupt(lever) && !all.is_disjoint(fenced) {
        rest = seen.online.difference(fenced);
    }
    (all != rest && !rest.is_disjoint(&seen.online)).then_some(rest)
}

/// The refusals that are still about what is asked for.
pub fn still_refused(
    seen: &Surroundings,
    fenced: &CpuSet,
    refused: BTreeMap<String, Refused>,
) -> BTreeMap<String, Refused> {
    let is_still = |lever: &str, refused: &Refused| {
        let held = seen.levers.get(lever)?;
        rest(seen, lever, held, fenced).filter(|rest| *rest == refused.cpus)
    };
    refused.into_iter().filter(|(lever, refused)| is_still(lever, refused).is_some()).collect()
}

/// What is to be remembered once the pulls are done, but for those that were refused: of these, what was before.
pub fn afterwards(stood: &Stood, during: &Stood, pulls: &[Pull], refused: &BTreeMap<String, Refused>) -> Stood {
    let mut after = during.clone();
    for pull in pulls {
        let then = if refused.contains_key(&pull.lever) { stood.levers.get(&pull.lever) } else { pull.then.as_ref() };
        match then {
            Some(was) => after.levers.insert(pull.lever.clone(), was.clone()),
            None => after.levers.remove(&pull.lever),
        };
    }
    after
}

/// An empty text would be no write at all; a line of nothing takes a bound away (cgroup-v2.rst, `cpuset.cpus`).
fn text_of(before: &str) -> String {
    if before.is_empty() { "\n".to_owned() } else { before.to_owned() }
}

fn parse(lever: &str, text: &str) -> CpuSet {
    if is_mask(lever) { CpuSet::from_mask(text).unwrap_or_default() } else { text.parse().unwrap_or_default() }
}

/// What has come of it: `refused` by the kernel, in force otherwise.
pub fn fence(seen: &Surroundings, fenced: &CpuSet, refused: BTreeMap<String, Refused>) -> Fence {
    let mut fence = Fence { cpus: fenced.clone(), refused, ..Fence::default() };
    if fenced.is_empty() {
        return fence;
    }
    fence.left.clone_from(&seen.beyond);
    let mut interrupts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (lever, Refused { why, .. }) in &fence.refused {
        if is_interrupt(lever) {
            interrupts.entry(why).or_default().push(lever.rsplit('/').nth(1).unwrap_or(lever));
        } else {
            fence.left.push(format!("those below {lever} ({why})"));
        }
    }
    for (lever, held) in &seen.levers {
        let cpus = parse(lever, held).intersection(&seen.online);
        if cpus.is_empty() || !cpus.is_subset(fenced) {
            continue;
        }
        if is_interrupt(lever) {
            if !fence.refused.contains_key(lever) && !is_mask(lever) {
                interrupts.entry("no other CPUs").or_default().push(lever.rsplit('/').nth(1).unwrap_or(lever));
            }
        } else {
            fence.left.push(format!("those below {lever}, which has no other CPUs"));
        }
    }
    let numbers = |irqs: &[&str]| {
        let mut irqs: Vec<u32> = irqs.iter().filter_map(|irq| irq.parse().ok()).collect();
        irqs.sort_unstable();
        let named: Vec<String> = irqs.iter().take(INTERRUPTS_NAMED_MAX).map(ToString::to_string).collect();
        let more = irqs.len().saturating_sub(INTERRUPTS_NAMED_MAX);
        format!("{}{}", named.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
    };
    fence.interrupts = interrupts.into_iter().map(|(why, irqs)| format!("{} ({why})", numbers(&irqs))).collect();
    fence
}

/// What the host may still do on the CPUs that a running workload is to have alone; none of one that asked for no such thing.
pub(super) fn finding(input: &Input<'_>, record: &Record) -> Option<Finding> {
    let grant = record.held().filter(|_| record.spec.resources.cpu.class == CpuClass::Exclusive)?;
    let group = input.observed.get(&record.spec.name)?.group.as_ref()?;
    let held = group.settings.get(PARTITION);
    let is_partition = held.is_some_and(|held| ["root", "isolated"].contains(&held));
    let open = if is_partition { grant.fenced.difference(&grant.cpus) } else { grant.fenced.clone() };
    let Fence { cpus, refused: _, left, interrupts } = input.fence;
    let is_fenced = open.is_subset(cpus);
    let bound = match (grant.fenced.is_subset(cpus), interrupts.as_slice()) {
        (false, _) => "kernel threads and interrupts that are bound to them may".to_owned(),
        (true, []) => "kernel threads that are bound to them may".to_owned(),
        (true, interrupts) => {
            format!("kernel threads that are bound to them may, and interrupts {}", interrupts.join("; "))
        }
    };
    let fenced = &grant.fenced;
    let (status, reason, message) = if let Some((other, cpus)) = neighbour(input, record, fenced) {
        (false, "Shared", format!("{other} may run on CPUs {cpus} as well: too few are left that are switched on"))
    } else if open.is_empty() {
        (true, "Partition", format!("CPUs {fenced} are a partition: no process of the host runs there; {bound}"))
    } else if is_fenced && left.is_empty() {
        (true, "Fenced", format!("the host's processes are kept off CPUs {fenced}; {bound}"))
    } else if is_fenced {
        (false, "PartlyFenced", format!("the host is kept off CPUs {fenced}, but for {}; {bound}", left.join(", ")))
    } else {
        let why = match held {
            _ if is_partition => "they are idle threads of its cores, outside the partition".to_owned(),
            Some(held) => format!("{PARTITION} is {held:?}"),
            None if input.machine.cgroup.generation == Generation::Legacy => {
                "legacy cgroups have no partitions".to_owned()
            }
            None => format!("this kernel has no {PARTITION}"),
        };
        (
            false,
            "HostMayRun",
            format!(
                "no other workload runs on CPUs {open}, but the host's own processes may: {why}; controller --fence-system keeps them off"
            ),
        )
    };
    Some(Finding { kind: ConditionKind::Exclusive, status, reason, message })
}

/// A workload that is where this one is, or on what is fenced for it, and where: only if CPUs have gone away.
fn neighbour<'a>(input: &Input<'a>, record: &Record, fenced: &CpuSet) -> Option<(&'a Name, CpuSet)> {
    let on = |name: &Name| -> Option<CpuSet> {
        let group = input.observed.get(name)?.group.as_ref().filter(|group| group.populated)?;
        group.settings.get("cpuset.cpus")?.parse().ok()
    };
    let own = on(&record.spec.name).unwrap_or_default().union(fenced);
    let mut others = input.observed.keys().filter(|name| **name != record.spec.name);
    others.find_map(|name| {
        let both = on(name)?.intersection(&own);
        (!both.is_empty()).then_some((name, both))
    })
}

#[cfg(test)]
mod tests;
