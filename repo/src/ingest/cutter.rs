//! Cutting of files into blocks.

use crate::pack::MAX_BLOCK;

/// Length of a fixed block: the best cut for files of which nothing is known (`CHUNKING.md` §1).
pub const FIXED_BLOCK: usize = 64 << 10;

/// Cuts one file, from its first byte to its last.
pub trait Cutter: Send {
    /// Lengths of the next blocks, which begin with the first byte of `window`, at `offset` in the file. Each is 1 to
    /// [`MAX_BLOCK`] bytes, and at least one is given unless the window is shorter than [`MAX_BLOCK`] and not the
    /// file's last. If `last`, the lengths cover the window; otherwise what they leave over is shown again, at the
    /// front of the next window.
    fn cut(&mut self, offset: u64, window: &[u8], last: bool) -> Vec<u32>;
}

/// Blocks of [`FIXED_BLOCK`] bytes at multiples of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct FixedCutter;

const _: () = assert!(FIXED_BLOCK <= MAX_BLOCK);

impl Cutter for FixedCutter {
    fn cut(&mut self, _: u64, window: &[u8], last: bool) -> Vec<u32> {
        let whole = window.len() / FIXED_BLOCK;
        let rest = window.len() % FIXED_BLOCK;
        let mut out = vec![FIXED_BLOCK as u32; whole];
        if last && rest > 0 {
            out.push(rest as u32);
        }
        out
    }
}
