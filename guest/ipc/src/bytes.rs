//! Structures as programs read them.

/// A structure of `N` bytes that is written from its start.
pub(crate) struct Bytes<const N: usize> {
    pub bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Bytes<N> {
    pub const fn new() -> Bytes<N> {
        Bytes { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, value: &[u8]) -> &mut Bytes<N> {
        if let Some(room) = self.bytes.get_mut(self.at..self.at + value.len()) {
            room.copy_from_slice(value);
        }
        self.at += value.len();
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Bytes<N> {
        self.put(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Bytes<N> {
        self.put(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Bytes<N> {
        self.put(&value.to_le_bytes())
    }

    /// Bytes that stay zero.
    pub fn skip(&mut self, len: usize) -> &mut Bytes<N> {
        self.at += len;
        self
    }
}
