//! Linux's error numbers, as far as memory calls return them.

use core::fmt;

/// An `errno` (Linux: include/uapi/asm-generic/errno-base.h, errno.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Errno {
    /// Operation not permitted.
    Eperm = 1,
    /// Bad file descriptor.
    Ebadf = 9,
    /// Try again.
    Eagain = 11,
    /// Out of memory, or nothing is mapped there.
    Enomem = 12,
    /// Permission denied.
    Eacces = 13,
    /// Bad address.
    Efault = 14,
    /// Device or resource busy.
    Ebusy = 16,
    /// File exists.
    Eexist = 17,
    /// No such device.
    Enodev = 19,
    /// Invalid argument.
    Einval = 22,
    /// Value too large for defined data type.
    Eoverflow = 75,
    /// Operation not supported.
    Eopnotsupp = 95,
}

impl Errno {
    /// The positive number.
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Errno::Eperm => "operation not permitted (EPERM)",
            Errno::Ebadf => "bad file descriptor (EBADF)",
            Errno::Eagain => "try again (EAGAIN)",
            Errno::Enomem => "out of memory, or not mapped (ENOMEM)",
            Errno::Eacces => "permission denied (EACCES)",
            Errno::Efault => "bad address (EFAULT)",
            Errno::Ebusy => "busy (EBUSY)",
            Errno::Eexist => "already mapped (EEXIST)",
            Errno::Enodev => "no such device (ENODEV)",
            Errno::Einval => "invalid argument (EINVAL)",
            Errno::Eoverflow => "offset too large (EOVERFLOW)",
            Errno::Eopnotsupp => "not supported (EOPNOTSUPP)",
        })
    }
}

impl core::error::Error for Errno {}
