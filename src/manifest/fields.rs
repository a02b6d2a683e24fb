//! Reading typed fields out of a tree: each reader answers a value or adds a problem that says what was expected.
//!
//! Guarantee: no key is passed over. [`Map::open`] reports every key that its schema does not list, with the nearest one that it does.

use super::diagnostic::Problems;
use super::tree::{Entry, Node, Place, ScalarKind, Value};
use crate::model::units::{self, InvalidAmount, Limit};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// The most bytes one string may have: what execve(2) takes as one argument or variable (`MAX_ARG_STRLEN` is 128 KiB with the NUL).
pub const TEXT_BYTES_MAX: usize = 128 * 1024 - 1;

/// How alike a misspelt key and a known one must be to be suggested (Jaro-Winkler, 0 to 1). 0.8 takes `memroy` and `cmd`/`command`
/// apart: the first is a slip, the second another word that would be suggested for anything.
const LIKENESS_MIN: f64 = 0.8;

/// What a map may contain.
pub struct Schema {
    /// Fields that are honoured.
    pub fields: &'static [&'static str],
    /// Fields of the format that this version does not honour yet.
    pub later: &'static [&'static str],
}

/// A map being read, with the path of field names that leads to it (`cpu.`).
pub struct Map<'a> {
    prefix: String,
    at: Place,
    entries: &'a [Entry],
}

/// One field of a map.
#[derive(Clone)]
pub struct Field<'a> {
    /// The whole path, `cpu.weight`.
    pub name: String,
    pub node: &'a Node,
}

impl<'a> Map<'a> {
    /// The map in `node`; every key outside the schema becomes a problem.
    pub fn open(node: &'a Node, prefix: &str, schema: &Schema, problems: &mut Problems) -> Option<Map<'a>> {
        let Value::Map(entries) = &node.value else {
            let what = if prefix.is_empty() { "the document" } else { prefix.trim_end_matches('.') };
            let example = schema.fields.first().copied().unwrap_or("key");
            problems.error(
                node.at,
                format!("{what} is {}, expected a map of fields", kind_of(&node.value)),
                format!("write fields such as `{example}: ...`, one a line"),
            );
            return None;
        };
        for Entry { key, at, value: _ } in entries {
            let (fields, later) = (schema.fields, schema.later);
            if later.contains(&key.as_str()) {
                problems.error(
                    *at,
                    format!("{prefix}{key} is not supported by this version"),
                    "remove the line; the README lists under `Not there yet` what is missing",
                );
            } else if !fields.contains(&key.as_str()) {
                problems.error(*at, format!("unknown field {prefix}{key}"), suggestion(key, fields));
            }
        }
        Some(Map { prefix: prefix.to_owned(), at: node.at, entries })
    }

    pub fn at(&self) -> Place {
        self.at
    }

    /// A field, if it is given. One that is given without a value is a problem: it may be half an edit.
    pub fn get(&self, key: &str, problems: &mut Problems) -> Option<Field<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        let name = format!("{}{key}", self.prefix);
        if entry.value.value == Value::Null {
            problems.error(
                entry.at,
                format!("{name} has no value"),
                format!("write a value behind `{key}:`, or delete the line"),
            );
            return None;
        }
        Some(Field { name, node: &entry.value })
    }
}

fn suggestion(key: &str, fields: &[&str]) -> String {
    let alike = |field: &&&str| strsim::jaro_winkler(&key.to_lowercase(), &field.to_lowercase());
    let nearest = fields.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match nearest.filter(|field| alike(field) >= LIKENESS_MIN) {
        Some(field) => format!("did you mean `{field}`?"),
        None => format!("known here: {}", fields.join(", ")),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Scalar { kind: ScalarKind::Text, .. } => "text",
        Value::Scalar { kind: ScalarKind::Number, .. } => "a number",
        Value::Scalar { kind: ScalarKind::Bool, .. } => "true or false",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
    }
}

impl<'a> Field<'a> {
    pub fn at(&self) -> Place {
        self.node.at
    }

    /// `name is <found>, expected <expected>`.
    pub fn wrong(&self, expected: &str, help: impl Into<String>, problems: &mut Problems) {
        let found = match &self.node.value {
            Value::Scalar { text, .. } => shorten(text),
            other => kind_of(other).to_owned(),
        };
        problems.error(self.at(), format!("{} is {found}, expected {expected}", self.name), help);
    }

    /// Any scalar, as it is written.
    pub fn text(&self, problems: &mut Problems) -> Option<&'a str> {
        let Value::Scalar { text, .. } = &self.node.value else {
            self.wrong("text", format!("write one value behind `{}:`, in quotes if need be", self.leaf()), problems);
            return None;
        };
        if text.contains('\0') {
            problems.error(
                self.at(),
                format!("{} contains a NUL byte", self.name),
                "remove the `\\0`; the kernel ends texts there",
            );
            return None;
        }
        if text.len() > TEXT_BYTES_MAX {
            let message = format!("{} has {} bytes, expected at most {TEXT_BYTES_MAX}", self.name, text.len());
            problems.error(self.at(), message, "put long data into a file and pass its path");
            return None;
        }
        Some(text)
    }

    pub fn boolean(&self, problems: &mut Problems) -> Option<bool> {
        match &self.node.value {
            Value::Scalar { text, kind: ScalarKind::Bool } => Some(text.eq_ignore_ascii_case("true")),
            _ => {
                self.wrong(
                    "true or false",
                    format!("write `{}: true` or `{}: false`, without quotes", self.leaf(), self.leaf()),
                    problems,
                );
                None
            }
        }
    }

    pub fn integer<T>(&self, range: RangeInclusive<T>, problems: &mut Problems) -> Option<T>
    where
        T: FromStr + PartialOrd + Display,
    {
        let parsed = match &self.node.value {
            Value::Scalar { text, .. } => text.parse::<T>().ok(),
            _ => None,
        };
        if let Some(value) = parsed.filter(|value| range.contains(value)) {
            return Some(value);
        }
        let (low, high) = range.into_inner();
        self.wrong(&format!("{low}..={high}"), format!("write a whole number from {low} to {high}"), problems);
        None
    }

    /// An amount with a unit, [`crate::model::units`].
    pub fn amount<T: FromStr<Err = InvalidAmount>>(&self, example: &str, problems: &mut Problems) -> Option<T> {
        let text = self.text(problems)?;
        self.report(text.parse(), example, problems)
    }

    pub fn duration(&self, problems: &mut Problems) -> Option<Duration> {
        let text = self.text(problems)?;
        self.report(units::parse_duration(text), "10s", problems)
    }

    /// An amount, or `max` for no limit.
    pub fn limit<T: FromStr<Err = InvalidAmount>>(&self, example: &str, problems: &mut Problems) -> Option<Limit<T>> {
        match &self.node.value {
            Value::Scalar { text, .. } if text == "max" => Some(Limit::Max),
            _ => self.amount(example, problems).map(Limit::At),
        }
    }

    fn report<T>(&self, parsed: Result<T, InvalidAmount>, example: &str, problems: &mut Problems) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(reason) => {
                let found = match &self.node.value {
                    Value::Scalar { text, .. } => shorten(text),
                    other => kind_of(other).to_owned(),
                };
                problems.error(
                    self.at(),
                    format!("{} is {found}, which {reason}", self.name),
                    format!("write for example `{}: {example}`", self.leaf()),
                );
                None
            }
        }
    }

    /// One word out of a table.
    pub fn one_of<T: Copy>(&self, table: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let words: Vec<&str> = table.iter().map(|(word, _)| *word).collect();
        let found = match &self.node.value {
            Value::Scalar { text, .. } => table.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if found.is_none() {
            let help = match &self.node.value {
                Value::Scalar { text, .. } => suggestion(text, &words),
                _ => format!("write one of: {}", words.join(", ")),
            };
            self.wrong(&format!("one of {}", words.join(", ")), help, problems);
        }
        found.map(|(_, value)| *value)
    }

    /// The elements of a list.
    pub fn list(&self, problems: &mut Problems) -> Option<Vec<Field<'a>>> {
        let Value::List(items) = &self.node.value else {
            self.wrong("a list", format!("write `{}: [first, second]`", self.leaf()), problems);
            return None;
        };
        let element = |(index, node)| Field { name: format!("{}[{index}]", self.name), node };
        Some(items.iter().enumerate().map(element).collect())
    }

    /// A map of texts by free keys.
    pub fn texts(&self, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong("a map", format!("write `{}: {{KEY: value}}`", self.leaf()), problems);
            return None;
        };
        let mut texts = BTreeMap::new();
        for Entry { key, at, value } in entries {
            let field = Field { name: format!("{}.{key}", self.name), node: value };
            if value.value == Value::Null {
                problems.error(
                    *at,
                    format!("{} has no value", field.name),
                    format!("write `{key}: \"\"` for an empty text"),
                );
            } else if let Some(text) = field.text(problems) {
                texts.insert(key.clone(), text.to_owned());
            }
        }
        Some(texts)
    }

    /// The last part of the name, as it is written in the file.
    fn leaf(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// A value for a message: whole if short, its beginning if not.
fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    if text.is_empty() {
        return "empty".to_owned();
    }
    if text.chars().count() <= SHOWN_MAX {
        return format!("`{}`", text.escape_debug());
    }
    let beginning: String = text.chars().take(SHOWN_MAX).collect();
    format!("`{}...`", beginning.escape_debug())
}
