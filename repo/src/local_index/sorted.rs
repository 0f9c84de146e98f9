//! Sorts entries that do not fit in memory: sorted runs in files, which are then merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use crate::local_index::entry::{ENTRY_LEN, Entry, KEY_LEN};

/// Length of a row in a file.
const ROW_LEN: usize = KEY_LEN + ENTRY_LEN;

/// Bytes that are read of a run at a time.
const READ: usize = 256 << 10;

/// A key with its entry. In the order of keys; of entries with the same key the one with the highest number is last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    key: u128,
    entry: Entry,
}

impl Row {
    pub fn new(key: [u8; KEY_LEN], entry: Entry) -> Self {
        Self {
            key: u128::from_be_bytes(key),
            entry,
        }
    }

    pub fn key(&self) -> [u8; KEY_LEN] {
        self.key.to_be_bytes()
    }

    pub fn entry(&self) -> Entry {
        self.entry
    }

    fn encode(&self) -> [u8; ROW_LEN] {
        let mut out = [0; ROW_LEN];
        out[..KEY_LEN].copy_from_slice(&self.key());
        out[KEY_LEN..].copy_from_slice(&self.entry.encode());
        out
    }

    fn decode(bytes: &[u8; ROW_LEN]) -> io::Result<Self> {
        let (key, entry) = bytes.split_at(KEY_LEN);
        let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
        let entry = Entry::decode(entry).map_err(bad)?;
        let mut front = [0; KEY_LEN];
        front.copy_from_slice(key);
        Ok(Self::new(front, entry))
    }
}

/// Rows in any order, until they are asked for in order.
#[derive(Debug)]
pub(super) struct Sorter {
    directory: PathBuf,
    rows: Vec<Row>,
    most: usize,
    runs: Vec<PathBuf>,
}

impl Sorter {
    /// Keeps up to `memory` bytes of rows; the others go to files in `directory`, which must be there.
    pub fn new(directory: PathBuf, memory: u64) -> Self {
        let most = (memory as usize / size_of::<Row>()).max(1);
        Self {
            directory,
            rows: Vec::new(),
            most,
            runs: Vec::new(),
        }
    }

    pub fn push(&mut self, row: Row) -> io::Result<()> {
        if self.rows.len() == self.most {
            self.spill()?;
        }
        if self.rows.capacity() == 0 {
            // At once: growing would hold the rows twice.
            self.rows.reserve_exact(self.most);
        }
        self.rows.push(row);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        self.rows.sort_unstable();
        let path = self.directory.join(format!("run-{}", self.runs.len()));
        let mut file = BufWriter::with_capacity(READ, File::create(&path)?);
        for row in &self.rows {
            file.write_all(&row.encode())?;
        }
        file.flush()?;
        self.rows.clear();
        self.runs.push(path);
        Ok(())
    }

    /// Gives all rows in order, each key once.
    pub fn finish<E: From<io::Error>>(mut self, each: impl FnMut(&Row) -> Result<(), E>) -> Result<(), E> {
        let mut each = Once { last: None, each };
        if self.runs.is_empty() {
            self.rows.sort_unstable();
            self.rows.iter().try_for_each(|row| each.row(*row))?;
            return each.end();
        }
        self.spill()?;
        // The tables that are made now need the memory.
        self.rows = Vec::new();
        let mut runs = Vec::new();
        let mut heads = BinaryHeap::new();
        for path in &self.runs {
            let mut run = Run(BufReader::with_capacity(READ, File::open(path)?));
            if let Some(row) = run.next()? {
                heads.push(Reverse((row, runs.len())));
            }
            runs.push(run);
        }
        while let Some(mut head) = heads.peek_mut() {
            let Reverse((row, from)) = *head;
            match runs[from].next()? {
                Some(next) => *head = Reverse((next, from)),
                None => {
                    PeekMut::pop(head);
                }
            }
            each.row(row)?;
        }
        each.end()
    }
}

struct Run(BufReader<File>);

impl Run {
    fn next(&mut self) -> io::Result<Option<Row>> {
        let mut bytes = [0; ROW_LEN];
        match self.0.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            other => other.and_then(|()| Row::decode(&bytes).map(Some)),
        }
    }
}

/// Of rows with the same key passes the last on.
struct Once<F> {
    last: Option<Row>,
    each: F,
}

impl<E, F: FnMut(&Row) -> Result<(), E>> Once<F> {
    fn row(&mut self, row: Row) -> Result<(), E> {
        match self.last.replace(row) {
            Some(last) if last.key != row.key => (self.each)(&last),
            _ => Ok(()),
        }
    }

    fn end(mut self) -> Result<(), E> {
        self.last.take().map_or(Ok(()), |last| (self.each)(&last))
    }
}
