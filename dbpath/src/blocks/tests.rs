use proptest::prelude::*;

use super::*;

/// A disk block of this size, with a right checksum over all of it or over its beginning.
fn block(size: usize, whole: bool, seed: u8) -> Vec<u8> {
    let mut out: Vec<u8> = (0..size).map(|i| (i / 7) as u8 ^ seed).collect();
    out[..HEADER].fill(0);
    out[0] = seed;
    out[PAGE_TYPE] = 7;
    out[DISK_SIZE..DISK_SIZE + 4].copy_from_slice(&(size as u32).to_le_bytes());
    out[BLOCK_FLAGS] = u8::from(whole);
    let covered = if whole { size } else { PREFIX };
    let sum = crc_fast::crc32_iscsi(&out[..covered]);
    out[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    out
}

fn junk(sectors: usize, seed: u8) -> Vec<u8> {
    (0..sectors * SECTOR).map(|i| (i / 3) as u8 ^ seed).collect()
}

/// Cuts a file that is shown in steps, as a reader does it.
fn cut(file: &[u8], steps: &mut dyn FnMut() -> usize) -> Vec<u32> {
    let mut cutter = TableCutter::default();
    let (mut from, mut to, mut pieces) = (0, 0, Vec::new());
    while from < file.len() {
        to = (to + steps().max(1)).min(file.len());
        let window = &file[from..to];
        let more = cutter.cut(from as u64, window, to == file.len());
        let covered: usize = more.iter().map(|piece| *piece as usize).sum();
        assert!(more.iter().all(|piece| (1..=MAX_PIECE as u32).contains(piece)));
        assert!(covered > 0 || window.len() < MAX_PIECE, "{}", window.len());
        assert!(covered <= window.len() && (to < file.len() || covered == window.len()));
        from += covered;
        pieces.extend(more);
    }
    pieces
}

fn at_once(file: &[u8]) -> Vec<u32> {
    cut(file, &mut || file.len())
}

#[test]
fn a_block_is_what_its_checksum_says() {
    for whole in [true, false] {
        let block = block(3 * SECTOR, whole, 9);
        assert_eq!(block_at(&block), Found::Block(block.len()));
        assert_eq!(block_at(&block[..block.len() - 1]), Found::Cut(block.len()));
        assert_eq!(block_at(&block[..HEADER]), Found::Cut(block.len()));
        assert_eq!(block_at(&block[..HEADER - 1]), Found::Nothing);
        for at in 0..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 4;
            let found = block_at(&bad);
            if whole || at < PREFIX {
                assert!(!matches!(found, Found::Block(_)), "{at}: {found:?}");
            } else {
                assert_eq!(found, Found::Block(block.len()));
            }
        }
    }
}

#[test]
fn pieces_are_blocks_and_what_lies_between() {
    let file = [
        junk(1, 1),
        block(SECTOR, true, 2),
        block(7 * SECTOR, false, 3),
        // From sector 9 to 43, over the grid's lines at 16 and 32.
        junk(34, 4),
        block(2 * SECTOR, true, 5),
        junk(1, 6),
    ]
    .concat();
    let sectors: Vec<u32> = at_once(&file).iter().map(|len| len / SECTOR as u32).collect();
    assert_eq!(sectors, [1, 1, 7, 7, 16, 11, 2, 1]);
}

#[test]
fn large_blocks_are_split() {
    let kib = |file: &[u8]| at_once(file).iter().map(|len| len >> 10).collect::<Vec<_>>();
    let around = |block: Vec<u8>| [junk(1, 1), block, junk(1, 2)].concat();
    assert_eq!(kib(&around(block(960 << 10, true, 1))), [4, 960, 4]);
    assert_eq!(kib(&around(block(1100 << 10, true, 1))), [4, 1024, 76, 4]);
    assert_eq!(kib(&around(block(3 << 20, false, 1))), [4, 1024, 1024, 1024, 4]);
    // A header that promises more than there is.
    let mut short = around(block(3 << 20, false, 1));
    short.truncate(2 << 20);
    assert_eq!(kib(&short), [4, 1024, 1020]);
}

/// What is left of a large block when its place is used again still says how long it was.
#[test]
fn the_remains_of_a_large_block_hide_nothing() {
    let kib = |file: &[u8]| at_once(file).iter().map(|len| len >> 10).collect::<Vec<_>>();
    let mut file = block(4 << 20, true, 1);
    let put = |file: &mut [u8], at: usize, block: Vec<u8>| file[at..at + block.len()].copy_from_slice(&block);
    // One that is damaged: a piece begins there all the same, and goes on to the next.
    let mut bad = block(8 << 10, true, 2);
    bad[5000] ^= 1;
    put(&mut file, 24 << 10, bad);
    put(&mut file, 64 << 10, block(12 << 10, true, 3));
    // From here on nothing is left of the large one, and what is in no block is cut as ever.
    put(&mut file, 76 << 10, block(960 << 10, true, 4));
    put(&mut file, 2 << 20, block(1100 << 10, true, 5));
    let expected = [&[24, 40, 12, 960, 52], &[64; 15][..], &[1024, 76, 52], &[64; 14]].concat();
    assert_eq!(kib(&file), expected);
    // A large one in a large one.
    put(&mut file, 64 << 10, block(1100 << 10, true, 6));
    let expected = [&[24, 40, 1024, 76, 52], &[64; 13][..], &[1024, 76, 52], &[64; 14]].concat();
    assert_eq!(kib(&file), expected);
}

/// A bit of a length makes a block a large one that was never written.
#[test]
fn wrong_lengths_cost_one_block() {
    let blocks: Vec<_> = (0..600)
        .map(|i| block((1 + i % 5) * SECTOR, true, i as u8))
        .collect();
    let sound = at_once(&blocks.concat());
    let mut begin = 0;
    for (hit, len) in sound.iter().enumerate().take(5) {
        for bit in 12..32 {
            let mut file = blocks.concat();
            file[begin + DISK_SIZE + bit / 8] ^= 1 << (bit % 8);
            let cuts = at_once(&file);
            let mut ends: Vec<u32> = Vec::new();
            let mut at = 0;
            for piece in &cuts {
                at += piece;
                ends.push(at);
            }
            // All other blocks are found where they are.
            let mut at = 0;
            for (other, len) in sound.iter().enumerate() {
                at += len;
                let inside = other == hit && !ends.contains(&at);
                assert!(
                    inside || ends.contains(&at),
                    "{hit} {bit}: {other} of {len} {cuts:?}"
                );
            }
        }
        begin += *len as usize;
    }
}

#[test]
fn impossible_lengths_are_not_believed() {
    for size in [
        0,
        1,
        100,
        4095,
        4097,
        (32 << 20) + 4096,
        1 << 31,
        u32::MAX,
        u32::MAX - 4095,
    ] {
        let mut file = block(SECTOR, true, 1);
        file[DISK_SIZE..DISK_SIZE + 4].copy_from_slice(&size.to_le_bytes());
        assert_eq!(block_at(&file), Found::Nothing, "{size}");
        let next = block(3 * SECTOR, true, 2);
        assert_eq!(
            at_once(&[file, next].concat()),
            [SECTOR as u32, 3 * SECTOR as u32]
        );
    }
}

/// Damage costs the block that it hits, and no other.
#[test]
fn a_flipped_bit_moves_no_other_cut() {
    let blocks: Vec<_> = (0..20)
        .map(|i| block((1 + i % 5) * SECTOR, true, i as u8))
        .collect();
    let mut file = blocks.concat();
    let sound: Vec<u32> = at_once(&file);
    assert_eq!(sound, blocks.iter().map(|b| b.len() as u32).collect::<Vec<_>>());
    // In the third block, of three sectors, which begins at sector 3.
    file[4 * SECTOR + 5] ^= 1;
    assert_eq!(at_once(&file), sound);
    // In one that crosses the grid's line at sector 16: it is cut there, too.
    let mut at = 0;
    let crossing = sound.iter().position(|len| {
        let crosses = at / GRID != (at + u64::from(*len) - 1) / GRID;
        at += u64::from(*len);
        crosses
    });
    let crossing = crossing.unwrap();
    let begin: u32 = sound[..crossing].iter().sum();
    file[begin as usize + 100] ^= 1;
    let cuts = at_once(&file);
    assert_eq!(cuts[..crossing], sound[..crossing]);
    assert_eq!(cuts[crossing] + cuts[crossing + 1], sound[crossing]);
    assert_eq!(cuts[crossing + 2..], sound[crossing + 1..]);
}

#[derive(Debug, Clone)]
enum Part {
    Block(usize, bool, u8),
    Junk(usize, u8),
    /// A block whose end is missing: its header promises what is not there.
    Torn(usize, u8),
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        6 => (1..20usize, any::<bool>(), any::<u8>()).prop_map(|(n, whole, seed)| Part::Block(n, whole, seed)),
        1 => (200..600usize, any::<bool>(), any::<u8>()).prop_map(|(n, whole, seed)| Part::Block(n, whole, seed)),
        3 => (1..40usize, any::<u8>()).prop_map(|(n, seed)| Part::Junk(n, seed)),
        2 => (2..300usize, any::<u8>()).prop_map(|(n, seed)| Part::Torn(n, seed)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The cuts do not depend on how the file is shown, and they fall where blocks begin and end.
    #[test]
    fn cuts_depend_on_the_file_alone(
        parts in proptest::collection::vec(part(), 1..12),
        steps in proptest::collection::vec(1..2_000_000usize, 1..8),
        tail in 0..SECTOR,
    ) {
        let mut file = junk(1, 0);
        let mut blocks = Vec::new();
        for part in &parts {
            match part {
                Part::Block(n, whole, seed) => {
                    let block = block(n * SECTOR, *whole, *seed);
                    blocks.push((file.len(), block.len()));
                    file.extend(block);
                }
                Part::Junk(n, seed) => file.extend(junk(*n, *seed)),
                Part::Torn(n, seed) => file.extend(&block(n * SECTOR, true, *seed)[..n / 2 * SECTOR]),
            }
        }
        file.extend(vec![3; tail]);
        let whole = at_once(&file);
        let mut next = steps.iter().cycle();
        prop_assert_eq!(&cut(&file, &mut || *next.next().unwrap()), &whole);
        let mut ends = std::collections::HashSet::from([0]);
        let mut at = 0;
        for piece in &whole {
            at += *piece as usize;
            ends.insert(at);
        }
        prop_assert_eq!(at, file.len());
        for (begin, len) in blocks {
            prop_assert!(ends.contains(&begin) && ends.contains(&(begin + len)), "{} + {}", begin, len);
        }
    }

    #[test]
    fn anything_at_all_is_covered(file in proptest::collection::vec(any::<u8>(), 0..20_000), step in 1..9_000usize) {
        prop_assert_eq!(cut(&file, &mut || step), at_once(&file));
    }
}
