//! pbm-fs
fn main() {}
