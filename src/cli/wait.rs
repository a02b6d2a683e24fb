//! `containerctl wait`: until a workload, or everything, is as it should be.

use super::{WaitArgs, client, output};
use crate::api::{Goal, Waited};
use std::process::ExitCode;

pub fn run(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let goal = Goal::from(args.goal);
    let word = serde_json::to_value(goal)?;
    let name = args.name.as_ref().map(|name| format!("&name={}", client::encode(name))).unwrap_or_default();
    let path =
        format!("/v1/wait?for={}&timeoutMs={}{name}", word.as_str().unwrap_or_default(), args.timeout.as_millis());
    let Waited { reached, missing } = client::talk(client::get(&args.client, &path))?;
    if reached {
        return Ok(ExitCode::SUCCESS);
    }
    output::complain(&format!("containerctl: not {} in time", word.as_str().unwrap_or_default()));
    for line in missing {
        output::complain(&format!("  {line}"));
    }
    Ok(ExitCode::FAILURE)
}
