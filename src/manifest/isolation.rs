//! The fields that say what a workload is kept away from, and what it is let in to: security, network, resource limits, volumes.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::tree::Value;
use super::workload::absolute;
use crate::model::isolation::{
    Capability, IDS, Network, Resource, ResourceLimit, ResourceLimits, ResourceUnit, Seccomp, Security, VolumeSource,
};
use crate::model::spec::{User, VOLUMES_MAX, Volume};
use crate::model::units::{Bytes, Limit};
use std::collections::BTreeSet;

pub const SECURITY: Schema = Schema {
    fields: &["userNamespace", "capabilities", "seccomp", "noNewPrivileges", "readOnlyRootfs"],
    later: &["landlock"],
};
pub const VOLUME: Schema =
    Schema { fields: &["source", "tmpfs", "target", "readOnly", "suid", "dev"], later: &["persist"] };
pub const RLIMIT: Schema = Schema { fields: &["soft", "hard"], later: &[] };
pub const RLIMITS: Schema = Schema { fields: &Resource::NAMES, later: &[] };

/// A file system of less than a page holds nothing.
const TMPFS_MIN: Bytes = Bytes(4096);

pub fn network(map: &Map<'_>, problems: &mut Problems) -> Network {
    let Some(field) = map.get("network", problems) else { return Network::Host };
    if matches!(&field.node.value, Value::Scalar { text, .. } if text == "bridge") {
        let help = "write `network: host` or `network: none`; the README lists under `Not there yet` what is missing";
        problems.error(field.at(), "network bridge is not supported by this version", help);
        return Network::Host;
    }
    field.one_of(&[("host", Network::Host), ("none", Network::None)], problems).unwrap_or_default()
}

/// The walls; and `readOnlyRootfs` where it is written, which is about [`super::rootfs`].
pub fn security<'a>(map: &Map<'a>, user: User, problems: &mut Problems) -> (Security, Option<Field<'a>>) {
    let mut security = Security::default();
    let Some(map) = map.get("security", problems).and_then(|field| {
        let map = Map::open(field.node, "security.", &SECURITY, problems)?;
        Some(map)
    }) else {
        within_namespace(map, user, &security, problems);
        return (security, None);
    };
    let mut yes_or_no = |key: &str, place: &mut bool| {
        if let Some(value) = map.get(key, problems).and_then(|field| field.boolean(problems)) {
            *place = value;
        }
    };
    yes_or_no("userNamespace", &mut security.user_namespace);
    yes_or_no("noNewPrivileges", &mut security.no_new_privileges);
    if let Some(field) = map.get("capabilities", problems) {
        security.capabilities = capabilities(&field, problems);
    }
    if let Some(field) = map.get("seccomp", problems) {
        security.seccomp = seccomp(&field, problems).unwrap_or(Seccomp::Default);
    }
    within_namespace(&map, user, &security, problems);
    (security, map.get("readOnlyRootfs", problems))
}

/// Ids that the namespace does not map could not be taken.
fn within_namespace(at: &Map<'_>, user: User, security: &Security, problems: &mut Problems) {
    if security.user_namespace && (user.uid >= IDS || user.gid >= IDS) {
        let User { uid, gid } = user;
        let help = format!("choose ids below {IDS}, or write `security: {{userNamespace: false}}`");
        problems.error(at.at(), format!("user {uid}:{gid} is outside the {IDS} ids of a user namespace"), help);
    }
}

fn capabilities(field: &Field<'_>, problems: &mut Problems) -> BTreeSet<Capability> {
    let mut capabilities = BTreeSet::new();
    for item in field.list(problems).unwrap_or_default() {
        match item.text(problems).map(Capability::named) {
            Some(Some(capability)) => {
                capabilities.insert(capability);
            }
            Some(None) => {
                item.wrong("the name of a capability", "see capabilities(7), for example `NET_BIND_SERVICE`", problems);
            }
            None => {}
        }
    }
    capabilities
}

fn seccomp(field: &Field<'_>, problems: &mut Problems) -> Option<Seccomp> {
    match &field.node.value {
        Value::Scalar { text, .. } if text.starts_with('/') => absolute(field, problems).map(Seccomp::Profile),
        Value::Scalar { text, .. } if text == "default" => Some(Seccomp::Default),
        Value::Scalar { text, .. } if text == "unconfined" => Some(Seccomp::Unconfined),
        _ => {
            let help = "write the path of a profile in Docker's format, as in `seccomp: /etc/containerctl/web.json`";
            field.wrong("default, unconfined or an absolute path", help, problems);
            None
        }
    }
}

/// `nofile: 65536`, or `nofile: {soft: 1024, hard: 65536}`.
pub fn rlimits(map: &Map<'_>, problems: &mut Problems) -> ResourceLimits {
    let mut limits = ResourceLimits::new();
    let Some(field) = map.get("rlimits", problems) else { return limits };
    let Some(map) = Map::open(field.node, "rlimits.", &RLIMITS, problems) else { return limits };
    for (resource, name) in Resource::NAMES.iter().filter_map(|name| Some((Resource::named(name)?, name))) {
        let Some(field) = map.get(name, problems) else { continue };
        if let Some(limit) = rlimit(&field, resource, problems) {
            limits.insert(resource, limit);
        }
    }
    limits
}

fn rlimit(field: &Field<'_>, resource: Resource, problems: &mut Problems) -> Option<ResourceLimit> {
    let read = |field: &Field<'_>, problems: &mut Problems| match (&field.node.value, resource.unit()) {
        (Value::Scalar { text, .. }, _) if text == "max" => Some(Limit::Max),
        (_, ResourceUnit::Bytes) => field.amount::<Bytes>("64Mi", problems).map(|bytes| Limit::At(bytes.0)),
        // The largest number means none (RLIM_INFINITY).
        (_, ResourceUnit::Number) => field.integer(0..=u64::MAX - 1, problems).map(Limit::At),
    };
    if !matches!(field.node.value, Value::Map(_)) {
        let both = read(field, problems)?;
        return Some(ResourceLimit { soft: both, hard: both });
    }
    let map = Map::open(field.node, &format!("{}.", field.name), &RLIMIT, problems)?;
    let soft = map.get("soft", problems).and_then(|field| read(&field, problems));
    let hard = map.get("hard", problems).and_then(|field| read(&field, problems));
    let (Some(soft), Some(hard)) = (soft, hard) else {
        problems.error(field.at(), format!("{} needs both soft and hard", field.name), "write one number for both");
        return None;
    };
    if soft.at().unwrap_or(u64::MAX) > hard.at().unwrap_or(u64::MAX) {
        problems.error(field.at(), format!("{}.soft is above its hard limit", field.name), "lower soft or raise hard");
    }
    Some(ResourceLimit { soft, hard })
}

pub fn volumes(map: &Map<'_>, problems: &mut Problems) -> Vec<Volume> {
    let volumes = map.get("volumes", problems).and_then(|field| field.list(problems)).unwrap_or_default();
    if let Some(field) = volumes.get(VOLUMES_MAX) {
        let message = format!("volumes has {} entries, expected at most {VOLUMES_MAX}", volumes.len());
        problems.error(field.at(), message, "mount a folder that holds several of them");
    }
    volumes.iter().filter_map(|field| volume(field, problems)).collect()
}

fn volume(field: &Field<'_>, problems: &mut Problems) -> Option<Volume> {
    let map = Map::open(field.node, &format!("{}.", field.name), &VOLUME, problems)?;
    let source = volume_source(field, &map, problems);
    let target = match map.get("target", problems) {
        Some(target) => volume_target(&target, problems),
        None => {
            let help = "say where the workload is to find it, for example `target: /data`";
            problems.error(field.at(), format!("{}.target is missing", field.name), help);
            None
        }
    };
    let mut flag = |key| map.get(key, problems).and_then(|field| field.boolean(problems)).unwrap_or(false);
    let (read_only, suid, dev) = (flag("readOnly"), flag("suid"), flag("dev"));
    Some(Volume { source: source?, target: target?, read_only, suid, dev })
}

fn volume_source(field: &Field<'_>, map: &Map<'_>, problems: &mut Problems) -> Option<VolumeSource> {
    match (map.get("source", problems), map.get("tmpfs", problems)) {
        (Some(source), None) => absolute(&source, problems).map(VolumeSource::Host),
        (None, Some(size)) => {
            let bytes: Bytes = size.amount("64Mi", problems)?;
            if bytes < TMPFS_MIN {
                size.wrong(&format!("at least {TMPFS_MIN}"), "did you forget the unit? write `tmpfs: 64Mi`", problems);
            }
            Some(VolumeSource::Tmpfs { size: bytes })
        }
        (given, _) => {
            let message = if given.is_some() {
                format!("{} has both source and tmpfs", field.name)
            } else {
                format!("{}.source is missing", field.name)
            };
            let help = "a volume is a `source` on the host, or a `tmpfs` of a size, and a `target` inside";
            problems.error(field.at(), message, help);
            None
        }
    }
}

fn volume_target(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let target = absolute(field, problems)?;
    // What the box itself puts there would be covered, and with it what confines the workload.
    let below = |top: &str| target.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if target == "/" || ["/proc", "/sys", "/dev"].into_iter().any(below) {
        let help = "mount it elsewhere, for example below /srv or /mnt";
        field.wrong("a path outside /, /proc, /sys and /dev", help, problems);
        return None;
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse;

    fn check(fields: &str) -> String {
        let parsed = parse("web.yaml", format!("command: x\n{fields}").as_bytes());
        parsed.diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect()
    }

    #[test]
    fn a_bridge_is_refused_by_name() {
        insta::assert_snapshot!(check("network: bridge"), @"
        web.yaml:2:10: network bridge is not supported by this version
          help: write `network: host` or `network: none`; the README lists under `Not there yet` what is missing
        ");
    }

    #[test]
    fn no_spelling_of_a_target_leads_where_the_box_puts_its_own() {
        for spelling in ["//proc", "/./sys", "//dev", "/.", "/", "/dev//./shm/"] {
            let told = check(&format!("volumes: [{{source: /a, target: {spelling}}}]"));
            assert!(told.contains("expected a path outside /, /proc, /sys and /dev"), "{spelling}: {told}");
        }
        assert_eq!(check("volumes: [{source: //a/, target: /./process/}]"), "");
    }
}
