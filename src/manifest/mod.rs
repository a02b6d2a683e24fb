//! Manifests: text to what is desired, and everything that is wrong with the text.
//!
//! Owns: which files, documents and fields are acceptable and what they mean. Never reads a file, a clock or a database.
//!
//! Guarantees: a parse answers values *and* diagnostics, each with file, line, column and a next step; a document that is refused never
//! affects another; no field is silently ignored; equal inputs give equal answers, whatever the order of files.

pub mod away;
pub mod diagnostic;
pub mod fields;
pub mod gather;
pub mod io;
pub mod isolation;
pub mod job;
pub mod logs;
pub mod order;
pub mod probes;
pub mod replicas;
pub mod resources;
pub mod rootfs;
pub mod strategy;
pub mod tree;
pub mod workload;

use crate::model::name::Name;
use crate::model::record::Origin;
use crate::model::spec::Spec;
use diagnostic::{Diagnostic, Problems, Severity};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tree::{Place, Value};

/// The most bytes one file may have. A manifest of a hundred workloads has 50 KiB.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Findings shown for one file; more say nothing new.
pub const DIAGNOSTICS_MAX: usize = 20;
/// Hex digits of a file's SHA-256 that name its content: enough that two edits never look alike, short enough for a table.
const REVISION_DIGITS: usize = 12;

/// What one file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The workloads of its good documents.
    pub workloads: Vec<(Arc<Spec>, Origin)>,
    /// What its bad documents claim, as far as they can be read.
    pub claims: Vec<Claim>,
    /// Whether anything in it was refused.
    pub broken: bool,
    pub diagnostics: Vec<Diagnostic>,
    /// The beginning of the SHA-256 of what was read, in hex; empty if nothing was.
    pub revision: String,
}

/// A name that a refused document stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub name: Name,
    /// The first thing that is wrong with the document, `web.yaml:3:3: unknown field cpu.limt`.
    pub finding: String,
}

impl Parsed {
    /// A file that could not be parsed at all.
    pub fn refused(diagnostic: Diagnostic) -> Parsed {
        Parsed { broken: true, diagnostics: vec![diagnostic], ..Parsed::default() }
    }
}

/// Parses one file. `path` is relative to the manifests folder.
pub fn parse(path: &str, bytes: &[u8]) -> Parsed {
    let revision = revision(bytes);
    let documents = match text(bytes).and_then(|text| documents(&text)) {
        Ok(documents) => documents,
        Err(Refusal { at, message, help }) => {
            return Parsed { revision, ..Parsed::refused(Diagnostic::error(path, at, message, help)) };
        }
    };
    // A file's stem names its only workload; several have to name themselves.
    let default_name = if documents.len() == 1 { stem(path) } else { None };
    let mut parsed = Parsed { revision, ..Parsed::default() };
    for document in &documents {
        let mut problems = Problems::default();
        let specs = workload::read(document, default_name, &mut problems).map(replicas::expand);
        let claimed = workload::claimed_name(document, default_name);
        let mut names = specs.iter().flatten().map(|spec| &spec.name).chain(&claimed);
        let twice = names.find(|name| parsed.workloads.iter().any(|(spec, _)| spec.name == **name)).cloned();
        if let Some(name) = &twice {
            problems.error(
                document.at,
                format!("name {name} is given to two documents of this file"),
                "rename one of them",
            );
        }
        let found: Vec<Diagnostic> = problems.into_diagnostics(path).collect();
        let first = found.iter().filter(|found| found.severity == Severity::Error).min();
        match specs.filter(|_| first.is_none()) {
            Some(specs) => {
                let origin = Origin {
                    path: path.to_owned(),
                    line: document.at.line,
                    revision: parsed.revision.clone(),
                    folder: None,
                };
                parsed.workloads.extend(specs.into_iter().map(|spec| (Arc::new(spec), origin.clone())));
            }
            None => {
                parsed.broken = true;
                let finding = first.map(Diagnostic::headline).unwrap_or_default();
                parsed
                    .claims
                    .extend(claimed.filter(|name| twice.as_ref() != Some(name)).map(|name| Claim { name, finding }));
            }
        }
        parsed.diagnostics.extend(found);
    }
    parsed.diagnostics.sort();
    parsed.diagnostics.truncate(DIAGNOSTICS_MAX);
    parsed
}

struct Refusal {
    at: Place,
    message: String,
    help: String,
}

const START: Place = Place { line: 1, column: 1 };

/// The text of a file, if it is one: not too large, UTF-8, without NUL bytes (which kernel interfaces would cut it at).
fn text(bytes: &[u8]) -> Result<String, Refusal> {
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!("has {} bytes, expected at most {FILE_BYTES_MAX}", bytes.len());
        return Err(Refusal {
            at: START,
            message,
            help: "split it into several files; is it a manifest at all?".to_owned(),
        });
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| Refusal {
        at: place_of(bytes, error.valid_up_to()),
        message: "is not UTF-8 text".to_owned(),
        help: "save the file as UTF-8; `iconv -t UTF-8` converts it".to_owned(),
    })?;
    match text.find('\0') {
        None => Ok(text.to_owned()),
        Some(at) => Err(Refusal {
            at: place_of(bytes, at),
            message: "contains a NUL byte".to_owned(),
            help: "the file is not text, or was cut short by a crash: write it again".to_owned(),
        }),
    }
}

/// Line and column (in characters) of a byte.
fn place_of(bytes: &[u8], at: usize) -> Place {
    let before = String::from_utf8_lossy(bytes.get(..at).unwrap_or_default());
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Place { line: count(before.matches('\n').count() + 1), column: count(before[line_start..].chars().count() + 1) }
}

fn documents(text: &str) -> Result<Vec<tree::Node>, Refusal> {
    let documents = tree::parse(text).map_err(|tree::Unreadable { at, message }| Refusal {
        at,
        message,
        help: "mend the file; `containerctl validate FILE` checks it before it is copied here".to_owned(),
    })?;
    let documents: Vec<_> = documents.into_iter().filter(|document| document.value != Value::Null).collect();
    if documents.is_empty() {
        let help =
            "delete the file to stop its workload, or write the manifest; an empty file changes nothing".to_owned();
        return Err(Refusal { at: START, message: "is empty".to_owned(), help });
    }
    Ok(documents)
}

fn stem(path: &str) -> Option<&str> {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.rsplit_once('.').map(|(stem, _)| stem)
}

/// The name of a file's content.
fn revision(bytes: &[u8]) -> String {
    let mut hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(REVISION_DIGITS);
    hex
}

#[cfg(test)]
mod tests;
