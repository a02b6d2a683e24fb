//! `containerctl events`: what has happened, oldest first, and on as it happens.

use super::output::write;
use super::{EventFormat, EventsArgs, client};
use crate::model::event::Event;
use crate::model::name::Name;
use anyhow::Context;
use http_body_util::BodyExt;
use hyper::Method;
use std::io;
use std::process::ExitCode;

pub fn run(args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.as_deref().map(|name| format!("&name={}", client::encode(name))).unwrap_or_default();
    let path = format!("/v1/events?follow={}{name}", args.follow);
    client::talk(async {
        let mut body = client::send(&args.client, Method::GET, &path, Vec::new()).await?.into_body();
        let mut rest: Vec<u8> = Vec::new();
        let mut out = io::stdout();
        if args.output == EventFormat::Table {
            write(
                &mut out,
                format!("{:<24} {:<7} {:<20} {:<18} {:>5} WHAT\n", "LAST", "KIND", "WORKLOAD", "REASON", "COUNT")
                    .as_bytes(),
            )?;
        }
        while let Some(frame) = body.frame().await {
            rest.extend(frame.context("the controller broke off its answer")?.into_data().unwrap_or_default());
            let Some(end) = rest.iter().rposition(|&byte| byte == b'\n') else { continue };
            let lines: Vec<u8> = rest.drain(..=end).collect();
            match args.output {
                EventFormat::Json => write(&mut out, &lines)?,
                EventFormat::Table => write(&mut out, rows(&lines)?.as_bytes())?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Columns of a fixed width: a followed table cannot know what is to come.
fn rows(lines: &[u8]) -> anyhow::Result<String> {
    let mut text = String::new();
    for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let event: Event = serde_json::from_slice(line)
            .context("cannot understand the controller's answer; is it of another version?")?;
        let name = event.workload.as_ref().map_or("-", Name::as_str);
        let Event { severity, reason, message, count, last, .. } = &event;
        text.push_str(&format!(
            "{:<24} {severity:<7} {name:<20} {reason:<18} {count:>5} {message}\n",
            last.to_string()
        ));
    }
    Ok(text)
}
