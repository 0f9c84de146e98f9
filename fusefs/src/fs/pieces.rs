//! The answer to a read: slices of cached blocks, put together only when it has to be one buffer.

use std::cell::RefCell;

use bytes::Bytes;

/// Zeros for holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A buffer that grew beyond this is given back after use: 1 MiB is what the kernel asks for at most by default.
const KEEP_BUFFER: usize = 4 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes in several parts.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    parts: Vec<Bytes>,
    len: usize,
}

impl Pieces {
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a part.
    pub fn push(&mut self, part: Bytes) {
        self.len += part.len();
        self.parts.push(part);
    }

    /// Appends `len` zeros without storing them.
    pub fn push_zeros(&mut self, mut len: u64) {
        while len > 0 {
            let part = usize::try_from(len).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
            self.push(Bytes::from_static(&ZEROS[..part]));
            len -= part as u64;
        }
    }

    /// Gives all bytes as one slice. A single part is given as it is; several are gathered in a buffer that the
    /// thread keeps, because a fresh one of 1 MiB would cost 256 page faults a read.
    pub fn with_slice<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self.parts.as_slice() {
            [] => f(&[]),
            [one] => f(one),
            parts => BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                buffer.reserve(self.len);
                for part in parts {
                    buffer.extend_from_slice(part);
                }
                let result = f(buffer);
                if buffer.capacity() > KEEP_BUFFER {
                    *buffer = Vec::new();
                }
                result
            }),
        }
    }

    /// A copy of all bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.parts.concat()
    }
}
