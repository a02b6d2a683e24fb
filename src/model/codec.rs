//! How records and events are kept, in the database and beside a run: one version byte, a CRC-32 of what follows, then JSON.
//!
//! What was written in any version that was ever released is read for ever; `tests/fixtures` holds one of each. A new field gets a serde
//! default and needs no new version; a field that changes its meaning does. Records and events count their versions apart.

use super::event::Event;
use super::record::Record;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::RangeInclusive;

/// Version 2 keeps the times of waits by two clocks, version 1 by that on the wall alone.
const RECORD: RangeInclusive<u8> = 1..=RECORD_VERSION;
/// The version of the records that are written.
pub const RECORD_VERSION: u8 = 2;
/// Version 0 is JSON alone, which begins with a brace: no version will have that number.
const EVENT: RangeInclusive<u8> = 1..=1;
const HEAD_BYTES: usize = 5;

/// Why bytes are no record, or no event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("has {len} bytes, fewer than its head")]
    Short { len: usize },
    #[error("has version {version}, written by a newer containerctl")]
    Version { version: u8 },
    #[error("has a checksum that does not match: it was torn or damaged")]
    Checksum,
    #[error("is not what its version says")]
    Json(#[source] serde_json::Error),
}

/// The bytes of a record.
pub fn encode(record: &Record) -> Result<Vec<u8>, serde_json::Error> {
    seal(record, *RECORD.end())
}

/// The record in some bytes.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    open(bytes, &RECORD)
}

/// The bytes of an event.
pub fn encode_event(event: &Event) -> Result<Vec<u8>, serde_json::Error> {
    seal(event, *EVENT.end())
}

/// The event in some bytes.
pub fn decode_event(bytes: &[u8]) -> Result<Event, DecodeError> {
    if bytes.first() == Some(&b'{') {
        return serde_json::from_slice(bytes).map_err(DecodeError::Json);
    }
    open(bytes, &EVENT)
}

fn seal<T: Serialize>(value: &T, version: u8) -> Result<Vec<u8>, serde_json::Error> {
    let json = serde_json::to_vec(value)?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + json.len());
    bytes.push(version);
    bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn open<T: DeserializeOwned>(bytes: &[u8], versions: &RangeInclusive<u8>) -> Result<T, DecodeError> {
    let short = || DecodeError::Short { len: bytes.len() };
    let (version, rest) = bytes.split_first().ok_or_else(short)?;
    let (checksum, json) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    // First: the version of what is damaged says nothing.
    if crc32fast::hash(json) != u32::from_le_bytes(*checksum) {
        return Err(DecodeError::Checksum);
    }
    if !versions.contains(version) {
        return Err(DecodeError::Version { version: *version });
    }
    serde_json::from_slice(json).map_err(DecodeError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;
    use crate::model::clock::{Moment, Steady, Time};
    use crate::model::event::Severity;
    use crate::model::exit::{Exit, Outcome};
    use crate::model::gpu::{Exposure, GpuId, GpuLease, Share, Vendor};
    use crate::model::isolation::IdRange;
    use crate::model::probe::ProbeKind;
    use crate::model::record::{Due, Grant, LeftOut, Preempting, Refused, Requested, Rollout, Scheduled, Stopping};
    use crate::model::time::Timestamp;
    use std::sync::Arc;

    fn record() -> Record {
        let text = b"command: [stress, --cpu, '2']\ncpu: {limit: 2, class: pinned, request: 1}\nmemory: 512M\ngpu: {memory: 8Gi}\n\
            env: {A: b}\nvolumes: [{source: /srv, target: /mnt}]\nlabels: {team: a}\n";
        let (mut spec, origin) = parse("group/web.yaml", text).workloads.into_iter().next().unwrap();
        // What a pinned workload weighed by default when the fixtures were written.
        Arc::make_mut(&mut spec).resources.cpu.weight = 100;
        Record {
            generation: 3,
            instance: 7,
            grant: Some(Grant {
                cpus: "0-1".parse().unwrap(),
                fenced: "".parse().unwrap(),
                gpus: vec![GpuLease {
                    gpu: GpuId("GPU-0".to_owned()),
                    share: Share::Whole,
                    vendor: Vendor::Simulated,
                    exposure: Exposure::default(),
                    reason: String::new(),
                }],
                requested: Requested::default(),
                reason: "class pinned".to_owned(),
                moved: None,
            }),
            restarts: 2,
            failures: 1,
            retry_at: Some(Moment { wall: Timestamp(1_795_464_785_042), reading: None }),
            last_exit: Some(Exit {
                started: None,
                instance: 6,
                outcome: Outcome::Exited { code: 3 },
                at: Timestamp(1_795_464_784_000),
            }),
            finished: false,
            stopping: Some(Stopping {
                since: Moment { wall: Timestamp(1), reading: None },
                decided: None,
                asked: true,
                killed: None,
                reason: "web.yaml was deleted".to_owned(),
                timed_out: false,
                timeout: None,
                failed: None,
                preempted_for: None,
            }),
            ..Record::new(spec, origin)
        }
    }

    /// With what version 2 has brought.
    fn record_2() -> Record {
        let moment =
            |steady| Time { wall: Timestamp(1_795_464_785_042), steady: Steady(steady) }.of_boot("a-boot").now();
        let Record { spec, origin, last_exit, stopping, .. } = record();
        let lost = last_exit.clone().map(|exit| Exit { outcome: Outcome::HostRestarted, ..exit });
        let at = Timestamp(1_795_464_000_000);
        Record {
            begun: Some(moment(12_345)),
            retry_at: Some(moment(-5)),
            last_exit: lost,
            earlier_exits: last_exit.into_iter().collect(),
            stopping: stopping.map(|before| Stopping {
                since: moment(1),
                killed: Some(moment(2)),
                asked: false,
                failed: Some(ProbeKind::Liveness),
                ..before
            }),
            scheduled: Some(Scheduled {
                handled: at,
                due: Some(Due { at, begun: true }),
                left_out: Some(LeftOut { at, reason: "the run before still went on".to_owned() }),
            }),
            rollout: Some(Rollout { previous: Arc::clone(&spec), origin: origin.clone(), since: moment(3) }),
            refused: Some(Refused {
                spec,
                generation: 2,
                reason: "web exited with code 1".to_owned(),
                at: moment(4),
                path: String::new(),
            }),
            ids: Some(IdRange { first: 65_536 }),
            failed_tries: 4,
            ..record()
        }
    }

    #[test]
    fn records_read_back_as_they_were_written() {
        let Record { stopping, retry_at, .. } = record_2();
        // As it was written before it had a time.
        let preempting: Preempting = serde_json::from_str(r#"{"runs":{"job":4},"generation":3}"#).unwrap();
        let runs = [("job".parse().unwrap(), 4)].into();
        assert_eq!(preempting, Preempting { runs, generation: 3, since: None, moves: false });
        let waiting = Record {
            queued: retry_at.clone(),
            preempting: Some(Preempting { since: retry_at, ..preempting }),
            stopping: stopping.map(|stop| Stopping { preempted_for: Some("urgent".parse().unwrap()), ..stop }),
            ..record_2()
        };
        for record in [record(), record_2(), waiting] {
            assert_eq!(decode(&encode(&record).unwrap()).unwrap(), record);
        }
    }

    #[test]
    fn records_of_version_2_are_read_for_ever() {
        // Written once, when version 2 was made: what `encode` gave for this record.
        assert_eq!(decode(include_bytes!("../../tests/fixtures/record-v2")).unwrap(), record_2());
    }

    #[test]
    fn records_of_version_1_are_read_for_ever() {
        // Written once, when version 1 was made: what `encode` gave for this record.
        assert_eq!(decode(include_bytes!("../../tests/fixtures/record-v1")).unwrap(), record());
    }

    fn event() -> Event {
        Event {
            sequence: 4711,
            severity: Severity::Warning,
            workload: "web".parse().ok(),
            reason: "Throttled".to_owned(),
            message: "web was throttled for 12 s".to_owned(),
            run: None,
            count: 3,
            first: Timestamp(1_795_464_000_000),
            last: Timestamp(1_795_464_785_042),
        }
    }

    #[test]
    fn events_of_every_version_are_read_for_ever() {
        // Each was written once, when its version was made.
        assert_eq!(decode_event(include_bytes!("../../tests/fixtures/event-v0")).unwrap(), event());
        assert_eq!(decode_event(include_bytes!("../../tests/fixtures/event-v1")).unwrap(), event());
        assert_eq!(decode_event(&encode_event(&event()).unwrap()).unwrap(), event());
    }

    #[test]
    fn damaged_records_and_events_are_recognised() {
        let check = |good: Vec<u8>, is_refused: &dyn Fn(&[u8]) -> bool| {
            for len in 0..good.len() {
                assert!(is_refused(&good[..len]), "{len} bytes were accepted");
            }
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                assert!(is_refused(&bad), "a flipped bit in byte {at} was accepted");
            }
        };
        check(encode(&record()).unwrap(), &|bytes| decode(bytes).is_err());
        check(encode_event(&event()).unwrap(), &|bytes| decode_event(bytes).is_err());
        assert_eq!(decode(&[9, 0, 0, 0, 0]).unwrap_err().to_string(), "has version 9, written by a newer containerctl");
    }
}
