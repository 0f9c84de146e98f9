//! Is a restored directory what a backup cursor pinned? Compared with a full copy that was made under the same cursor,
//! in every byte that lives at the checkpoint; what is free there may differ, because a live server writes over it.

use std::{collections::BTreeSet, fs, path::Path};

use super::checkpoint::{Live, SECTOR, listed, live};

/// The metadata that a backup starts with.
pub const METADATA: &str = "WiredTiger.backup";

/// Two directories that are the same where it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Bytes of tables that live at their checkpoint.
    pub live: u64,
    /// Bytes of tables that do not.
    pub free: u64,
    /// Sectors that do not live and differ.
    pub free_differing: u64,
}

/// Compares the files of these names, which have to be all that there are.
///
/// # Errors
/// Everything that is wrong, a line for each.
pub fn compare(restored: &Path, copy: &Path, names: &BTreeSet<String>) -> Result<Compared, Vec<String>> {
    let mut wrong = Vec::new();
    let mut done = Compared::default();
    if let Err(reason) = same_names(restored, names) {
        wrong.push(reason);
    }
    let metadata = match fs::read_to_string(copy.join(METADATA)) {
        Ok(text) => text,
        Err(error) => return Err(vec![format!("{METADATA} of the copy: {error}")]),
    };
    let tables = match listed(&metadata) {
        Ok(tables) => tables,
        Err(reason) => return Err(vec![reason]),
    };
    for name in names {
        let table = tables.iter().find(|table| table.file == *name);
        let (ours, theirs) = match (fs::read(restored.join(name)), fs::read(copy.join(name))) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(error), _) | (_, Err(error)) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let Some(table) = table else {
            // Metadata, logs, and what WiredTiger says about itself.
            if ours != theirs {
                wrong.push(format!("{name} differs"));
            }
            continue;
        };
        let alive = match &table.address {
            Some(address) => live(address, &theirs),
            // Made after the checkpoint, or empty at it: a first sector and nothing.
            None => {
                let header = 0..SECTOR;
                Ok(Live {
                    size: SECTOR,
                    ranges: vec![header],
                })
            }
        };
        match alive.and_then(|alive| same_table(&alive, &ours, &theirs)) {
            Ok(table) => {
                done.live += table.live;
                done.free += table.free;
                done.free_differing += table.free_differing;
            }
            Err(reason) => wrong.push(format!("{name}: {reason}")),
        }
    }
    if wrong.is_empty() { Ok(done) } else { Err(wrong) }
}

fn same_names(restored: &Path, names: &BTreeSet<String>) -> Result<(), String> {
    let entries = fs::read_dir(restored).map_err(|error| error.to_string())?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|error| error.to_string())?;
        found.insert(entry.file_name().to_string_lossy().into_owned());
    }
    match found == *names {
        true => Ok(()),
        false => Err(format!(
            "the files are {:?} instead of {:?}",
            found.difference(names).collect::<Vec<_>>(),
            names.difference(&found).collect::<Vec<_>>()
        )),
    }
}

fn same_table(alive: &Live, ours: &[u8], theirs: &[u8]) -> Result<Compared, String> {
    let shorter = ours.len().min(theirs.len()) as u64;
    if shorter < alive.size {
        return Err(format!("{shorter} bytes are there and {} live", alive.size));
    }
    let mut done = Compared {
        live: alive.bytes(),
        free: ours.len() as u64 - alive.bytes(),
        free_differing: 0,
    };
    let sector = SECTOR as usize;
    let mut ranges = alive.ranges.iter().peekable();
    for (number, (our, their)) in ours.chunks(sector).zip(theirs.chunks(sector)).enumerate() {
        if our == their {
            continue;
        }
        let at = (number * sector) as u64;
        while ranges.next_if(|range| range.end <= at).is_some() {}
        match ranges.peek() {
            Some(range) if range.contains(&at) => {
                return Err(format!("the sector at {at} lives and differs"));
            }
            _ => done.free_differing += 1,
        }
    }
    Ok(done)
}
