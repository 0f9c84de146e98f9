//! Reading of large files without disturbing the page cache: a backup of a terabyte must not throw out the pages
//! that mongod works with.
//!
//! In order of preference: `RWF_DONTCACHE` (Linux 6.14 and later, on file systems that know it: pages that were in
//! the cache stay, those that the read brought in go), `O_DIRECT` (nothing enters the cache), plain reads.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::Path;

use pbmfs_repo::ingest::ReadAt;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

/// `RWF_DONTCACHE` of `linux/fs.h`.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Alignment of buffers, offsets and lengths under `O_DIRECT`: the largest that is in use.
const ALIGN: usize = 4096;

/// Bytes of one read under `O_DIRECT`.
const DIRECT_LEN: usize = 1 << 20;

/// A file that is read from front to back.
pub struct QuietFile {
    file: File,
    how: How,
    /// Whether zeros follow the end.
    padded: bool,
}

enum How {
    DontCache,
    Direct(DirectBuffer),
    Plain,
}

impl QuietFile {
    /// Opens a file for one reading.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // One byte: of a read of no bytes the kernel looks at no flag, and says yes to all.
        let mut probe = [0u8; 1];
        let how = match rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut probe)], 0, DONTCACHE) {
            Ok(_) => How::DontCache,
            Err(_) => match rustix::fs::open(
                path,
                OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(fd) => {
                    return Ok(Self {
                        file: fd.into(),
                        how: How::Direct(DirectBuffer::new()),
                        padded: false,
                    });
                }
                Err(_) => How::Plain,
            },
        };
        Ok(Self {
            file,
            how,
            padded: false,
        })
    }

    /// Reads zeros behind the file's end instead of failing there. For a journal that is in use: a file of it is made in
    /// its full length, and cut to what was written when the next one begins.
    pub fn padded(self) -> Self {
        Self { padded: true, ..self }
    }

    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        match &mut self.how {
            How::DontCache => {
                match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(out)], offset, DONTCACHE) {
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                        self.how = How::Plain;
                        self.read_at(offset, out)
                    }
                    other => Ok(other?),
                }
            }
            How::Direct(buffer) => match buffer.read(&self.file, offset, out) {
                // A file system that takes the flag at open and refuses it at the first read.
                Err(Errno::INVAL) => {
                    let flags = rustix::fs::fcntl_getfl(&self.file)?;
                    rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                    self.how = How::Plain;
                    self.read_at(offset, out)
                }
                other => Ok(other?),
            },
            How::Plain => Ok(rustix::io::pread(&self.file, &mut *out, offset)?),
        }
    }
}

impl ReadAt for QuietFile {
    fn read_exact_at(&mut self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match self.read_at(offset, out) {
                Ok(0) if self.padded => {
                    out.fill(0);
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    offset += n as u64;
                    out = &mut out[n..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A buffer with an aligned part, and what of the file is in it.
struct DirectBuffer {
    memory: Vec<u8>,
    aligned: usize,
    start: u64,
    len: usize,
}

impl DirectBuffer {
    fn new() -> Self {
        let memory = vec![0; DIRECT_LEN + ALIGN];
        let aligned = memory.as_ptr().align_offset(ALIGN);
        Self {
            memory,
            aligned,
            start: 0,
            len: 0,
        }
    }

    fn read(&mut self, file: &File, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        if offset < self.start || offset >= self.start + self.len as u64 {
            let start = offset - offset % ALIGN as u64;
            let buffer = &mut self.memory[self.aligned..self.aligned + DIRECT_LEN];
            self.len = rustix::io::pread(file, buffer, start)?;
            self.start = start;
        }
        let from = (offset - self.start) as usize;
        let n = self.len.saturating_sub(from).min(out.len());
        out[..n].copy_from_slice(&self.memory[self.aligned + from..self.aligned + from + n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel that a test runs on has a better way; this one is for older ones.
    #[test]
    fn direct_reads_give_the_same_bytes() {
        // Not in /tmp, which may be a tmpfs without O_DIRECT.
        let place = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = place.path().join("file");
        for len in [1, 4095, 4096, DIRECT_LEN, 2 * DIRECT_LEN + 4097] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + i / 4096) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&path, flags, Mode::empty()).expect("a file system with O_DIRECT");
            let mut file = QuietFile {
                file: fd.into(),
                how: How::Direct(DirectBuffer::new()),
                padded: false,
            };
            let mut read = vec![0; len];
            for (part, at) in read.chunks_mut(300_001).zip((0..).step_by(300_001)) {
                file.read_exact_at(at, part).unwrap();
            }
            assert!(read == bytes, "{len}");
            let behind = file.read_exact_at(len as u64, &mut [0]).unwrap_err();
            assert_eq!(behind.kind(), io::ErrorKind::UnexpectedEof);
            let mut file = file.padded();
            let mut over = [7; 3];
            file.read_exact_at(len as u64 - 1, &mut over).unwrap();
            assert_eq!(over, [bytes[len - 1], 0, 0]);
        }
    }
}
