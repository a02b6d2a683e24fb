//! `containerctl logs`: a workload's output, put back together from its log lines.

use super::{LogsArgs, client, output};
use crate::model::time::Timestamp;
use crate::model::units::parse_duration;
use anyhow::{Context, bail};
use http_body_util::BodyExt;
use hyper::Method;
use std::io;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub fn run(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let tail = args.tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
    let since = match &args.since {
        Some(text) => format!("&sinceMs={}", since(text, SystemTime::now())?.0),
        None => String::new(),
    };
    let name = client::encode(&args.name);
    let path = format!("/v1/workloads/{name}/logs?follow={}&previous={}{tail}{since}", args.follow, args.previous);
    client::talk(async {
        let mut body = client::send(&args.client, Method::GET, &path, Vec::new()).await?.into_body();
        let mut lines = Lines::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the controller broke off its answer")?;
            for line in lines.take(frame.data_ref().map(AsRef::as_ref).unwrap_or_default()) {
                show(&line, args.raw)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A duration before now, or a time.
fn since(text: &str, now: SystemTime) -> anyhow::Result<Timestamp> {
    if let Some(time) = Timestamp::parse(text) {
        return Ok(time);
    }
    let Ok(before) = parse_duration(text) else {
        bail!("--since is {text}, expected a duration or a time\n  help: write 10m, or 2026-11-24T10:00:00Z")
    };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Timestamp::default().plus(now.saturating_sub(before)))
}

/// Cuts a stream into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.0.extend_from_slice(bytes);
        let Some(end) = self.0.iter().rposition(|&byte| byte == b'\n') else { return Vec::new() };
        let rest = self.0.split_off(end + 1);
        let whole = std::mem::replace(&mut self.0, rest);
        whole.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
    }
}

/// One line of the log: `<time> <stream> <F|P> <text>`. A part (`P`) goes without its newline, the next line continues it.
fn show(line: &[u8], raw: bool) -> anyhow::Result<()> {
    let mut fields = line.splitn(4, |&byte| byte == b' ').skip(1);
    match (raw, fields.next(), fields.next(), fields.next()) {
        (false, Some(stream), Some(tag), Some(text)) => {
            let text = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
            match stream {
                b"stderr" => output::write(&mut io::stderr().lock(), text),
                _ => output::write(&mut io::stdout().lock(), text),
            }
        }
        _ => output::write(&mut io::stdout().lock(), line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_pieces_end() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"a"), Vec::<Vec<u8>>::new());
        assert_eq!(lines.take(b"b\nc\nd"), [b"ab\n".to_vec(), b"c\n".to_vec()]);
        assert_eq!(lines.take(b"\n"), [b"d\n".to_vec()]);
    }
}
