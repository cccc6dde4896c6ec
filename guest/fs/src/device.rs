//! Device numbers, and the devices that are nothing but numbers (Linux: drivers/char/mem.c, random.c).

use crate::Errno;

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Device {
    /// The number of `st_rdev` and mknod (Linux: `new_encode_dev`).
    pub const fn encode(self) -> u32 {
        (self.minor & 0xff) | ((self.major & 0xfff) << 8) | ((self.minor & !0xff) << 12)
    }

    /// From the number that mknod takes (Linux: `new_decode_dev`).
    pub const fn decode(number: u32) -> Device {
        Device { major: (number >> 8) & 0xfff, minor: (number & 0xff) | ((number >> 12) & 0xf_ff00) }
    }
}

/// Character devices that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Char {
    /// /dev/null.
    Null,
    /// /dev/zero.
    Zero,
    /// /dev/full.
    Full,
    /// /dev/random.
    Random,
    /// /dev/urandom.
    Urandom,
    /// /dev/kmsg: the log of the kernel.
    Kmsg,
    /// /dev/tty: the controlling terminal.
    Tty,
    /// /dev/console: does not become a controlling terminal by being opened.
    Console,
    /// /dev/ttyS0.
    Serial,
    /// /dev/frames: memory that a driver allocated, for whoever maps it.
    Frames,
    /// /dev/lapic: the registers of the CPU's interrupt controller, to be mapped and read.
    Lapic,
}

/// Name in /dev, number, permissions (Linux: `devlist` in drivers/char/mem.c, drivers/tty/tty_io.c).
pub const NODES: [(&str, Device, u32); 11] = [
    ("null", Device { major: 1, minor: 3 }, 0o666),
    ("zero", Device { major: 1, minor: 5 }, 0o666),
    ("full", Device { major: 1, minor: 7 }, 0o666),
    ("random", Device { major: 1, minor: 8 }, 0o666),
    ("urandom", Device { major: 1, minor: 9 }, 0o666),
    ("kmsg", Device { major: 1, minor: 11 }, 0o644),
    ("tty", Device { major: 5, minor: 0 }, 0o666),
    ("console", Device { major: 5, minor: 1 }, 0o600),
    ("ttyS0", Device { major: 4, minor: 64 }, 0o600),
    // For local use (Linux: Documentation/admin-guide/devices.txt).
    ("frames", Device { major: 240, minor: 0 }, 0o600),
    ("lapic", Device { major: 240, minor: 1 }, 0o400),
];

impl Char {
    /// The driver of a number; `None` without one (`ENXIO` at open).
    pub const fn of(device: Device) -> Option<Char> {
        Some(match (device.major, device.minor) {
            (1, 3) => Char::Null,
            (1, 5) => Char::Zero,
            (1, 7) => Char::Full,
            (1, 8) => Char::Random,
            (1, 9) => Char::Urandom,
            (1, 11) => Char::Kmsg,
            (5, 0) => Char::Tty,
            (5, 1) => Char::Console,
            (4, 64) => Char::Serial,
            (240, 0) => Char::Frames,
            (240, 1) => Char::Lapic,
            _ => return None,
        })
    }

    /// Whether it is a terminal, which is read and written by [`crate::Tty`].
    pub const fn is_tty(self) -> bool {
        matches!(self, Char::Tty | Char::Console | Char::Serial)
    }

    /// Reads from a device that is neither a terminal nor /dev/kmsg: the number of bytes, 0 at the end. `random` fills a buffer.
    ///
    /// # Errors
    /// `EIO` for those, `EINVAL` for what is only mapped.
    pub fn read(self, buffer: &mut [u8], random: impl FnOnce(&mut [u8])) -> Result<usize, Errno> {
        match self {
            Char::Null => return Ok(0),
            Char::Zero | Char::Full => buffer.fill(0),
            Char::Random | Char::Urandom => random(buffer),
            Char::Tty | Char::Console | Char::Serial | Char::Kmsg => return Err(Errno::Eio),
            Char::Frames | Char::Lapic => return Err(Errno::Einval),
        }
        Ok(buffer.len())
    }

    /// Writes to a device that is neither a terminal nor /dev/kmsg; the number of bytes taken. `mix` takes what random numbers shall depend on.
    ///
    /// # Errors
    /// `ENOSPC` of /dev/full, `EIO` for those, `EINVAL` for what is only mapped.
    pub fn write(self, bytes: &[u8], mix: impl FnOnce(&[u8])) -> Result<usize, Errno> {
        match self {
            Char::Full if !bytes.is_empty() => return Err(Errno::Enospc),
            Char::Full | Char::Null | Char::Zero => {}
            Char::Random | Char::Urandom => mix(bytes),
            Char::Tty | Char::Console | Char::Serial | Char::Kmsg => return Err(Errno::Eio),
            Char::Frames | Char::Lapic => return Err(Errno::Einval),
        }
        Ok(bytes.len())
    }
}
