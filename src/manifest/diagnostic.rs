//! What is wrong with a manifest, where, and what to do about it.

use super::tree::Place;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document, or the file, is refused.
    Error,
    /// Accepted, but probably not what was meant.
    Warning,
    /// Nothing is wrong; worth knowing when one wonders.
    Info,
}

/// One finding in one file. Shown as `web.yaml:12:9: cpu.weight is 0, expected 1..=10000` and a `help:` line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Relative to the folder.
    pub path: String,
    pub line: u64,
    pub column: u64,
    pub severity: Severity,
    pub message: String,
    /// The next step for whoever reads this.
    pub help: String,
}

impl Diagnostic {
    pub fn error(path: &str, at: Place, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        let (message, help) = (message.into(), help.into());
        Diagnostic { path: path.to_owned(), line: at.line, column: at.column, severity: Severity::Error, message, help }
    }

    /// Place and message in one line, without the next step.
    pub fn headline(&self) -> String {
        let Diagnostic { path, line, column, severity: _, message, help: _ } = self;
        let (path, message) = (shown(path), shown(message));
        format!("{path}:{line}:{column}: {message}")
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { path, line, column, severity, message, help } = self;
        let (path, message, help) = (shown(path), shown(message), shown(help));
        write!(f, "{path}:{line}:{column}: {severity}{message}\n  help: {help}")
    }
}

/// Text from outside in one line that no terminal obeys: control characters, and those that turn the direction of writing (which let a
/// name look like another), are written as escapes. Everything else stays as it is.
pub fn shown(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { plain.extend(c.escape_debug()) } else { plain.push(c) }
    }
    Cow::Owned(plain)
}

/// What goes before a message; nothing before an error.
impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "",
            Severity::Warning => "warning: ",
            Severity::Info => "note: ",
        })
    }
}

/// Findings of one document, before the file's path is known to matter.
#[derive(Debug, Default)]
pub struct Problems(Vec<(Severity, Place, String, String)>);

impl Problems {
    pub fn error(&mut self, at: Place, message: impl Into<String>, help: impl Into<String>) {
        self.0.push((Severity::Error, at, message.into(), help.into()));
    }

    pub fn warning(&mut self, at: Place, message: impl Into<String>, help: impl Into<String>) {
        self.0.push((Severity::Warning, at, message.into(), help.into()));
    }

    pub fn any_error(&self) -> bool {
        self.0.iter().any(|(severity, ..)| *severity == Severity::Error)
    }

    pub fn into_diagnostics(self, path: &str) -> impl Iterator<Item = Diagnostic> + use<'_> {
        self.0.into_iter().map(move |(severity, at, message, help)| Diagnostic {
            path: path.to_owned(),
            line: at.line,
            column: at.column,
            severity,
            message,
            help,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_stay_as_they_are_and_no_other_reaches_a_terminal() {
        for plain in ["web.yaml", "café/日本.yaml", "it's \"a\" \\ b.yaml"] {
            assert_eq!(shown(plain), plain);
        }
        assert_eq!(shown("a\u{1b}[2J\nb\r\u{9b}\u{202e}c"), "a\\u{1b}[2J\\nb\\r\\u{9b}\\u{202e}c");
        let found = Diagnostic::error("a\nb", Place { line: 1, column: 2 }, "is \u{1b}", "mend \u{1b}");
        assert_eq!(found.headline(), "a\\nb:1:2: is \\u{1b}");
        assert_eq!(found.to_string(), "a\\nb:1:2: is \\u{1b}\n  help: mend \\u{1b}");
    }
}
