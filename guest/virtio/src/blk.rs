//! Requests of virtio-blk (virtio 1.2 section 5.2).
//!
//! The headers and status bytes of a queue's requests are in one page: [`SLOT_BYTES`] for each descriptor, of which the
//! request whose head it is uses those.

/// PCI device id of a modern block device.
pub const PCI_DEVICE: u16 = 0x1042;
/// PCI device id of a transitional one, which has the modern interface too.
pub const PCI_DEVICE_TRANSITIONAL: u16 = 0x1001;
/// Bytes of a sector, whatever the device's block size.
pub const SECTOR: u64 = 512;

/// Bytes of header and status of a request.
pub const SLOT_BYTES: u32 = 32;
/// Bytes of a header.
pub const HEADER_BYTES: u32 = 16;
/// Where the status byte is in a slot.
pub const STATUS: u32 = 16;
/// What a driver writes to the status before; no device writes it.
pub const STATUS_PENDING: u8 = 0xff;

/// Features (bits).
pub mod feature {
    /// Requests have at most [`super::config::SEG_MAX`] pieces.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device cannot be written.
    pub const RO: u64 = 1 << 5;
    /// There is a flush request: what was written before it is kept after it.
    pub const FLUSH: u64 = 1 << 9;
}

/// Offsets in the device's configuration.
pub mod config {
    /// Sectors of 512 bytes, 64 bits.
    pub const CAPACITY: u32 = 0;
    /// Most pieces of data in a request, 32 bits.
    pub const SEG_MAX: u32 = 12;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sectors to memory.
    Read,
    /// Memory to sectors.
    Write,
    /// Keep what was written.
    Flush,
    /// The device's name, 20 bytes.
    GetId,
}

impl Op {
    /// Whether the device writes the pieces of data.
    pub const fn device_writes(self) -> bool {
        matches!(self, Op::Read | Op::GetId)
    }

    /// The header of a request from `sector` on, in words.
    ///
    /// ```
    /// use guest_virtio::blk::Op;
    /// assert_eq!(Op::Write.header(0x1_0000_0002), [1, 0, 2, 1]);
    /// ```
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
    pub const fn header(self, sector: u64) -> [u32; 4] {
        let kind = match self {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 4,
            Op::GetId => 8,
        };
        [kind, 0, sector as u32, (sector >> 32) as u32]
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The device says so.
    Io,
    /// The device does not know such requests.
    Unsupported,
    /// The device said nothing, or what no device says.
    Nonsense,
}

/// What a status byte says.
///
/// # Errors
/// [`Failed`].
pub const fn status(byte: u8) -> Result<(), Failed> {
    match byte {
        0 => Ok(()),
        1 => Err(Failed::Io),
        2 => Err(Failed::Unsupported),
        _ => Err(Failed::Nonsense),
    }
}

/// Whether `count` sectors from `sector` on are on a disk of `capacity` sectors.
pub const fn is_inside(sector: u64, count: u64, capacity: u64) -> bool {
    match sector.checked_add(count) {
        Some(end) => end <= capacity,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_nobody_wrote_is_no_success() {
        assert_eq!(status(0), Ok(()));
        assert_eq!(status(1), Err(Failed::Io));
        assert_eq!(status(2), Err(Failed::Unsupported));
        assert_eq!(status(STATUS_PENDING), Err(Failed::Nonsense));
    }

    #[test]
    fn ranges_end_where_the_disk_does() {
        assert!(is_inside(0, 8, 8));
        assert!(!is_inside(1, 8, 8));
        assert!(!is_inside(u64::MAX, 2, u64::MAX));
    }

    #[test]
    fn slots_fit_a_page_and_do_not_overlap() {
        const {
            assert!(
                SLOT_BYTES * crate::MAX_SIZE as u32 <= 4096 && STATUS < SLOT_BYTES && STATUS >= HEADER_BYTES
            )
        }
    }
}
