//! The fields about block devices and huge pages.

use super::diagnostic::Problems;
use super::fields::{Field, Map, Schema};
use super::tree::{Entry, Value};
use super::workload::absolute;
use crate::model::spec::{Io, IoLimit};
use crate::model::units::{Bytes, Limit};
use std::collections::BTreeMap;

pub const IO: Schema = Schema { fields: &["weight", "limits"], later: &["latency"] };
pub const LIMIT: Schema = Schema { fields: &["device", "readBps", "writeBps", "readIops", "writeIops"], later: &[] };

/// Sizes of huge pages that x86-64 has.
const PAGE_SIZES: [(&str, Bytes); 2] = [("2Mi", Bytes(2 << 20)), ("1Gi", Bytes(1 << 30))];

pub fn read(map: &Map<'_>, problems: &mut Problems) -> Io {
    let mut io = Io::default();
    let Some(map) = map.get("io", problems).and_then(|field| Map::open(field.node, "io.", &IO, problems)) else {
        return io;
    };
    if let Some(weight) = map.get("weight", problems).and_then(|field| field.integer(1..=10_000, problems)) {
        io.weight = weight;
    }
    let limits = map.get("limits", problems).and_then(|field| field.list(problems)).unwrap_or_default();
    for field in limits {
        let Some((device, limit)) = limit(&field, problems) else { continue };
        if io.limits.insert(device.clone(), limit).is_some() {
            problems.error(field.at(), format!("io.limits names {device} twice"), "put all its limits into one entry");
        }
    }
    io
}

fn limit(field: &Field<'_>, problems: &mut Problems) -> Option<(String, IoLimit)> {
    let map = Map::open(field.node, &format!("{}.", field.name), &LIMIT, problems)?;
    let Some(device) = map.get("device", problems) else {
        problems.error(field.at(), format!("{}.device is missing", field.name), "name a disk: `device: /dev/vda`");
        return None;
    };
    let device = absolute(&device, problems)?;
    let bytes = |key, problems: &mut Problems| {
        let limit = map.get(key, problems).and_then(|field| field.limit::<Bytes>("50M", problems));
        limit.unwrap_or_default().map(|bytes| bytes.0)
    };
    let number = |key, problems: &mut Problems| match map.get(key, problems) {
        Some(field) if matches!(&field.node.value, Value::Scalar { text, .. } if text == "max") => Limit::Max,
        Some(field) => field.integer(1..=u64::from(u32::MAX), problems).map_or(Limit::Max, Limit::At),
        None => Limit::Max,
    };
    let limit = IoLimit {
        read_bps: bytes("readBps", problems),
        write_bps: bytes("writeBps", problems),
        read_iops: number("readIops", problems),
        write_iops: number("writeIops", problems),
    };
    if limit == IoLimit::default() {
        problems.error(field.at(), format!("{} limits nothing", field.name), "add for example `readBps: 50M`");
    }
    if [limit.read_bps, limit.write_bps].contains(&Limit::At(0)) {
        problems.error(field.at(), format!("{} allows nothing at all", field.name), "write more than 0, or `max`");
    }
    Some((device, limit))
}

/// `{2Mi: 64Mi}`: how much memory in pages of which size.
pub fn hugepages(map: &Map<'_>, problems: &mut Problems) -> BTreeMap<Bytes, Bytes> {
    let mut pages = BTreeMap::new();
    let Some(field) = map.get("hugepages", problems) else { return pages };
    let Value::Map(entries) = &field.node.value else {
        field.wrong("a map", "write for example `hugepages: {2Mi: 64Mi}`", problems);
        return pages;
    };
    for Entry { key, at, value } in entries {
        let Some((_, size)) = PAGE_SIZES.iter().find(|(name, _)| name == key) else {
            let help = "a size of huge pages is `2Mi` or `1Gi`";
            problems.error(*at, format!("hugepages.{key} is no size of a page"), help);
            continue;
        };
        let field = Field { name: format!("hugepages.{key}"), node: value };
        let Some(bytes) = field.amount::<Bytes>("64Mi", problems) else { continue };
        if !bytes.0.is_multiple_of(size.0) {
            field.wrong(&format!("a multiple of {key}"), "huge pages are given whole", problems);
        }
        pages.insert(*size, bytes);
    }
    pages
}
