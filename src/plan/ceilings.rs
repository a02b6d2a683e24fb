//! What a workload asks for beyond what the controller itself is allowed.

use crate::model::isolation::ResourceLimit;
use crate::model::machine::Ceilings;
use crate::model::spec::Process;
use crate::model::units::Limit;

/// In sentences, what cannot be honoured; init comes as near as it may.
pub fn unhonoured(process: &Process, ceilings: &Ceilings) -> Vec<String> {
    let Ceilings { hard, oom_score_adj_min } = ceilings;
    let mut missing = Vec::new();
    for (resource, ResourceLimit { soft: _, hard: asked }) in &process.rlimits {
        let Some(ceiling) = hard.get(resource) else { continue };
        if asked.at().is_none_or(|asked| asked > *ceiling) {
            let shown = match asked {
                Limit::Max => "max".to_owned(),
                Limit::At(number) => number.to_string(),
            };
            missing.push(format!(
                "rlimits.{resource} {shown} is above {ceiling}, the most the controller may give; that is in force"
            ));
        }
    }
    if process.oom_score_adj < *oom_score_adj_min {
        let score = process.oom_score_adj;
        missing.push(format!(
            "oomScoreAdj {score} is below {oom_score_adj_min}, the least the controller may give without CAP_SYS_RESOURCE"
        ));
    }
    missing
}
