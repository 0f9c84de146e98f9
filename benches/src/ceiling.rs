//! What the machine could do: read, hash and compress with nothing else in the way; and what its disk writes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::Result;

/// Blocks as a backup cuts them.
const BLOCK: usize = 64 << 10;

/// Bytes that a thread reads at a time.
const SEGMENT: usize = 1 << 20;

/// Reads all files and makes BLAKE3 and zstd level 1 of each block of 64 KiB that is not all zeros (a backup keeps
/// zeros as holes), with two threads a core, so that reading overlaps computing. Returns bytes a second.
///
/// # Errors
/// The files'.
pub fn ceiling(files: &[PathBuf]) -> Result<f64> {
    let started = Instant::now();
    let mut work = Vec::new();
    let mut total = 0;
    for path in files {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        total += len;
        work.push((file, len));
    }
    let segments: Vec<(&File, u64, usize)> = work
        .iter()
        .flat_map(|(file, len)| {
            let part = move |at: u64| (file, at, (len - at).min(SEGMENT as u64) as usize);
            (0..*len).step_by(SEGMENT).map(part)
        })
        .collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) * 2;
    let worker = || -> io::Result<()> {
        let mut zstd = zstd::bulk::Compressor::new(1)?;
        let mut buf = vec![0; SEGMENT];
        let mut out = vec![0; zstd::zstd_safe::compress_bound(BLOCK)];
        while let Some((file, offset, len)) = segments.get(next.fetch_add(1, Relaxed)) {
            file.read_exact_at(&mut buf[..*len], *offset)?;
            for block in buf[..*len].chunks(BLOCK) {
                if block.iter().any(|b| *b != 0) {
                    std::hint::black_box(blake3::hash(block));
                    std::hint::black_box(zstd.compress_to_buffer(block, &mut out)?);
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        all.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    })?;
    Ok(total as f64 / started.elapsed().as_secs_f64())
}

/// Writes this many bytes as files of 16 MiB, each fsynced, as packs are; two at a time. Returns bytes a second.
///
/// # Errors
/// The directory's.
pub fn disk_write(dir: &Path, bytes: u64) -> Result<f64> {
    const FILE: usize = 16 << 20;
    std::fs::create_dir_all(dir)?;
    // Not zeros, and no two files alike: some disks are clever.
    let mut seed = blake3::Hasher::new().finalize_xof();
    let mut contents = vec![0; FILE];
    seed.fill(&mut contents);
    let count = bytes.div_ceil(FILE as u64);
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let worker = || -> io::Result<()> {
        let mut own = contents.clone();
        loop {
            let number = next.fetch_add(1, Relaxed) as u64;
            if number >= count {
                return Ok(());
            }
            own.rotate_left(4096);
            let mut file = File::create(dir.join(number.to_string()))?;
            file.write_all(&own)?;
            file.sync_all()?;
        }
    };
    std::thread::scope(|scope| {
        let all = [scope.spawn(worker), scope.spawn(worker)];
        all.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    })?;
    let rate = (count * FILE as u64) as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_dir_all(dir)?;
    Ok(rate)
}
