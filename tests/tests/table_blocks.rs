//! Tables of real servers, cut along WiredTiger's blocks: of every version that can be had, with every compressor, and
//! damaged in every way.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use mongodb::bson::{Binary, doc, spec::BinarySubtype};
use pbmfs_dbpath::{TableCutter, is_wiredtiger_table};
use pbmfs_repo::ingest::FIXED_BLOCK;
use pbmfs_tests::{
    DataSpec, Mongod, MongodBinary, MongodOptions, Tree,
    cli::{PbmFs, text},
    damage, data,
    prng::Prng,
};
use tempfile::tempdir;

/// What a reader of segments shows at a time.
const STEP: usize = 1 << 20;

const SECTOR: usize = 4096;

/// The pieces of a table, and how many of its bytes are in blocks.
fn cut(file: &[u8]) -> (Vec<Range<usize>>, u64) {
    let mut cutter = TableCutter::default();
    let (mut from, mut to) = (0, 0);
    let mut pieces = Vec::new();
    while from < file.len() {
        to = (to + STEP).min(file.len());
        for len in cutter.cut(from as u64, &file[from..to], to == file.len()) {
            assert!((1..=STEP as u32).contains(&len));
            pieces.push(from..from + len as usize);
            from += len as usize;
        }
    }
    (pieces, cutter.parsed())
}

fn paths(dbpath: &Path) -> Vec<PathBuf> {
    let tree = Tree::read(dbpath).unwrap().files();
    tree.paths().map(PathBuf::from).collect()
}

fn is_table(path: &Path) -> bool {
    is_wiredtiger_table(path.to_str().unwrap())
}

/// A backup of a directory: how many plain bytes it stored.
fn backup(pbmfs: &PbmFs, dbpath: &Path) -> u64 {
    let snapshot = pbmfs.json(&["backup", "--dbpath", text(dbpath)]);
    snapshot["stats"]["bytes_new"].as_u64().unwrap()
}

/// The latest snapshot comes back as it was.
fn comes_back(pbmfs: &PbmFs, dbpath: &Path, out: &Path) {
    pbmfs.ok(&["restore", "latest", "--target", text(out)]);
    let kept = |path: &str| path != "mongod.lock" && !path.starts_with("diagnostic.data/");
    let source = Tree::read(dbpath).unwrap().files().only(kept);
    source.must_equal(&Tree::read(out).unwrap().files());
    pbmfs.check();
}

async fn loaded(dbpath: &Path, version: &str, compressor: &str, spec: &DataSpec) -> Mongod {
    let options = MongodOptions {
        binary: Some(MongodBinary::of_version(version).unwrap()),
        ..MongodOptions::standalone().args(["--wiredTigerCollectionBlockCompressor", compressor])
    };
    let mut server = Mongod::start(dbpath, options).await.unwrap();
    let client = server.client().await.unwrap();
    data::load(&client, spec).await.unwrap();
    // Values whose blocks are larger than one of ours.
    let mut noise = vec![0; 5_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for len in [1_000_000, 1_100_000, 5_000_000] {
        let bytes = noise[..len].to_vec();
        let subtype = BinarySubtype::Generic;
        let large = client.database("rig").collection("large");
        large
            .insert_one(doc! {"v": Binary { subtype, bytes }})
            .await
            .unwrap();
    }
    data::update_orders(&client, spec, 20, 1).await.unwrap();
    server.stop().await.unwrap();
    server
}

/// Bytes that changed, in steps of this length in tables, and of 64 KiB in other files.
fn changed(before: &Path, after: &Path, in_tables: usize) -> u64 {
    let mut bytes = 0;
    for path in paths(after) {
        let (Ok(old), new) = (fs::read(before.join(&path)), fs::read(after.join(&path)).unwrap()) else {
            continue;
        };
        let step = if is_table(&path) { in_tables } else { FIXED_BLOCK };
        for (at, part) in new.chunks(step).enumerate() {
            let same = old.get(at * step..at * step + part.len()) == Some(part);
            bytes += if same { 0 } else { part.len() as u64 };
        }
    }
    bytes
}

async fn blocks_of(version: &str, compressor: &str) {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(20);
    let mut server = loaded(&place.path().join("server"), version, compressor, &spec).await;

    let (mut bytes, mut parsed, mut count, mut longest) = (0, 0, 0, 0);
    for path in paths(server.dbpath()).iter().filter(|path| is_table(path)) {
        let file = fs::read(server.dbpath().join(path)).unwrap();
        let (pieces, in_blocks) = cut(&file);
        bytes += file.len() as u64;
        parsed += in_blocks;
        count += pieces.len() as u64;
        longest = pieces.iter().map(Range::len).fold(longest, usize::max);
    }
    let share = parsed as f64 / bytes as f64;
    // The rest: the first sector of each file, and space that was freed and overwritten in part.
    assert!(share > 0.9, "{version} {compressor}: {share}");
    assert!(count > bytes / (128 << 10));
    assert_eq!(longest, 1 << 20);

    // Such files come back, and a few changes cost no more than what they changed.
    let pbmfs = PbmFs::init(place.path().join("repo"));
    backup(&pbmfs, server.dbpath());
    let first = place.path().join("first");
    comes_back(&pbmfs, server.dbpath(), &first);
    server.restart().await.unwrap();
    let client = server.client().await.unwrap();
    data::update_orders(&client, &spec, 500, 2).await.unwrap();
    server.stop().await.unwrap();
    let new = backup(&pbmfs, server.dbpath());
    comes_back(&pbmfs, server.dbpath(), &place.path().join("second"));
    let of = |step| new as f64 / changed(&first, server.dbpath(), step) as f64;
    let (of_sectors, of_fixed) = (of(SECTOR), of(FIXED_BLOCK));
    eprintln!(
        "{version} {compressor}: {bytes} bytes, {share:.4} of them in blocks, {count} pieces, the longest {longest}; \
         then {new} new bytes, {of_sectors:.3} of the changed sectors, {of_fixed:.3} of the changed 64 KiB"
    );
    assert!(
        of_sectors < 1.3 && of_fixed < 1.0,
        "{version} {compressor}: {of_sectors} {of_fixed}"
    );
}

async fn with_every_compressor(version: &str) {
    for compressor in ["snappy", "zstd", "none"] {
        blocks_of(version, compressor).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_4_4_with_every_compressor() {
    with_every_compressor("4.4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_5_0_with_every_compressor() {
    with_every_compressor("5.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_6_0_with_every_compressor() {
    with_every_compressor("6.0").await;
}

/// Puts bytes into a file.
fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// Tables are cut, stored and restored whatever is in them, and damage costs the blocks that it hits.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_tables() {
    let place = tempdir().unwrap();
    let spec = DataSpec::megabytes(20);
    let server = loaded(&place.path().join("server"), "6.0", "snappy", &spec).await;
    let dbpath = server.dbpath();
    let pbmfs = PbmFs::init(place.path().join("repo"));
    backup(&pbmfs, dbpath);

    let pieces_of = |path: &Path| cut(&fs::read(path).unwrap()).0;
    let mut tables: Vec<PathBuf> = paths(dbpath).into_iter().filter(|path| is_table(path)).collect();
    tables.iter_mut().for_each(|path| *path = dbpath.join(&path));
    tables.sort_by_key(|path| std::cmp::Reverse(pieces_of(path).len()));
    let large = |path: &PathBuf| pieces_of(path).iter().any(|piece| piece.len() == STEP);
    let with_large = tables.remove(tables.iter().position(large).unwrap());
    let mut tables = tables.into_iter();
    let mut prng = Prng::new(7);
    // What the next backup may store: the pieces that are hit.
    let mut hit = 0;

    // A length of 4 GB, and one of 20 MB, in headers; bits here and there.
    let most_pieces = tables.next().unwrap();
    for (path, wrong, bits) in [
        (&most_pieces, &[(5, u32::MAX - 4095), (90, 20 << 20)][..], 20),
        (&with_large, &[], 5),
    ] {
        let pieces = pieces_of(path);
        let mut spoilt = BTreeSet::new();
        for (number, length) in wrong {
            let number: usize = *number;
            write_at(path, pieces[number].start as u64 + 28, &length.to_le_bytes());
            spoilt.insert(number);
        }
        for _ in 0..bits {
            let number = prng.below(pieces.len() as u64) as usize;
            let byte = pieces[number].start as u64 + prng.below(pieces[number].len() as u64);
            damage::flip_bit(path, byte * 8 + prng.below(8)).unwrap();
            spoilt.insert(number);
        }
        hit += spoilt
            .iter()
            .map(|number| pieces[*number].len() as u64)
            .sum::<u64>();
        let ends = |pieces: &[Range<usize>]| pieces.iter().map(|piece| piece.end).collect::<BTreeSet<_>>();
        let lost = &ends(&pieces) - &ends(&pieces_of(path));
        // Where one that cannot be told any more meets what never could, or another of its kind; and the pieces of a
        // block above 1 MiB that lost its header.
        assert!(
            lost.len() <= spoilt.len() + 5 * usize::from(path == &with_large),
            "{lost:?}"
        );
    }

    // Cut off in the middle of a header, of a block, of a sector.
    for off in [20, 5000, SECTOR + 1] {
        let path = tables.next().unwrap();
        let pieces = pieces_of(&path);
        let cut_in = pieces
            .iter()
            .rev()
            .find(|piece| piece.len() > 2 * SECTOR)
            .unwrap();
        let off = if off == 20 {
            cut_in.start + 20
        } else {
            cut_in.end - off
        };
        damage::truncate(&path, off as u64).unwrap();
        hit += cut_in.len() as u64;
    }

    // All zeros, as after a crash of the file system, and nothing at all.
    let path = tables.next().unwrap();
    let len = path.metadata().unwrap().len();
    damage::truncate(&path, 0).unwrap();
    damage::truncate(&path, len).unwrap();
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0) && len > 1 << 17);
    damage::truncate(&tables.next().unwrap(), 0).unwrap();

    // Noise with the name of a table.
    let noise = prng.bytes(300_001);
    let (pieces, parsed) = cut(&noise);
    assert_eq!((pieces.len(), parsed), (5, 0));
    fs::write(dbpath.join("noise.wt"), &noise).unwrap();
    hit += noise.len() as u64;

    let new = backup(&pbmfs, dbpath);
    eprintln!("{new} new bytes, {hit} in blocks that were hit");
    assert!(new <= hit, "{new} > {hit}");
    assert!(new > hit / 4);
    comes_back(&pbmfs, dbpath, &place.path().join("out"));
}
