//! The worked examples of `docs/format.md`: what the document says is what the code does.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use pbmfs_repo::id::{BlockId, LeaseId, Nonce, PackId, PackNo, SystemRandomness};
use pbmfs_repo::map::{Extent, ExtentKind, MapParams, MapRoot, MapWriter, Node};
use pbmfs_repo::pack::{BlockInfo, Codec, Owner, PackBuilder, PackKind, PackSink, Trailer, decode_footer};
use pbmfs_repo::reader::{BlockSpan, spans_of};
use pbmfs_repo::storage::MemoryStorage;

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/format.md");
    std::fs::read_to_string(path).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn data(len: u64, pack: u32, first: u32, count: u32, skip: u64) -> Extent {
    let pack = PackNo(pack);
    Extent {
        len,
        kind: ExtentKind::Data {
            pack,
            first,
            count,
            skip,
        },
    }
}

#[tokio::test]
async fn the_leaf_of_section_5() {
    let extents = vec![
        data(1 << 20, 0, 0, 16, 0),
        Extent::hole(65_536),
        data(8192, 7, 100, 4, 69_632),
        data(65_536, 7, 104, 1, 0),
        data(5000, 2, 3, 1, 0),
    ];
    let owner = Owner::Lease(LeaseId([1; 16]));
    let storage = Arc::new(MemoryStorage::default());
    let sink = PackSink::new(storage, Arc::new(SystemRandomness), owner, 1).unwrap();
    let mut writer = MapWriter::new(sink, MapParams::default());
    let root = writer.build(extents.clone()).await.unwrap();
    let MapRoot::Inline(bytes) = writer.resolve(&root).unwrap() else {
        panic!("a leaf of 23 bytes is inline");
    };
    assert_eq!(bytes.len(), 23);
    assert!(
        document().contains(&format!("    {}\n", hex(&bytes))),
        "the document has not {}",
        hex(&bytes)
    );

    let node = Node::decode(&bytes, &PackId([0; 32])).unwrap();
    assert_eq!(node.span(), Some(1_192_840));
    assert_eq!(node, Node::Leaf(extents));
}

#[test]
fn the_cut_of_section_5() {
    let slots = (0..110u8)
        .map(|i| BlockInfo {
            id: BlockId::of(&[i]),
            plain_len: 65_536,
            stored_len: 65_536,
            codec: Codec::Raw,
        })
        .collect();
    let owner = Owner::Lease(LeaseId([1; 16]));
    let trailer = Trailer::new(PackKind::Data, owner, Nonce([2; 16]), 169, slots).unwrap();
    let whole = data(262_144, 7, 100, 4, 0);
    let parts = |extent: &Extent| -> Vec<(u32, u32, u32)> {
        let spans: Vec<BlockSpan> = spans_of(0, extent, &trailer).unwrap();
        spans.iter().map(|s| (s.slot, s.from, s.to)).collect()
    };

    let left = whole.part(0, 100_000);
    assert_eq!(left, data(100_000, 7, 100, 4, 0));
    assert_eq!(parts(&left), [(100, 0, 65_536), (101, 0, 34_464)]);
    assert_eq!(parts(&left), parts(&data(100_000, 7, 100, 2, 0)));

    let right = whole.part(150_000, 262_144);
    assert_eq!(right, data(112_144, 7, 100, 4, 150_000));
    assert_eq!(parts(&right), [(102, 18_928, 65_536), (103, 0, 65_536)]);
    assert_eq!(parts(&right), parts(&data(112_144, 7, 102, 2, 18_928)));

    let text = document();
    for extent in [whole, left, right] {
        let ExtentKind::Data { count, skip, .. } = extent.kind else {
            unreachable!()
        };
        let line = format!(
            "    length {}, pack 7, first 100, count {count}, skip {skip}",
            extent.len
        );
        assert!(text.contains(&line), "the document has not {line}");
    }
}

#[test]
fn the_pack_of_section_4() {
    let owner = Owner::Lease(LeaseId([1; 16]));
    let mut builder = PackBuilder::new(PackKind::Data, owner, Vec::new());
    let plain = b"plain bytes";
    let mut packed = Vec::new();
    let info = pbmfs_repo::pack::Encoder::new(1)
        .unwrap()
        .append(BlockId::of(plain), plain, &mut packed)
        .unwrap();
    assert_eq!(builder.push(info, &packed).1, 169);
    let sealed = builder.seal(Nonce([3; 16]));
    let object = &sealed.object[..];

    let end = object.len();
    let trailer_len = decode_footer(&object[end - 16..]).unwrap() as usize;
    assert_eq!(trailer_len, 52 + 40);
    assert_eq!(end, 169 + 44 + plain.len() + trailer_len + 16);
    let trailer = &object[end - 16 - trailer_len..end - 16];
    assert_eq!(sealed.loc.id.0, *blake3::hash(trailer).as_bytes());
    assert_eq!(
        object[96..169],
        *format!("packs/{:.2}/{}", sealed.loc.id.to_string(), sealed.loc.id).as_bytes()
    );

    // The checksum covers bytes 0 to 63, the key, and the trailer alone.
    let mut sealed_bytes = object[..64].to_vec();
    sealed_bytes.extend_from_slice(&object[96..169]);
    sealed_bytes.extend_from_slice(trailer);
    assert_eq!(object[64..96], *blake3::hash(&sealed_bytes).as_bytes());
    assert_eq!(object[56..64], (end as u64 - 169).to_le_bytes());
    assert_eq!(object[8..16], [0, 0, 2, 0, 73, 0, 0, 0]);
}
