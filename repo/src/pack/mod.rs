//! Packs: sealed, immutable objects of many blocks.

mod block;
mod builder;
mod sink;
mod store;
mod trailer;

pub use block::{
    BLOCK_HEADER_LEN, BLOCK_MAGIC, BlockInfo, Codec, Encoder, MAX_BLOCK, open_block, open_named_block,
};
pub use builder::{PackBuilder, SealedPack};
pub(crate) use sink::{OWN_PACK, OwnPlace, RootPlace};
pub use sink::{PackSink, put_pack};
pub(crate) use store::MAX_HOPS;
pub use store::{PackLoc, PackStore, Place, TrailerStore};
pub use trailer::{
    FOOTER_LEN, FOOTER_MAGIC, MAX_SLOTS, Owner, PackKind, TRAILER_FIXED_LEN, TRAILER_MAGIC, TRAILER_SLOT_LEN,
    Trailer, decode_footer, encode_footer, pack_id,
};
