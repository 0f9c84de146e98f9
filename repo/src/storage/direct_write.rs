//! Writing large objects past the page cache.
//!
//! A local repository often lies on the machine of the server that is backed up, and a pack is not read again soon:
//! in the page cache it would only push out the server's own files, after a copy that costs a fifth of a backup's time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Alignment of buffers, offsets and lengths that every common device takes.
const ALIGN: usize = 4096;

/// Bytes that are written at a time. Measured on a virtio disk with packs of 16 MiB: less costs rate, more gains none.
const STEP: usize = 1 << 20;

/// Writes `object` as the whole contents of an empty file. What does not fill an aligned block, and everything on a file
/// system that cannot do better, goes through the page cache as usual. Nothing is durable before the file is synced.
pub(super) fn write_object(file: &File, object: &[u8]) -> io::Result<()> {
    let done = if object.len() < STEP {
        0
    } else {
        write_direct(file, object)?
    };
    file.write_all_at(&object[done..], done as u64)
}

/// Writes as much from the beginning on as can be written directly, and says how much that was. The flag is off again
/// afterwards.
fn write_direct(file: &File, object: &[u8]) -> io::Result<usize> {
    let flags = fcntl_getfl(file)?;
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let mut memory = vec![0; STEP + ALIGN];
    let aligned = memory.as_ptr().align_offset(ALIGN);
    let buffer = &mut memory[aligned..aligned + STEP];
    let mut done = 0;
    let outcome = loop {
        let len = (object.len() - done).min(STEP) / ALIGN * ALIGN;
        if len == 0 {
            break Ok(done);
        }
        buffer[..len].copy_from_slice(&object[done..done + len]);
        match file.write_at(&buffer[..len], done as u64) {
            Ok(n) => {
                done += n;
                // The disk is nearly full: the usual way finds out.
                if n < len {
                    break Ok(done);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A file system that takes the flag and refuses the write.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => break Ok(done),
            Err(e) => break Err(e),
        }
    };
    fcntl_setfl(file, flags)?;
    outcome
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// In the build directory, which lies on a disk, and on a tmpfs.
    #[test]
    fn all_lengths_arrive() {
        for place in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
            let dir = tempfile::tempdir_in(place).unwrap();
            for len in [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP, 3 * STEP + ALIGN + 17] {
                let object: Vec<u8> = (0..len).map(|i| (i * 7 + i / ALIGN) as u8).collect();
                let path = dir.path().join(len.to_string());
                let file = File::create_new(&path).unwrap();
                let flags = fcntl_getfl(&file).unwrap();
                write_object(&file, &object).unwrap();
                assert_eq!(fcntl_getfl(&file).unwrap(), flags);
                assert!(std::fs::read(&path).unwrap() == object, "{len} in {place}");
            }
        }
    }

    #[test]
    fn a_disk_takes_the_aligned_part_directly() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = File::create_new(dir.path().join("file")).unwrap();
        let object = vec![7; 2 * STEP + ALIGN + 1];
        assert_eq!(write_direct(&file, &object).unwrap(), 2 * STEP + ALIGN);
    }
}
