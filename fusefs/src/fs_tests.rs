use super::*;
use crate::memory::MemoryTree;
use crate::tree::Lifetime;
use futures::FutureExt;
use std::time::Duration;

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

fn serve(tree: MemoryTree, budget: u64) -> Arc<Fs<MemoryTree>> {
    Fs::new(Arc::new(tree), FsConfig::with_budget(budget), Handle::current())
}

async fn find(fs: &Fs<MemoryTree>, path: &str) -> Attr {
    let mut at = fs.attr(Ino::ROOT).await.unwrap();
    for name in path.split('/') {
        at = fs.lookup(at.ino, OsStr::new(name)).await.unwrap();
    }
    at
}

#[tokio::test]
async fn names_and_attributes() {
    let mut tree = MemoryTree::new(100);
    tree.add("rs0/dbpath/a.wt", vec![1; 250]);
    tree.add("rs0/dbpath/journal/log", vec![2; 10]);
    let fs = serve(tree, 0);
    let file = find(&fs, "rs0/dbpath/a.wt").await;
    assert_eq!((file.kind, file.size, file.nlink), (NodeKind::File, 250, 1));
    assert_eq!(find(&fs, "rs0/dbpath").await.nlink, 3);
    assert_eq!(file.lifetime, Lifetime::Immutable);
    assert!(matches!(
        fs.lookup(Ino::ROOT, OsStr::new("rs1")).await,
        Err(FsError::NotFound)
    ));
    assert!(matches!(
        fs.lookup(file.ino, OsStr::new("x")).await,
        Err(FsError::NotADirectory)
    ));
    assert!(matches!(fs.attr(Ino(99)).await, Err(FsError::NotFound)));
    assert!(matches!(fs.attr(Ino(0)).await, Err(FsError::NotFound)));
    assert!(matches!(fs.open(Ino::ROOT).await, Err(FsError::IsADirectory)));
    assert!(matches!(fs.open_dir(file.ino).await, Err(FsError::NotADirectory)));
    assert_eq!(fs.usage().await.unwrap(), Usage { bytes: 260, nodes: 6 });
}

async fn listing(fs: &Fs<MemoryTree>, dir: Ino, step: usize) -> Vec<(std::ffi::OsString, Ino)> {
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        let mut taken = 0;
        let mut after = cookie;
        let take = |entry: &Entry| {
            if taken == step {
                return false;
            }
            taken += 1;
            after = entry.cookie;
            names.push((entry.name.clone(), entry.attr.ino));
            true
        };
        fs.list(dir, cookie, take).await.unwrap();
        if taken == 0 {
            return names;
        }
        cookie = after;
    }
}

#[tokio::test]
async fn a_listing_can_stop_and_go_on_at_every_entry() {
    let mut tree = MemoryTree::new(100);
    for n in 0..50 {
        tree.add(&format!("dir/f{n:02}"), vec![0; n]);
    }
    let fs = serve(tree, 0);
    let dir = find(&fs, "dir").await.ino;
    let whole = listing(&fs, dir, usize::MAX).await;
    assert_eq!(whole.len(), 52);
    assert_eq!(whole[0], (".".into(), dir));
    assert_eq!(whole[1], ("..".into(), Ino::ROOT));
    for step in [1, 2, 3, 7, 51, 52] {
        assert_eq!(listing(&fs, dir, step).await, whole, "{step} at a time");
    }
    let file = find(&fs, "dir/f01").await.ino;
    assert!(matches!(
        fs.list(file, 0, |_| true).await,
        Err(FsError::NotADirectory)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_any_range_give_the_files_bytes() {
    let content = bytes(3_000_017, 42);
    let mut tree = MemoryTree::new(12_345);
    tree.add("f", content.clone());
    let fs = serve(tree, 16 << 20);
    let handle = fs.open(find(&fs, "f").await.ino).await.unwrap();
    let mut seed = 7_u64;
    for _ in 0..2_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        let offset = (seed >> 33) % 3_100_000;
        let len = (seed >> 11) % 200_000;
        let got = fs.read(handle, offset, len).await.unwrap();
        let from = (offset as usize).min(content.len());
        let to = (from + len as usize).min(content.len());
        assert!(got.to_vec() == content[from..to], "{offset}+{len}");
        got.with_slice(|slice| assert!(slice == &content[from..to]));
        assert_eq!(got.len(), to - from);
    }
    assert!(fs.read(handle, u64::MAX, u64::MAX).await.unwrap().is_empty());
    fs.release(handle);
    assert!(matches!(fs.read(handle, 0, 1).await, Err(FsError::BadHandle(_))));
}

#[tokio::test]
async fn a_cached_read_is_ready_at_the_first_poll() {
    let mut tree = MemoryTree::new(4096).slow(Duration::from_millis(1));
    tree.add("f", bytes(100_000, 1));
    let fs = serve(tree, 16 << 20);
    let handle = fs.open(find(&fs, "f").await.ino).await.unwrap();
    assert!(fs.read(handle, 40_000, 9_000).now_or_never().is_none());
    fs.read(handle, 40_000, 9_000).await.unwrap();
    assert!(fs.read(handle, 41_000, 8_000).now_or_never().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_reader_causes_few_large_fetches() {
    const SIZE: usize = 64 << 20;
    let content = bytes(SIZE, 3);
    let mut tree = MemoryTree::new(16 << 10).slow(Duration::from_millis(2));
    tree.add("f", content.clone());
    let fs = serve(tree, 64 << 20);
    let handle = fs.open(find(&fs, "f").await.ino).await.unwrap();
    for at in (0..SIZE).step_by(128 << 10) {
        let got = fs.read(handle, at as u64, 128 << 10).await.unwrap();
        assert!(got.to_vec() == content[at..at + (128 << 10)]);
    }
    let (fetches, blocks) = fs.tree.fetched();
    assert_eq!(blocks, (SIZE >> 14) as u64, "nothing is fetched twice");
    assert!(fetches <= 40, "{fetches} fetches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_readers_fetch_only_the_blocks_they_need() {
    const SIZE: usize = 64 << 20;
    let mut tree = MemoryTree::new(32 << 10);
    tree.add("f", bytes(SIZE, 3));
    let fs = serve(tree, 256 << 20);
    let handle = fs.open(find(&fs, "f").await.ino).await.unwrap();
    let mut needed = std::collections::HashSet::new();
    for n in 0..500_u64 {
        let offset = ((n * 7919) % (SIZE as u64 >> 12)) << 12;
        needed.insert(offset >> 15);
        fs.read(handle, offset, 4 << 10).await.unwrap();
    }
    assert_eq!(fs.tree.fetched().1, needed.len() as u64);
    assert_eq!(fs.stats().ahead_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_names_the_file_and_the_place_and_spares_the_neighbours() {
    let content = bytes(1 << 20, 5);
    let mut tree = MemoryTree::new(4096);
    let ino = tree.add("rs0/dbpath/f.wt", content.clone());
    tree.damage(ino, 100);
    let fs = serve(tree, 16 << 20);
    let handle = fs.open(ino).await.unwrap();
    for _ in 0..2 {
        let error = fs.read(handle, 0, 1 << 20).await.unwrap_err();
        let FsError::Damaged(damage) = error else {
            panic!("{error}")
        };
        assert_eq!(
            (damage.file.as_str(), damage.offset),
            ("rs0/dbpath/f.wt", 409_600)
        );
        assert_eq!(
            (damage.block.as_str(), damage.pack.as_str()),
            ("100", &*(ino.0 - 1).to_string())
        );
    }
    let before = fs.read(handle, 0, 409_600).await.unwrap();
    assert!(before.to_vec() == content[..409_600]);
    let after = fs.read(handle, 413_696, 4096).await.unwrap();
    assert!(after.to_vec() == content[413_696..413_696 + 4096]);
    assert_eq!(fs.stats().failed_reads, 2);
}

#[test]
fn pieces_gather() {
    let mut pieces = Pieces::default();
    pieces.with_slice(|slice| assert!(slice.is_empty()));
    pieces.push(Bytes::from_static(b"abc"));
    pieces.with_slice(|slice| assert_eq!(slice, b"abc"));
    pieces.push_zeros(200_000);
    pieces.push(Bytes::from_static(b"xyz"));
    pieces.with_slice(|slice| {
        assert_eq!(slice.len(), 200_006);
        assert!(slice[3..200_003].iter().all(|b| *b == 0));
        assert_eq!(&slice[200_003..], b"xyz");
    });
}
