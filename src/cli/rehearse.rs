//! `containerctl plan --topology SHAPE`: who would go where on a machine that is made up. Asks no controller.

use super::controller::host_labels;
use super::output::{Format, print, print_value, table};
use super::plan::CHANGES;
use super::{MANIFESTS, PlanArgs, ps, topology};
use crate::control::Options;
use crate::control::balance::{self, Mode};
use crate::control::folder::Folder;
use crate::control::rehearsal::{Rehearsal, rehearse};
use crate::control::trust::Trust;
use crate::host::cgroup::FILES;
use crate::model::admission::Admission;
use crate::model::cgroup::{Generation, Support};
use crate::model::clock::Time;
use crate::model::cpuset::CpuSet;
use crate::model::machine::{Ceilings, Machine};
use crate::model::shape::Shape;
use crate::model::topology::Topology;
use crate::model::units::Bytes;
use anyhow::Context;
use procfs::{Current, Meminfo};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

pub fn run(args: &PlanArgs, shape: Shape) -> anyhow::Result<ExitCode> {
    let dir = args.dir.as_deref().unwrap_or(Path::new(MANIFESTS));
    let scan = Folder::new(dir.to_owned(), Trust::anyone()).scan()?;
    let memory = match args.memory {
        Some(memory) => memory,
        None => Bytes(Meminfo::current().context("cannot read /proc/meminfo; help: give --memory")?.mem_total),
    };
    let machine = machine(shape.topology(), memory, args);
    let options = Options {
        resync: Duration::MAX,
        stop_workloads: false,
        job_threshold_percent: 100,
        entropy: 0,
        labels: host_labels(&[])?,
        prune_guard: false,
        fence_system: false,
        balance: balance::Options { mode: Mode::Off, record: None },
    };
    let now = Time { wall: ps::now(), ..Time::default() };
    let rehearsal = rehearse(machine.clone(), scan, &options, now);
    match args.format.output {
        Format::Table => print(&render(&machine.topology, &rehearsal))?,
        format => print_value(&rehearsal, format)?,
    }
    Ok(if rehearsal.placed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) })
}

fn machine(topology: Topology, memory: Bytes, args: &PlanArgs) -> Machine {
    let nodes = topology.nodes.keys().copied().collect();
    // Nothing a manifest asks for is missing: what a real host cannot honour, it says itself.
    let files = FILES.map(str::to_owned).into();
    Machine {
        topology,
        memory,
        gpu_trouble: Vec::new(),
        gpus: args.simulate_gpus.clone().unwrap_or_default().at(Duration::ZERO),
        disks: [].into(),
        huge_pages: [].into(),
        cgroup: Support { generation: Generation::Unified, files, nodes },
        boot_id: String::new(),
        ceilings: Ceilings::default(),
        admission: Admission::default(),
    }
}

fn render(topology: &Topology, rehearsal: &Rehearsal) -> String {
    let Rehearsal { placed, waiting, diagnostics } = rehearsal;
    let rows = placed.iter().map(|seat| vec![seat.workload.to_string(), seat.cpus.to_string(), seat.reason.clone()]);
    let waiting = waiting.iter().map(|who| vec![who.workload.to_string(), "-".to_owned(), who.reason.clone()]);
    let mut text = table(&["WORKLOAD", "CPUS", "WHY"], rows.chain(waiting));
    for diagnostic in diagnostics {
        text.push_str(&format!("{diagnostic}\n"));
    }
    let seated: Vec<(String, CpuSet)> =
        placed.iter().map(|seat| (seat.workload.to_string(), seat.cpus.clone())).collect();
    text + "\n" + &topology::draw(topology, &seated)
}
