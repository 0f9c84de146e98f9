//! What changed from one copy of a dbPath to the next, and what that costs at the least.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use minlz::s2;

use crate::Result;
use crate::system::files_of;

/// WiredTiger's allocation unit.
pub const SECTOR: usize = 4096;

/// The granularity in which pbm-fs asks servers to name changes.
pub const GRANULE: u64 = 1 << 20;

/// PBM's granularity.
pub const PBM_GRANULE: u64 = 16 << 20;

/// Bytes that are compared at a time: a multiple of the above.
const STEP: u64 = 16 << 20;

/// A file of a copy, beside what it was in the copy before.
#[derive(Debug)]
pub struct Changed {
    /// Relative to the copy.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// Whether the copy before has no such file.
    pub new: bool,
    /// Runs of sectors that are not as they were, sorted.
    pub sectors: Vec<Range<u64>>,
}

impl Changed {
    /// Bytes of the changed sectors.
    pub fn bytes(&self) -> u64 {
        self.sectors.iter().map(|run| run.end - run.start).sum()
    }

    /// Granules of this size that hold a changed sector, those that touch put together.
    pub fn granules(&self, size: u64) -> Vec<Range<u64>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        for run in &self.sectors {
            let start = run.start / size * size;
            let end = run.end.next_multiple_of(size).min(self.len);
            match out.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => out.push(start..end),
            }
        }
        out
    }
}

/// Every file of `new`, with what of it changed since `old`.
///
/// # Errors
/// The files'.
pub fn compare(old: &Path, new: &Path) -> Result<Vec<Changed>> {
    let mut out = Vec::new();
    for file in files_of(new)? {
        let path = relative(new, &file);
        let (now, before) = (File::open(&file)?, open_if_there(&old.join(&path))?);
        let len = now.metadata()?.len();
        let old_len = match &before {
            Some(file) => file.metadata()?.len(),
            None => 0,
        };
        let sectors = match &before {
            Some(before) => changed_sectors(before, old_len, &now, len)?,
            None => std::iter::once(0..len).filter(|run| !run.is_empty()).collect(),
        };
        out.push(Changed {
            path,
            len,
            new: before.is_none(),
            sectors,
        });
    }
    Ok(out)
}

/// Bytes of the granules of this size that hold a change.
pub fn granule_bytes(changes: &[Changed], size: u64) -> u64 {
    let runs = changes.iter().flat_map(|file| file.granules(size));
    runs.map(|run| run.end - run.start).sum()
}

/// By path, the granules that changed, as a server names them; files that are new are not among them.
pub fn named(changes: &[Changed], size: u64) -> HashMap<String, Vec<Range<u64>>> {
    let old = changes.iter().filter(|file| !file.new);
    old.map(|file| (file.path.clone(), file.granules(size))).collect()
}

/// The floor: each changed sector compressed alone with zstd level 1, raw where that does not shrink it.
///
/// # Errors
/// The files'.
pub fn floor(copy: &Path, changes: &[Changed]) -> Result<u64> {
    let mut zstd = zstd::bulk::Compressor::new(1)?;
    let mut out = vec![0; zstd::zstd_safe::compress_bound(SECTOR)];
    let mut sum = 0;
    for changed in changes {
        each_of(copy, changed, &changed.sectors, |bytes| {
            for sector in bytes.chunks(SECTOR) {
                let packed = zstd.compress_to_buffer(sector, &mut out)?;
                sum += packed.min(sector.len()) as u64;
            }
            Ok(())
        })?;
    }
    Ok(sum)
}

/// What a stream of each run of changed granules of 16 MiB takes: PBM stores them so, each run as an object of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams {
    /// With S2, PBM's default.
    pub s2: u64,
    /// With zstd at level 3, what PBM means by zstd's default.
    pub zstd: u64,
}

/// What PBM stores at the least, for it would also store granules that were written with the bytes that they had.
///
/// # Errors
/// The files'.
pub fn large_ranges(copy: &Path, changes: &[Changed]) -> Result<Streams> {
    let mut sum = Streams::default();
    for changed in changes {
        for run in changed.granules(PBM_GRANULE) {
            let mut s2 = s2::Writer::new(Count(0));
            let mut zstd = zstd::Encoder::new(Count(0), 3)?;
            each_of(copy, changed, std::slice::from_ref(&run), |bytes| {
                s2.write_all(bytes)?;
                zstd.write_all(bytes)
            })?;
            s2.flush()?;
            sum.s2 += s2.get_ref().0;
            sum.zstd += zstd.finish()?.0;
        }
    }
    Ok(sum)
}

/// Counts what is written.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shows what lies in some runs of a file.
fn each_of(
    copy: &Path,
    file: &Changed,
    runs: &[Range<u64>],
    mut show: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let mut buf = Vec::new();
    let file = File::open(copy.join(&file.path))?;
    for run in runs {
        for start in (run.start..run.end).step_by(STEP as usize) {
            buf.resize((run.end - start).min(STEP) as usize, 0);
            file.read_exact_at(&mut buf, start)?;
            show(&buf)?;
        }
    }
    Ok(())
}

fn changed_sectors(before: &File, old_len: u64, now: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut add = |run: Range<u64>| match out.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => out.push(run),
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for start in (0..len).step_by(STEP as usize) {
        let end = len.min(start + STEP);
        b.resize((end - start) as usize, 0);
        now.read_exact_at(&mut b, start)?;
        a.resize(old_len.clamp(start, end).saturating_sub(start) as usize, 0);
        before.read_exact_at(&mut a, start)?;
        for at in (0..b.len()).step_by(SECTOR) {
            let to = b.len().min(at + SECTOR);
            if a.get(at..to) != Some(&b[at..to]) {
                add(start + at as u64..start + to as u64);
            }
        }
    }
    Ok(out)
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn relative(root: &Path, file: &Path) -> String {
    file.strip_prefix(root).unwrap_or(file).display().to_string()
}

#[cfg(test)]
mod tests;
