//! What `WiredTiger.backup` says of the files of a backup: which they are, and what of them is free at their checkpoint.

use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path};

/// WiredTiger's allocation size, which MongoDB leaves at its default.
pub(super) const SECTOR: u64 = 4096;

/// Page header and block header.
const HEADERS: usize = 40;
/// What the list of free extents begins with.
const EXTENTS_MAGIC: u64 = 71_002;

/// The checkpoint of one file. Absent where the file is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    root: Range<u64>,
    alloc: Range<u64>,
    avail: Range<u64>,
    discard: Range<u64>,
    size: u64,
}

/// The tables in `WiredTiger.backup` (`collection-0-1.wt`, …) with their newest checkpoints. `WiredTiger.wt` is not among
/// them: it is made anew from this file when a copy is opened.
pub(super) fn tables(metadata: &str) -> BTreeMap<String, Option<Checkpoint>> {
    let lines: Vec<_> = metadata.lines().collect();
    let (pairs, _) = lines.as_chunks::<2>();
    pairs
        .iter()
        .filter_map(|[key, value]| Some((key.strip_prefix("file:")?.to_owned(), newest(value))))
        .filter(|(name, _)| name != "WiredTiger.wt")
        .collect()
}

/// The cookie of the last checkpoint in a file's metadata.
fn newest(value: &str) -> Option<Checkpoint> {
    let checkpoints = &value[value.find(",checkpoint=(")?..];
    let address = checkpoints.split("(addr=\"").nth(1)?.split('"').next()?;
    // A second one would have blocks of its own, and the list of the last says nothing of them.
    if checkpoints.matches("(addr=\"").count() != 1 || address.is_empty() {
        return None;
    }
    let bytes: Vec<u8> = (0..address.len() / 2)
        .map(|at| u8::from_str_radix(address.get(2 * at..2 * at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    cookie(&bytes)
}

fn cookie(bytes: &[u8]) -> Option<Checkpoint> {
    let (version, mut rest) = bytes.split_first()?;
    if *version != 1 {
        return None;
    }
    let mut extent = || {
        let (offset, size, _checksum) = (packed(&mut rest)?, packed(&mut rest)?, packed(&mut rest)?);
        Some(match size {
            0 => 0..0,
            _ => (offset + 1) * SECTOR..(offset + 1 + size) * SECTOR,
        })
    };
    let (root, alloc, avail, discard) = (extent()?, extent()?, extent()?, extent()?);
    Some(Checkpoint {
        root,
        alloc,
        avail,
        discard,
        size: packed(&mut rest)?,
    })
}

/// One of WiredTiger's packed unsigned numbers, taken off the front.
fn packed(bytes: &mut &[u8]) -> Option<u64> {
    let (marker, rest) = bytes.split_first()?;
    let (value, length) = match marker {
        0x80..=0xbf => (u64::from(marker & 0x3f), 0),
        0xc0..=0xdf => (u64::from(marker & 0x1f) << 8 | u64::from(*rest.first()?), 1),
        0xe0..=0xef => {
            let length = usize::from(marker & 0xf);
            let digits = rest.get(..length).filter(|digits| digits.len() <= 8)?;
            (
                digits.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
                length,
            )
        }
        _ => return None,
    };
    *bytes = rest.get(length..)?;
    value.checked_add(match marker {
        0x80..=0xbf => 0,
        0xc0..=0xdf => 64,
        _ => 64 + (1 << 13),
    })
}

/// The extents of a file that no block of its checkpoint lives in, in order, clipped to the file. Empty where there is
/// any doubt.
pub(super) fn free_extents(path: &Path, checkpoint: &Checkpoint) -> io::Result<Vec<Range<u64>>> {
    let avail = &checkpoint.avail;
    if avail.is_empty() {
        return Ok(Vec::new());
    }
    let file = File::open(path)?;
    let length = file.metadata()?.len().min(checkpoint.size);
    let Ok(size) = usize::try_from(avail.end - avail.start) else {
        return Ok(Vec::new());
    };
    let mut block = vec![0; size];
    file.read_exact_at(&mut block, avail.start)?;
    let Some(mut extents) = extents(&block) else {
        return Ok(Vec::new());
    };
    // The lists of a checkpoint may stand on its own list of free extents, and are read when the file is opened.
    let kept = [&checkpoint.root, &checkpoint.alloc, avail, &checkpoint.discard];
    extents.retain(|extent| {
        extent.start.is_multiple_of(SECTOR) && extent.end.is_multiple_of(SECTOR) && extent.start >= SECTOR
    });
    let mut free: Vec<_> = extents
        .into_iter()
        .flat_map(|extent| without(extent, &kept))
        .collect();
    free.iter_mut()
        .for_each(|extent| extent.end = extent.end.min(length));
    free.retain(|extent| extent.start < extent.end);
    free.sort_by_key(|extent| extent.start);
    Ok(free)
}

fn extents(block: &[u8]) -> Option<Vec<Range<u64>>> {
    let mut rest = block.get(HEADERS..)?;
    if packed(&mut rest)? != EXTENTS_MAGIC || packed(&mut rest)? != 0 {
        return None;
    }
    let mut found = Vec::new();
    loop {
        let (offset, size) = (packed(&mut rest)?, packed(&mut rest)?);
        if offset == 0 {
            return Some(found);
        }
        found.push(offset..offset.checked_add(size)?);
    }
}

fn without(extent: Range<u64>, kept: &[&Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = vec![extent];
    for hole in kept.iter().filter(|hole| !hole.is_empty()) {
        parts = parts
            .into_iter()
            .flat_map(|part| {
                [
                    part.start..part.end.min(hole.start),
                    part.start.max(hole.end)..part.end,
                ]
            })
            .filter(|part| part.start < part.end)
            .collect();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{Checkpoint, SECTOR, cookie, extents, packed, tables, without};

    #[test]
    fn packed_numbers_are_read_as_wiredtiger_writes_them() {
        let read = |mut bytes: &[u8]| (packed(&mut bytes), bytes.len());
        assert_eq!(read(&[0x80]), (Some(0), 0));
        assert_eq!(read(&[0xbf, 1]), (Some(63), 1));
        assert_eq!(read(&[0xc0, 0]), (Some(64), 0));
        assert_eq!(read(&[0xdf, 0xff]), (Some(8255), 0));
        assert_eq!(read(&[0xe1, 0]), (Some(8256), 0));
        assert_eq!(read(&[0xe2, 0xf5, 0x1a]), (Some(71_002), 0));
        assert_eq!(read(&[0xe2, 0xf5]).0, None);
        assert_eq!(read(&[0x10]).0, None);
    }

    #[test]
    fn a_cookie_names_four_extents() {
        // Root at sector 2, no alloc, avail at sector 5, no discard, 64 sectors of 4096.
        let bytes = [
            1, 0x81, 0x81, 0x84, 0x80, 0x80, 0x80, 0x84, 0x82, 0x85, 0x80, 0x80, 0x80, 0xe3, 0x03, 0xdf,
            0xc0, 0x80,
        ];
        let found = cookie(&bytes).unwrap();
        assert_eq!(
            found,
            Checkpoint {
                root: 2 * SECTOR..3 * SECTOR,
                alloc: 0..0,
                avail: 5 * SECTOR..7 * SECTOR,
                discard: 0..0,
                size: 262_144,
            }
        );
        assert_eq!(cookie(&bytes[..4]), None);
    }

    #[test]
    fn metadata_is_pairs_of_lines() {
        let text = "WiredTiger version\nmajor=10\nfile:a.wt\n,checkpoint=(C.1=(addr=\"\",order=1))\n\
                    file:WiredTiger.wt\nx\nfile:b/c.wt\nno checkpoint here\n";
        let found = tables(text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a.wt", "b/c.wt"]);
        assert!(found.values().all(Option::is_none));
    }

    #[test]
    fn a_list_of_extents_ends_at_zero() {
        let mut block = vec![0; 40];
        block.extend([0xe2, 0xf5, 0x1a, 0x80]);
        block.extend([0xe2, 0xff, 0xc0, 0xe2, 0x0f, 0xc0, 0x80, 0x80, 7]);
        let start = 0xffc0 + 8256;
        let found = extents(&block).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0], start..start + 0x0fc0 + 8256);
        block[43] = 0x81;
        assert_eq!(extents(&block), None);
    }

    #[test]
    fn what_is_kept_is_cut_out() {
        assert_eq!(
            without(10..20, &[&(12..14), &(19..30), &(0..0)]),
            [10..12, 14..19]
        );
        assert_eq!(without(10..20, &[&(0..30)]), []);
    }
}
