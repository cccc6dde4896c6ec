//! Takes the fuzzer's bytes apart.

/// Bytes read from the front; past their end everything is zero.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `len` bytes, fewer at the end.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        for (slot, byte) in array.iter_mut().zip(taken) {
            *slot = *byte;
        }
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// A 16-bit word.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A 32-bit word.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A 64-bit word.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A 64-bit number that is as often small, near a power of two or near the end as it is any: one
    /// byte says which, few or none follow.
    pub fn number(&mut self) -> u64 {
        let form = self.u8();
        let near = |center: u64, form: u8| match form & 3 {
            0 => center,
            1 => center.wrapping_sub(1),
            2 => center.wrapping_add(1),
            _ => center.wrapping_add(0x1000),
        };
        match form {
            0..64 => u64::from(form),
            64..128 => near(1 << (form & 63), self.u8()),
            128..160 => u64::from(self.u16()),
            160..192 => u64::from(self.u32()),
            192..224 => u64::from(self.u32()) << 12,
            224..240 => near(u64::MAX, form),
            240.. => self.u64(),
        }
    }
}
