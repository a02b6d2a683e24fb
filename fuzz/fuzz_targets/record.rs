//! Any bytes as a record and as an event, and any JSON in one whose checksum is right: no panic, and what is read is the same when written
//! again.
#![no_main]

use containerctl::model::codec::{decode, decode_event, encode, encode_event};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // The checksum would keep the fuzzer out of the JSON behind it.
    for version in [1, 2] {
        let mut sealed = vec![version];
        sealed.extend(crc32fast::hash(bytes).to_le_bytes());
        sealed.extend(bytes);
        check(&sealed);
    }
});

fn check(bytes: &[u8]) {
    if let Ok(record) = decode(bytes) {
        let again = encode(&record).expect("a record has JSON");
        assert_eq!(decode(&again).expect("it reads back"), record);
    }
    if let Ok(event) = decode_event(bytes) {
        let again = encode_event(&event).expect("an event has JSON");
        assert_eq!(decode_event(&again).expect("it reads back"), event);
    }
}
