//! Names of things: every id and number has a type of its own, so that a wrong one does not compile.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An id in text is not the right number of lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an id of {1} hexadecimal digits")]
pub struct BadId(pub String, pub usize);

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], BadId> {
    let bad = || BadId(text.chars().take(80).collect(), N * 2);
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(bad());
    }
    let value = |d: u8| match d {
        b'0'..=b'9' => Some(d - b'0'),
        b'a'..=b'f' => Some(d - b'a' + 10),
        _ => None,
    };
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])
            .zip(value(pair[1]))
            .map(|(hi, lo)| hi << 4 | lo)
            .ok_or_else(bad)?;
    }
    Ok(out)
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length of the id in bytes.
            pub const LEN: usize = $len;

            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

byte_id!(
    /// BLAKE3-256 of a block's plain bytes.
    BlockId, 32
);
byte_id!(
    /// BLAKE3-256 of a pack's trailer, which holds a random nonce: equal contents never share an id.
    PackId, 32
);
byte_id!(
    /// A writer's lease; random, used once in the life of a repository.
    LeaseId, 16
);
byte_id!(
    /// A condemned list; random, used once in the life of a repository.
    ListId, 16
);
byte_id!(
    /// The repository itself; random, chosen at `init`.
    RepositoryId, 16
);
byte_id!(
    /// Random bytes in a trailer that make each sealing of a pack a new object.
    Nonce, 16
);

impl BlockId {
    /// The id of these plain bytes.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

/// Where randomness for ids comes from. Injected, so that a simulation can replay a run.
pub trait Randomness: Send + Sync {
    /// Fills `out` with bytes that nobody has drawn before.
    fn fill(&self, out: &mut [u8]);
}

/// The operating system's generator.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn fill(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the kernel's random generator answers once the machine has booted");
    }
}

/// Draws a 16-byte id.
pub fn draw16(randomness: &dyn Randomness) -> [u8; 16] {
    let mut out = [0; 16];
    randomness.fill(&mut out);
    out
}

/// A block's number in its pack, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

/// A pack's number in the pack table of one replica set, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackNo(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a snapshot: a UTC time to the second, such as `2026-11-21T10:48:00Z`; names sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The name that belongs to a moment, cut to the second.
    pub fn at(moment: jiff::Timestamp) -> Self {
        Self(moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }

    /// The text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The second that it names. The backup began then or, if others had taken its names, up to minutes before.
    pub fn moment(&self) -> jiff::Timestamp {
        self.0.parse().unwrap_or(jiff::Timestamp::MIN)
    }
}

impl FromStr for SnapshotName {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = || BadName(text.chars().take(80).collect());
        let moment: jiff::Timestamp = text.parse().map_err(|_| bad())?;
        // Only the one canonical spelling is a name: it is part of object keys.
        let name = Self::at(moment);
        if name.0 == text { Ok(name) } else { Err(bad()) }
    }
}

/// A text is not the canonical name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a snapshot name such as 2026-11-21T10:48:00Z")]
pub struct BadName(pub String);

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SnapshotName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SnapshotName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
