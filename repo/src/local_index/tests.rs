use std::collections::BTreeMap;

use proptest::prelude::*;

use super::entry::{
    ENTRY_LEN, Entry, KEY_LEN, PackSeal, Record, VERSION, foreign, identity, key, number_key,
};
use super::sorted::{Row, Sorter};
use crate::id::{BlockId, PackId, RepositoryId};
use crate::pack::{PackKind, PackLoc, TRAILER_FIXED_LEN, TRAILER_SLOT_LEN};

fn loc(n: u8, offset: u32, slots: usize) -> PackLoc {
    PackLoc {
        id: PackId([n; 32]),
        trailer_offset: offset,
        trailer_len: (TRAILER_FIXED_LEN + slots * TRAILER_SLOT_LEN) as u32,
    }
}

/// Every bit that a snapshot depends on is under the seal.
#[test]
fn an_entry_fits_its_block_its_pack_and_its_slot_alone() {
    let repository = RepositoryId([7; 16]);
    let pack = loc(1, 1000, 3);
    let id = BlockId::of(b"a block");
    let entry = PackSeal::of(&repository, &pack).entry(&id, 5, 2);
    assert!(PackSeal::of(&repository, &pack).fits(&id, &entry));

    for bit in 0..256 {
        let mut other = id;
        other.0[bit / 8] ^= 1 << (bit % 8);
        // The first half is the key: an entry is not even met under another one.
        let fits = PackSeal::of(&repository, &pack).fits(&other, &entry);
        assert_eq!(fits, bit / 8 < KEY_LEN, "bit {bit} of the id");
        assert_eq!(key(&other) == key(&id), bit / 8 >= KEY_LEN);
        let mut other = pack;
        other.id.0[bit / 8] ^= 1 << (bit % 8);
        assert!(!PackSeal::of(&repository, &other).fits(&id, &entry));
    }
    for bit in 0..128 {
        let mut other = repository;
        other.0[bit / 8] ^= 1 << (bit % 8);
        assert!(!PackSeal::of(&other, &pack).fits(&id, &entry));
    }
    for bit in 0..32 {
        let offset = loc(1, 1000 ^ 1 << bit, 3);
        assert!(!PackSeal::of(&repository, &offset).fits(&id, &entry));
    }
    assert!(!PackSeal::of(&repository, &loc(1, 1000, 4)).fits(&id, &entry));
    for bit in 0..ENTRY_LEN * 8 {
        let mut bytes = entry.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let other = Entry::decode(&bytes).unwrap();
        // The number leads to another pack, whose seal is another.
        let fits = PackSeal::of(&repository, &pack).fits(&id, &other);
        assert_eq!(fits, bit < 32, "bit {bit} of the entry");
    }
}

#[test]
fn an_identity_tells_what_is_wrong_with_it() {
    let own = RepositoryId([1; 16]);
    let other = RepositoryId([2; 16]);
    assert_eq!(foreign(&own, Some(&identity(&own))), None);
    let reason = foreign(&own, Some(&identity(&other))).unwrap();
    assert!(reason.contains(&other.to_string()), "{reason}");
    let mut newer = identity(&own);
    newer[0] += 1;
    let reason = foreign(&own, Some(&newer)).unwrap();
    assert!(reason.contains(&format!("version {}", VERSION + 1)), "{reason}");
    for broken in [None, Some(&b""[..]), Some(&b"\x01"[..])] {
        assert_eq!(foreign(&own, broken).unwrap(), "it has no identity");
    }
    assert!(foreign(&own, Some(&identity(&own)[..17])).is_some());
}

#[test]
fn records_survive_a_round_trip_and_refuse_what_is_none() {
    for (kind, complete, kept) in [
        (PackKind::Data, false, true),
        (PackKind::Data, true, false),
        (PackKind::Map, true, true),
    ] {
        let record = Record {
            pack: loc(3, 77, 12),
            kind,
            complete,
            kept,
        };
        let bytes = record.encode();
        assert_eq!(Record::decode(&number_key(9), &bytes).unwrap(), (9, record));
        assert!(Record::decode(&number_key(9)[..3], &bytes).is_err());
        assert!(Record::decode(&number_key(9), &bytes[1..]).is_err());
        assert!(Record::decode(&number_key(9), &[&bytes[..], &[0]].concat()).is_err());
        let mut unknown = bytes.clone();
        unknown[0] |= 8;
        assert!(Record::decode(&number_key(9), &unknown).is_err());
    }
    // As a key, numbers keep their order.
    assert!(number_key(255) < number_key(256));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// However few rows fit in memory: all keys in order, each once, with the entry of the highest number.
    #[test]
    fn rows_come_back_in_order(
        rows in proptest::collection::vec((any::<[u8; 2]>(), any::<u32>(), any::<u16>(), any::<u64>()), 0..300),
        rows_in_memory in 1u64..100,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(directory.path().to_owned(), rows_in_memory * size_of::<Row>() as u64);
        let mut expected = BTreeMap::new();
        for (short, number, slot, seal) in rows {
            let mut long = [0xff; KEY_LEN];
            long[KEY_LEN - 2..].copy_from_slice(&short);
            let entry = Entry { number, slot, seal };
            sorter.push(Row::new(long, entry)).unwrap();
            let kept = expected.entry(long).or_insert(entry);
            *kept = (*kept).max(entry);
        }
        let mut found = Vec::new();
        sorter
            .finish(|row| {
                found.push((row.key(), row.entry()));
                Ok::<_, std::io::Error>(())
            })
            .unwrap();
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }

    /// Nothing that may stand in a value makes a decoder panic.
    #[test]
    fn arbitrary_values_are_refused_or_read(number in any::<Vec<u8>>(), value in any::<Vec<u8>>()) {
        let _ = Record::decode(&number, &value);
        let _ = Entry::number_of(&value);
        if let Ok(entry) = Entry::decode(&value) {
            prop_assert_eq!(&entry.encode()[..], &value[..]);
        }
        let _ = foreign(&RepositoryId([0; 16]), Some(&value));
    }
}
