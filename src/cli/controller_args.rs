//! What `controller` may be told.

use super::{MANIFESTS, RUNTIME, STATE, cgroup_parent, duration};
use crate::host::gpu::{CDI_FOLDERS, Simulated};
use crate::model::admission::Overcommit;
use crate::model::cpuset::CpuSet;
use crate::model::label::Label;
use crate::model::units::Bytes;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// The folder to watch
    #[arg(long, value_name = "DIR", default_value = MANIFESTS)]
    pub manifests: PathBuf,
    /// The database and the logs
    #[arg(long, value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,
    /// Socket, locks and traces of what runs; best on a tmpfs
    #[arg(long, value_name = "DIR", default_value = RUNTIME)]
    pub runtime_dir: PathBuf,
    /// Where to listen [default: containerctl.sock in the runtime directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The cgroup that holds all workloads, below the hierarchy's root
    #[arg(long, value_name = "NAME", default_value = "containerctl", value_parser = cgroup_parent)]
    pub cgroup_parent: String,
    /// GPUs to pretend to have instead of those there are: 2x16Gi, or the path of an inventory (docs/MANIFEST.md)
    #[arg(long, value_name = "NxMEM|FILE")]
    pub simulate_gpus: Option<Simulated>,
    /// CPUs to keep from all workloads, for example 0-1; those the kernel isolates (isolcpus) are kept anyway
    #[arg(long, value_name = "LIST")]
    pub reserved_cpus: Option<CpuSet>,
    /// Memory to promise to no workload, for example 1Gi: what the system and the controller need
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub reserved_memory: Bytes,
    /// How often what there is may be promised by `request`, for example cpu=2,memory=1.2 [default: once]
    #[arg(long, value_name = "RESOURCE=FACTOR,...", default_value = "cpu=1,memory=1", hide_default_value = true)]
    pub overcommit: Overcommit,
    /// A folder of CDI specs; may be given several times
    #[arg(long, value_name = "DIR", default_values = CDI_FOLDERS)]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Accept a folder and files that belong to this user, by name or number; may be given several times
    #[arg(long, value_name = "USER", value_parser = user)]
    pub trust_owner: Vec<u32>,
    /// Keep the host's own processes and interrupts off exclusive CPUs, by the cpusets of its groups (v2 only) and smp_affinity; what stood
    /// there before is put back when nothing is exclusive any more, or when the controller is started without this: once before it is
    /// uninstalled, or reboot. On kernels below 6.2 threads of the host that were bound to CPUs (taskset) lose that for good
    #[arg(long)]
    pub fence_system: bool,
    /// A label of this host, for `hosts` in manifests; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<Label>,
    /// Whether the deletion of more than half of what runs (and of more than three) waits for `containerctl approve`
    #[arg(long, value_name = "ON|OFF", default_value = "on")]
    pub prune_guard: Switch,
    /// How often to look at everything, whatever the events say
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = resync)]
    pub resync: Duration,
    /// Jobs wait while the host's CPUs are busier than this
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub job_cpu_threshold: u8,
    /// Whether running workloads are moved to other CPUs as loads change; dry-run tells and does nothing
    #[arg(long, value_name = "MODE", default_value = "on")]
    pub rebalance: RebalanceMode,
    /// Record the rebalancer's decisions and what they were made from: a line a turn, at most 64 MiB in FILE and FILE.old
    #[arg(long, value_name = "FILE")]
    pub record_balance: Option<PathBuf>,
    /// Stop the workloads too when told to end (SIGTERM, SIGINT), those that come `after` others first; told twice, at once
    #[arg(long)]
    pub stop_workloads: bool,
    /// How to write the log, which goes to standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RebalanceMode {
    On,
    Off,
    DryRun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

fn resync(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    // Looking at everything ten times a second would be a load of its own.
    if time < Duration::from_millis(100) { Err("is below 100ms".to_owned()) } else { Ok(time) }
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("is no user of this host".to_owned()),
        Err(error) => Err(format!("cannot be looked up: {error}")),
    }
}
