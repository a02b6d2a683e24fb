//! Workload names: one word that is safe as a file name, a cgroup directory and a host name.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest name: what the kernel and DNS allow for one label of a host name (hostname(7)).
pub const NAME_BYTES_MAX: usize = 63;

/// The name of a workload: ASCII letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit, at most
/// [`NAME_BYTES_MAX`] bytes. Shared, not copied: a pass names each workload dozens of times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("is empty")]
    Empty,
    #[error("has {len} bytes, expected at most {NAME_BYTES_MAX}")]
    TooLong { len: usize },
    #[error("contains {found:?}, expected letters, digits, `-`, `_` and `.`")]
    Character { found: char },
    #[error("begins or ends with {found:?}, expected a letter or digit there")]
    Edge { found: char },
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Name, InvalidName> {
        let (Some(first), Some(last)) = (text.chars().next(), text.chars().next_back()) else {
            return Err(InvalidName::Empty);
        };
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(found) = text.chars().find(|c| !allowed(c)) {
            return Err(InvalidName::Character { found });
        }
        if let Some(found) = [first, last].into_iter().find(|c| !c.is_ascii_alphanumeric()) {
            return Err(InvalidName::Edge { found });
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(InvalidName::TooLong { len: text.len() });
        }
        Ok(Name(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Name, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for text in ["", ".", "..", "../../etc", "a/b", "a b", "-a", "a.", ".hidden", "a\0b", "naïve", "a\n"] {
            assert!(text.parse::<Name>().is_err(), "{text:?} was accepted");
        }
        assert_eq!("a".repeat(64).parse::<Name>(), Err(InvalidName::TooLong { len: 64 }));
        for text in ["a", "web-1", "My_App.v2", "0"] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }
}
