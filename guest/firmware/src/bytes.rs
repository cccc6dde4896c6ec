//! Checked views of physical memory.

/// Physical memory that can be read by the byte.
pub trait Memory {
    /// The `N` bytes at `addr`; `None` unless all of them can be read.
    fn read<const N: usize>(&self, addr: u64) -> Option<[u8; N]>;
}

/// A range of physical memory. Words are little-endian and need no alignment; a read that is not
/// wholly inside gives `None`.
#[derive(Debug)]
pub struct Bytes<'m, M> {
    memory: &'m M,
    addr: u64,
    len: usize,
}

impl<M> Clone for Bytes<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Bytes<'_, M> {}

impl<'m, M: Memory> Bytes<'m, M> {
    /// `len` bytes at `addr`, whether they can be read or not; empty if the range wraps.
    pub fn at(memory: &'m M, addr: u64, len: usize) -> Self {
        let fits = addr.checked_add(len as u64).is_some();
        Self { memory, addr, len: if fits { len } else { 0 } }
    }

    /// Physical address of the first byte.
    pub fn address(&self) -> u64 {
        self.addr
    }

    /// Bytes in the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part; `None` if it does not fit.
    pub fn slice(&self, start: usize, len: usize) -> Option<Self> {
        let inside = start.checked_add(len).is_some_and(|last| last <= self.len);
        inside.then(|| Self { memory: self.memory, addr: self.addr + start as u64, len })
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset.checked_add(N)? > self.len {
            return None;
        }
        self.memory.read(self.addr + offset as u64)
    }

    /// The byte at an offset.
    pub fn u8(&self, offset: usize) -> Option<u8> {
        self.read(offset).map(u8::from_le_bytes)
    }

    /// The 16-bit word at an offset.
    pub fn u16(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_le_bytes)
    }

    /// The 32-bit word at an offset.
    pub fn u32(&self, offset: usize) -> Option<u32> {
        self.read(offset).map(u32::from_le_bytes)
    }

    /// The 64-bit word at an offset.
    pub fn u64(&self, offset: usize) -> Option<u64> {
        self.read(offset).map(u64::from_le_bytes)
    }

    /// Whether all bytes can be read and sum to 0 modulo 256, as ACPI's checksums do.
    pub fn checksum_holds(&self) -> bool {
        let sum = (0..self.len).try_fold(0_u8, |sum, at| Some(sum.wrapping_add(self.u8(at)?)));
        sum == Some(0)
    }
}
