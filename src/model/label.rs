//! Labels of hosts: `key=value` facts that a manifest's `hosts` is matched against, so that one repository serves many hosts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The most characters of a key or a value, as for a workload's name.
const LENGTH_MAX: usize = 63;
/// Labels every host has.
pub const HOSTNAME: &str = "hostname";
pub const ARCH: &str = "arch";

/// One label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub key: String,
    pub value: String,
}

/// Why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    #[error("has no `=`, expected key=value")]
    NoValue,
    #[error("has the key `{0}`, expected 1 to {LENGTH_MAX} letters, digits, `-`, `_`, `.` and `/`")]
    Key(String),
    #[error("has the value `{0}`, expected at most {LENGTH_MAX} letters, digits, `-`, `_`, `.` and `/`")]
    Value(String),
    #[error("sets `{0}`, which every host has from the kernel")]
    BuiltIn(String),
}

fn is_word(text: &str) -> bool {
    text.len() <= LENGTH_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
}

/// Checks one pair of a host's labels or of a manifest's `hosts`.
pub fn check(key: &str, value: &str) -> Result<(), InvalidLabel> {
    if key.is_empty() || !is_word(key) {
        return Err(InvalidLabel::Key(key.escape_debug().to_string()));
    }
    if is_word(value) { Ok(()) } else { Err(InvalidLabel::Value(value.escape_debug().to_string())) }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Label, InvalidLabel> {
        let (key, value) = text.split_once('=').ok_or(InvalidLabel::NoValue)?;
        check(key, value)?;
        if [HOSTNAME, ARCH].contains(&key) {
            return Err(InvalidLabel::BuiltIn(key.to_owned()));
        }
        Ok(Label { key: key.to_owned(), value: value.to_owned() })
    }
}

/// All labels of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLabels(BTreeMap<String, String>);

impl HostLabels {
    /// What every host has, and what its operator says of it. The last word on a key counts.
    pub fn new(hostname: &str, arch: &str, given: &[Label]) -> HostLabels {
        let built_in = [(HOSTNAME, hostname), (ARCH, arch)].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let given = given.iter().map(|label| (label.key.clone(), label.value.clone()));
        HostLabels(built_in.into_iter().chain(given).collect())
    }

    /// Why a workload for `hosts` is not for this one: the first label that differs. None if it is.
    pub fn mismatch(&self, hosts: &BTreeMap<String, String>) -> Option<Mismatch> {
        let differs = |(key, wanted): &(&String, &String)| self.0.get(*key) != Some(*wanted);
        let (key, wanted) = hosts.iter().find(differs)?;
        Some(Mismatch { key: key.clone(), wanted: wanted.clone(), found: self.0.get(key).cloned() })
    }
}

/// A label that a workload asks for and this host does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    key: String,
    wanted: String,
    found: Option<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { key, wanted, found } = self;
        match found {
            Some(found) => write!(f, "is for hosts with {key}={wanted}; this one has {key}={found}"),
            None => write!(f, "is for hosts with {key}={wanted}; this one has no label {key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Result<String, String> {
        text.parse::<Label>().map(|label| format!("{}={}", label.key, label.value)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_label_is_a_key_and_a_value() {
        assert_eq!(label("role=gpu"), Ok("role=gpu".to_owned()));
        assert_eq!(label("example.org/rack="), Ok("example.org/rack=".to_owned()));
        for bad in ["role", "=gpu", "ro le=gpu", "role=a=b", "role=\n", "hostname=other", "arch=arm64"] {
            assert!(label(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(label(&format!("{}=x", "k".repeat(64))).is_err());
    }

    #[test]
    fn a_host_matches_when_each_label_asked_for_is_its_own() {
        let host = HostLabels::new("edge-7", "x86_64", &["role=gpu".parse().unwrap(), "site=lab".parse().unwrap()]);
        let mismatch = |pairs: &[(&str, &str)]| {
            let hosts = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            host.mismatch(&hosts).map(|mismatch| mismatch.to_string())
        };
        assert_eq!(mismatch(&[]), None);
        assert_eq!(mismatch(&[("role", "gpu"), ("hostname", "edge-7"), ("arch", "x86_64")]), None);
        let other = mismatch(&[("role", "gpu"), ("site", "plant")]);
        assert_eq!(other.as_deref(), Some("is for hosts with site=plant; this one has site=lab"));
        let none = mismatch(&[("zone", "a")]);
        assert_eq!(none.as_deref(), Some("is for hosts with zone=a; this one has no label zone"));
    }
}
