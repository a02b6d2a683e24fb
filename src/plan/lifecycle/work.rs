//! A decision turned into work and a verdict.

use super::{Decision, Next};
use crate::model::cgroup::{Shrink, Write};
use crate::model::exit::{Exit, Outcome};
use crate::model::gpu::{GpuAlign, SHARE_BYTES, Share, VISIBLE_DEVICES, VISIBLE_DEVICES_AMD, Vendor};
use crate::model::name::Name;
use crate::model::record::{Record, Stopping};
use crate::model::spec::{Align, Kind, Process, REPLICA_VARIABLE};
use crate::model::status::{ConditionKind, Phase};
use crate::model::time::Timestamp;
use crate::place::{self, Ledger};
use crate::plan::{Act, Finding, Input, Plan, Verdict, Work, balance, ceilings, fence, kernel, mend};
use std::collections::BTreeMap;

/// Where programs are looked for if the manifest's `env` has no PATH: Debian's default for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Turns a decision into work, now that every grant is known.
pub(in crate::plan) fn settle(input: &Input<'_>, ledger: &Ledger, name: Name, decision: Decision, plan: &mut Plan) {
    let Decision { record, next, mut phase, mut findings, mut wake_at, leaves_gpu: _, is_refused: _, preempts: _ } =
        decision;
    let mut observed_generation = 0;
    let starts = matches!(next, Next::Start);
    let mut work = match (next, &record) {
        (Next::Do { act, reason }, _) => Some((act, reason)),
        (Next::Start, Some(record)) => Some(start(input, ledger, record, &mut findings)),
        (Next::Keep, Some(record)) => {
            let writes = resize(input, ledger, record, &mut findings);
            if writes.is_none() {
                observed_generation = record.generation;
            }
            findings.extend(fence::finding(input, record));
            Some(writes.unwrap_or((Act::Remember, "as it should be".to_owned())))
        }
        (Next::Rest { reason }, _) => Some((Act::Remember, reason)),
        (Next::Start | Next::Keep, None) => None,
    };
    // What failed is told for as long as it is still to be done: a group that was put right by somebody else needs nothing more.
    let nothing_to_do = matches!(&work, Some((Act::Remember, _))) && record.as_ref() == input.records.get(&name);
    if let Some(setback) = input.setbacks.get(&name).filter(|_| !nothing_to_do) {
        let message = setback.message.clone();
        findings.push(Finding { kind: ConditionKind::Degraded, status: true, reason: "StepFailed", message });
        if input.clock.steady < setback.retry_at && !ends_it(input, &name, record.as_ref(), work.as_ref()) {
            work = None;
            phase = if starts { Phase::Failed } else { phase };
            wake_at = earliest(wake_at, Some(input.clock.wall_at(setback.retry_at)));
        }
    }
    plan.wake_at = earliest(plan.wake_at, wake_at);
    let generation = record.as_ref().map_or(0, |record| record.generation);
    // How it ended is known even while it cannot be looked at.
    let last_exit = record.as_ref().or_else(|| input.records.get(&name)).and_then(|record| record.last_exit.clone());
    if let (Some((act, reason)), false) = (work, input.busy.contains(&name)) {
        let before = input.records.get(&name);
        let done = record.as_ref().and_then(|record| match act {
            Act::Stop { .. } => Some(asked(record)),
            Act::Start { .. } => Some(Record { made: true, ..record.clone() }),
            _ => None,
        });
        let failed = record.as_ref().and_then(|record| match act {
            Act::Start { .. } => Some(not_begun(record, before)),
            // The first try, from which a grace counts that cannot be asked for.
            Act::Stop { .. } if !input.setbacks.contains_key(&name) => Some(record.clone()),
            Act::Resize { .. } | Act::Restore { .. } => balance::unmoved(record, before),
            _ => None,
        });
        let record = record.filter(|record| input.records.get(&name) != Some(record) && act != Act::Forget);
        if record.is_some() || act != Act::Remember {
            plan.work.push(Work { name: name.clone(), record, act, reason, done, failed });
        }
    }
    plan.verdicts.insert(name, Verdict { phase, generation, observed_generation, last_exit, findings });
}

/// Whether the step asks it to end, or ends it after its grace: neither waits for what was last tried on it, which may be a limit that the
/// kernel refuses for ever. A kill of what is left over waits, and so does asking again: those are failures of their own.
fn ends_it(input: &Input<'_>, name: &Name, record: Option<&Record>, work: Option<&(Act, String)>) -> bool {
    match work {
        Some((Act::Stop { .. }, _)) => input.records.get(name).is_none_or(|known| known.stopping.is_none()),
        Some((Act::Kill, _)) => {
            let (stopping, now) = (record.and_then(|record| record.stopping.as_ref()), Some(input.clock.now()));
            stopping.is_some_and(|stopping| stopping.killed == now && Some(&stopping.since) != now.as_ref())
        }
        _ => false,
    }
}

/// A start that fails takes away what it made: there was no such run, a reboot has not ended it, and the time it was for is still to be kept,
/// or left out if it takes too long.
fn not_begun(record: &Record, before: Option<&Record>) -> Record {
    let mut record = Record { begun: None, made: false, ..record.clone() };
    if let Some(due) = record.scheduled.as_mut().and_then(|scheduled| scheduled.due.as_mut()) {
        // Begun all the same if this was another try.
        due.begun = before.and_then(|before| before.scheduled.as_ref()?.due.as_ref()).is_some_and(|known| known == due);
    }
    record
}

/// A signal that is sent is not sent again: for many programs a second one means to end without delay.
fn asked(record: &Record) -> Record {
    let stopping = record.stopping.clone().map(|stopping| Stopping { asked: true, ..stopping });
    Record { stopping, ..record.clone() }
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

fn start(input: &Input<'_>, ledger: &Ledger, record: &Record, findings: &mut Vec<Finding>) -> (Act, String) {
    let wanted = wanted(input, ledger, record, findings);
    let writes = kernel::first_writes(&wanted.settings, input.machine.cgroup.generation);
    let reason = match &record.last_exit {
        None => "new".to_owned(),
        Some(Exit { outcome: Outcome::Exited { code: 0 }, .. }) => "its last run ended".to_owned(),
        Some(exit) => format!("its last run: {}", exit.outcome),
    };
    let placed = record.grant.as_ref().map_or("", |grant| grant.reason.as_str());
    (Act::Start { writes, env: environment(record) }, format!("{reason}; {placed}"))
}

fn resize(input: &Input<'_>, ledger: &Ledger, record: &Record, findings: &mut Vec<Finding>) -> Option<(Act, String)> {
    let wanted = wanted(input, ledger, record, findings);
    if let Some(work) = mend::needed(input, record, &wanted.settings) {
        return Some(work);
    }
    let group = input.observed.get(&record.spec.name).and_then(|seen| seen.group.as_ref())?;
    let writes = kernel::writes(&group.settings, &wanted.settings);
    if writes.is_empty() {
        return None;
    }
    let change = |write: &Write| {
        format!("{} {} -> {}", write.file, group.settings.get(&write.file).unwrap_or("unset"), write.value)
    };
    let reason = writes.iter().map(change).collect::<Vec<_>>().join(", ");
    let shrink = if record.spec.resources.memory.force { Shrink::Anyhow } else { Shrink::IfItFits };
    Some((Act::Resize { writes, shrink }, reason))
}

fn wanted(input: &Input<'_>, ledger: &Ledger, record: &Record, findings: &mut Vec<Finding>) -> kernel::Wanted {
    let machine = input.machine;
    let mut find = |kind, reason, message: &str| {
        findings.push(Finding { kind, status: true, reason, message: message.to_owned() });
    };
    let cpus = match &record.grant {
        Some(grant) => {
            find(ConditionKind::Placed, "Placed", &grant.reason);
            place::cpus_in_force(machine, ledger, &record.spec.name, grant)
        }
        None => place::open_to(machine, ledger, &record.spec.name),
    };
    // Protection goes as far as admission did: an edit that asks for more than there is keeps what it had.
    let mut resources = record.spec.resources.clone();
    if let Some(grant) = &record.grant {
        resources.memory.request = grant.requested.memory;
    }
    // Whose CPUs have to be beside its devices has its memory there too.
    if record.spec.gpu.as_ref().is_some_and(|request| request.align == GpuAlign::Required) {
        resources.cpu.align = Align::Required;
    }
    let wanted = kernel::wanted(&resources, &cpus, machine);
    let leases = record.grant.iter().flat_map(|grant| &grant.gpus);
    for unhonoured in leases.flat_map(|lease| &lease.exposure.unhonoured) {
        find(ConditionKind::Degraded, "GpuNotHonoured", unhonoured);
    }
    for unhonoured in wanted.unhonoured.iter().chain(&ceilings::unhonoured(&record.spec.process, &machine.ceilings)) {
        find(ConditionKind::Degraded, "NotHonoured", unhonoured);
    }
    wanted
}

/// The command's environment: the manifest's on top of a few defaults, and its GPUs on top of that.
pub fn environment(record: &Record) -> BTreeMap<String, String> {
    let Process { user, rootfs, security, .. } = &record.spec.process;
    // Root inside a user namespace is a stranger to the host's /root, and at home in that of a directory.
    let at_home = !security.user_namespace || rootfs.directory().is_some();
    let home = if user.uid == 0 && at_home { "/root" } else { "/" };
    let defaults = [("PATH", PATH), ("HOME", home), ("LANG", "C.UTF-8")];
    let mut env: BTreeMap<String, String> = defaults.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    env.extend(record.spec.process.env.clone());
    if record.spec.kind == Kind::Service {
        let index = record.spec.replica.as_ref().map_or(0, |replica| replica.index);
        env.entry(REPLICA_VARIABLE.to_owned()).or_insert_with(|| index.to_string());
    }
    let leases = record.grant.as_ref().map_or(&[][..], |grant| &grant.gpus);
    for lease in leases {
        env.extend(lease.exposure.env.clone());
    }
    if let Some(first) = leases.first() {
        let devices: Vec<&str> = leases.iter().map(|lease| lease.gpu.0.as_str()).collect();
        let variable = match first.vendor {
            Vendor::Simulated | Vendor::Nvidia => VISIBLE_DEVICES,
            Vendor::Amd => VISIBLE_DEVICES_AMD,
        };
        // What ROCm cannot be told by name it would take for nothing at all.
        if devices.iter().all(|device| !device.starts_with("PCI-")) {
            env.insert(variable.to_owned(), devices.join(","));
        }
        if let Share::Memory(bytes) = first.share {
            env.insert(SHARE_BYTES.to_owned(), bytes.0.to_string());
        }
    }
    env
}
