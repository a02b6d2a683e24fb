//! Which system calls a workload has, as programs for the kernel's filter machine (seccomp(2)).
//!
//! Owns: reading profiles in Docker's format (the default one is such a file, `default.json`), and having seccompiler turn them into
//! filters. Init loads what comes out, as the last thing before the command runs.
//!
//! A profile has one default action and rules with others. One filter knows two outcomes, so a profile becomes a stack: one that allows
//! everything some rule speaks of and answers the rest with the default, and one for each other action. The kernel takes the strictest
//! answer of a stack (seccomp(2), "precedence"), so the order does not matter.

use crate::model::isolation::{Capability, Seccomp};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use syscalls::Sysno;

const DEFAULT: &str = include_str!("default.json");
const DEFAULT_PATH: &str = "the default profile";
/// Docker's own profile has 30 KiB.
const PROFILE_BYTES_MAX: u64 = 1 << 20;
/// EPERM, what a call that is not there answers unless the profile says otherwise.
const ERRNO_DEFAULT: u32 = 1;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("cannot read the seccomp profile {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the seccomp profile {path} is not in Docker's format")]
    Format { path: PathBuf, source: serde_json::Error },
    #[error("the seccomp profile {path} asks for {what}, which is not supported")]
    Unsupported { path: PathBuf, what: String },
    #[error("the seccomp profile {path} cannot be compiled")]
    Compile { path: PathBuf, source: seccompiler::BackendError },
}

/// A stack of filters, each a list of the kernel's 8-byte instructions.
pub type Filters = Vec<Vec<u64>>;

/// Filters of the default profile by the capabilities they were made for: every workload has them, and making them takes a millisecond.
#[derive(Debug, Default)]
pub struct Compiler {
    defaults: Mutex<BTreeMap<u64, Filters>>,
}

impl Compiler {
    /// The filters of a workload. A profile by path is read anew each time: it may have been mended.
    pub fn filters(&self, seccomp: &Seccomp, capabilities: &BTreeSet<Capability>) -> Result<Filters, SeccompError> {
        let path = match seccomp {
            Seccomp::Unconfined => return Ok(Filters::new()),
            Seccomp::Profile(path) => Path::new(path),
            Seccomp::Default => {
                let key = capabilities.iter().fold(0, |bits, capability| bits | capability.bit());
                // Only whole entries are ever in it.
                let mut known = self.defaults.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(filters) = known.get(&key) {
                    return Ok(filters.clone());
                }
                let filters = compile(DEFAULT.as_bytes(), Path::new(DEFAULT_PATH), capabilities)?;
                known.insert(key, filters.clone());
                return Ok(filters);
            }
        };
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(PROFILE_BYTES_MAX).read_to_end(&mut text));
        read.map_err(|source| SeccompError::Read { path: path.to_owned(), source })?;
        compile(&text, path, capabilities)
    }
}

/// Docker's format. What is not named here is refused: a filter that is not what its author meant is worse than none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default, rename = "subArchitectures")]
    _sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// The rules of one action, by system call; an empty list matches every call.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(text: &[u8], path: &Path, capabilities: &BTreeSet<Capability>) -> Result<Filters, SeccompError> {
    let format = |source| SeccompError::Format { path: path.to_owned(), source };
    let unsupported = |what| SeccompError::Unsupported { path: path.to_owned(), what };
    let profile: Profile = serde_json::from_slice(text).map_err(format)?;
    let arches = || profile.architectures.iter().chain(profile.arch_map.iter().map(|map| &map.architecture));
    if arches().next().is_some() && !arches().any(|arch| arch == "SCMP_ARCH_X86_64") {
        return Err(unsupported("other architectures than this machine's, SCMP_ARCH_X86_64".to_owned()));
    }
    let errno = profile.default_errno_ret.unwrap_or(ERRNO_DEFAULT);
    let default =
        action(&profile.default_action, Some(errno)).ok_or_else(|| unsupported(profile.default_action.clone()))?;
    let mut allowed = Rules::new();
    let mut others: Vec<(SeccompAction, Rules)> = Vec::new();
    for rule in &profile.syscalls {
        if !applies(rule, capabilities) {
            continue;
        }
        let wanted = action(&rule.action, rule.errno_ret).ok_or_else(|| unsupported(rule.action.clone()))?;
        if wanted == default {
            continue;
        }
        let conditions = conditions(rule).map_err(unsupported)?;
        add(&mut allowed, rule, conditions.as_ref());
        if wanted != SeccompAction::Allow {
            if !others.iter().any(|(action, _)| *action == wanted) {
                others.push((wanted.clone(), Rules::new()));
            }
            if let Some((_, rules)) = others.iter_mut().find(|(action, _)| *action == wanted) {
                add(rules, rule, conditions.as_ref());
            }
        }
    }
    let mut filters = Filters::new();
    let mut assemble = |rules, mismatch, matched| {
        let filter = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64);
        let program: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
        filters.push(words(&program.map_err(|source| SeccompError::Compile { path: path.to_owned(), source })?));
        Ok(())
    };
    if default != SeccompAction::Allow {
        assemble(allowed, default, SeccompAction::Allow)?;
    }
    for (action, rules) in others {
        assemble(rules, SeccompAction::Allow, action)?;
    }
    Ok(filters)
}

/// A rule can ask for capabilities the workload has, or has not, and for a kernel; all we run on are newer than any profile asks for.
fn applies(rule: &Rule, capabilities: &BTreeSet<Capability>) -> bool {
    let has = |name: &String| Capability::named(name).is_some_and(|capability| capabilities.contains(&capability));
    let ours = |arch: &String| arch == "amd64" || arch == "x86_64";
    let Condition { caps, arches, min_kernel: _ } = &rule.includes;
    let included = caps.as_ref().is_none_or(|caps| caps.iter().all(has))
        && arches.as_ref().is_none_or(|arches| arches.is_empty() || arches.iter().any(ours));
    let Condition { caps, arches, min_kernel } = &rule.excludes;
    let excluded = caps.as_ref().is_some_and(|caps| caps.iter().any(has))
        || arches.as_ref().is_some_and(|arches| arches.iter().any(ours))
        || min_kernel.is_some();
    included && !excluded
}

/// Names this machine does not have (`socketcall`, `_llseek`) are other architectures'.
fn add(rules: &mut Rules, rule: &Rule, conditions: Option<&SeccompRule>) {
    for name in rule.names.iter().chain(&rule.name) {
        let Ok(number) = name.parse::<Sysno>() else { continue };
        let number = i64::from(number.id());
        match (conditions, rules.get_mut(&number)) {
            // Matches always, whatever else is said.
            (None, _) => {
                rules.insert(number, Vec::new());
            }
            (Some(_), Some(known)) if known.is_empty() => {}
            (Some(conditions), Some(known)) => known.push(conditions.clone()),
            (Some(conditions), None) => {
                rules.insert(number, vec![conditions.clone()]);
            }
        }
    }
}

fn conditions(rule: &Rule) -> Result<Option<SeccompRule>, String> {
    let args = rule.args.as_deref().unwrap_or_default();
    if args.is_empty() {
        return Ok(None);
    }
    let mut conditions = Vec::new();
    for Arg { index, value, value_two, op } in args {
        let (op, compared) = match op.as_str() {
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, *value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, *value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, *value),
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, *value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, *value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, *value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(*value), *value_two),
            other => return Err(format!("the comparison {other}")),
        };
        // Most arguments are 32 bits to the kernel, which drops the rest: comparing that too would let `NE` be got around.
        let small = u32::try_from(*value).is_ok() && u32::try_from(*value_two).is_ok();
        let width = if small { SeccompCmpArgLen::Dword } else { SeccompCmpArgLen::Qword };
        conditions.push(SeccompCondition::new(*index, width, op, compared).map_err(|error| error.to_string())?);
    }
    SeccompRule::new(conditions).map(Some).map_err(|error| error.to_string())
}

fn action(name: &str, errno: Option<u32>) -> Option<SeccompAction> {
    Some(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(ERRNO_DEFAULT)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        _ => return None,
    })
}

/// `struct sock_filter` as one little-endian word each.
fn words(program: &BpfProgram) -> Vec<u64> {
    let word = |at: &seccompiler::sock_filter| {
        u64::from(at.code) | u64::from(at.jt) << 16 | u64::from(at.jf) << 24 | u64::from(at.k) << 32
    };
    program.iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_default_profile_is_a_system_call_of_this_machine() {
        let profile: Profile = serde_json::from_str(DEFAULT).unwrap();
        let unknown: Vec<&String> = profile
            .syscalls
            .iter()
            .flat_map(|rule| &rule.names)
            .filter(|name| name.parse::<Sysno>().is_err())
            .collect();
        assert_eq!(unknown, Vec::<&String>::new());
    }

    #[test]
    fn a_profile_becomes_a_filter_for_each_action() {
        let none = BTreeSet::new();
        let check = |text: &str| compile(text.as_bytes(), Path::new("x.json"), &none).map(|filters| filters.len());
        assert_eq!(compile(DEFAULT.as_bytes(), Path::new("x"), &none).unwrap().len(), 2, "allowed, and clone3");
        assert_eq!(check(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap(), 0);
        let three = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"name": "write", "action": "SCMP_ACT_KILL_PROCESS"}, {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
        assert_eq!(check(three).unwrap(), 3);
        for (refused, why) in [
            ("[]", "not in Docker's format"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY, which is not supported"),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#, "not in Docker's format"),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_ARM"]}"#, "other architectures"),
        ] {
            assert!(check(refused).unwrap_err().to_string().contains(why), "{refused}");
        }
    }

    #[test]
    fn capabilities_bring_their_system_calls() {
        let sizes = |names: &[&str]| {
            let capabilities = names.iter().filter_map(|name| Capability::named(name)).collect();
            Compiler::default().filters(&Seccomp::Default, &capabilities).unwrap().iter().map(Vec::len).sum::<usize>()
        };
        assert!(sizes(&["SYS_CHROOT"]) > sizes(&[]));
        assert!(sizes(&["SYS_PTRACE", "SYS_CHROOT"]) > sizes(&["SYS_CHROOT"]));
    }
}
