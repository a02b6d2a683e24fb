//! The fields that say how much a workload gets: CPU, memory, processes, GPUs.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::io;
use super::tree::{ScalarKind, Value};
use crate::model::gpu::{GpuAlign, GpuRequest, OnUnhealthy, Rebalance};
use crate::model::spec::{Align, Cpu, CpuClass, Memory, Resources, Smt};
use crate::model::units::{Bytes, Limit, MilliCpu, format_duration};
use crate::model::weight::WEIGHT_DEFAULT;
use std::time::Duration;

/// Processes and threads a workload may have if it does not say: stricter than Docker (no limit) and Podman (2048), enough for a web
/// server, and few enough that a fork bomb is felt by nobody else.
pub const PIDS_DEFAULT: u32 = 512;
/// The kernel gives a quota of at least 1 ms in each 100 ms period.
pub const CPU_MILLI_MIN: u32 = 10;
/// Below this a process does not get as far as its own error message.
pub const MEMORY_MIN: Bytes = Bytes(1 << 20);
/// The period of CPU quotas, which bounds a burst (cgroup-v2.rst, `cpu.max.burst`).
pub const CPU_PERIOD: Duration = Duration::from_millis(100);

pub const CPU: Schema =
    Schema { fields: &["request", "limit", "weight", "burst", "class", "smt", "align"], later: &[] };
pub const MEMORY: Schema =
    Schema { fields: &["request", "min", "high", "limit", "swap", "oomGroup", "force"], later: &[] };
pub const GPU: Schema =
    Schema { fields: &["count", "memory", "model", "onUnhealthy", "align", "rebalance"], later: &[] };

/// Reads `cpu`, `memory` and `pids`.
pub fn read(map: &Map<'_>, problems: &mut Problems) -> Resources {
    let cpu = map.get("cpu", problems).and_then(|field| cpu(&field, problems));
    let memory = map.get("memory", problems).and_then(|field| memory(&field, problems));
    let pids = map.get("pids", problems).and_then(|field| match &field.node.value {
        Value::Scalar { text, .. } if text == "max" => Some(Limit::Max),
        // Init is one of them, and the kernel's own bound is 2^22 (PID_MAX_LIMIT).
        _ => field.integer(2..=4_194_304, problems).map(Limit::At),
    });
    Resources {
        cpu: cpu.unwrap_or(CPU_DEFAULT),
        memory: memory.unwrap_or(MEMORY_DEFAULT),
        pids: pids.unwrap_or(Limit::At(PIDS_DEFAULT)),
        io: io::read(map, problems),
        hugepages: io::hugepages(map, problems),
    }
}

const CPU_DEFAULT: Cpu = Cpu {
    request: MilliCpu(0),
    limit: Limit::Max,
    weight: WEIGHT_DEFAULT,
    burst: Duration::ZERO,
    class: CpuClass::Shared,
    smt: None,
    align: Align::Preferred,
};
const MEMORY_DEFAULT: Memory = Memory {
    request: Bytes(0),
    min: Bytes(0),
    high: Limit::Max,
    limit: Limit::Max,
    swap: Limit::Max,
    oom_group: false,
    force: false,
};

fn cpu(field: &Field<'_>, problems: &mut Problems) -> Option<Cpu> {
    if !matches!(field.node.value, Value::Map(_)) {
        let limit = cpu_limit(field, problems)?;
        return Some(Cpu { limit, ..CPU_DEFAULT });
    }
    let map = Map::open(field.node, "cpu.", &CPU, problems)?;
    let classes = [
        ("shared", CpuClass::Shared),
        ("pinned", CpuClass::Pinned),
        ("exclusive", CpuClass::Exclusive),
        ("idle", CpuClass::Idle),
    ];
    let class =
        map.get("class", problems).and_then(|field| field.one_of(&classes, problems)).unwrap_or(CpuClass::Shared);
    let limit = map.get("limit", problems).and_then(|field| cpu_limit(&field, problems)).unwrap_or(Limit::Max);
    let request = map.get("request", problems);
    let given = request.as_ref().and_then(|field| field.amount::<MilliCpu>("500m", problems));
    let weight = map.get("weight", problems);
    if let (Some(weight), CpuClass::Idle) = (&weight, class) {
        problems.error(
            weight.at(),
            "cpu.weight has no effect with class idle",
            "delete the weight, or choose class shared",
        );
    }
    let weight = weight.and_then(|field| field.integer(1..=10_000, problems)).unwrap_or(class.weight());
    let burst = burst(&map, limit, problems);
    let counted = matches!(class, CpuClass::Pinned | CpuClass::Exclusive);
    let request = match (given, limit) {
        (Some(request), _) => request,
        (None, Limit::At(limit)) if counted => limit,
        (None, _) if counted && request.is_none() => {
            let help = "say how many CPUs: `request: 2`";
            problems.error(field.at(), format!("cpu.request is missing, needed with class {class}"), help);
            MilliCpu(0)
        }
        (None, _) => MilliCpu(0),
    };
    if counted && given.is_some_and(|request| request.0 == 0) {
        problems.error(
            field.at(),
            format!("cpu.request is 0, needed with class {class}"),
            "say how many CPUs: `request: 2`",
        );
    }
    if class == CpuClass::Exclusive && !request.0.is_multiple_of(1000) {
        let help = "exclusive CPUs are given whole: write 1, 2, ...";
        problems.error(
            field.at(),
            format!("cpu.request is {request}, expected a whole number with class exclusive"),
            help,
        );
    }
    if let Limit::At(limit) = limit
        && request > limit
    {
        problems.error(
            field.at(),
            format!("cpu.request {request} is above cpu.limit {limit}"),
            "raise the limit or lower the request",
        );
    }
    let smt = smt(&map, class, problems);
    let aligns = [("preferred", Align::Preferred), ("required", Align::Required)];
    let align = map.get("align", problems).and_then(|field| field.one_of(&aligns, problems)).unwrap_or_default();
    Some(Cpu { request, limit, weight, burst, class, smt, align })
}

fn smt(map: &Map<'_>, class: CpuClass, problems: &mut Problems) -> Option<Smt> {
    let field = map.get("smt", problems)?;
    if matches!(class, CpuClass::Shared | CpuClass::Idle) {
        let message = format!("cpu.smt has no effect with class {class}");
        problems.error(field.at(), message, "delete the line, or choose class pinned or exclusive");
    }
    field.one_of(&[("full-core", Smt::FullCore), ("spread", Smt::Spread), ("any", Smt::Any)], problems)
}

fn cpu_limit(field: &Field<'_>, problems: &mut Problems) -> Option<Limit<MilliCpu>> {
    match field.limit("2", problems)? {
        Limit::At(MilliCpu(milli)) if milli < CPU_MILLI_MIN => {
            field.wrong(&format!("at least {CPU_MILLI_MIN}m"), "the kernel cannot hold a process to less", problems);
            None
        }
        limit => Some(limit),
    }
}

fn burst(map: &Map<'_>, limit: Limit<MilliCpu>, problems: &mut Problems) -> Duration {
    let Some(field) = map.get("burst", problems) else { return Duration::ZERO };
    let Some(burst) = field.duration(problems) else { return Duration::ZERO };
    let Limit::At(MilliCpu(milli)) = limit else {
        problems.error(field.at(), "cpu.burst needs cpu.limit", "add `limit:`, or delete the burst");
        return Duration::ZERO;
    };
    let quota = CPU_PERIOD * milli / 1000;
    if burst > quota {
        let expected = format!("at most {}, the quota of one period", format_duration(quota));
        field.wrong(&expected, "lower the burst or raise cpu.limit", problems);
    }
    burst
}

fn memory(field: &Field<'_>, problems: &mut Problems) -> Option<Memory> {
    if !matches!(field.node.value, Value::Map(_)) {
        let limit = memory_limit(field, problems)?;
        return Some(Memory { limit, swap: no_swap_within(limit), ..MEMORY_DEFAULT });
    }
    let map = Map::open(field.node, "memory.", &MEMORY, problems)?;
    let mut bound = |key: &str| map.get(key, problems).and_then(|field| memory_limit(&field, problems));
    let limit = bound("limit").unwrap_or(Limit::Max);
    let high = bound("high").unwrap_or(Limit::Max);
    let mut protected = |key: &str| {
        let bytes = map.get(key, problems).and_then(|field| field.amount("256Mi", problems));
        bytes.unwrap_or(Bytes(0))
    };
    let (request, min) = (protected("request"), protected("min"));
    let mut flag = |key: &str| map.get(key, problems).and_then(|field| field.boolean(problems)).unwrap_or(false);
    let (oom_group, force) = (flag("oomGroup"), flag("force"));
    let swap = map.get("swap", problems).and_then(|field| field.limit("0", problems)).unwrap_or(no_swap_within(limit));
    if let Limit::At(limit) = limit {
        for (key, value) in [("request", request), ("min", min), ("high", high.at().unwrap_or(Bytes(0)))] {
            if value > limit {
                let message = format!("memory.{key} {value} is above memory.limit {limit}");
                problems.error(field.at(), message, format!("raise the limit or lower {key}"));
            }
        }
    }
    Some(Memory { request, min, high, limit, swap, oom_group, force })
}

/// A limit on memory that swap could get around would be none, so swap is shut unless asked for.
fn no_swap_within(limit: Limit<Bytes>) -> Limit<Bytes> {
    limit.map(|_| Bytes(0))
}

fn memory_limit(field: &Field<'_>, problems: &mut Problems) -> Option<Limit<Bytes>> {
    match field.limit::<Bytes>("512M", problems)? {
        Limit::At(bytes) if bytes < MEMORY_MIN => {
            field.wrong(
                &format!("at least {MEMORY_MIN}"),
                "did you forget the unit? `512M` is 512,000,000 bytes",
                problems,
            );
            None
        }
        limit => Some(limit),
    }
}

/// Reads `gpu`: true, a number, or a map.
pub fn gpu(field: &Field<'_>, problems: &mut Problems) -> Option<GpuRequest> {
    const GPUS_MAX: u32 = 64;
    let whole = |count| GpuRequest {
        count,
        memory: None,
        model: None,
        on_unhealthy: OnUnhealthy::default(),
        align: GpuAlign::default(),
        rebalance: Rebalance::default(),
    };
    match &field.node.value {
        Value::Scalar { text, .. } if text == "true" => Some(whole(1)),
        Value::Scalar { text, .. } if text == "false" => None,
        Value::Map(_) => {
            let map = Map::open(field.node, "gpu.", &GPU, problems)?;
            let count = map.get("count", problems).map_or(Some(1), |field| field.integer(1..=GPUS_MAX, problems))?;
            let memory = map.get("memory", problems).and_then(|field| {
                let memory: Bytes = field.amount("8Gi", problems)?;
                if memory.0 == 0 {
                    field.wrong("more than 0", "delete the line for a whole GPU", problems);
                }
                Some(memory)
            });
            let model = map.get("model", problems).and_then(|field| field.text(problems)).map(str::to_owned);
            let on_unhealthy = map.get("onUnhealthy", problems).map_or_else(OnUnhealthy::default, |field| {
                let words =
                    [("restart", OnUnhealthy::Restart), ("keep", OnUnhealthy::Keep), ("stop", OnUnhealthy::Stop)];
                field.one_of(&words, problems).unwrap_or_default()
            });
            let aligns =
                [("none", GpuAlign::None), ("preferred", GpuAlign::Preferred), ("required", GpuAlign::Required)];
            let align = map.get("align", problems).and_then(|field| field.one_of(&aligns, problems));
            let moves =
                [("never", Rebalance::Never), ("on-restart", Rebalance::OnRestart), ("restart", Rebalance::Restart)];
            let rebalance = map.get("rebalance", problems).and_then(|field| field.one_of(&moves, problems));
            let (align, rebalance) = (align.unwrap_or_default(), rebalance.unwrap_or_default());
            Some(GpuRequest { count, memory, model, on_unhealthy, align, rebalance })
        }
        Value::Scalar { kind: ScalarKind::Number, .. } => {
            field.integer(0..=GPUS_MAX, problems).filter(|count| *count > 0).map(whole)
        }
        _ => {
            field.wrong("true, false, a number or a map", "write `gpu: true` for one whole GPU", problems);
            None
        }
    }
}
