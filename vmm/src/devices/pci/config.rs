//! Configuration space of a function: 256 bytes, of which a mask says what a guest may write.

use crate::machine::Range;

/// Who a function says it is (PCI 3.0 section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass, programming interface.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;

/// Command: the function answers in memory space.
const MEMORY_SPACE: u8 = 1 << 1;
/// Command bits that stick: memory space, bus master, interrupt disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
/// Status: there is a list of capabilities.
const CAPABILITY_LIST: u8 = 1 << 4;

/// The 256 bytes.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// Bytes of BAR 0; 0 for none.
    bar0: u32,
    /// Where the next capability goes, and the byte that links to it.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(header: &Header) -> ConfigSpace {
        let mut config =
            ConfigSpace { bytes: [0; 256], writable: [0; 256], bar0: 0, next: 0x40, link: CAPABILITIES };
        config.set(0x00, &header.vendor.to_le_bytes());
        config.set(0x02, &header.device.to_le_bytes());
        config.set(REVISION, &(header.class << 8 | u32::from(header.revision)).to_le_bytes());
        config.set(SUBSYSTEM, &header.subsystem.0.to_le_bytes());
        config.set(SUBSYSTEM + 2, &header.subsystem.1.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config
    }

    /// Gives the function a BAR 0 in 32-bit memory space, of `len` bytes, a power of two, at `base`, and
    /// switches it on as firmware does.
    pub fn set_bar0(&mut self, base: u32, len: u32) {
        debug_assert!(len.is_power_of_two() && base.is_multiple_of(len));
        self.bar0 = len;
        self.set(BAR0, &base.to_le_bytes());
        // The low bits read as zero whatever is written: this is how a guest learns the size.
        self.allow(BAR0, &(!(len.wrapping_sub(1))).to_le_bytes());
        self.set(COMMAND, &[MEMORY_SPACE]);
    }

    /// Where BAR 0 is, if memory space is enabled.
    pub fn bar0(&self) -> Option<Range> {
        let enabled = self.bytes.get(COMMAND).is_some_and(|low| low & MEMORY_SPACE != 0);
        let base = u32::from_le_bytes(self.bytes.get(BAR0..)?.first_chunk().copied()?);
        (enabled && self.bar0 != 0).then_some(Range { base: base.into(), len: self.bar0.into() })
    }

    /// Appends a capability with `body` after its id and link, of which `writable` are the bits that a
    /// guest may write; where it begins.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        debug_assert!(at + 2 + body.len() <= 256);
        self.set(self.link, &[u8::try_from(at).unwrap_or(0)]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        self.set(STATUS, &[CAPABILITY_LIST]);
        at
    }

    /// Fills `data` from byte `offset` on; ones past the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Takes what of `data` may be written at byte `offset`.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// The two bytes at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        self.bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u16::from_le_bytes)
    }

    /// The four bytes at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        self.bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u32::from_le_bytes)
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            if let Some(slot) = self.bytes.get_mut(at) {
                *slot = *byte;
            }
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (at, bits) in (offset..).zip(mask) {
            if let Some(slot) = self.writable.get_mut(at) {
                *slot = *bits;
            }
        }
    }
}
