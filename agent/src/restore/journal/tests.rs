use super::*;

fn header() -> Header {
    Header {
        repository: RepositoryId([1; 16]),
        snapshot: "2026-11-21T10:48:00Z".parse().unwrap(),
        lease: LeaseId([2; 16]),
        replset: "rs0".into(),
    }
}

fn written(write: impl FnOnce(&mut Journal)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut journal = Journal::begin(File::create(&path).unwrap(), &header()).unwrap();
    write(&mut journal);
    std::fs::read(&path).unwrap()
}

fn contents(bytes: &[u8]) -> Contents {
    match parse(bytes) {
        Loaded::Journal(contents) => *contents,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_written_is_read() {
    let bytes = written(|j| {
        j.checkpoint(&vec![(0, 0..10), (7, 5..6), (u64::MAX, 1..2)], None)
            .unwrap();
        j.checkpoint(&Vec::new(), None).unwrap();
        j.checkpoint(&vec![(7, 100..200)], Some((7, 50))).unwrap();
        j.complete(42).unwrap();
    });
    let read = contents(&bytes);
    assert_eq!(read.header, header());
    assert_eq!(read.complete, Some(42));
    assert_eq!(read.len, bytes.len() as u64);
    assert_eq!(read.done.start(), (7, 50));
    assert_eq!(read.done.missing(7, 0..300), [50..100, 200..300]);
    assert_eq!(read.done.missing(u64::MAX, 0..3), [0..1, 2..3]);
}

/// Wherever a crash cuts it, what stands before the last whole record counts; and no end is taken for more.
#[test]
fn a_torn_end_is_passed_over() {
    let bytes = written(|j| {
        j.checkpoint(&vec![(1, 0..10)], None).unwrap();
        j.checkpoint(&vec![(1, 10..20)], None).unwrap();
    });
    let born = written(|_| {}).len();
    for end in 0..bytes.len() {
        match parse(&bytes[..end]) {
            Loaded::Unborn => assert!(end < born),
            Loaded::Journal(read) => {
                assert!(end >= born && read.len <= end as u64);
                // Going on from the sound part gives a journal again.
                assert_eq!(contents(&bytes[..read.len as usize]), *read);
            }
            Loaded::Foreign => panic!("cut at {end}"),
        }
    }
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(contents(&flipped).done.missing(1, 0..20).len(), 1);
}

#[test]
fn other_files_are_not_journals() {
    assert_eq!(parse(b""), Loaded::Unborn);
    assert_eq!(parse(b"pbm-fs rest"), Loaded::Unborn);
    assert_eq!(parse(b"pbm-fs restore journal 2\n"), Loaded::Foreign);
    assert_eq!(parse(b"my notes"), Loaded::Foreign);
    let mut foreign = MAGIC.to_vec();
    foreign.extend(record(b"\x00{}"));
    assert_eq!(parse(&foreign), Loaded::Foreign);
}
