//! `containerctl wait`: until a workload, or everything, is as it should be.

use super::{ClientArgs, WaitArgs, client, output};
use crate::api::{Goal, Waited};
use crate::model::status::Status;
use std::process::ExitCode;

pub fn run(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let goal = Goal::from(args.goal);
    let word = serde_json::to_value(goal)?;
    let name = args.name.as_ref().map(|name| format!("&name={}", client::encode(name))).unwrap_or_default();
    let path =
        format!("/v1/wait?for={}&timeoutMs={}{name}", word.as_str().unwrap_or_default(), args.timeout.as_millis());
    let Waited { reached, missing } = client::talk(async {
        if let Some(name) = &args.name {
            note_unknown(&args.client, name).await?;
        }
        client::get(&args.client, &path).await
    })?;
    if reached {
        return Ok(ExitCode::SUCCESS);
    }
    output::complain(&format!("containerctl: not {} in time", word.as_str().unwrap_or_default()));
    for line in missing {
        output::complain(&format!("  {line}"));
    }
    Ok(ExitCode::FAILURE)
}

/// Says at once that nobody is called so: it may come, but it may also be a slip of the finger. Asked of the list, where no answer is an
/// error; the wait itself looks into the folder first, so what was copied a moment ago may be noted and then found.
async fn note_unknown(args: &ClientArgs, name: &str) -> anyhow::Result<()> {
    let statuses: Vec<Status> = client::get(args, "/v1/workloads").await?;
    if !statuses.iter().any(|status| status.name.as_str() == name) {
        output::complain(&format!("containerctl: note: no workload is called {name} yet; waiting for it to come"));
    }
    Ok(())
}
