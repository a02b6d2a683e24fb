//! What the loop knows: the last scan, the records, the last sighting of every workload, and what is under way.
//!
//! Owns the bookkeeping between passes, no I/O and no decision.

mod desired;

use super::balance::Mode;
use super::fence::Fencing;
use super::folder::Scan;
use super::gpus::{self, Gpus};
use super::lost::LogFolders;
use super::overdue::{Began, UnderWay};
use super::rebuilt::Rebuilt;
use super::report::{self, Snapshot};
use super::unsaved::Unsaved;
use super::{Job, Options, drift};
use crate::host::CpuTimes;
use crate::manifest::away::Away;
use crate::manifest::diagnostic::Diagnostic;
use crate::model::balance::Move;
use crate::model::clock::{Steady, Time};
use crate::model::desired::Desired;
use crate::model::event::News;
use crate::model::label::HostLabels;
use crate::model::machine::Machine;
use crate::model::name::Name;
use crate::model::observed::{Life, Observed};
use crate::model::probe::Standing;
use crate::model::record::Record;
use crate::model::spec::{CpuClass, Kind};
use crate::model::usage::Usage;
use crate::plan::strain::Strains;
use crate::plan::{Input, Ledger, Plan, Setback, Shutdown, Verdict, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

/// The wait after a step that failed; it doubles with each further failure. Short at first: most failures are a kernel that is not done
/// yet, and eleven tries later it is a minute.
const SETBACK_FIRST: Duration = Duration::from_millis(30);
const SETBACK_MAX: Duration = Duration::from_mins(1);

/// Everything a pass is decided on.
pub struct State {
    pub machine: Machine,
    /// Of this machine. Boxed: a controller is moved about, by value.
    pub(super) bare: Box<Ledger>,
    pub records: BTreeMap<Name, Record>,
    pub observed: BTreeMap<Name, Observed>,
    /// Workloads somebody is acting on or looking at.
    pub in_flight: BTreeSet<Name>,
    pub under_way: UnderWay,
    pub rebuilt: Rebuilt,
    pub setbacks: BTreeMap<Name, Setback>,
    pub unsaved: Unsaved,
    /// Processes outside their workload's cgroup, as of the last sweep.
    strays: BTreeMap<Name, BTreeSet<u32>>,
    pub strains: Strains,
    pub log_folders: LogFolders,
    pub gpus: Gpus,
    pub fencing: Fencing,
    pub usage: BTreeMap<Name, Usage>,
    /// What the probes of runs have come to.
    pub standings: BTreeMap<Name, Standing>,
    /// Workloads that could not be looked at yet: nothing is done about them.
    blind: BTreeSet<Name>,
    /// Counts what has been done to and seen of each workload: tells a sighting from before it, and a status that is still good.
    epochs: BTreeMap<Name, u64>,
    /// On which verdict, at which epoch, each status was made.
    told: BTreeMap<Name, (Verdict, u64)>,
    scan: Option<Scan>,
    /// Recorded manifests that were not seen yet.
    away: Away,
    pub(super) desired: Desired,
    diagnostics: Vec<Diagnostic>,
    pub folder_error: Option<String>,
    /// Why nothing is saved at present.
    pub trouble: Option<String>,
    pub utilisation_percent: Option<u8>,
    /// Whether the controller is ending and takes its workloads with it.
    pub shutdown: Option<Shutdown>,
    /// When this controller began.
    pub since: Steady,
    cpu_times: Option<(CpuTimes, BTreeMap<Name, u64>)>,
    /// What the rebalancer proposes and has not been taken up, or is being carried out.
    pub(super) moves: Vec<Move>,
    rebalances: bool,
    /// Which manifests are for this host.
    host: HostLabels,
    pub job_threshold_percent: u8,
    pub entropy: u64,
    prune_guard: bool,
}

impl State {
    pub fn new(machine: Machine, records: BTreeMap<Name, Record>, options: &Options) -> State {
        let mut state = State {
            bare: Box::new(Ledger::of(&machine.topology)),
            machine,
            records,
            observed: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            under_way: UnderWay::default(),
            rebuilt: Rebuilt::default(),
            setbacks: BTreeMap::new(),
            unsaved: Unsaved::default(),
            strays: BTreeMap::new(),
            strains: Strains::default(),
            log_folders: LogFolders::default(),
            gpus: Gpus::default(),
            fencing: Fencing::new(),
            usage: BTreeMap::new(),
            standings: BTreeMap::new(),
            blind: BTreeSet::new(),
            epochs: BTreeMap::new(),
            told: BTreeMap::new(),
            scan: None,
            away: Away::default(),
            desired: Desired::default(),
            diagnostics: Vec::new(),
            folder_error: None,
            trouble: None,
            utilisation_percent: None,
            shutdown: None,
            since: Steady::default(),
            cpu_times: None,
            moves: Vec::new(),
            rebalances: options.balance.mode == Mode::On,
            host: options.labels.clone(),
            job_threshold_percent: options.job_threshold_percent,
            entropy: options.entropy,
            prune_guard: options.prune_guard,
        };
        state.gather();
        state
    }

    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// Plans a pass, for the folder as it is or as it might be.
    pub fn plan(&self, desired: Option<&Desired>, now: Time) -> Plan {
        plan(&self.input(desired.unwrap_or(&self.desired), now))
    }

    pub(super) fn input<'a>(&'a self, desired: &'a Desired, now: Time) -> Input<'a> {
        Input {
            desired,
            records: &self.records,
            observed: &self.observed,
            busy: &self.in_flight,
            blind: &self.blind,
            setbacks: &self.setbacks,
            prune_guard: self.prune_guard,
            strays: &self.strays,
            standings: &self.standings,
            machine: &self.machine,
            bare: &self.bare,
            fence: &self.fencing.fence,
            moves: self.rebalances.then_some(&self.moves),
            utilisation_percent: self.utilisation_percent,
            job_threshold_percent: self.job_threshold_percent,
            shutdown: self.shutdown,
            clock: now.of_boot(&self.machine.boot_id),
            since: self.since,
            entropy: self.entropy,
        }
    }

    /// What to tell after a pass. A status that nothing has happened to is told again as it is.
    pub fn snapshot(
        &mut self,
        plan: &Plan,
        before: &Snapshot,
        now: Time,
        cgroup: impl Fn(&Name) -> String,
    ) -> Snapshot {
        let input = self.input(&self.desired, now);
        let mut snapshot = Snapshot {
            statuses: BTreeMap::new(),
            diagnostics: self.diagnostics.clone(),
            folder_error: self.folder_error.clone(),
            folder_revision: self.scan.as_ref().and_then(|scan| scan.revision.clone()),
            unsettled: Vec::new(),
            gpus: gpus::statuses(&self.machine.gpus, &self.records),
            usage: self.usage.clone(),
            guarded: plan.guarded.clone(),
        };
        let mut anew = Vec::new();
        for (name, verdict) in &plan.verdicts {
            let (known, epoch) = (before.statuses.get(name), self.epoch(name));
            let is_told = self.told.get(name).is_some_and(|(told, at)| told == verdict && *at == epoch);
            if let Some(known) = known.filter(|_| is_told) {
                snapshot.statuses.insert(name.clone(), Arc::clone(known));
            } else if let Some(status) = report::status(&input, name, verdict, cgroup(name), known.map(AsRef::as_ref)) {
                snapshot.statuses.insert(name.clone(), Arc::new(status));
                anew.push((name.clone(), (verdict.clone(), epoch)));
            }
        }
        snapshot.unsettled = report::unsettled(&input, plan, &snapshot);
        snapshot.unsettled.extend(self.trouble.clone());
        snapshot.unsettled.extend(self.under_way.of_all(now));
        if let Some(scan) = &self.scan {
            snapshot.unsettled.extend(scan.settling.iter().map(|path| format!("{path} has disappeared a moment ago")));
            let missing = self.away.missing();
            snapshot
                .unsettled
                .extend(missing.map(|path| format!("{path} was not there when the controller began to look")));
            snapshot.unsettled.extend(scan.being_written.iter().map(|path| format!("{path} is being written")));
        }
        self.told.retain(|name, _| snapshot.statuses.contains_key(name));
        self.told.extend(anew);
        snapshot
    }

    /// Whether a job is waiting to be started, so that the host's load matters.
    pub fn has_waiting_job(&self) -> bool {
        let waits = |name: &Name| self.observed.get(name).is_none_or(|seen| seen.instance.is_none());
        let finished = |name: &Name| self.records.get(name).is_some_and(|record| record.finished);
        self.desired.wanted.iter().any(|(name, wanted)| wanted.spec.kind == Kind::Job && waits(name) && !finished(name))
    }

    /// Running workloads that yield to everybody.
    pub fn idlers(&self) -> impl Iterator<Item = &Name> {
        let yields = |name: &&Name| {
            self.records.get(*name).is_some_and(|record| record.spec.resources.cpu.class == CpuClass::Idle)
        };
        self.observed.keys().filter(yields)
    }

    /// Takes a reading of the CPUs, and of what those that yield to everybody have had of them (in us); the share that was busy with other
    /// work since the one before is the utilisation.
    pub fn measure(&mut self, times: CpuTimes, spare_us: BTreeMap<Name, u64>) {
        // Counting begins anew where less has passed in all than before.
        if let Some((before, spare_before)) = self.cpu_times.as_ref().filter(|(before, _)| before.total <= times.total)
        {
            let since =
                |(name, now): (&Name, &u64)| spare_before.get(name).map_or(0, |before| now.saturating_sub(*before));
            let spare = Duration::from_micros(spare_us.iter().map(since).sum());
            let Some(percent) = times.busy_percent_since(*before, spare) else { return };
            self.utilisation_percent = Some(percent);
        }
        self.cpu_times = Some((times, spare_us));
    }

    /// Marks a workload as being acted on or looked at, from when the job's thread says it began.
    pub fn begin(&mut self, name: &Name, what: &'static str) -> Began {
        self.in_flight.insert(name.clone());
        self.count(name);
        self.under_way.begin(Job::Workload(name.clone()), what)
    }

    fn count(&mut self, name: &Name) {
        *self.epochs.entry(name.clone()).or_insert(0) += 1;
    }

    pub fn epoch(&self, name: &Name) -> u64 {
        self.epochs.get(name).copied().unwrap_or(0)
    }

    /// Takes in what was seen after a step or a look.
    pub fn end(&mut self, name: &Name, seen: Option<Observed>) {
        self.in_flight.remove(name);
        self.under_way.end(&Job::Workload(name.clone()));
        // Whatever was done about them, the next sweep tells.
        self.strays.remove(name);
        self.count(name);
        if let Some(seen) = seen {
            self.see(name, seen);
        }
        if !self.records.contains_key(name)
            && !self.observed.contains_key(name)
            && !self.desired.wanted.contains_key(name)
        {
            self.epochs.remove(name);
            self.setbacks.remove(name);
        }
    }

    /// Whether nothing has been done to or seen of a workload since its epoch was `epoch`. A sighting that began then is void otherwise.
    pub fn is_untouched(&self, name: &Name, epoch: u64) -> bool {
        self.epoch(name) == epoch && !self.in_flight.contains(name)
    }

    /// Takes in what a sweep saw, which looked for strays as well.
    pub fn see_swept(&mut self, name: &Name, seen: Observed, strays: BTreeSet<u32>) {
        self.see(name, seen);
        if strays.is_empty() {
            self.strays.remove(name);
        } else {
            self.strays.insert(name.clone(), strays);
        }
    }

    /// What somebody else has done to a running workload since it was last seen.
    pub fn drift(&self, name: &Name, seen: &Observed, strays: &BTreeSet<u32>) -> Vec<News> {
        let before = self.observed.get(name).filter(|before| stage(before) == stage(seen));
        before.map(|before| drift::news(name, before, seen, strays)).unwrap_or_default()
    }

    pub fn forget_usage_of_the_gone(&mut self) {
        let names: BTreeSet<Name> = self.observed.keys().cloned().collect();
        self.usage.retain(|name, _| names.contains(name));
        self.strains.keep_only(&names);
    }

    fn see(&mut self, name: &Name, mut seen: Observed) {
        let was_blind = self.blind.remove(name);
        if was_blind {
            self.setbacks.remove(name);
        }
        if self.observed.get(name) == Some(&seen) {
            return;
        }
        self.count(name);
        // Equal specs become one, so that passes compare them by their address.
        if let (Some(started_as), Some(record)) =
            (seen.instance.as_mut().and_then(|instance| instance.record.as_mut()), self.records.get(name))
            && started_as.spec == record.spec
        {
            started_as.spec = Arc::clone(&record.spec);
        }
        // What failed on it as it was may succeed on it as it is: a command that has died is not kept waiting by a failed resize.
        if self.observed.get(name).is_some_and(|before| has_turned(before, &seen)) {
            self.setbacks.remove(name);
        }
        if seen == Observed::default() {
            self.observed.remove(name);
        } else {
            self.observed.insert(name.clone(), seen);
        }
        if was_blind {
            // Only now is it known which manifest it came from, and that may be one that cannot be read.
            self.gather();
        }
    }

    /// Workloads to try to look at again.
    pub fn blind_and_due(&self, now: Steady) -> Vec<Name> {
        let due = |name: &&Name| self.setbacks.get(*name).is_none_or(|setback| setback.retry_at <= now);
        self.blind.iter().filter(|name| !self.in_flight.contains(*name)).filter(due).cloned().collect()
    }

    /// Keeps a workload that cannot be looked at as it is, until it can.
    pub fn lose_sight_of(&mut self, name: &Name) {
        self.blind.insert(name.clone());
    }

    /// Whatever failed about those that cannot be looked at, it is tried at once.
    pub fn try_the_blind_again(&mut self) {
        let State { blind, setbacks, .. } = self;
        setbacks.retain(|name, _| !blind.contains(name));
    }

    /// Those that cannot be looked at.
    pub fn blind(&self) -> &BTreeSet<Name> {
        &self.blind
    }

    /// Notes that a step failed, and when to try again.
    pub fn set_back(&mut self, name: &Name, message: String, now: Steady) {
        let failures = self.setbacks.get(name).map_or(0, |setback| setback.failures) + 1;
        let delay = SETBACK_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(SETBACK_MAX);
        self.setbacks.insert(name.clone(), Setback { message, failures, retry_at: now.plus(delay) });
    }
}

/// Whether a run has begun, ended or gone, or its group has become empty.
fn has_turned(before: &Observed, now: &Observed) -> bool {
    let populated = |seen: &Observed| seen.group.as_ref().map(|group| group.populated);
    stage(before) != stage(now) || populated(before) != populated(now)
}

/// How far which run is.
fn stage(seen: &Observed) -> Option<(u64, mem::Discriminant<Life>)> {
    seen.instance.as_ref().map(|instance| (instance.number, mem::discriminant(&instance.life)))
}
