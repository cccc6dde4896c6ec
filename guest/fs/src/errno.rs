//! Linux's error numbers, as far as calls on files return them.

use core::fmt;

macro_rules! errnos {
    ($($name:ident = $number:literal, $words:literal;)*) => {
        /// An `errno` (Linux: include/uapi/asm-generic/errno-base.h, errno.h).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Errno {
            $(#[doc = $words] $name = $number,)*
        }

        impl Errno {
            /// Words for a person.
            pub const fn words(self) -> &'static str {
                match self {
                    $(Errno::$name => $words,)*
                }
            }
        }
    };
}

errnos! {
    Eperm = 1, "operation not permitted (EPERM)";
    Enoent = 2, "no such file or directory (ENOENT)";
    Esrch = 3, "no such process (ESRCH)";
    Eintr = 4, "interrupted (EINTR)";
    Eio = 5, "input or output error (EIO)";
    Enxio = 6, "no such device or address (ENXIO)";
    E2big = 7, "argument list too long (E2BIG)";
    Enoexec = 8, "not a program (ENOEXEC)";
    Ebadf = 9, "bad file descriptor (EBADF)";
    Eagain = 11, "try again (EAGAIN)";
    Enomem = 12, "out of memory (ENOMEM)";
    Eacces = 13, "permission denied (EACCES)";
    Efault = 14, "bad address (EFAULT)";
    Enotblk = 15, "not a block device (ENOTBLK)";
    Ebusy = 16, "busy (EBUSY)";
    Eexist = 17, "file exists (EEXIST)";
    Exdev = 18, "link between file systems (EXDEV)";
    Enodev = 19, "no such device (ENODEV)";
    Enotdir = 20, "not a directory (ENOTDIR)";
    Eisdir = 21, "is a directory (EISDIR)";
    Einval = 22, "invalid argument (EINVAL)";
    Enfile = 23, "too many open files in the system (ENFILE)";
    Emfile = 24, "too many open files (EMFILE)";
    Enotty = 25, "not a terminal, or no such request (ENOTTY)";
    Etxtbsy = 26, "program is being run (ETXTBSY)";
    Efbig = 27, "file too large (EFBIG)";
    Enospc = 28, "no space left (ENOSPC)";
    Espipe = 29, "cannot seek (ESPIPE)";
    Erofs = 30, "read-only file system (EROFS)";
    Emlink = 31, "too many links (EMLINK)";
    Epipe = 32, "nobody reads the pipe (EPIPE)";
    Erange = 34, "result too large (ERANGE)";
    Enametoolong = 36, "file name too long (ENAMETOOLONG)";
    Enosys = 38, "no such call (ENOSYS)";
    Enotempty = 39, "directory not empty (ENOTEMPTY)";
    Eloop = 40, "too many symbolic links (ELOOP)";
    Eoverflow = 75, "value too large (EOVERFLOW)";
    Eopnotsupp = 95, "not supported (EOPNOTSUPP)";
}

impl Errno {
    /// The positive number.
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl core::error::Error for Errno {}

impl From<alloc::collections::TryReserveError> for Errno {
    fn from(_: alloc::collections::TryReserveError) -> Errno {
        Errno::Enomem
    }
}
