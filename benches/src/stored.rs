//! What the objects of a repository are made of, byte by byte.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use pbmfs_repo::pack::{
    BLOCK_HEADER_LEN, FOOTER_LEN, PackKind, TRAILER_FIXED_LEN, TRAILER_SLOT_LEN, Trailer, decode_footer,
};

use crate::Result;
use crate::system::files_of;

/// Bytes of some packs of one kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackBytes {
    /// Packs.
    pub packs: u64,
    /// Blocks.
    pub blocks: u64,
    /// Their plain bytes.
    pub plain: u64,
    /// Their stored bytes.
    pub payload: u64,
    /// Their headers in front of them.
    pub headers: u64,
    /// Their slots in trailers.
    pub slots: u64,
    /// What each pack has besides: envelope, head of the trailer, footer.
    pub frames: u64,
}

impl PackBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.payload + self.headers + self.slots + self.frames
    }
}

/// Bytes that were added to a repository.
#[derive(Debug, Clone, Copy, Default)]
pub struct Added {
    /// Packs of blocks of files.
    pub data: PackBytes,
    /// Packs of map nodes, file lists and pack tables.
    pub maps: PackBytes,
    /// `snapshot.json` and whatever else is no pack.
    pub other: u64,
}

impl Added {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.data.total() + self.maps.total() + self.other
    }
}

/// Watches the directory of a repository.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    seen: HashSet<PathBuf>,
}

impl Watch {
    /// Nothing of it was seen yet.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.into(),
            seen: HashSet::new(),
        }
    }

    /// What is new since the last time.
    ///
    /// # Errors
    /// The files'; a pack that is damaged.
    pub fn added(&mut self) -> Result<Added> {
        let mut added = Added::default();
        for file in files_of(&self.root)? {
            if !self.seen.insert(file.clone()) {
                continue;
            }
            if file.strip_prefix(&self.root)?.starts_with("packs") {
                added.pack(&fs::read(&file)?)?;
            } else {
                added.other += file.metadata()?.len();
            }
        }
        Ok(added)
    }
}

impl Added {
    fn pack(&mut self, object: &[u8]) -> Result<()> {
        let footer = object.len().saturating_sub(FOOTER_LEN);
        let len = decode_footer(&object[footer..])? as usize;
        let trailer = Trailer::decode(&object[footer.saturating_sub(len)..footer])?;
        let count = trailer.slots().len() as u64;
        let payload = trailer
            .slots()
            .iter()
            .map(|s| u64::from(s.stored_len))
            .sum::<u64>();
        let sum = match trailer.kind {
            PackKind::Data => &mut self.data,
            PackKind::Map => &mut self.maps,
        };
        sum.packs += 1;
        sum.blocks += count;
        sum.plain += trailer
            .slots()
            .iter()
            .map(|s| u64::from(s.plain_len))
            .sum::<u64>();
        sum.payload += payload;
        sum.headers += count * BLOCK_HEADER_LEN as u64;
        sum.slots += count * TRAILER_SLOT_LEN as u64;
        let first = u64::from(trailer.first_block);
        sum.frames += first + (TRAILER_FIXED_LEN + FOOTER_LEN) as u64;
        debug_assert_eq!(
            object.len() as u64,
            first
                + payload
                + count * (BLOCK_HEADER_LEN + TRAILER_SLOT_LEN) as u64
                + (TRAILER_FIXED_LEN + FOOTER_LEN) as u64
        );
        Ok(())
    }
}
