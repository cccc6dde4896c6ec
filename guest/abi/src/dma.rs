//! The DMA engine: its registers as device and driver see them, docs/dma.md.
//!
//! The engine is a PCI function with MSI-X. BAR 0 has a page of 64-bit registers, the MSI-X table at [`MSIX_TABLE`] and its pending bits at
//! [`MSIX_PENDING`]. A register is read and written whole or by its two halves of 32 bits, the lower one first; other accesses read as
//! zero or are dropped. Messages are of vector [`VECTOR`].

/// PCI vendor: one that nobody was given.
pub const VENDOR: u16 = 0x4d56;
/// PCI device.
pub const DEVICE: u16 = 0x0d3a;
/// PCI class: system peripheral, other.
pub const CLASS: u32 = 0x08_8000;

/// Bytes of BAR 0.
pub const BAR_BYTES: u32 = 0x4000;
/// Where the MSI-X table begins in BAR 0.
pub const MSIX_TABLE: u32 = 0x1000;
/// Where the MSI-X pending bits begin in BAR 0.
pub const MSIX_PENDING: u32 = 0x2000;
/// MSI-X vector of everything that the engine tells.
pub const VECTOR: u16 = 0;

/// Value of [`Register::Id`].
pub const ID: u64 = u64::from_le_bytes(*b"memv-dma");
/// Version of this interface.
pub const VERSION: u64 = 1;

/// Bytes of the engine's own memory. It keeps its contents over a reset, and is reached by transfers only.
pub const OWN_BYTES: u64 = 64 << 10;
/// Longest transfer, in bytes.
pub const LENGTH_MAX: u64 = 1 << 20;
/// Largest unit, in bytes; the smallest is 1.
pub const UNIT_MAX: u64 = 4096;
/// Most units of a burst.
pub const BURST_MAX: u64 = 64;
/// Longest pause, in microseconds. What is written beyond counts as this.
pub const PAUSE_MAX: u64 = 100_000;

/// Registers, by their offset in BAR 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Register {
    /// [`ID`]; read only.
    Id = 0x00,
    /// Bits 0 to 7: address bits that the engine drives, 24, 32 or 64. Bits 8 to 15: [`VERSION`]. Bits 32 to 63: [`OWN_BYTES`]. Read only.
    Capabilities = 0x08,
    /// First byte that is read: an address of the bus, or an offset into the engine's own memory.
    Source = 0x10,
    /// First byte that is written.
    Destination = 0x18,
    /// Bytes, 1 to [`LENGTH_MAX`].
    Length = 0x20,
    /// Bytes that are moved in one piece, 1 to [`UNIT_MAX`]; the last unit of a transfer may be shorter.
    Unit = 0x28,
    /// Units of a burst, 1 to [`BURST_MAX`].
    Burst = 0x30,
    /// Microseconds for which the bus is free after a burst, or after a stolen unit.
    Pause = 0x38,
    /// [`Mode`] in bits 0 to 3, [`control`] flags.
    Control = 0x40,
    /// A [`Command`]; reads as zero.
    Command = 0x48,
    /// [`status`] flags; read only.
    Status = 0x50,
    /// [`Error`] of the last start; read only.
    Error = 0x58,
    /// The address that it is about; read only.
    ErrorAddress = 0x60,
    /// Bytes moved of the last transfer; read only.
    Progress = 0x68,
    /// [`event`] flags that send a message.
    InterruptEnable = 0x70,
    /// [`event`] flags that happened; ones that are written acknowledge. A message is sent when an enabled event happens, and when one that
    /// happened is enabled.
    InterruptStatus = 0x78,
}

impl Register {
    /// All registers, ascending.
    pub const ALL: [Register; 16] = [
        Register::Id,
        Register::Capabilities,
        Register::Source,
        Register::Destination,
        Register::Length,
        Register::Unit,
        Register::Burst,
        Register::Pause,
        Register::Control,
        Register::Command,
        Register::Status,
        Register::Error,
        Register::ErrorAddress,
        Register::Progress,
        Register::InterruptEnable,
        Register::InterruptStatus,
    ];

    /// The register that begins at an offset.
    pub const fn at(offset: u64) -> Option<Register> {
        let mut index = 0;
        while index < Register::ALL.len() {
            if Register::ALL[index] as u64 == offset {
                return Some(Register::ALL[index]);
            }
            index += 1;
        }
        None
    }

    /// Whether it says what the next transfer is. While one is going on, these are dropped when they are written.
    pub const fn is_setup(self) -> bool {
        matches!(
            self,
            Register::Source
                | Register::Destination
                | Register::Length
                | Register::Unit
                | Register::Burst
                | Register::Pause
                | Register::Control
        )
    }
}

/// How a transfer takes the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Mode {
    /// One unit for each [`Command::Start`]; the transfer goes on with the next one.
    Single = 0,
    /// All at once: the CPU that starts it stands still meanwhile.
    Block = 1,
    /// [`Register::Burst`] units, then the bus is free for [`Register::Pause`]. CPUs run meanwhile.
    Burst = 2,
    /// One unit, then the bus is free for [`Register::Pause`]. CPUs run meanwhile.
    CycleStealing = 3,
}

impl Mode {
    /// All modes, by number.
    pub const ALL: [Mode; 4] = [Mode::Single, Mode::Block, Mode::Burst, Mode::CycleStealing];

    /// The mode that a value of [`Register::Control`] names.
    pub const fn from_control(control: u64) -> Option<Mode> {
        Some(match control & control::MODE {
            0 => Mode::Single,
            1 => Mode::Block,
            2 => Mode::Burst,
            3 => Mode::CycleStealing,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Single => "single",
            Mode::Block => "block",
            Mode::Burst => "burst",
            Mode::CycleStealing => "cycle stealing",
        }
    }
}

/// Parts of [`Register::Control`].
pub mod control {
    /// The mode.
    pub const MODE: u64 = 0xf;
    /// The source is in the engine's own memory.
    pub const SOURCE_IS_OWN: u64 = 1 << 4;
    /// The destination is in the engine's own memory.
    pub const DESTINATION_IS_OWN: u64 = 1 << 5;
    /// All that may be set.
    pub const KNOWN: u64 = MODE | SOURCE_IS_OWN | DESTINATION_IS_OWN;
}

/// Values of [`Register::Command`]; others do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Command {
    /// Begins the transfer that the registers describe, or moves the next unit of a single one. Does nothing while one of another mode goes
    /// on.
    Start = 1,
    /// Ends a transfer where it is, between two units.
    Stop = 2,
    /// Everything but the engine's own memory is as at first.
    Reset = 3,
}

/// Flags of [`Register::Status`].
pub mod status {
    /// A transfer was begun and has not ended.
    pub const ACTIVE: u64 = 1 << 0;
    /// The last transfer moved all its bytes.
    pub const DONE: u64 = 1 << 1;
    /// The last start was refused; nothing was moved.
    pub const ERROR: u64 = 1 << 2;
    /// The last transfer was stopped.
    pub const STOPPED: u64 = 1 << 3;
}

/// Flags of [`Register::InterruptEnable`] and [`Register::InterruptStatus`].
pub mod event {
    /// A transfer moved all its bytes.
    pub const DONE: u64 = 1 << 0;
    /// A start was refused.
    pub const ERROR: u64 = 1 << 1;
    /// A unit of a single transfer was moved that is not the last one.
    pub const UNIT: u64 = 1 << 2;
    /// All of them.
    pub const ALL: u64 = DONE | ERROR | UNIT;
}

/// Why a start is refused. What several are true of has the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Error {
    /// Nothing is wrong.
    None = 0,
    /// The function may not use the bus (PCI command register, bit 2).
    NotMaster = 1,
    /// The mode is unknown, or unit or burst is out of range.
    Setup = 2,
    /// No bytes, more than [`LENGTH_MAX`], or more than the engine's own memory has there.
    Length = 3,
    /// The address needs more bits than the engine drives.
    BeyondMask = 4,
    /// There is no RAM.
    NoRam = 5,
}

impl Error {
    /// All errors, by number; the first is none.
    pub const ALL: [Error; 6] =
        [Error::None, Error::NotMaster, Error::Setup, Error::Length, Error::BeyondMask, Error::NoRam];

    /// The error of a raw number.
    pub const fn from_raw(raw: u64) -> Option<Error> {
        Some(match raw {
            0 => Error::None,
            1 => Error::NotMaster,
            2 => Error::Setup,
            3 => Error::Length,
            4 => Error::BeyondMask,
            5 => Error::NoRam,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            Error::None => "none",
            Error::NotMaster => "not bus master",
            Error::Setup => "mode, unit or burst",
            Error::Length => "length",
            Error::BeyondMask => "address beyond the mask",
            Error::NoRam => "no RAM there",
        }
    }
}

/// Last address that an engine of so many address bits drives.
/// ```
/// assert_eq!(memvisor_abi::dma::last_address(24), 0xff_ffff);
/// assert_eq!(memvisor_abi::dma::last_address(64), u64::MAX);
/// ```
pub const fn last_address(bits: u32) -> u64 {
    if bits >= u64::BITS { u64::MAX } else { (1 << bits) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_words_in_a_row_and_found_by_their_offset() {
        for (index, register) in (0_u64..).zip(Register::ALL) {
            assert_eq!(register as u64, 8 * index);
            assert_eq!(Register::at(8 * index), Some(register));
            assert_eq!(Register::at(8 * index + 4), None);
        }
        assert_eq!(Register::at(8 * Register::ALL.len() as u64), None);
    }

    #[test]
    fn modes_and_errors_are_what_their_numbers_say() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_control(mode as u64 | control::SOURCE_IS_OWN), Some(mode));
        }
        assert_eq!(Mode::from_control(4), None);
        for error in Error::ALL {
            assert_eq!(Error::from_raw(error as u64), Some(error));
        }
        assert_eq!(Error::from_raw(6), None);
    }
}
