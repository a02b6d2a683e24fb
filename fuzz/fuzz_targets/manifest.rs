//! Any bytes as a manifest: no panic, every finding has a place in the text, and what is accepted survives being written down.
#![no_main]

use containerctl::manifest::parse;
use containerctl::model::codec::{decode, encode};
use containerctl::model::record::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let parsed = parse("group/web.yaml", bytes);
    // To YAML a carriage return alone ends a line too.
    let lines = bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() + 1;
    for found in &parsed.diagnostics {
        assert!(found.line as usize <= lines, "{found}: the text has {lines} lines");
        assert!(!found.message.is_empty() && !found.help.is_empty(), "{found}");
    }
    for (spec, origin) in parsed.workloads {
        let record = Record::new(spec, origin);
        let bytes = encode(&record).expect("a record has JSON");
        assert_eq!(decode(&bytes).expect("it reads back"), record);
    }
});
