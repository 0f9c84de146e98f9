//! A small generator of pseudo-random numbers, so that a seed gives the same bytes on every machine and in every year.

/// xoshiro256**, seeded through splitmix64 (both by Blackman and Vigna, public domain).
#[derive(Clone, Debug)]
pub struct Prng([u64; 4]);

impl Prng {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self([0; 4].map(|_: u64| splitmix(&mut state)))
    }

    /// A generator of its own for a part of the work, named by a number: what is drawn for one part does not depend
    /// on how much was drawn for another.
    pub fn for_part(seed: u64, part: u64) -> Self {
        let mut state = part;
        Self::new(seed ^ splitmix(&mut state))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product; the bias is far below what any test here could see.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// One of these. Panics when there is none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// Random bytes, which no codec makes smaller.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// English-looking text of about this many bytes, which compresses about as text does.
    pub fn text(&mut self, count: usize) -> String {
        const WORDS: [&str; 32] = [
            "the",
            "of",
            "order",
            "and",
            "to",
            "customer",
            "in",
            "a",
            "delivery",
            "is",
            "for",
            "invoice",
            "on",
            "that",
            "with",
            "address",
            "by",
            "street",
            "was",
            "returned",
            "at",
            "late",
            "from",
            "parcel",
            "it",
            "weight",
            "not",
            "an",
            "express",
            "are",
            "paid",
            "warehouse",
        ];
        let mut text = String::with_capacity(count + 16);
        while text.len() < count {
            text.push_str(self.pick(&WORDS));
            text.push(' ');
        }
        text
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Prng, splitmix};

    #[test]
    fn splitmix_is_the_published_one() {
        let mut state = 1_234_567;
        assert_eq!(splitmix(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(splitmix(&mut state), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_gives_others() {
        let draw = |seed| Prng::new(seed).bytes(64);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(Prng::for_part(7, 0).bytes(16), Prng::for_part(7, 1).bytes(16));
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut prng = Prng::new(1);
        assert!((0..1000).all(|_| prng.below(10) < 10));
        assert_eq!(prng.below(0), 0);
    }
}
