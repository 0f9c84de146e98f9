#![allow(clippy::unwrap_used)]

use super::*;

fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// Bytes of 32 values: five bits each, and hardly a match.
fn text(len: usize) -> Vec<u8> {
    noise(len).iter().map(|byte| b'a' + byte % 32).collect()
}

/// Stores a block, opens it, and gives back what it took.
fn stored(encoder: &mut Encoder, plain: &[u8]) -> BlockInfo {
    let mut packed = Vec::new();
    let info = encoder.append(BlockId::of(plain), plain, &mut packed).unwrap();
    assert_eq!(packed.len() as u64, info.packed_len());
    assert!(open_block(&info, &packed.into()).unwrap() == plain);
    info
}

#[test]
fn noise_is_told_from_what_has_a_code() {
    for len in [512, 4096, 12 << 10, 64 << 10, MAX_BLOCK] {
        assert!(is_noise(&noise(len)), "{len}");
        assert!(!is_noise(&text(len)), "{len}");
        assert!(!is_noise(&vec![0; len]), "{len}");
        // As a page ends, and as one looks that snappy compressed.
        let mut page = noise(len);
        page[len - len / 4..].fill(0);
        assert!(is_noise(&page), "{len}");
        page.iter_mut().step_by(2).for_each(|byte| *byte %= 64);
        assert!(!is_noise(&page), "{len}");
    }
    assert!(!is_noise(&noise(511)));
}

/// Records with noise in one field, at every distance that a sample at even distances would fall for.
#[test]
fn fields_of_records_do_not_pass_for_all() {
    for record in [16, 64, 256, 1024, 4096] {
        for field in (0..record).step_by(8) {
            let mut plain = noise(64 << 10);
            for (at, byte) in plain.iter_mut().enumerate() {
                if at % record / 8 != field / 8 {
                    *byte = b'x';
                }
            }
            assert!(!is_noise(&plain), "{field} of {record}");
        }
    }
}

/// One encoder is used for all blocks, whatever came before.
#[test]
fn blocks_do_not_depend_on_those_before() {
    for level in [1, 3] {
        let page = [noise(12 << 10), vec![0; 4096]].concat();
        let twice = noise(8 << 10).repeat(2);
        let blocks = [
            text(300),
            text(16 << 10),
            noise(16 << 10),
            page,
            twice,
            text(MAX_BLOCK),
        ];
        let alone: Vec<_> = blocks
            .iter()
            .map(|plain| stored(&mut Encoder::new(level).unwrap(), plain))
            .collect();
        let mut encoder = Encoder::new(level).unwrap();
        for _ in 0..3 {
            for (plain, alone) in blocks.iter().zip(&alone) {
                assert_eq!(stored(&mut encoder, plain), *alone);
            }
        }
        let part = |at: usize| f64::from(alone[at].stored_len) / f64::from(alone[at].plain_len);
        assert!(part(1) < 0.65, "a code of five bits: {}", part(1));
        assert_eq!(alone[2].codec, Codec::Raw);
        assert!(part(3) < 0.76, "zeros are a match: {}", part(3));
        assert!(part(4) < 0.51, "matches are found in noise, too: {}", part(4));
    }
}

#[test]
fn small_blocks_compress_as_well_as_large_ones() {
    // Lines that repeat each other for the most part, as the keys of an index do.
    let lines: String = (0..30_000u64)
        .map(|i| {
            format!(
                "customer-{:08x}-2024-{};",
                i.wrapping_mul(0x9e37_79b9) as u32,
                i % 7
            )
        })
        .collect();
    let plain = lines.as_bytes();
    let mut encoder = Encoder::new(1).unwrap();
    let mut all = |len: usize| -> u32 {
        let blocks = plain[..512 << 10].chunks(len);
        blocks.map(|block| stored(&mut encoder, block).stored_len).sum()
    };
    let (small, large) = (all(12 << 10), all(64 << 10));
    assert!(small < large + large / 10, "{small} {large}");
}
