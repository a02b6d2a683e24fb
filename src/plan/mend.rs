//! What somebody has taken from a running workload beyond the values of its control files: its cgroup, its processes, the right to run.
//!
//! Values that differ are an ordinary resize. What is decided here needs the group itself put right first.

use super::kernel;
use super::{Act, Input};
use crate::model::cgroup::{Settings, Shrink};
use crate::model::observed::{Instance, Life, Observed};
use crate::model::record::Record;

/// The step that puts it back, and why; none if nothing of the kind is missing. While it is being set up it is on the way into its groups,
/// so only what runs is judged.
pub(super) fn needed(input: &Input<'_>, record: &Record, wanted: &Settings) -> Option<(Act, String)> {
    let name = &record.spec.name;
    let Observed { instance, group, left_traces: _ } = input.observed.get(name)?;
    if !matches!(instance, Some(Instance { life: Life::Running { .. }, .. })) {
        return None;
    }
    let (nothing, mut reasons) = (Settings::default(), Vec::new());
    let held = match group {
        None => {
            reasons.push("its cgroup is gone".to_owned());
            &nothing
        }
        Some(group) => {
            if group.frozen {
                reasons.push("it is frozen".to_owned());
            }
            if let Some((file, ..)) = wanted.beside(&group.settings).find(|(.., now)| now.is_none()) {
                reasons.push(format!("its cgroup with {file} is gone"));
            }
            &group.settings
        }
    };
    if let Some(strays) = input.strays.get(name).filter(|strays| !strays.is_empty()) {
        let pids: Vec<String> = strays.iter().map(ToString::to_string).collect();
        reasons.push(format!("pid {} is outside its cgroup", pids.join(", ")));
    }
    if reasons.is_empty() {
        return None;
    }
    let writes = kernel::writes_into_new(held, wanted, input.machine.cgroup.generation);
    // What runs was within its limits a moment ago, and is moved in after they are written.
    let shrink = if record.spec.resources.memory.force { Shrink::Anyhow } else { Shrink::IfItFits };
    Some((Act::Restore { writes, shrink }, reasons.join(", ")))
}
