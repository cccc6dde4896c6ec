//! The stream cipher that random bytes come from (RFC 8439, 2.3; Linux: lib/crypto/chacha-block-generic.c).

use crate::bytes::u32_at;

const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Bytes of a block.
pub const BLOCK_LEN: usize = 64;

/// The block of a key, a counter and a nonce.
pub fn block(key: &[u32; 8], counter: u32, nonce: &[u32; 3]) -> [u8; BLOCK_LEN] {
    let mut begin = [0; 16];
    begin[..4].copy_from_slice(&CONSTANTS);
    begin[4..12].copy_from_slice(key);
    begin[12] = counter;
    begin[13..].copy_from_slice(nonce);
    let mut state = begin;
    for _ in 0..10 {
        for [a, b, c, d] in [
            [0, 4, 8, 12],
            [1, 5, 9, 13],
            [2, 6, 10, 14],
            [3, 7, 11, 15],
            [0, 5, 10, 15],
            [1, 6, 11, 12],
            [2, 7, 8, 13],
            [3, 4, 9, 14],
        ] {
            for (to, from, mixed, bits) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
                state[to] = state[to].wrapping_add(state[from]);
                state[mixed] = (state[mixed] ^ state[to]).rotate_left(bits);
            }
        }
    }
    let mut bytes = [0; BLOCK_LEN];
    for ((to, word), first) in bytes.chunks_exact_mut(4).zip(state).zip(begin) {
        to.copy_from_slice(&word.wrapping_add(first).to_le_bytes());
    }
    bytes
}

/// Random bytes from a key that is never used again: whoever learns the state cannot say what came out before (Linux:
/// `crng_fast_key_erasure`).
#[derive(Clone, Debug)]
pub struct Generator {
    key: [u32; 8],
}

impl Generator {
    /// From nothing: predictable until something is mixed in.
    pub const fn new() -> Generator {
        Generator { key: [0; 8] }
    }

    /// Makes the key depend on `input`, too.
    pub fn mix(&mut self, input: [u32; 3]) {
        self.next_key(&block(&self.key, u32::MAX, &input));
    }

    /// Up to 32 bytes.
    pub fn bytes(&mut self) -> [u8; 32] {
        let block = block(&self.key, 0, &[0; 3]);
        self.next_key(&block);
        core::array::from_fn(|index| block[32 + index])
    }

    fn next_key(&mut self, block: &[u8; BLOCK_LEN]) {
        self.key = core::array::from_fn(|index| u32_at(block, 4 * index));
    }
}

impl Default for Generator {
    fn default() -> Self {
        Generator::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8439, 2.3.2.
    #[test]
    fn the_block_of_the_rfc() {
        let bytes: [u8; 32] = core::array::from_fn(|index| u8::try_from(index).unwrap());
        let key = core::array::from_fn(|index| u32_at(&bytes, 4 * index));
        let block = block(&key, 1, &[0x0900_0000, 0x4a00_0000, 0]);
        assert_eq!(block[..8], [0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15]);
        assert_eq!(block[56..], [0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e]);
    }

    #[test]
    fn no_output_is_like_another() {
        let mut generator = Generator::new();
        let mut seen: std::vec::Vec<_> = (0..100).map(|_| generator.bytes()).collect();
        generator.mix([1, 2, 3]);
        seen.push(generator.bytes());
        seen.push(Generator::new().bytes());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 101, "only the new generator repeats the first");
    }
}
