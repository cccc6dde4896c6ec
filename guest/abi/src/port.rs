//! The memvisor device: a block of 32-bit I/O ports that the guest uses when it is there.
//!
//! Under another VMM the ports read as all ones and the guest falls back to the serial port and
//! ACPI. A command is started by a write to [`COMMAND`] and complete when the write returns;
//! [`STATUS`] then holds its result.

/// First port of the block.
pub const BASE: u16 = 0x4d50;
/// Ports in the block (bytes).
pub const LEN: u16 = 0x20;
/// Read: [`ID_VALUE`].
pub const ID: u16 = BASE;
/// Read: version of the device, [`VERSION_VALUE`].
pub const VERSION: u16 = BASE + 4;
/// Read and write: low half of the command's address argument.
pub const ARG_LO: u16 = BASE + 8;
/// Read and write: high half of the command's address argument.
pub const ARG_HI: u16 = BASE + 12;
/// Read and write: length or number argument.
pub const ARG_LEN: u16 = BASE + 16;
/// Write: starts a [`Command`].
pub const COMMAND: u16 = BASE + 20;
/// Read: result of the last command, a [`Status`].
pub const STATUS: u16 = BASE + 24;

/// What [`ID`] reads as: "memv".
pub const ID_VALUE: u32 = u32::from_le_bytes(*b"memv");
/// What [`VERSION`] reads as.
pub const VERSION_VALUE: u32 = 1;
/// Longest console write in bytes.
pub const CONSOLE_MAX: u32 = 65536;

/// Commands of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// Write `ARG_LEN` bytes at guest-physical `ARG` to the console.
    Console = 1,
    /// Stop and audit me now. `ARG_LEN` is the checkpoint's number, `ARG` the guest-physical
    /// address of its NUL-terminated name (at most 63 bytes) or 0. Returns when the audit is done;
    /// the status is [`Status::Findings`] if it found something.
    Checkpoint = 2,
    /// End the guest with exit code `ARG_LEN` (0..=255). Does not return.
    Exit = 3,
    /// The root descriptor is at guest-physical `ARG`.
    Announce = 4,
    /// The guest panicked; its report, `ARG_LEN` bytes of text, is at guest-physical `ARG`.
    Epitaph = 5,
}

impl Command {
    /// The command of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<Command> {
        Some(match raw {
            1 => Command::Console,
            2 => Command::Checkpoint,
            3 => Command::Exit,
            4 => Command::Announce,
            5 => Command::Epitaph,
            _ => return None,
        })
    }
}

/// Results of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Unknown command, or an argument outside RAM or limits.
    Invalid = 1,
    /// The audit found something.
    Findings = 2,
}

/// Exit codes of the guest kernel; suites and the VMM name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Clean power-off.
    Ok = 0,
    /// A test in the guest failed.
    TestFailed = 1,
    /// The kernel panicked.
    Panic = 101,
    /// An unexpected trap.
    Trap = 102,
    /// The machine cannot be used (no RAM, no long mode, ...).
    BadMachine = 103,
}

impl ExitCode {
    /// What a person should read for a raw exit code.
    pub const fn describe(raw: u8) -> &'static str {
        match raw {
            0 => "clean power-off",
            1 => "a test in the guest failed",
            101 => "the guest kernel panicked",
            102 => "the guest kernel took an unexpected trap",
            103 => "the guest kernel cannot use this machine",
            _ => "an exit code that the guest kernel does not define",
        }
    }
}
