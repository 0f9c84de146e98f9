use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const BIG: u64 = 10 << 30;

fn state() -> ReadAhead {
    ReadAhead::new(ReadAheadConfig::for_budget(256 * MIB))
}

/// Feeds reads; returns everything that was to be fetched ahead.
fn feed(state: &mut ReadAhead, reads: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Vec<Range<u64>> {
    reads
        .into_iter()
        .filter_map(|(offset, len)| state.on_read(offset, len, size))
        .collect()
}

/// A cheap generator with a fixed seed.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn a_stream_doubles_its_window_up_to_the_cap_and_leaves_no_gap() {
    let mut state = state();
    let ahead = feed(&mut state, (0..1000).map(|n| (n * 128 * KIB, 128 * KIB)), BIG);
    assert_eq!(ahead[0], 128 * KIB..128 * KIB + MIB);
    for pair in ahead.windows(2) {
        assert_eq!(pair[0].end, pair[1].start);
    }
    let longest = ahead.iter().map(|r| r.end - r.start).max().unwrap();
    assert!(longest > 8 * MIB && longest <= 32 * MIB, "{longest}");
    // Always well ahead of the reader in the end.
    let read = 1000 * 128 * KIB;
    let ahead = ahead.last().unwrap().end;
    assert!(ahead >= read + 16 * MIB && ahead <= read + 32 * MIB);
}

#[test]
fn nothing_is_fetched_beyond_the_end() {
    let mut state = state();
    let size = 5 * MIB + 17;
    let ahead = feed(&mut state, (0..6).map(|n| (n * MIB, MIB)), size);
    assert_eq!(ahead.last().unwrap().end, size);
    assert!(state.on_read(size, 4 * KIB, size).is_none());
    assert!(state.on_read(size + MIB, MIB, size).is_none());
    assert!(state.on_read(u64::MAX - 1, MIB, size).is_none());
}

#[test]
fn the_kernels_disorder_does_not_end_a_stream() {
    // Pairs swapped, and now and then one request late by several: what two event loops make of a sequential reader.
    for len in [128 * KIB, MIB] {
        let mut order: Vec<u64> = (0..400).collect();
        for pair in order.chunks_mut(2).step_by(2) {
            pair.reverse();
        }
        for late in (40..360).step_by(40) {
            let n = order.remove(late);
            order.insert(late + 2, n);
        }
        let mut state = state();
        let ahead = feed(&mut state, order.iter().map(|n| (n * len, len)), BIG);
        for pair in ahead.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "with reads of {len}");
        }
        assert!(ahead.last().unwrap().end >= 400 * len, "with reads of {len}");
    }
}

#[test]
fn a_stream_may_begin_anywhere() {
    let mut state = state();
    let from = 3 << 30;
    let ahead = feed(&mut state, (0..4).map(|n| (from + n * 256 * KIB, 256 * KIB)), BIG);
    assert_eq!(ahead[0].start, from + 512 * KIB);
}

#[test]
fn random_reads_fetch_nothing_ahead() {
    for (len, size) in [
        (4 * KIB, BIG),
        (32 * KIB, BIG),
        (4 * KIB, 64 * MIB),
        (32 * KIB, 64 * MIB),
    ] {
        let (mut state, mut seed) = (state(), 0x9e37_79b9_7f4a_7c15);
        let reads = (0..100_000).map(|_| (random(&mut seed) % (size / len) * len, len));
        let ahead: u64 = feed(&mut state, reads, size)
            .iter()
            .map(|r| r.end - r.start)
            .sum();
        assert_eq!(ahead, 0, "with reads of {len} in {size}");
    }
}

#[test]
fn a_random_read_ends_a_stream_and_its_window_starts_small_again() {
    let mut state = state();
    feed(&mut state, (0..500).map(|n| (n * MIB, MIB)), BIG);
    assert!(state.on_read(5 << 30, 8 * KIB, BIG).is_none());
    let ahead = feed(
        &mut state,
        (0..9).map(|n| ((7 << 30) + n * 128 * KIB, 128 * KIB)),
        BIG,
    );
    assert_eq!(ahead[0].end - ahead[0].start, MIB);
}

#[test]
fn small_sequential_reads_are_a_stream_too() {
    let mut state = state();
    let ahead = feed(&mut state, (0..100).map(|n| (n * 4 * KIB, 4 * KIB)), BIG);
    assert_eq!(ahead[0], 128 * KIB..128 * KIB + MIB);
}

#[test]
fn the_window_fits_the_budget() {
    assert_eq!(ReadAheadConfig::for_budget(16 * MIB).cap, 2 * MIB);
    assert_eq!(ReadAheadConfig::for_budget(0).cap, MIB);
    assert_eq!(ReadAheadConfig::for_budget(u64::MAX).cap, 32 * MIB);
}
