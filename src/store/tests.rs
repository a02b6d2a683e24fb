//! The store, its database whole, damaged and refused.

use super::*;
use crate::manifest::parse;
use std::os::unix::fs::PermissionsExt;

fn open(state: &Path) -> Result<(Store, Found), StoreError> {
    Store::open(Place { state, spare: &state.join("spare"), turned: Box::new(|| ()) })
}

fn record(name: &str) -> Record {
    let parsed = parse("x.yaml", format!("name: {name}\ncommand: x").as_bytes());
    let (spec, origin) = parsed.workloads.into_iter().next().unwrap();
    Record::new(spec, origin)
}

fn put(store: &Store, name: &str) {
    store.put(&name.parse().unwrap(), &record(name)).unwrap();
}

fn names(found: &Found) -> Vec<&str> {
    found.records.keys().map(Name::as_str).collect()
}

#[test]
fn records_outlive_the_store() {
    let state = tempfile::tempdir().unwrap();
    let (store, found) = open(state.path()).unwrap();
    assert!(found.records.is_empty() && found.losses.is_empty());
    put(&store, "web");
    put(&store, "db");
    store.remove(&"db".parse().unwrap()).unwrap();
    store.flush().unwrap();
    drop(store);
    let (_, found) = open(state.path()).unwrap();
    assert_eq!((names(&found), found.losses.len()), (vec!["web"], 0));
    assert_eq!(found.records.values().next().unwrap(), &record("web"));
}

#[test]
fn nobody_else_can_read_records() {
    let state = tempfile::tempdir().unwrap();
    let _store = open(state.path()).unwrap();
    assert_eq!(fs::metadata(state.path().join("db")).unwrap().permissions().mode() & 0o077, 0);
}

#[test]
fn a_state_folder_has_one_controller() {
    let state = tempfile::tempdir().unwrap();
    let _first = open(state.path()).unwrap();
    let second = open(state.path()).err().unwrap();
    assert!(matches!(second, StoreError::Locked { .. }), "{second}");
    assert!(second.to_string().contains("help:"));
}

#[test]
fn a_half_written_snapshot_is_no_obstacle() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path()).unwrap();
    put(&store, "web");
    store.flush().unwrap();
    drop(store);
    fs::write(state.path().join("db/snap.00000000000000FF.generating"), b"torn").unwrap();
    let (_, found) = open(state.path()).unwrap();
    assert_eq!((names(&found), found.losses.len()), (vec!["web"], 0));
}

#[test]
fn a_damaged_record_costs_only_itself() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path()).unwrap();
    put(&store, "web");
    store.records.insert(b"db", b"\x01nonsense".to_vec()).unwrap();
    store.flush().unwrap();
    drop(store);
    let (_, found) = open(state.path()).unwrap();
    assert_eq!(names(&found), ["web"]);
    assert_eq!(found.losses.len(), 1);
    assert!(found.losses[0].starts_with("the record of db "), "{:?}", found.losses);
}

#[test]
fn a_damaged_database_is_set_aside_and_a_new_one_begun() {
    for round in 0..5 {
        let state = tempfile::tempdir().unwrap();
        let (store, _) = open(state.path()).unwrap();
        put(&store, "web");
        store.flush().unwrap();
        drop(store);
        let path = state.path().join("db");
        match round {
            0 => fs::write(path.join("conf"), b"garbage").unwrap(),
            1 => fs::write(path.join("conf"), b"").unwrap(),
            2 => fs::write(path.join("db"), vec![0xAA; 200_000]).unwrap(),
            3 => fs::write(path.join("db"), b"").unwrap(),
            _ => fs::write(path.join("snap.0000000000000001"), b"garbage").unwrap(),
        }
        let (store, found) = open(state.path()).unwrap();
        // Whatever could be saved, it works and says what it lost.
        put(&store, "new");
        assert!(names(&found) == ["web"] || !found.losses.is_empty(), "{round}: {found:?}");
    }
}

/// Numbers that look random and are the same in every run (Marsaglia's xorshift64, "Xorshift RNGs", 2003).
#[test]
fn a_record_of_a_newer_version_is_not_written_over() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path()).unwrap();
    put(&store, "web");
    let mut newer = codec::encode(&record("db")).unwrap();
    newer[0] = codec::RECORD_VERSION + 1;
    store.records.insert(b"db", newer.clone()).unwrap();
    store.flush().unwrap();
    drop(store);
    let refused = open(state.path()).err().unwrap();
    assert!(matches!(&refused, StoreError::Newer { name, .. } if name.as_str() == "db"), "{refused}");
    assert!(refused.to_string().contains("help:"));
    // A torn one says nothing of versions.
    let entries = database::open(&state.path().join("db"), &mut Vec::new()).unwrap().rows;
    assert_eq!(entries.into_iter().find(|((_, key), _)| key == b"db").unwrap().1, newer);
}

/// A table that has a bug, once.
#[derive(Default)]
struct Buggy {
    syncs: Mutex<u32>,
}

impl Table for Buggy {
    fn insert(&self, _: &[u8], _: Vec<u8>) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut syncs = self.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        *syncs += 1;
        assert!(*syncs > 1, "a bug");
        Ok(())
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        Ok(Vec::new())
    }
}

#[test]
fn a_panic_of_the_database_is_trouble_that_is_told_and_tried_again() {
    let (rings, rung) = mpsc::channel();
    let trouble: Arc<Mutex<Option<String>>> = Arc::default();
    let syncer = Syncer {
        records: Arc::new(Buggy::default()),
        trouble: Arc::clone(&trouble),
        turned: Box::new(move || rings.send(()).unwrap()),
    };
    let (dirty, woken) = mpsc::sync_channel(1);
    let syncing = thread::spawn(move || syncer.run(&woken));
    dirty.send(()).unwrap();
    rung.recv_timeout(Duration::from_mins(1)).unwrap();
    let said = trouble.lock().unwrap().clone().unwrap();
    assert!(said.contains("kept in memory only: a bug"), "{said}");
    rung.recv_timeout(Duration::from_mins(1)).unwrap();
    assert_eq!(*trouble.lock().unwrap(), None);
    drop(dirty);
    syncing.join().unwrap();
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

fn damage(dice: &mut Dice, bytes: &mut Vec<u8>) -> &'static str {
    match dice.below(4) {
        0 => {
            bytes.truncate(dice.below(bytes.len()));
            "truncated"
        }
        1 => {
            let page = dice.below(bytes.len().div_ceil(4096)) * 4096;
            let end = bytes.len().min(page + 4096);
            bytes[page..end].fill(0);
            "a page zeroed"
        }
        2 => {
            for _ in 0..=dice.below(16) {
                let (at, bit) = (dice.below(bytes.len()), dice.below(8));
                bytes[at] ^= 1 << bit;
            }
            "bits flipped"
        }
        _ => {
            bytes.clear();
            "emptied"
        }
    }
}

/// The files of the database.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
    found.sort();
}

/// One of each kind (the log, its configuration, a snapshot, a large record) is as likely.
fn victim(dice: &mut Dice, folder: &Path) -> PathBuf {
    let mut found = Vec::new();
    files(folder, &mut found);
    let is_small = |path: &&PathBuf| path.parent() == Some(folder);
    let (small, large): (Vec<_>, Vec<_>) = found.iter().partition(is_small);
    let kind = if large.is_empty() || dice.below(4) > 0 { small } else { large };
    kind[dice.below(kind.len())].clone()
}

#[test]
fn whatever_befalls_its_files_it_opens_works_invents_nothing_and_says_what_is_missing() {
    let mut silent_to_sled = 0;
    for seed in 1..=300_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let state = tempfile::tempdir().unwrap();
        let (store, _) = open(state.path()).unwrap();
        for round in 0..2 {
            for number in 0..20 {
                let name = format!("w{number}");
                let mut record = record(&name);
                // One beyond what sled keeps in its pages.
                record.origin.path = "x".repeat(if number == 0 { 100_000 } else { 50 });
                record.instance = round;
                store.put(&name.parse().unwrap(), &record).unwrap();
            }
            store.flush().unwrap();
        }
        drop(store);
        if dice.below(2) == 0 {
            drop(open(state.path()).unwrap());
        }
        let victim = victim(&mut dice, &state.path().join("db"));
        let mut bytes = fs::read(&victim).unwrap();
        let case = format!("seed {seed}: {} {}", victim.display(), damage(&mut dice, &mut bytes));
        fs::write(victim, bytes).unwrap();
        let (store, found) = open(state.path()).unwrap_or_else(|error| panic!("{case}: {error}"));
        for (name, known) in &found.records {
            assert!(known.instance < 2 && known.spec.name == *name, "{case}: {known:?}");
        }
        let is_whole = found.records.len() == 20 && found.records.values().all(|known| known.instance == 1);
        assert!(is_whole || !found.losses.is_empty(), "{case}: a loss that is not told: {:?}", names(&found));
        silent_to_sled += usize::from(
            found.losses.iter().any(|loss| loss.contains("and were on the disk") || loss.contains("was saved")),
        );
        let aside = state.path().join("db.damaged-1");
        let told = found.losses.iter().any(|loss| loss.contains(&aside.display().to_string()));
        assert_eq!(aside.exists(), told, "{case}: {:?}", found.losses);
        put(&store, "new");
        store.flush().unwrap();
        drop(store);
        let (_, again) = open(state.path()).unwrap();
        assert!(again.records.contains_key(&"new".parse().unwrap()), "{case}");
        assert_eq!(again.records.len(), found.records.len() + 1, "{case}");
        assert!(again.losses.is_empty(), "{case}: told twice: {:?}", again.losses);
    }
    assert!(silent_to_sled > 0, "no damage was of the kind that only the witness tells");
}

/// A database that has lost more than it holds, in ways that leave sled content.
#[test]
fn a_database_that_is_older_than_its_witness_or_gone_is_told() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path()).unwrap();
    put(&store, "web");
    drop(store);
    let (db, witness, kept) = (state.path().join("db"), state.path().join("db.witness"), state.path().join("kept"));
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&db, &kept);
    let (store, _) = open(state.path()).unwrap();
    put(&store, "db");
    drop(store);
    copy(&kept, &db);
    let (store, found) = open(state.path()).unwrap();
    assert_eq!(names(&found), ["web"]);
    assert!(found.losses.len() == 1 && found.losses[0].contains("has lost its end"), "{:?}", found.losses);
    drop(store);
    let (store, found) = open(state.path()).unwrap();
    assert!(found.losses.is_empty(), "told once: {:?}", found.losses);
    drop(store);
    fs::remove_dir_all(&db).unwrap();
    let (store, found) = open(state.path()).unwrap();
    assert!(found.losses.len() == 1 && found.losses[0].contains("has lost its contents"), "{:?}", found.losses);
    put(&store, "web");
    drop(store);
    fs::remove_file(&witness).unwrap();
    let (_, found) = open(state.path()).unwrap();
    assert_eq!(names(&found), ["web"]);
    assert!(found.losses.len() == 1 && found.losses[0].contains("cannot be told"), "{:?}", found.losses);
}

#[test]
fn what_is_kept_of_refusals_is_bounded_by_what_there_is() {
    let state = tempfile::tempdir().unwrap();
    let (store, _) = open(state.path()).unwrap();
    for round in 0..3 {
        for number in 0..50 {
            put(&store, &format!("w{round}-{number}"));
            store.events.insert(&[round, number], b"x".to_vec()).unwrap();
            store.events.remove(&[round, number]).unwrap();
            store.remove(&format!("w{round}-{number}").parse().unwrap()).unwrap();
        }
    }
    assert!(store.events.unsaved().is_empty() && store.unsaved().is_empty());
}
