//! What reaches the disk before something else is done, as the kernel was asked for it.

use super::world::{World, eventually};
use std::fs;
use std::ops::Range;

/// A system call: whose, what strace shows of it, and from which line of the trace to which it lasted.
struct Call {
    thread: String,
    text: String,
    lines: Range<usize>,
}

/// The calls of a trace. One that others came between is shown in two lines.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((thread, text)) = line.split_once(' ').map(|(thread, text)| (thread, text.trim_start())) else {
            continue;
        };
        if text.starts_with("<... ") {
            let is_its = |call: &&mut Call| call.thread == thread && call.lines.is_empty();
            let begun = calls.iter_mut().rev().find(is_its).expect("a call that ends has begun");
            begun.lines.end = number;
            begun.text.push_str(text);
        } else {
            let end = if text.ends_with("<unfinished ...>") { number } else { number + 1 };
            calls.push(Call { thread: thread.to_owned(), text: text.to_owned(), lines: number..end });
        }
    }
    calls
}

#[test]
fn that_a_job_is_done_is_on_the_disk_before_its_last_traces_go() {
    let mut world = World::new();
    let trace = world.path("trace");
    let what = "trace=pwrite64,fdatasync,rmdir,unlinkat,rename";
    let strace = ["-f", "--detach-on=execve", "-y", "-s", "1000000", "-o", trace.to_str().unwrap(), "-e", what];
    // Whatever else this host is doing.
    world.start_traced(&strace, &["--job-cpu-threshold", "100"]);
    world.put("job.yaml", "kind: job\ncommand: 'true'");
    world.wait_phase("job", "Completed");
    let traces = world.path("run/workloads/job");
    eventually("its traces are gone", || !traces.exists());
    world.stop_controller();
    let calls = calls(&fs::read_to_string(&trace).unwrap());
    let first = |what: &str, is_it: &dyn Fn(&str) -> bool| {
        let found = calls.iter().find(|call| is_it(&call.text));
        found.unwrap_or_else(|| panic!("not in the trace: {what}")).lines.clone()
    };
    let database = |text: &str| text.contains("/state/db/db>");
    let written = first("that it is done is written", &|text| {
        text.starts_with("pwrite64(") && database(text) && text.contains(r#"\"finished\":true"#)
    });
    let is_synced = |text: &str| text.starts_with("fdatasync(") && database(text) && text.ends_with("= 0");
    let synced = calls
        .iter()
        .filter(|call| is_synced(&call.text) && call.lines.start >= written.end)
        .map(|call| call.lines.end)
        .min()
        .expect("it is synced once it is written");
    for (what, names) in [("its group goes", "job.workload"), ("its traces go", "/run/workloads/job\"")] {
        let gone = first(what, &|text| !text.starts_with("pwrite64(") && text.contains(names));
        assert!(synced <= gone.start, "{what} in line {}, and it is synced in line {synced} only", gone.start);
    }
}
