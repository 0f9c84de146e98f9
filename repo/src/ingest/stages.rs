//! The threads of a pipeline: one that reads and cuts, several that hash and compress, and the packer, which puts
//! their results in order again.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tokio::runtime::Handle;

use crate::error::{RepoError, Result};
use crate::files::{FileEntry, FileKind, FileMeta};
use crate::id::{BlockId, PackNo};
use crate::index::{Found, KnownBlocks};
use crate::ingest::budget::{Permit, Poison};
use crate::ingest::packer::Packer;
use crate::ingest::parent::{Parent, ParentSegment};
use crate::ingest::{Ingested, Job};
use crate::pack::{BlockInfo, Encoder, MAX_BLOCK};

/// Bytes that are read and cut at a time.
const SEGMENT: usize = 1 << 20;

/// Part of a file on its way to the workers.
struct Segment {
    seq: u64,
    offset: u64,
    /// Cut at `cuts`; what lies behind the last cut belongs to the next segment.
    buf: Vec<u8>,
    cuts: Vec<u32>,
    parent: ParentSegment,
    permit: Permit,
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
enum Message {
    Begin(FileMeta, Option<Box<FileEntry>>),
    Segment(Done),
    End,
}

/// Buffers that go round. What was in them stays, so that nobody has to zero what is overwritten at once.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
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
    });
    let (segments, packed) = (Pool::default(), Pool::default());
    let threads = job.options.threads.max(1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (from, to) = (from_reader.clone(), to_packer.clone());
            let (poison, known) = (poison.clone(), job.known.clone());
            let (segments, packed) = (segments.clone(), packed.clone());
            scope.spawn(move || {
                let _dart = poison.dart();
                if let Err(e) = work(&from, &to, &*known, job.options.level, &segments, &packed) {
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
        };
        scope.spawn(move || {
            let _dart = reader.poison.dart();
            if let Err(e) = reader.read_all() {
                reader.poison.fail(e);
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
    known: &dyn KnownBlocks,
    level: i32,
    segments: &Pool,
    packed: &Pool,
) -> Result<()> {
    let mut encoder = Encoder::new(level).map_err(|e| RepoError::Poisoned(format!("zstd: {e}")))?;
    for segment in from {
        let mut out = packed.take();
        out.clear();
        let mut items = Vec::with_capacity(segment.cuts.len());
        let (mut at, mut offset) = (0usize, segment.offset);
        for &len in &segment.cuts {
            let plain = &segment.buf[at..at + len as usize];
            let item = examine(plain, offset, &segment.parent, known, &mut encoder, &mut out)?;
            items.push(item);
            at += len as usize;
            offset += u64::from(len);
        }
        segments.give(segment.buf);
        let done = Done {
            items,
            packed: out,
            _permit: segment.permit,
        };
        if to.send((segment.seq, Message::Segment(done))).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn examine(
    plain: &[u8],
    offset: u64,
    parent: &ParentSegment,
    known: &dyn KnownBlocks,
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
) -> Result<Item> {
    let len = plain.len() as u32;
    if is_zero(plain) {
        return Ok(Item::Hole {
            len,
            same: parent.is_hole(offset, len),
        });
    }
    let id = BlockId::of(plain);
    if let Some(block) = parent.block_at(offset, len).filter(|b| b.id == id) {
        return Ok(Item::Same {
            len,
            pack: block.pack,
            slot: block.slot,
        });
    }
    if let Some(found) = known.lookup(&id) {
        return Ok(Item::Known { len, found });
    }
    let start = out.len();
    let info = encoder
        .append(id, plain, out)
        .map_err(|e| RepoError::Poisoned(format!("compression failed: {e}")))?;
    Ok(Item::New {
        info,
        packed: start..out.len(),
    })
}

/// A file that ends before its listed size: the standard library's words for that speak of buffers.
fn shorter(e: std::io::Error) -> std::io::Error {
    match e.kind() {
        kind @ std::io::ErrorKind::UnexpectedEof => std::io::Error::new(
            kind,
            "it became shorter while it was read; stop whatever writes there and try again",
        ),
        _ => e,
    }
}

/// Compares with a run of zeros: as fast as memory, and gone after a word for nearly all data.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| *chunk == ZEROS[..chunk.len()])
}

struct ReadStage<'a> {
    job: &'a Job,
    parent: Option<Parent>,
    poison: Arc<Poison>,
    handle: &'a Handle,
    segments: Pool,
    to_workers: Sender<Segment>,
    to_packer: Sender<(u64, Message)>,
}

impl ReadStage<'_> {
    fn read_all(&self) -> Result<()> {
        let mut seq = 0;
        for meta in &self.job.files {
            let parent = self.parent_of(meta)?;
            if !self.tell(
                &mut seq,
                Message::Begin(meta.clone(), parent.clone().map(Box::new)),
            ) {
                return Ok(());
            }
            if meta.kind == FileKind::Regular && !self.read_file(meta, parent.as_ref(), &mut seq)? {
                return Ok(());
            }
            if !self.tell(&mut seq, Message::End) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether anybody still listens.
    fn tell(&self, seq: &mut u64, message: Message) -> bool {
        *seq += 1;
        self.to_packer.send((*seq - 1, message)).is_ok()
    }

    fn parent_of(&self, meta: &FileMeta) -> Result<Option<FileEntry>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        let found = self.handle.block_on(async {
            parent
                .reader
                .explain(parent.reader.files().find(&meta.path).await)
                .await
        })?;
        Ok(found.map(|(_, entry)| entry).filter(|e| e.meta.kind == meta.kind))
    }

    /// Reads one file; `false` if everybody was stopped.
    fn read_file(&self, meta: &FileMeta, parent: Option<&FileEntry>, seq: &mut u64) -> Result<bool> {
        let fail = |source| RepoError::Input {
            path: meta.path.clone(),
            source,
        };
        if meta.size == 0 {
            return Ok(true);
        }
        let mut file = self.job.input.open(meta).map_err(fail)?;
        let mut cutter = self.job.input.cutter(meta);
        let mut rest: Vec<u8> = Vec::new();
        let (mut offset, mut left) = (0u64, meta.size);
        while left > 0 || !rest.is_empty() {
            self.job.cancel.check()?;
            self.job.input.check().map_err(RepoError::SourceLost)?;
            let fresh = left.min(SEGMENT as u64) as usize;
            // Twice: the worker has the compressed blocks beside the plain ones.
            let Some(permit) = self.poison.acquire(2 * (rest.len() + fresh) as u64) else {
                return Ok(false);
            };
            let mut buf = self.segments.take();
            let start = rest.len();
            buf.resize(start + fresh, 0);
            buf[..start].copy_from_slice(&rest);
            file.read_exact(&mut buf[start..]).map_err(|e| fail(shorter(e)))?;
            left -= fresh as u64;
            let cuts = cutter.cut(offset, &buf, left == 0);
            let covered: usize = cuts.iter().map(|c| *c as usize).sum();
            let sound = covered <= buf.len()
                && cuts.iter().all(|c| (1..=MAX_BLOCK as u32).contains(c))
                && (left > 0 || covered == buf.len())
                && (covered > 0 || buf.len() < MAX_BLOCK);
            if !sound {
                let reason = format!("its cutter made impossible blocks at byte {offset}");
                return Err(RepoError::BadInput {
                    path: meta.path.clone(),
                    reason,
                });
            }
            rest.clear();
            rest.extend_from_slice(&buf[covered..]);
            let end = offset + covered as u64;
            let known = match (&self.parent, parent) {
                (Some(p), Some(entry)) if covered > 0 => {
                    self.handle.block_on(p.segment(entry, offset, end))?
                }
                _ => ParentSegment::default(),
            };
            let segment = Segment {
                seq: *seq,
                offset,
                buf,
                cuts,
                parent: known,
                permit,
            };
            *seq += 1;
            if self.to_workers.send(segment).is_err() {
                return Ok(false);
            }
            offset = end;
        }
        Ok(true)
    }
}
