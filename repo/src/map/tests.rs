//! The map against a naive model: an array that holds, for each byte of a file, the byte of a block that it is.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::id::{BlockId, LeaseId, Nonce, PackNo, SystemRandomness};
use crate::map::extent::total;
use crate::pack::{BlockInfo, Codec, Owner, PackKind, PackSink, PackStore, Trailer};
use crate::reader::spans_of;
use crate::storage::MemoryStorage;

/// A byte of the model: 0 in a hole, otherwise pack, slot and byte in the slot.
type Byte = u64;

const SMALL: MapParams = MapParams { leaf: 64, inner: 128 };

/// Packs with blocks of odd and even lengths. They exist only as trailers: maps never look into blocks.
fn trailers() -> Vec<Trailer> {
    (0..5u32)
        .map(|pack| {
            let slots = (0..40u32).map(|slot| {
                let plain_len = match (pack + slot) % 4 {
                    0 => 4096,
                    1 => 1 + (slot * 7 + pack) % 50,
                    2 => 300 + slot,
                    _ => 64,
                };
                BlockInfo {
                    id: BlockId::of(&[pack as u8, slot as u8]),
                    plain_len,
                    stored_len: plain_len,
                    codec: Codec::Raw,
                }
            });
            let (owner, nonce) = (Owner::Lease(LeaseId([1; 16])), Nonce([pack as u8; 16]));
            Trailer::new(PackKind::Data, owner, nonce, 96, slots.collect()).unwrap()
        })
        .collect()
}

/// The bytes of an extent, told by the trailers as a reader tells them.
fn bytes_of(placed: &PlacedExtent, trailers: &[Trailer]) -> Vec<Byte> {
    let ExtentKind::Data { pack, .. } = placed.extent.kind else {
        return vec![0; placed.extent.len as usize];
    };
    let mut out = Vec::new();
    let mut at = placed.offset;
    for span in spans_of(placed.offset, &placed.extent, &trailers[pack.0 as usize]).unwrap() {
        assert_eq!(span.offset, at);
        at += u64::from(span.to - span.from);
        let base = 1 << 60 | u64::from(span.pack.0) << 40 | u64::from(span.slot) << 20;
        out.extend((span.from..span.to).map(|b| base | u64::from(b)));
    }
    assert_eq!(out.len() as u64, placed.extent.len);
    out
}

/// A stored map, its model, and what is needed to change both.
struct World {
    runtime: Runtime,
    storage: Arc<MemoryStorage>,
    reader: MapReader,
    params: MapParams,
    trailers: Vec<Trailer>,
    root: MapRoot,
    len: u64,
    model: Vec<Byte>,
}

impl World {
    fn new(params: MapParams) -> Self {
        let storage = Arc::new(MemoryStorage::default());
        let packs = Arc::new(PackStore::new(storage.clone(), 1 << 20));
        Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            storage,
            reader: MapReader::new(packs, 1 << 20),
            params,
            trailers: trailers(),
            root: MapRoot::Empty,
            len: 0,
            model: Vec::new(),
        }
    }

    fn writer(&self) -> MapWriter {
        let owner = Owner::Lease(LeaseId([7; 16]));
        let sink = PackSink::new(self.storage.clone(), Arc::new(SystemRandomness), owner, 1).unwrap();
        MapWriter::new(sink, self.params)
    }

    fn applied(&self, edits: &[Edit], new_len: u64) -> MapRoot {
        let mut writer = self.writer();
        self.runtime.block_on(async {
            let root = writer
                .apply(&self.reader, &self.root, self.len, new_len, edits)
                .await;
            writer.sink().flush().await.unwrap();
            writer.resolve(&root.unwrap()).unwrap()
        })
    }

    fn built(&self, extents: Vec<Extent>) -> MapRoot {
        let mut writer = self.writer();
        self.runtime.block_on(async {
            let root = writer.build(extents).await.unwrap();
            writer.sink().flush().await.unwrap();
            writer.resolve(&root).unwrap()
        })
    }

    fn change(&mut self, edits: &[Edit], new_len: u64) {
        self.root = self.applied(edits, new_len);
        self.len = new_len;
        self.model.resize(new_len as usize, 0);
        for edit in edits {
            let mut offset = edit.start();
            for extent in edit.extents() {
                let bytes = bytes_of(&PlacedExtent { offset, extent }, &self.trailers);
                self.model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                offset += extent.len;
            }
        }
    }

    fn extents(&self, range: Range<u64>) -> Vec<PlacedExtent> {
        self.runtime
            .block_on(self.reader.extents(&self.root, self.len, range))
            .unwrap()
    }

    fn assert_reads(&self, range: Range<u64>) {
        let mut at = range.start.min(self.len);
        for placed in self.extents(range.clone()) {
            assert_eq!(placed.offset, at, "a gap in {range:?}");
            let bytes = bytes_of(&placed, &self.trailers);
            assert!(
                self.model[at as usize..][..bytes.len()] == bytes,
                "{range:?} differs at {at}"
            );
            at += placed.extent.len;
        }
        assert_eq!(at, range.end.min(self.len).max(range.start.min(self.len)));
    }

    /// What is at a range, as an edit.
    fn edit_of(&self, range: Range<u64>) -> Edit {
        Edit::new(range.start, self.extents(range).iter().map(|p| p.extent))
    }

    /// Checks the form of the whole tree; returns the number of leaves and the bytes in them.
    fn check_form(&self) -> (usize, usize) {
        match &self.root {
            MapRoot::Empty => assert_eq!(self.len, 0),
            MapRoot::Inline(bytes) => assert!(bytes.len() <= INLINE_MAX && self.len > 0),
            MapRoot::Node { place, level } => {
                let mut leaves = (0, 0);
                let mut todo = vec![(*place, *level, self.len)];
                while let Some((place, level, span)) = todo.pop() {
                    // Checks level and sum of the spans.
                    let node = self
                        .runtime
                        .block_on(self.reader.node(&place, level, span))
                        .unwrap();
                    let packs = PackStore::new(self.storage.clone(), 1 << 16);
                    let len = self.runtime.block_on(packs.read_place(&place)).unwrap().len();
                    assert!(len <= MAX_NODE);
                    // A leaf takes one extent more, an inner node one child and pack id for each child.
                    match &*node {
                        Node::Leaf(extents) => {
                            assert!(len <= self.params.leaf * 3 / 2 + 40, "a leaf of {len} bytes");
                            assert!(extents.windows(2).all(|p| p[0].joined(&p[1]).is_none()));
                            leaves = (leaves.0 + 1, leaves.1 + len);
                        }
                        Node::Inner { children, .. } => {
                            assert!(len <= self.params.inner * 3 + 80, "an inner node of {len} bytes");
                            todo.extend(children.iter().map(|c| (c.place, level - 1, c.span)));
                        }
                    }
                }
                return leaves;
            }
        }
        (0, 0)
    }
}

#[derive(Debug, Clone)]
struct Run {
    kind: u8,
    pack: usize,
    first: usize,
    count: usize,
    skip: usize,
    len: usize,
}

impl Run {
    /// As an extent of at most `room` bytes.
    fn extent(&self, trailers: &[Trailer], room: u64) -> Extent {
        let kind = match self.kind {
            0 => ExtentKind::Hole,
            1 => ExtentKind::Elided,
            _ => {
                let slots = trailers[self.pack].slots();
                let first = self.first % slots.len();
                let count = 1 + self.count % (slots.len() - first).min(6);
                let bytes: u64 = slots[first..first + count]
                    .iter()
                    .map(|s| u64::from(s.plain_len))
                    .sum();
                let skip = if self.kind == 2 {
                    self.skip as u64 % bytes
                } else {
                    0
                };
                let whole = if self.kind == 2 {
                    1 + self.len as u64 % (bytes - skip)
                } else {
                    bytes
                };
                let (first, count) = (first as u32, count as u32);
                let kind = ExtentKind::Data {
                    pack: PackNo(self.pack as u32),
                    first,
                    count,
                    skip,
                };
                return Extent {
                    len: whole.min(room),
                    kind,
                };
            }
        };
        Extent {
            len: (1 + self.len as u64 % 900).min(room),
            kind,
        }
    }
}

fn run() -> impl Strategy<Value = Run> {
    (
        0..6u8,
        0..5usize,
        0..40usize,
        0..40usize,
        any::<u16>(),
        any::<u16>(),
    )
        .prop_map(|(kind, pack, first, count, skip, len)| Run {
            kind,
            pack,
            first,
            count,
            skip: skip.into(),
            len: len.into(),
        })
}

#[derive(Debug, Clone)]
struct Round {
    /// The new length in thousandths of the old one and in bytes more.
    len: (u64, u64),
    edits: Vec<(u32, Vec<Run>)>,
}

fn round() -> impl Strategy<Value = Round> {
    let len = prop_oneof![
        6 => Just((1000, 0)),
        3 => (Just(1000), 0..9000u64),
        2 => (200..1000u64, Just(0)),
        1 => Just((0, 0)),
    ];
    let edits = prop::collection::vec((any::<u32>(), prop::collection::vec(run(), 1..30)), 0..6);
    (len, edits).prop_map(|(len, edits)| Round { len, edits })
}

fn edits_of(round: &Round, trailers: &[Trailer], new_len: u64) -> Vec<Edit> {
    let mut starts: Vec<_> = round.edits.iter().collect();
    starts.sort_by_key(|(at, _)| *at);
    let mut out: Vec<Edit> = Vec::new();
    for (at, runs) in starts {
        // In the order of their starts, scaled to the length; an edit begins behind the one before it.
        let start = ((u64::from(*at) * new_len) >> 32).max(out.last().map_or(0, Edit::end));
        let mut edit = Edit::at(start);
        for run in runs {
            if edit.end() < new_len {
                edit.push(run.extent(trailers, new_len - edit.end()));
            }
        }
        if edit.end() > edit.start() {
            out.push(edit);
        }
    }
    out
}

/// Number of cases: many when PBMFS_CAMPAIGN=full.
fn cases(few: u32) -> ProptestConfig {
    let full = std::env::var("PBMFS_CAMPAIGN").is_ok_and(|v| v == "full");
    ProptestConfig {
        cases: if full { few * 50 } else { few },
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_map_is_what_the_model_is(
        first in prop::collection::vec(run(), 0..250),
        rounds in prop::collection::vec(round(), 1..12),
        reads in prop::collection::vec((any::<u32>(), any::<u32>()), 12),
        large in any::<bool>(),
    ) {
        let mut world = World::new(if large { MapParams { leaf: 200, inner: 300 } } else { SMALL });
        let first = Edit::new(0, first.iter().map(|r| r.extent(&world.trailers, u64::MAX)));
        let end = first.end();
        world.change(&[first], end);
        for (i, round) in rounds.iter().enumerate() {
            let new_len = world.len * round.len.0 / 1000 + round.len.1;
            let edits = edits_of(round, &world.trailers, new_len);
            world.change(&edits, new_len);
            world.check_form();
            world.assert_reads(0..world.len);
            let place = |x: u32| (u64::from(x) * (world.len + 2)) >> 32;
            let (a, b) = reads[i % reads.len()];
            let (a, b) = (place(a.min(b)), place(a.max(b)));
            world.assert_reads(a..b);
            world.assert_reads(a..a + 1);
            prop_assert_eq!(&world.applied(&[], world.len), &world.root);
            let b = b.min(world.len);
            if a < b {
                prop_assert_eq!(&world.applied(&[world.edit_of(a..b)], world.len), &world.root);
            }
        }
        // A new tree of the same extents says the same.
        let all = world.extents(0..world.len).iter().map(|p| p.extent).collect();
        world.root = world.built(all);
        world.check_form();
        world.assert_reads(0..world.len);
    }
}

/// Whole blocks of 4096 bytes that no two neighbours of which are a run.
fn scattered(blocks: u64) -> Vec<Extent> {
    (0..blocks)
        .map(|i| Extent::data(4096, PackNo((i * 7 % 90) as u32), (i * 31 % 8000) as u32, 1))
        .collect()
}

/// A world whose extents are only looked at as such: there are no trailers of these packs.
fn large_world(blocks: u64, params: MapParams) -> (World, Vec<Extent>) {
    let mut world = World::new(params);
    let extents = scattered(blocks);
    world.root = world.built(extents.clone());
    world.len = blocks * 4096;
    (world, extents)
}

fn all(world: &World) -> Vec<Extent> {
    world.extents(0..world.len).iter().map(|p| p.extent).collect()
}

#[test]
fn a_tree_that_fills_several_packs_names_nodes_across_them() {
    // A pack takes 8192 blocks, so these leaves alone need more than one.
    let (mut world, extents) = large_world(160_000, SMALL);
    let packs = world.storage.snapshot().len();
    assert!(packs >= 3, "{packs} packs");
    assert_eq!(all(&world), extents);
    let whole = Edit::new(0, extents.iter().copied());
    world.root = MapRoot::Empty;
    let len = std::mem::take(&mut world.len);
    world.root = world.applied(&[whole], len);
    world.len = len;
    assert_eq!(all(&world), extents);
    world.check_form();
}

#[test]
fn scattered_changes_leave_leaves_well_filled() {
    let params = MapParams::default();
    let (mut world, mut extents) = large_world(60_000, params);
    let fill = |world: &World| {
        let (leaves, bytes) = world.check_form();
        bytes as f64 / leaves as f64 / params.leaf as f64
    };
    let mut state = 1u64;
    for round in 0..50u64 {
        let mut at: Vec<u64> = (0..200)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                (state >> 33) % 60_000
            })
            .collect();
        at.sort_unstable();
        at.dedup();
        let edits: Vec<Edit> = at
            .iter()
            .map(|&i| {
                let new = Extent::data(4096, PackNo(100 + round as u32), i as u32 % 8000, 1);
                extents[i as usize] = new;
                Edit::new(i * 4096, [new])
            })
            .collect();
        world.root = world.applied(&edits, world.len);
    }
    let filled = fill(&world);
    assert!(filled > 0.6, "leaves are filled to {filled:.2} only");
    assert_eq!(all(&world), extents);
}

#[test]
fn large_holes_do_not_leave_tiny_leaves() {
    let (mut world, _) = large_world(20_000, MapParams::default());
    let mut state = 7u64;
    for _ in 0..150 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        let (at, n) = ((state >> 33) % 19_000, 1 + (state >> 20) % 900);
        world.root = world.applied(&[Edit::new(at * 4096, [Extent::hole(n * 4096)])], world.len);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        let at = (state >> 33) % 19_900;
        let blocks = (0..100).map(|i| Extent::data(4096, PackNo(200), (at * 2 + i * 3) as u32 % 8000, 1));
        world.root = world.applied(&[Edit::new(at * 4096, blocks)], world.len);
    }
    let (leaves, bytes) = world.check_form();
    let needed = bytes.div_ceil(MapParams::default().leaf);
    assert!(leaves <= needed * 2, "{leaves} leaves where {needed} would do");
    assert_eq!(total(&all(&world)), world.len);
}

#[test]
fn impossible_node_sizes_are_raised() {
    let (world, extents) = large_world(500, MapParams { leaf: 0, inner: 1 });
    assert_eq!(all(&world), extents);
}

#[test]
fn cut_to_nothing_and_grown_again() {
    let (mut world, extents) = large_world(5000, SMALL);
    for len in [4096 * 4999 + 5, 4096 * 3000, 4096 * 20 + 1, 4096, 1] {
        world.root = world.applied(&[], len);
        world.len = len;
        world.check_form();
        let blocks = len.div_ceil(4096) as usize;
        let mut expected = extents[..blocks].to_vec();
        let before = total(&expected[..blocks - 1]);
        expected[blocks - 1] = expected[blocks - 1].part(0, len - before);
        assert_eq!(all(&world), expected);
    }
    world.root = world.applied(&[], 0);
    assert_eq!(world.root, MapRoot::Empty);
    world.len = 0;
    world.change(&[], 1 << 20);
    assert_eq!(all(&world), [Extent::hole(1 << 20)]);
    assert!(matches!(world.root, MapRoot::Inline(_)));
}

#[test]
fn a_file_of_the_greatest_length_has_a_map() {
    let mut world = World::new(SMALL);
    let block = Extent::data(4096, PackNo(u32::MAX), u32::MAX - 1, 1);
    let edits = [Edit::new(u64::MAX - 4096, [block])];
    let (reader, root) = (&world.reader, MapRoot::Empty);
    let mut writer = world.writer();
    world.root = world.runtime.block_on(async {
        let root = writer.apply(reader, &root, 0, u64::MAX, &edits).await.unwrap();
        writer.resolve(&root).unwrap()
    });
    let found = world
        .runtime
        .block_on(world.reader.all(&world.root, u64::MAX))
        .unwrap();
    assert_eq!(found, [Extent::hole(u64::MAX - 4096), block]);
}
