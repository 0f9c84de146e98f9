use std::fs;

use super::*;

const KIB: u64 = 1024;

/// Two copies: `changed` has two sectors that differ, `grown` is longer by half a sector, `new` is new, `gone` is gone.
fn copies() -> (tempfile::TempDir, Vec<Changed>) {
    let place = tempfile::tempdir().unwrap();
    let (old, new) = (place.path().join("old"), place.path().join("new"));
    for dir in [&old, &new] {
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("same"), vec![1; 10_000]).unwrap();
    }
    let mut bytes = vec![7; 40 << 20];
    fs::write(old.join("sub/changed"), &bytes).unwrap();
    bytes[5000] = 8;
    bytes[(33 << 20) + 4096] = 8;
    fs::write(new.join("sub/changed"), &bytes).unwrap();
    fs::write(old.join("grown"), vec![7; 8192]).unwrap();
    fs::write(new.join("grown"), vec![7; 8192 + 2048]).unwrap();
    fs::write(new.join("new"), [1; 5000]).unwrap();
    fs::write(old.join("gone"), [1; 5000]).unwrap();
    let changes = compare(&old, &new).unwrap();
    (place, changes)
}

#[test]
fn what_changed_is_found() {
    let (_place, changes) = copies();
    let of = |path| changes.iter().find(|c| c.path == path).unwrap();
    assert_eq!(changes.len(), 4);
    assert!(of("same").sectors.is_empty() && !of("same").new);
    let far = (33 << 20) + 4096;
    assert_eq!(of("sub/changed").sectors, [4096..8192, far..far + 4096]);
    assert!(of("grown").sectors.iter().eq([&(8192..10_240)]));
    assert!(of("new").new);
    assert_eq!(of("new").bytes(), 5000);
}

#[test]
fn granules_cover_the_changes_and_end_with_the_file() {
    let (_place, changes) = copies();
    let of = |path| changes.iter().find(|c| c.path == path).unwrap();
    assert_eq!(
        of("sub/changed").granules(GRANULE),
        [0..1 << 20, 33 << 20..34 << 20]
    );
    assert_eq!(
        of("sub/changed").granules(PBM_GRANULE),
        [0..16 << 20, 32 << 20..40 << 20]
    );
    assert!(of("sub/changed").granules(32 << 20).iter().eq([&(0..40 << 20)]));
    assert!(of("grown").granules(GRANULE).iter().eq([&(0..10 * KIB)]));
    let named = named(&changes, GRANULE);
    assert!(!named.contains_key("new") && named["same"].is_empty());
    assert_eq!(granule_bytes(&changes, GRANULE), (2 << 20) + 10 * KIB + 5000);
}

#[test]
fn the_floor_takes_each_sector_alone() {
    let (place, changes) = copies();
    let copy = place.path().join("new");
    let alone = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap().len() as u64;
    let mut with_change = vec![7; SECTOR];
    with_change[5000 - SECTOR] = 8;
    let mut first = vec![7; SECTOR];
    first[0] = 8;
    let sectors = alone(&with_change) + alone(&first) + alone(&[7; 2048]);
    assert_eq!(
        floor(&copy, &changes).unwrap(),
        sectors + alone(&[1; SECTOR]) + alone(&[1; 904])
    );
}

/// Noise stays as long as it is, so every byte of the range must be in the streams.
#[test]
fn large_ranges_are_compressed_whole() {
    let place = tempfile::tempdir().unwrap();
    let mut noise = vec![0; 3 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(place.path().join("noise"), &noise).unwrap();
    let changes = compare(&place.path().join("nothing"), place.path()).unwrap();
    let streams = large_ranges(place.path(), &changes).unwrap();
    for len in [streams.s2, streams.zstd] {
        assert!((3 << 20..(3 << 20) + 1000).contains(&len), "{len}");
    }
}
