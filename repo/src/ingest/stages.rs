//! The threads of a pipeline: one that reads and cuts, several that hash and compress, and the packer, which puts
//! their results in order again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::runtime::Handle;

use crate::error::{RepoError, Result};
use crate::files::{FileEntry, FileMeta};
use crate::id::{BlockId, PackNo};
use crate::index::{Found, KnownBlocks};
use crate::ingest::budget::{Permit, Poison};
use crate::ingest::packer::Packer;
use crate::ingest::parent::{Parent, ParentSegment};
use crate::ingest::read::ReadStage;
use crate::ingest::{Cutter, Ingested, Job};
use crate::map::PlacedExtent;
use crate::pack::{BlockInfo, Encoder, MAX_BLOCK};

/// Part of a file on its way to the workers.
pub(super) struct Segment {
    pub seq: u64,
    pub offset: u64,
    /// Cut at `cuts`; what lies behind the last cut belongs to the next segment.
    pub buf: Vec<u8>,
    pub cuts: Vec<u32>,
    /// What the parent has here, if it was cut where the parent's blocks begin and end: what turns out to differ is to
    /// be cut once more, by the file's own cutter.
    pub parent: Option<(Arc<FileMeta>, ParentSegment)>,
    pub permit: Permit,
}

/// What a worker found out about one block.
pub(crate) enum Item {
    /// Zeros.
    Hole { len: u32, same: bool },
    /// The parent has it at the same place.
    Same { len: u32, pack: PackNo, slot: u32 },
    /// Another snapshot has it, or this file elsewhere.
    Known { len: u32, found: Found },
    /// Compressed; `packed` is where in [`Done::packed`].
    New {
        info: BlockInfo,
        packed: std::ops::Range<usize>,
    },
}

/// A segment after the workers.
pub(crate) struct Done {
    pub items: Vec<Item>,
    pub packed: Vec<u8>,
    _permit: Permit,
}

/// What the packer gets, by sequence number.
pub(super) enum Message {
    Begin(FileMeta, Option<Box<FileEntry>>),
    /// So many bytes are as the parent has them, and were not read. If its maps cannot be inherited, these are its
    /// extents there.
    Keep(u64, Vec<PlacedExtent>),
    Segment(Done),
    End,
}

/// Buffers that go round. What was in them stays, so that nobody has to zero what is overwritten at once.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    pub fn take(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give(&self, buf: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buf);
    }
}

/// Runs a pipeline to its end. Blocks; `handle` carries out storage calls.
pub(crate) fn run(job: Job, mut packer: Packer, handle: &Handle) -> Result<Ingested> {
    let poison = Poison::with_budget(packer.segment_budget());
    let (to_workers, from_reader) = bounded::<Segment>(job.options.threads * 2);
    let (to_packer, results) = unbounded::<(u64, Message)>();
    let parent = job.parent.clone().map(|reader| Parent {
        reader,
        allowed: packer.allowed().clone(),
        forbidden: packer.forbidden().clone(),
        inherit_maps: packer.inherits_maps(),
    });
    let (segments, packed) = (Pool::default(), Pool::default());
    let threads = job.options.threads.max(1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (from, to) = (from_reader.clone(), to_packer.clone());
            let poison = poison.clone();
            let (segments, packed) = (segments.clone(), packed.clone());
            let job = &job;
            scope.spawn(move || {
                let _dart = poison.dart();
                if let Err(e) = work(&from, &to, job, &segments, &packed) {
                    poison.fail(e);
                }
                // Nobody may wait for a segment that this worker will not take.
                if poison.is_stopped() {
                    from.iter().for_each(drop);
                }
            });
        }
        drop(from_reader);
        let reader = ReadStage {
            job: &job,
            parent,
            poison: poison.clone(),
            handle,
            segments,
            to_workers,
            to_packer,
            seq: 0,
        };
        let reading = poison.clone();
        scope.spawn(move || {
            let _dart = reading.dart();
            if let Err(e) = reader.read_all() {
                reading.fail(e);
            }
        });
        let packed_all = pack_all(&results, &mut packer, &poison, &packed, handle);
        if let Err(e) = packed_all {
            poison.fail(e);
        }
        // Unblocks everybody who still has something to hand over.
        drop(results);
    });
    if let Some(e) = poison.take_error() {
        handle.block_on(packer.abort());
        return Err(e);
    }
    handle.block_on(packer.finish())
}

fn pack_all(
    results: &Receiver<(u64, Message)>,
    packer: &mut Packer,
    poison: &Arc<Poison>,
    pool: &Pool,
    handle: &Handle,
) -> Result<()> {
    let _dart = poison.dart();
    let mut waiting = BTreeMap::new();
    let mut next = 0u64;
    for (seq, message) in results {
        if poison.is_stopped() {
            return Ok(());
        }
        waiting.insert(seq, message);
        while let Some(message) = waiting.remove(&next) {
            next += 1;
            match message {
                Message::Begin(meta, parent) => packer.begin_file(meta, parent.map(|p| *p)),
                Message::Keep(len, extents) => packer.keep(len, &extents)?,
                Message::Segment(mut done) => {
                    handle.block_on(packer.segment(&done))?;
                    pool.give(std::mem::take(&mut done.packed));
                }
                Message::End => handle.block_on(packer.end_file())?,
            }
        }
    }
    if waiting.is_empty() || poison.is_stopped() {
        return Ok(());
    }
    Err(RepoError::Poisoned("a segment was lost in the pipeline".into()))
}

fn work(
    from: &Receiver<Segment>,
    to: &Sender<(u64, Message)>,
    job: &Job,
    segments: &Pool,
    packed: &Pool,
) -> Result<()> {
    let encoder = Encoder::new(job.options.level).map_err(|e| RepoError::Poisoned(format!("zstd: {e}")))?;
    let mut examiner = Examiner {
        known: &*job.known,
        encoder,
        items: Vec::new(),
        packed: Vec::new(),
    };
    for segment in from {
        examiner.packed = packed.take();
        examiner.packed.clear();
        examiner.items = Vec::with_capacity(segment.cuts.len());
        match &segment.parent {
            None => examiner.all(&segment.buf, segment.offset, &segment.cuts, None)?,
            Some((file, parent)) => {
                let cutter = || job.input.cutter(file);
                examiner.differing(&segment.buf, segment.offset, &segment.cuts, parent, cutter)?;
            }
        }
        segments.give(segment.buf);
        let done = Done {
            items: std::mem::take(&mut examiner.items),
            packed: std::mem::take(&mut examiner.packed),
            _permit: segment.permit,
        };
        if to.send((segment.seq, Message::Segment(done))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Finds out about blocks, one segment after the other.
struct Examiner<'a> {
    known: &'a dyn KnownBlocks,
    encoder: Encoder,
    items: Vec<Item>,
    packed: Vec<u8>,
}

impl Examiner<'_> {
    /// Blocks of `lens`, which begin with the first byte of `buf`, at `offset` in the file.
    fn all(&mut self, buf: &[u8], offset: u64, lens: &[u32], parent: Option<&ParentSegment>) -> Result<()> {
        let mut at = 0usize;
        for &len in lens {
            let plain = &buf[at..at + len as usize];
            self.one(plain, offset + at as u64, parent)?;
            at += len as usize;
        }
        Ok(())
    }

    /// Bytes that are cut where the parent's blocks begin and end. What is not the same there is put together and cut
    /// anew: a block that was written since then begins and ends elsewhere.
    fn differing(
        &mut self,
        buf: &[u8],
        offset: u64,
        lens: &[u32],
        parent: &ParentSegment,
        cutter: impl Fn() -> Box<dyn Cutter>,
    ) -> Result<()> {
        let mut at = 0usize;
        let mut changed = 0..0;
        let recut = |this: &mut Self, changed: &Range<usize>| {
            if changed.is_empty() {
                return Ok(());
            }
            let (part, begin) = (&buf[changed.clone()], offset + changed.start as u64);
            let lens = cutter().cut(begin, part, true);
            if !is_sound_cut(&lens, part.len(), true) {
                return Err(RepoError::Poisoned(format!("impossible blocks at byte {begin}")));
            }
            this.all(part, begin, &lens, Some(parent))
        };
        for &len in lens {
            let end = at + len as usize;
            let block = parent.block_at(offset + at as u64, len);
            match block.filter(|b| b.id == BlockId::of(&buf[at..end])) {
                Some(block) => {
                    recut(self, &changed)?;
                    changed = end..end;
                    if block.allowed {
                        let (pack, slot) = (block.pack, block.slot);
                        self.items.push(Item::Same { len, pack, slot });
                    } else {
                        self.one(&buf[at..end], offset + at as u64, Some(parent))?;
                    }
                }
                None => changed = changed.start..end,
            }
            at = end;
        }
        recut(self, &changed)
    }

    fn one(&mut self, plain: &[u8], offset: u64, parent: Option<&ParentSegment>) -> Result<()> {
        let item = self.examine(plain, offset, parent)?;
        self.items.push(item);
        Ok(())
    }

    fn examine(&mut self, plain: &[u8], offset: u64, parent: Option<&ParentSegment>) -> Result<Item> {
        let len = plain.len() as u32;
        if is_zero(plain) {
            return Ok(Item::Hole {
                len,
                same: parent.is_some_and(|p| p.is_hole(offset, len)),
            });
        }
        let id = BlockId::of(plain);
        if let Some(found) = self.known.lookup(&id) {
            return Ok(Item::Known { len, found });
        }
        let start = self.packed.len();
        let info = self
            .encoder
            .append(id, plain, &mut self.packed)
            .map_err(|e| RepoError::Poisoned(format!("compression failed: {e}")))?;
        Ok(Item::New {
            info,
            packed: start..self.packed.len(),
        })
    }
}

/// Whether lengths of blocks can be those of a window: all of it, or all but a rest that will be shown again.
pub(super) fn is_sound_cut(lens: &[u32], window: usize, last: bool) -> bool {
    let covered: usize = lens.iter().map(|len| *len as usize).sum();
    covered <= window
        && lens.iter().all(|len| (1..=MAX_BLOCK as u32).contains(len))
        && (!last || covered == window)
        && (covered > 0 || window < MAX_BLOCK)
}

/// Compares with a run of zeros: as fast as memory, and gone after a word for nearly all data.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| *chunk == ZEROS[..chunk.len()])
}
