//! One mongod and what it says about itself: finding the right member, talking to it, and what a snapshot remembers of
//! it. Shared by the sources that read a live server's files.

pub(crate) mod member;
pub(crate) mod node_info;
pub(crate) mod server;
