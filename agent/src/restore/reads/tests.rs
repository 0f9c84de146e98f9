use pbmfs_repo::id::{BlockId, LeaseId, Nonce};
use pbmfs_repo::pack::{BlockInfo, Codec, Owner, PackKind};

use super::*;

fn trailer(lens: &[u32]) -> Trailer {
    let slots = lens
        .iter()
        .map(|len| BlockInfo {
            id: BlockId([1; 32]),
            plain_len: *len,
            stored_len: *len,
            codec: Codec::Raw,
        })
        .collect();
    Trailer::new(
        PackKind::Data,
        Owner::Lease(LeaseId([0; 16])),
        Nonce([0; 16]),
        0,
        slots,
    )
    .unwrap()
}

fn run(file: u32, first: u32, count: u32, skip: u64, offset: u64, len: u64) -> Run {
    Run {
        pack: PackNo(0),
        first,
        count,
        file,
        skip,
        offset,
        len,
    }
}

fn reads(runs: &[Run], lens: &[u32], limit: u64) -> Vec<Read> {
    let files = (0..4)
        .map(|number| WindowFile {
            number,
            path: number.to_string(),
        })
        .collect();
    let mut out = Vec::new();
    plan_reads(runs, &trailer(lens), &Arc::new(files), limit, |read| {
        out.push(read);
        Ok(())
    })
    .unwrap();
    out
}

fn slots(reads: &[Read]) -> Vec<Range<u32>> {
    reads.iter().map(|r| r.slots.clone()).collect()
}

#[test]
fn neighbours_are_read_together_up_to_the_limit() {
    let runs = [
        run(0, 0, 5, 0, 0, 50),
        run(1, 5, 1, 0, 0, 10),
        run(1, 7, 1, 0, 10, 10),
    ];
    assert_eq!(slots(&reads(&runs, &[10; 8], 1000)), [0..6, 7..8]);
    assert_eq!(slots(&reads(&runs, &[10; 8], 25)), [0..2, 2..4, 4..6, 7..8]);
    assert_eq!(slots(&reads(&runs, &[10; 8], 1)).len(), 7);
}

#[test]
fn a_block_that_is_wanted_often_is_read_once() {
    let runs = [
        run(0, 1, 1, 0, 0, 10),
        run(0, 1, 2, 0, 100, 20),
        run(2, 1, 1, 3, 7, 4),
    ];
    let reads = reads(&runs, &[10; 4], 1000);
    assert_eq!(slots(&reads), vec![1..3; 1]);
    let offsets: Vec<_> = reads[0]
        .pieces
        .iter()
        .map(|p| (p.file, p.offset, p.from, p.to))
        .collect();
    assert_eq!(
        offsets,
        [(0, 0, 0, 10), (0, 100, 0, 10), (0, 110, 0, 10), (2, 7, 3, 7)]
    );
}

#[test]
fn a_run_that_its_pack_does_not_have_is_damage() {
    let files = Arc::new(vec![WindowFile {
        number: 0,
        path: "a".into(),
    }]);
    let result = plan_reads(
        &[run(0, 3, 2, 0, 0, 20)],
        &trailer(&[10; 4]),
        &files,
        1000,
        |_| Ok(()),
    );
    assert!(matches!(result, Err(RestoreError::File { path, .. }) if path == "a"));
}
