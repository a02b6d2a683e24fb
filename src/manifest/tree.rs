//! YAML text to a tree of located nodes, within a budget.
//!
//! Owns: which YAML is acceptable at all, before any meaning: how deep, how many documents, aliases and nodes. A scalar keeps the text it
//! was written with (`1.10` stays `1.10`, `0x1F` stays `0x1F`), so that `env` values and quantities are not bent by number types.
//!
//! Parsing itself is serde-saphyr's: it reports places, bounds its own work and does not panic. The budgets below make a hostile file
//! cost milliseconds; the largest honest manifest seen (a hundred documents of fifty lines) uses a tenth of each.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::Budget;
use serde_saphyr::options::{AliasLimits, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Options, Spanned};
use std::fmt;

/// Documents in one file.
pub const DOCUMENTS_MAX: usize = 128;
/// Levels of nesting; the schema needs five.
pub const DEPTH_MAX: usize = 16;
/// Scalars, lists and maps in one file.
pub const NODES_MAX: usize = 20_000;
/// Aliases (`*name`) in one file, and nodes they may expand to in all.
pub const ALIASES_MAX: usize = 256;
pub const ALIAS_NODES_MAX: usize = 10_000;

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

/// One value and where it is written (for an alias: where it is used).
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub at: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Scalar { text: String, kind: ScalarKind },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarKind {
    /// Quoted, or plain and neither of the others.
    Text,
    Number,
    Bool,
}

/// One `key: value` of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub at: Place,
    pub value: Node,
}

/// Why a text is no acceptable YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub at: Place,
    pub message: String,
}

/// Reads every document of a text.
pub fn parse(text: &str) -> Result<Vec<Node>, Unreadable> {
    match serde_saphyr::from_multiple_with_options::<Spanned<Raw>>(text, options()) {
        Ok(documents) => Ok(documents.into_iter().map(|document| resolve(document, text)).collect()),
        Err(error) => Err(unreadable(error.without_snippet())),
    }
}

fn options() -> Options {
    let mut budget = Budget::default();
    budget.max_documents = DOCUMENTS_MAX;
    budget.max_depth = DEPTH_MAX;
    budget.flow_nesting_limit = DEPTH_MAX;
    budget.max_nodes = NODES_MAX;
    budget.max_events = 4 * NODES_MAX;
    budget.max_aliases = ALIASES_MAX;
    budget.max_anchors = ALIASES_MAX;
    budget.max_recorded_anchor_events = ALIAS_NODES_MAX;
    let mut alias_limits = AliasLimits::default();
    alias_limits.max_total_replayed_events = ALIAS_NODES_MAX;
    alias_limits.max_replay_stack_depth = DEPTH_MAX;
    serde_saphyr::options! {
        budget: Some(budget),
        alias_limits: alias_limits,
        // YAML 1.2: only true and false; `yes` and `off` are text, which a field that wants a bool then refuses by name.
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn unreadable(error: &serde_saphyr::Error) -> Unreadable {
    use serde_saphyr::Error;
    let at = error.location().map_or(Place { line: 1, column: 1 }, place);
    let text = error.to_string();
    // The library ends its messages with the place, which our diagnostics put in front.
    let text = text.split(" at line ").next().unwrap_or_default().lines().next().unwrap_or_default();
    let text = text.trim_end_matches([',', '.', ':', ' ']);
    let message = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the key `{key}` is given twice"),
        Error::DuplicateMappingKey { key: None, .. } => "a key is given twice".to_owned(),
        _ if ["budget breached", "recursion limit", "alias replay"].iter().any(|bound| text.contains(bound)) => {
            format!("is larger or deeper than any manifest may be ({text})")
        }
        _ => format!("is not readable YAML: {text}"),
    };
    Unreadable { at, message }
}

fn place(location: Location) -> Place {
    Place { line: location.line().max(1), column: location.column().max(1) }
}

/// What the deserializer hands over, before scalars are given back their own text.
enum Raw {
    Null,
    Text(String),
    Number,
    Bool,
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn resolve(raw: Spanned<Raw>, source: &str) -> Node {
    let written = |kind| Value::Scalar { text: written_text(raw.defined, source), kind };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Scalar { text, kind: ScalarKind::Text },
        Raw::Number => written(ScalarKind::Number),
        Raw::Bool => written(ScalarKind::Bool),
        Raw::List(items) => Value::List(items.into_iter().map(|item| resolve(item, source)).collect()),
        Raw::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Raw>)| Entry {
                key: key.value,
                at: place(key.referenced),
                value: resolve(value, source),
            };
            Value::Map(entries.into_iter().map(entry).collect())
        }
    };
    Node { at: place(raw.referenced), value }
}

/// The text of a plain scalar as it stands in the source. Empty if the library could not tell where, which no field takes for a number.
fn written_text(defined: Location, source: &str) -> String {
    let span = defined.span();
    let range = span.byte_offset().zip(span.byte_len()).and_then(|(offset, len)| {
        let start = usize::try_from(offset).ok()?;
        source.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    });
    range.unwrap_or_default().trim().to_owned()
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Bool)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn render(node: &Node, out: &mut String, depth: usize) {
        let Place { line, column } = node.at;
        let indent = "  ".repeat(depth);
        match &node.value {
            Value::Null => writeln!(out, "{indent}{line}:{column} null").unwrap(),
            Value::Scalar { text, kind } => writeln!(out, "{indent}{line}:{column} {kind:?} {text:?}").unwrap(),
            Value::List(items) => {
                writeln!(out, "{indent}{line}:{column} list").unwrap();
                for item in items {
                    render(item, out, depth + 1);
                }
            }
            Value::Map(entries) => {
                writeln!(out, "{indent}{line}:{column} map").unwrap();
                for entry in entries {
                    writeln!(out, "{indent}  {}:{} {}", entry.at.line, entry.at.column, entry.key).unwrap();
                    render(&entry.value, out, depth + 2);
                }
            }
        }
    }

    fn check(text: &str) -> String {
        match parse(text) {
            Ok(documents) => {
                let mut out = String::new();
                for document in &documents {
                    out.push_str("---\n");
                    render(document, &mut out, 0);
                }
                out
            }
            Err(Unreadable { at, message }) => format!("{}:{} {message}", at.line, at.column),
        }
    }

    #[test]
    fn scalars_keep_their_text_and_every_node_its_place() {
        insta::assert_snapshot!(check(
            "cpu: 2\nversion: 1.10\nbig: 99999999999999999999999999\nhex: 0x1F # comment\nneg: -5\nyes: yes\non: true\nq: \"2\"\nempty:\n\
             huge: 1e999\nunicode: ä 7\nnext: 7\n"
        ), @r#"
        ---
        1:1 map
          1:1 cpu
            1:6 Number "2"
          2:1 version
            2:10 Number "1.10"
          3:1 big
            3:6 Number "99999999999999999999999999"
          4:1 hex
            4:6 Number "0x1F"
          5:1 neg
            5:6 Number "-5"
          6:1 yes
            6:6 Text "yes"
          7:1 on
            7:5 Bool "true"
          8:1 q
            8:4 Text "2"
          9:1 empty
            9:6 null
          10:1 huge
            10:7 Number "1e999"
          11:1 unicode
            11:10 Text "ä 7"
          12:1 next
            12:7 Number "7"
        "#);
    }

    #[test]
    fn aliases_are_placed_where_they_are_used() {
        insta::assert_snapshot!(check("a: &x 12\nb: *x\nc: [*x, {d: &y [1]}]\ne: *y\n"), @r#"
        ---
        1:1 map
          1:1 a
            1:7 Number "12"
          2:1 b
            2:4 Number "12"
          3:1 c
            3:4 list
              3:5 Number "12"
              3:9 map
                3:10 d
                  3:16 list
                    3:17 Number "1"
          4:1 e
            4:4 list
              4:4 Number "1"
        "#);
    }

    #[test]
    fn documents_are_read_one_by_one() {
        insta::assert_snapshot!(check("a: 1\n---\n- 2\n---\n"), @r#"
        ---
        1:1 map
          1:1 a
            1:4 Number "1"
        ---
        3:1 list
          3:3 Number "2"
        "#);
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        assert_eq!(check("a: [1\n"), "1:4 is not readable YAML: unclosed bracket '['");
        assert_eq!(check("a: 1\na: 2\n"), "2:1 the key `a` is given twice");
        assert_eq!(check("a: b: c\n"), "1:5 is not readable YAML: mapping values are not allowed in this context");
        assert_eq!(check("a: *nope\n"), "1:4 is not readable YAML: alias references unknown anchor");
        assert_eq!(check("? [1, 2]\n: x\n"), "1:3 is not readable YAML: expected string scalar");
        assert!(check("a: !thing 1\n").starts_with("1:"), "{}", check("a: !thing 1\n"));
    }

    #[test]
    fn hostile_documents_end_within_their_budget() {
        let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned()
            + &('b'..='i')
                .map(|c| format!("{c}: &{c} [{}]\n", vec![format!("*{}", (c as u8 - 1) as char); 9].join(", ")))
                .collect::<String>();
        let deep_flow = "[".repeat(100_000);
        let deep_block: String = (0..2000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        let wide = "- a\n".repeat(NODES_MAX + 10);
        let many = "---\na: 1\n".repeat(DOCUMENTS_MAX + 10);
        for hostile in [&bomb, &deep_flow, &deep_block, &wide, &many] {
            let refused = parse(hostile).unwrap_err();
            assert!(refused.message.contains("larger or deeper"), "{refused:?}");
        }
    }
}
