//! Random bytes: ChaCha20 whose key is replaced after every request (Linux: drivers/char/random.c, "fast key erasure").

/// The generator. What it gave out cannot be found from what it holds later.
#[derive(Debug)]
pub struct Random {
    key: [u32; 8],
    mixed: usize,
}

const BLOCK: usize = 64;

impl Random {
    /// A generator that knows nothing: [`Random::mix`] must follow.
    pub const fn new() -> Random {
        Random { key: [0; 8], mixed: 0 }
    }

    /// Takes in bytes that an attacker may or may not know.
    pub fn mix(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(32) {
            for (at, byte) in piece.iter().enumerate() {
                self.key[at / 4] ^= u32::from(*byte) << (8 * (at % 4));
            }
            self.mixed += piece.len();
            self.rekey();
        }
    }

    /// Bytes that were ever mixed in.
    pub const fn mixed(&self) -> usize {
        self.mixed
    }

    fn rekey(&mut self) {
        let block = block(&self.key, 0);
        self.key.copy_from_slice(&block[..8]);
    }

    /// Random bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let key = self.key;
        self.rekey();
        for (number, piece) in (1_u64..).zip(buffer.chunks_mut(BLOCK)) {
            let words = block(&key, number);
            for (slot, byte) in piece.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
                *slot = byte;
            }
        }
    }
}

impl Default for Random {
    fn default() -> Random {
        Random::new()
    }
}

/// A block of the stream (RFC 8439, section 2.3, with a counter of 64 bits and no nonce).
fn block(key: &[u32; 8], counter: u64) -> [u32; 16] {
    let mut start = [0_u32; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[4..12].copy_from_slice(key);
    let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_le_bytes();
    start[12] = u32::from_le_bytes([c0, c1, c2, c3]);
    start[13] = u32::from_le_bytes([c4, c5, c6, c7]);
    let mut state = start;
    for _ in 0..10 {
        for column in 0..4 {
            quarter(&mut state, [column, column + 4, column + 8, column + 12]);
        }
        for column in 0..4 {
            quarter(&mut state, [column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4]);
        }
    }
    for (word, first) in state.iter_mut().zip(start) {
        *word = word.wrapping_add(first);
    }
    state
}

fn quarter(state: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (by, to, turn) in [(b, d, 16), (d, b, 12), (b, d, 8), (d, b, 7)] {
        let sum = if to == d { a } else { c };
        state[sum] = state[sum].wrapping_add(state[by]);
        state[to] = (state[to] ^ state[sum]).rotate_left(turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_that_of_chacha20() {
        // RFC 8439, appendix A.1, test vectors 1 and 2: no key, no nonce, counters 0 and 1.
        assert_eq!(block(&[0; 8], 0)[..4], [0xade0_b876, 0x903d_f1a0, 0xe56a_5d40, 0x28bd_8653]);
        assert_eq!(block(&[0; 8], 1)[..4], [0xbee7_079f, 0x7a38_5155, 0x7c97_ba98, 0x0d08_2d73]);
    }

    #[test]
    fn a_request_tells_nothing_of_the_next() {
        let (mut one, mut two) = (Random::new(), Random::new());
        one.mix(b"seed");
        two.mix(b"seed");
        let (mut a, mut b) = ([0; 100], [0; 100]);
        one.fill(&mut a);
        two.fill(&mut b);
        assert_eq!(a, b, "the same seed, the same bytes");
        one.fill(&mut b);
        assert_ne!(a, b);
        two.mix(b"more");
        two.fill(&mut a);
        assert_ne!(a, b);
    }
}
