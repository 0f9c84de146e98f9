//! Which bytes of a table live at its checkpoint, read from what a backup starts with: `WiredTiger.backup`, the
//! metadata as text, keys and configurations on alternate lines.
//!
//! A checkpoint's address is a version byte and packed integers: place, length and checksum of four extents (root,
//! allocated, available, discarded; in sectors), the file's size, the checkpoint's size. The available list is a block
//! of packed pairs of place and length. All that is not on it lives; and the four extents themselves do, because they
//! are read at open even where the list has them already.

use std::ops::Range;

/// Allocation size of tables; nothing here sets another one.
pub const SECTOR: u64 = 4096;

/// In front of a block's content: page header and block header.
const HEADERS: usize = 40;

/// First number of every list of extents.
const EXTENTS_MAGIC: u64 = 71_002;

/// A file of the metadata, and the address of its last checkpoint if that has any blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `collection.wt`.
    pub file: String,
    /// The address.
    pub address: Option<Vec<u8>>,
}

/// All files of a `WiredTiger.backup`.
///
/// # Errors
/// What is not as it has to be.
pub fn listed(backup: &str) -> Result<Vec<Listed>, String> {
    let mut lines = backup.lines();
    let mut found = Vec::new();
    while let (Some(key), Some(config)) = (lines.next(), lines.next()) {
        let Some(file) = key.strip_prefix("file:") else {
            continue;
        };
        match value(config, "allocation_size") {
            Some("4KB") => {}
            other => return Err(format!("{file} has an allocation size of {other:?}")),
        }
        let mut last: Option<(u64, &str)> = None;
        for (_, checkpoint) in entries(value(config, "checkpoint").unwrap_or_default()) {
            let order = value(checkpoint, "order").and_then(|order| order.parse().ok());
            let order = order.ok_or_else(|| format!("a checkpoint of {file} has no order"))?;
            let address = value(checkpoint, "addr").unwrap_or_default();
            if last.is_none_or(|(before, _)| order > before) {
                last = Some((order, address));
            }
        }
        let address = match last {
            None | Some((_, "")) => None,
            Some((_, hex)) => Some(unhex(hex).ok_or_else(|| format!("{file} has the address {hex}"))?),
        };
        found.push(Listed {
            file: file.into(),
            address,
        });
    }
    Ok(found)
}

/// The entries of a configuration: `key=value,key=(…),key="…"`. Parentheses and quotes around values are taken off.
fn entries(config: &str) -> Vec<(&str, &str)> {
    let inner = config
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .unwrap_or(config);
    let (mut depth, mut quoted, mut begin) = (0, false, 0);
    let mut found = Vec::new();
    for (at, byte) in inner.bytes().chain([b',']).enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'(' | b'[' if !quoted => depth += 1,
            b')' | b']' if !quoted => depth -= 1,
            b',' if !quoted && depth == 0 => {
                let (key, value) = inner[begin..at]
                    .split_once('=')
                    .unwrap_or((&inner[begin..at], ""));
                if !key.is_empty() {
                    found.push((key, value.trim_matches('"')));
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn value<'a>(config: &'a str, key: &str) -> Option<&'a str> {
    entries(config)
        .into_iter()
        .find(|(found, _)| *found == key)
        .map(|(_, value)| value)
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// WiredTiger's packed integers: lengths of 1 and 2 bytes for small ones, else a marker with the number of bytes.
struct Packed<'a>(&'a [u8]);

impl Packed<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        const TWO: u64 = 1 << 6;
        const MANY: u64 = TWO + (1 << 13);
        let first = self.byte()?;
        match first >> 5 {
            0b100 | 0b101 => Some(u64::from(first & 0x3f)),
            0b110 => Some((u64::from(first & 0x1f) << 8) + u64::from(self.byte()?) + TWO),
            0b111 => {
                let mut number: u64 = 0;
                for _ in 0..first & 0x0f {
                    number = number << 8 | u64::from(self.byte()?);
                }
                number.checked_add(MANY)
            }
            _ => None,
        }
    }
}

/// What lives in a file at a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The file's size at the checkpoint.
    pub size: u64,
    /// Sorted, and none touches another.
    pub ranges: Vec<Range<u64>>,
}

impl Live {
    /// Bytes that live.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// A checkpoint's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The root page.
    pub root: Range<u64>,
    /// The lists of what is allocated, available and discarded. What is not there is empty.
    pub lists: [Range<u64>; 3],
    /// The file's size.
    pub size: u64,
}

impl Address {
    /// Reads it.
    ///
    /// # Errors
    /// What is not as it has to be.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut packed = Packed(bytes);
        if packed.byte() != Some(1) {
            return Err(format!("an address of another version: {bytes:x?}"));
        }
        let early = || format!("an address that ends early: {bytes:x?}");
        let mut extents = [const { 0..0 }; 4];
        for extent in &mut extents {
            let (place, length) = packed.number().zip(packed.number()).ok_or_else(early)?;
            let _checksum = packed.number().ok_or_else(early)?;
            if length > 0 {
                let begin = (place + 1) * SECTOR;
                *extent = begin..begin + length * SECTOR;
            }
        }
        let [root, lists @ ..] = extents;
        let size = packed.number().ok_or_else(early)?;
        Ok(Self { root, lists, size })
    }
}

/// Reads a checkpoint out of a copy of its file. The first sector, which says what kind of file it is, lives too.
///
/// # Errors
/// What is not as it has to be.
pub fn live(address: &[u8], file: &[u8]) -> Result<Live, String> {
    let Address { root, lists, size } = Address::parse(address)?;
    let mut free = match &lists[1] {
        list if list.is_empty() => Vec::new(),
        list => extent_list(list, file)?,
    };
    free.sort_by_key(|range| range.start);
    // From gap to gap, and the protected extents beside them.
    let header = 0..SECTOR;
    let mut at = header.end;
    let mut ranges = vec![header];
    for gap in &free {
        if gap.start < at || gap.end > size {
            return Err(format!("{gap:?} is free in a file of {size} bytes"));
        }
        ranges.push(at..gap.start);
        at = gap.end;
    }
    ranges.push(at..size);
    ranges.push(root);
    ranges.extend(lists);
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    Ok(Live { size, ranges: merged })
}

fn extent_list(place: &Range<u64>, file: &[u8]) -> Result<Vec<Range<u64>>, String> {
    let block = file
        .get(place.start as usize..place.end as usize)
        .ok_or_else(|| format!("the list of what is free, at {place:?}, lies behind the end of the file"))?;
    let mut packed = Packed(&block[HEADERS..]);
    let mut pair = || {
        let pair = packed.number().zip(packed.number());
        pair.ok_or_else(|| format!("the list of what is free, at {place:?}, does not parse"))
    };
    let first = pair()?;
    if first != (EXTENTS_MAGIC, 0) {
        return Err(format!(
            "the list of what is free, at {place:?}, begins with {first:?}"
        ));
    }
    let mut found = Vec::new();
    loop {
        match pair()? {
            (0, _) => return Ok(found),
            (begin, length) => found.push(begin..begin + length),
        }
    }
}

#[cfg(test)]
mod tests;
