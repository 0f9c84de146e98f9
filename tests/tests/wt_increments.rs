//! Increments of a live WiredTiger database, with the ranges that WiredTiger itself names; see
//! [`pbmfs_tests::wt_oracle`].

#![allow(clippy::unwrap_used, reason = "a test fails where its preparation does")]

use std::{fs, path::Path, time::Instant};

use pbmfs_tests::{
    campaign,
    wt_oracle::{
        self, Chain, Event, How, Judged,
        checkpoint::{Address, listed},
    },
};
use tempfile::tempdir;

/// What happens before each increment of the chain that every run of the tests takes.
const SCRIPT: [Event; 13] = [
    Event::Update,
    Event::Create,
    Event::Grow,
    Event::Restart,
    Event::DropAndCreate,
    Event::Shrink,
    Event::GiveUp,
    Event::LoseNextId,
    Event::Drop,
    Event::CrashUnderCursor,
    Event::Crash,
    Event::ForceStop,
    Event::Nothing,
];

async fn take(chain: &mut Chain, seed: u64, event: Event) -> Judged {
    let begun = Instant::now();
    let happened = chain.happens(event);
    happened.unwrap_or_else(|error| panic!("seed {seed}, {event:?}: {error}"));
    let judged = chain.take(|_| {}).await;
    let judged = judged.unwrap_or_else(|error| panic!("seed {seed}, after {event:?}: {error}"));
    eprintln!(
        "seed {seed}, {event:?}: {:?}, {} bytes, {} asked for, {} read, {} stored, {} phantoms, {:?}, {} rows, {:?}",
        judged.how,
        judged.stats.bytes_total,
        judged.asked,
        judged.stats.bytes_read,
        judged.stats.bytes_stored(),
        judged.phantoms,
        judged.compared,
        judged.rows,
        begun.elapsed()
    );
    judged
}

async fn chain_of(python: &Path, seed: u64, compressor: &str, scale: f64, events: &[Event]) -> Vec<Judged> {
    let place = tempdir().unwrap();
    let mut chain = Chain::start(python, place.path(), seed, compressor, scale)
        .await
        .unwrap();
    eprintln!("seed {seed}: block compressor {}", chain.compressor);
    let mut all = vec![take(&mut chain, seed, Event::Nothing).await];
    for event in events {
        all.push(take(&mut chain, seed, *event).await);
    }
    chain.check().await.unwrap();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_is_the_checkpoint_that_its_cursor_pinned() {
    let Some(python) = wt_oracle::python().unwrap() else {
        return;
    };
    let all = chain_of(&python, 1, "snappy", 1.0, &SCRIPT).await;
    let hows: Vec<_> = all.iter().map(|judged| judged.how).collect();
    let count = |how| hows.iter().filter(|found| **found == how).count();
    assert_eq!((count(How::Base), hows[0]), (1, How::Base));
    assert!(count(How::Increment) >= 8, "{hows:?}");
    // Behind what made it so.
    assert_eq!((hows[9], hows[12]), (How::Older, How::Broken), "{hows:?}");
    for judged in &all {
        let (read, asked) = (judged.stats.bytes_read, judged.asked);
        assert!(
            read * 10 <= asked * 11,
            "{read} bytes were read and {asked} changed"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_in_random_histories() {
    let Some(python) = wt_oracle::python().unwrap() else {
        return;
    };
    let mut prng = campaign::prng("wt_increments");
    for _ in 0..campaign::runs(1, 40) {
        let seed = prng.below(1 << 32);
        let compressor = if seed.is_multiple_of(3) { "none" } else { "snappy" };
        let scale = campaign::runs(5, 5 + prng.below(200)) as f64 / 100.0;
        let events: Vec<_> = (0..campaign::runs(6, 14))
            .map(|_| Event::ALL[prng.below(Event::ALL.len() as u64) as usize])
            .collect();
        chain_of(&python, seed, compressor, scale, &events).await;
    }
}

/// The judges would notice: without the granule of a new root page the snapshot is wrong in both their eyes.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_left_out_is_noticed() {
    let Some(python) = wt_oracle::python().unwrap() else {
        return;
    };
    let place = tempdir().unwrap();
    let mut chain = Chain::start(&python, place.path(), 2, "snappy", 0.2)
        .await
        .unwrap();
    take(&mut chain, 2, Event::Nothing).await;
    chain.happens(Event::Update).unwrap();
    let judged = chain
        .take(|named| {
            let metadata = fs::read_to_string(&named["WiredTiger.backup"].path).unwrap();
            let big = listed(&metadata)
                .unwrap()
                .into_iter()
                .find(|table| table.file == "big.wt");
            let root = Address::parse(&big.unwrap().address.unwrap()).unwrap().root;
            let ranges = named.get_mut("big.wt").unwrap().ranges.as_mut().unwrap();
            let before = ranges.len();
            ranges.retain(|range| !range.contains(&root.start));
            assert_eq!(
                ranges.len(),
                before - 1,
                "the root page lies in one granule that is named"
            );
        })
        .await;
    let wrong = judged.unwrap_err().to_string();
    assert!(wrong.contains("big.wt: the sector at "), "{wrong}");
    assert!(wrong.contains("WiredTiger does not open it"), "{wrong}");
}
