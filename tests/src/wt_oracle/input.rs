//! Files of a live WiredTiger home as the pipeline reads them: what is named as changed, and what was read of it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use pbmfs_dbpath::{TableCutter, is_wiredtiger_table};
use pbmfs_repo::{
    files::{FileKind, FileMeta, path_order},
    ingest::{Changes, Cutter, FixedCutter, Input, ReadAt},
};

use crate::error::{Doing, Result};

/// One file that is to be backed up.
#[derive(Clone, Debug)]
pub struct Named {
    /// Where it is read.
    pub path: PathBuf,
    /// What changed in it; `None` for all of it.
    pub ranges: Option<Vec<Range<u64>>>,
}

/// The files of one backup, by name.
#[derive(Debug, Default)]
pub struct Files {
    named: BTreeMap<String, Named>,
    reads: Arc<Mutex<Vec<(String, Range<u64>)>>>,
}

impl Files {
    /// These files.
    pub fn new(named: BTreeMap<String, Named>) -> Self {
        Self {
            named,
            reads: Arc::default(),
        }
    }

    /// What the file list says of them, each as long as it is now.
    pub fn metas(&self) -> Result<Vec<FileMeta>> {
        let mut metas = Vec::new();
        for (name, file) in &self.named {
            let meta = fs::metadata(&file.path).doing(format_args!("looking at {}", file.path.display()))?;
            metas.push(FileMeta {
                path: name.clone(),
                kind: FileKind::Regular,
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
                mtime: (meta.mtime(), meta.mtime_nsec() as u32),
                size: meta.len(),
            });
        }
        metas.sort_by(|a, b| path_order(&a.path, &b.path));
        Ok(metas)
    }

    /// All reads so far.
    pub fn reads(&self) -> Vec<(String, Range<u64>)> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Open {
    name: String,
    file: File,
    reads: Arc<Mutex<Vec<(String, Range<u64>)>>>,
}

impl ReadAt for Open {
    fn read_exact_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)?;
        let range = offset..offset + out.len() as u64;
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.push((self.name.clone(), range));
        Ok(())
    }
}

/// WiredTiger's own blocks.
struct Table(TableCutter);

impl Cutter for Table {
    fn cut(&mut self, offset: u64, window: &[u8], last: bool) -> Vec<u32> {
        self.0.cut(offset, window, last)
    }
}

impl Input for Files {
    fn open(&self, file: &FileMeta) -> io::Result<Box<dyn ReadAt>> {
        let named = self.named.get(&file.path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open {
            name: file.path.clone(),
            file: File::open(&named.path)?,
            reads: self.reads.clone(),
        }))
    }

    fn changes(&self, file: &FileMeta) -> Changes {
        let named = self.named.get(&file.path).and_then(|named| named.ranges.clone());
        named.map_or(Changes::Whole, Changes::Ranges)
    }

    fn cutter(&self, file: &FileMeta) -> Box<dyn Cutter> {
        if is_wiredtiger_table(&file.path) {
            Box::new(Table(TableCutter::default()))
        } else {
            Box::new(FixedCutter)
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}
