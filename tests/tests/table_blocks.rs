//! Tables of real servers, cut along WiredTiger's blocks: of every version that can be had, with every compressor.

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::fs;

use mongodb::bson::{Binary, doc, spec::BinarySubtype};
use pbmfs_dbpath::{TableCutter, is_wiredtiger_table};
use pbmfs_tests::{DataSpec, Mongod, MongodBinary, MongodOptions, Tree, cli::PbmFs, cli::text, data};
use tempfile::tempdir;

/// What a reader of segments shows at a time.
const STEP: usize = 1 << 20;

#[derive(Default)]
struct Cuts {
    bytes: u64,
    parsed: u64,
    pieces: u64,
    longest: u32,
}

fn cut(file: &[u8], cuts: &mut Cuts) {
    let mut cutter = TableCutter::default();
    let (mut from, mut to) = (0, 0);
    while from < file.len() {
        to = (to + STEP).min(file.len());
        for piece in cutter.cut(from as u64, &file[from..to], to == file.len()) {
            from += piece as usize;
            cuts.pieces += 1;
            cuts.longest = cuts.longest.max(piece);
        }
    }
    cuts.bytes += file.len() as u64;
    cuts.parsed += cutter.parsed();
}

async fn blocks_of(version: &str, compressor: &str) {
    let place = tempdir().unwrap();
    let options = MongodOptions {
        binary: Some(MongodBinary::of_version(version).unwrap()),
        ..MongodOptions::standalone().args(["--wiredTigerCollectionBlockCompressor", compressor])
    };
    let mut server = Mongod::start(&place.path().join("server"), options)
        .await
        .unwrap();
    let client = server.client().await.unwrap();
    let spec = DataSpec::megabytes(20);
    data::load(&client, &spec).await.unwrap();
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
    data::update_orders(&client, &spec, 20, 1).await.unwrap();
    server.stop().await.unwrap();

    let mut cuts = Cuts::default();
    for path in Tree::read(server.dbpath()).unwrap().files().paths() {
        if is_wiredtiger_table(path) {
            cut(&fs::read(server.dbpath().join(path)).unwrap(), &mut cuts);
        }
    }
    let share = cuts.parsed as f64 / cuts.bytes as f64;
    eprintln!(
        "{version} {compressor}: {} bytes, {share:.4} of them in blocks, {} pieces, the longest {}",
        cuts.bytes, cuts.pieces, cuts.longest
    );
    // The rest: the first sector of each file, and space that was freed and overwritten in part.
    assert!(share > 0.9, "{version} {compressor}: {share}");
    assert!(cuts.pieces > cuts.bytes / (128 << 10));
    assert_eq!(cuts.longest, 1 << 20);

    // And such files come back.
    let pbmfs = PbmFs::init(place.path().join("repo"));
    pbmfs.backup_of(server.dbpath());
    let out = place.path().join("out");
    pbmfs.ok(&["restore", "latest", "--target", text(&out)]);
    pbmfs.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_every_version_and_compressor() {
    for (version, compressor) in [
        ("4.4", "snappy"),
        ("4.4", "none"),
        ("5.0", "zstd"),
        ("6.0", "snappy"),
        ("6.0", "zstd"),
        ("6.0", "none"),
    ] {
        blocks_of(version, compressor).await;
    }
}
