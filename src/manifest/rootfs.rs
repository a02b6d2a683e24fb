//! `rootfs`: the host's view, a directory, or, in a later version, an image; and whether it may be changed.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::tree::Value;
use super::workload::absolute;
use crate::model::isolation::{Changes, Rootfs};

pub const ROOTFS: Schema = Schema { fields: &["path", "persist"], later: &["image"] };

/// Reads it. `read_only` is `security.readOnlyRootfs`, where it is written.
pub fn rootfs(map: &Map<'_>, read_only: Option<&Field<'_>>, problems: &mut Problems) -> Rootfs {
    let said = read_only.and_then(|field| field.boolean(problems));
    let Some(field) = map.get("rootfs", problems) else {
        writable_host(said, read_only, problems);
        return Rootfs::Host;
    };
    let Value::Map(_) = &field.node.value else {
        let Some(text) = field.text(problems) else { return Rootfs::Host };
        if text == "host" {
            writable_host(said, read_only, problems);
            return Rootfs::Host;
        }
        let changes = if said == Some(false) { Changes::Discarded } else { Changes::Refused };
        return directory(&field, problems).map_or(Rootfs::Host, |path| Rootfs::Directory { path, changes });
    };
    let Some(map) = Map::open(field.node, "rootfs.", &ROOTFS, problems) else { return Rootfs::Host };
    let persist = map.get("persist", problems).and_then(|field| field.boolean(problems)).unwrap_or(false);
    let changes = match (persist, said) {
        (true, Some(true)) => {
            if let Some(field) = read_only {
                let help = "delete `readOnlyRootfs`, or delete `persist`: nothing is changed, so nothing is to be kept";
                field.wrong("false with rootfs.persist", help, problems);
            }
            Changes::Kept
        }
        (true, _) => Changes::Kept,
        (false, Some(false)) => Changes::Discarded,
        (false, _) => Changes::Refused,
    };
    match map.get("path", problems) {
        Some(path) => directory(&path, problems).map_or(Rootfs::Host, |path| Rootfs::Directory { path, changes }),
        None => {
            let help = "say which directory, for example `path: /srv/debian`";
            problems.error(field.at(), "rootfs.path is missing", help);
            Rootfs::Host
        }
    }
}

/// The host's own files are never the workload's to change.
fn writable_host(said: Option<bool>, read_only: Option<&Field<'_>>, problems: &mut Problems) {
    if let (Some(false), Some(field)) = (said, read_only) {
        let help = "write into `/tmp`, `/run` or a volume, or give it a directory of its own as `rootfs`";
        field.wrong("true with rootfs host", help, problems);
    }
}

fn directory(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if looks_like_an_image(text) {
        let message = format!("{} `{}`: images are not supported by this version", field.name, text.escape_debug());
        let help =
            "unpack it into a directory and write its path; the README lists under `Not there yet` what is missing";
        problems.error(field.at(), message, help);
        return None;
    }
    let path = absolute(field, problems)?;
    if path.split('/').all(|part| part.is_empty() || part == ".") {
        field.wrong("a directory below /", "write `rootfs: host` for a view of the whole host", problems);
        return None;
    }
    Some(path)
}

/// A reference (`docker://debian:12`, `docker.io/library/debian`, `debian:12`, `debian@sha256:...`), which no absolute path is.
fn looks_like_an_image(text: &str) -> bool {
    let is_path = ["/", "."].into_iter().any(|start| text.starts_with(start));
    !is_path && (text.contains(':') || text.contains('/') || text.contains('@'))
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse;

    /// What is read, or what is wrong.
    fn check(text: &str) -> String {
        let parsed = parse("web.yaml", format!("command: x\n{text}\n").as_bytes());
        match parsed.workloads.first() {
            Some((spec, _)) => format!("{:?}", spec.process.rootfs),
            None => parsed.diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        }
    }

    #[test]
    fn a_directory_is_read_only_unless_that_is_said_or_changes_are_kept() {
        assert_eq!(check("rootfs: host"), "Host");
        assert_eq!(check("security: {readOnlyRootfs: true}"), "Host");
        let directory = |changes| format!("Directory {{ path: \"/srv/debian\", changes: {changes} }}");
        assert_eq!(check("rootfs: /srv/debian"), directory("Refused"));
        assert_eq!(check("rootfs: {path: /srv/debian}"), directory("Refused"));
        assert_eq!(check("rootfs: /srv/debian\nsecurity: {readOnlyRootfs: true}"), directory("Refused"));
        assert_eq!(check("rootfs: /srv/debian\nsecurity: {readOnlyRootfs: false}"), directory("Discarded"));
        assert_eq!(check("rootfs: {path: /srv/debian, persist: true}"), directory("Kept"));
        let both = "rootfs: {path: /srv/debian, persist: true}\nsecurity: {readOnlyRootfs: false}";
        assert_eq!(check(both), directory("Kept"));
    }

    #[test]
    fn what_cannot_be_a_root_is_refused_with_the_way_out() {
        let refused = [
            "security: {readOnlyRootfs: false}",
            "rootfs: {path: /srv/debian, persist: true}\nsecurity: {readOnlyRootfs: true}",
            "rootfs: debian:12",
            "rootfs: {path: docker.io/library/debian}",
            "rootfs: {image: debian, path: /srv}",
            "rootfs: srv",
            "rootfs: //.",
            "rootfs: {persist: true}",
            "rootfs: [/srv]",
        ];
        insta::assert_snapshot!(refused.map(check).join("\n"), @"
        web.yaml:2:28: security.readOnlyRootfs is `false`, expected true with rootfs host
          help: write into `/tmp`, `/run` or a volume, or give it a directory of its own as `rootfs`
        web.yaml:3:28: security.readOnlyRootfs is `true`, expected false with rootfs.persist
          help: delete `readOnlyRootfs`, or delete `persist`: nothing is changed, so nothing is to be kept
        web.yaml:2:9: rootfs `debian:12`: images are not supported by this version
          help: unpack it into a directory and write its path; the README lists under `Not there yet` what is missing
        web.yaml:2:16: rootfs.path `docker.io/library/debian`: images are not supported by this version
          help: unpack it into a directory and write its path; the README lists under `Not there yet` what is missing
        web.yaml:2:10: rootfs.image is not supported by this version
          help: remove the line; the README lists under `Not there yet` what is missing
        web.yaml:2:9: rootfs is `srv`, expected an absolute path without `..`
          help: write the whole path, beginning with `/`
        web.yaml:2:9: rootfs is `//.`, expected a directory below /
          help: write `rootfs: host` for a view of the whole host
        web.yaml:2:9: rootfs.path is missing
          help: say which directory, for example `path: /srv/debian`
        web.yaml:2:9: rootfs is a list, expected text
          help: write one value behind `rootfs:`, in quotes if need be
        ");
    }
}
