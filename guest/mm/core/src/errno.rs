//! Linux's error numbers, for the whole guest.

use core::fmt;

macro_rules! errnos {
    ($($variant:ident = $number:literal, $name:literal, $text:literal;)*) => {
        /// An `errno` (Linux: include/uapi/asm-generic/errno-base.h, errno.h; the restart codes, which no program ever sees:
        /// include/linux/errno.h).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Errno {
            $(#[doc = concat!($name, ": ", $text, ".")] $variant = $number,)*
        }

        impl Errno {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Errno] = &[$(Errno::$variant),*];

            /// Linux's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Errno::$variant => $name,)*
                }
            }

            const fn text(self) -> &'static str {
                match self {
                    $(Errno::$variant => $text,)*
                }
            }
        }
    };
}

errnos! {
    Eperm = 1, "EPERM", "operation not permitted";
    Enoent = 2, "ENOENT", "no such file or directory";
    Esrch = 3, "ESRCH", "no such process";
    Eintr = 4, "EINTR", "interrupted by a signal";
    Eio = 5, "EIO", "input/output error";
    Enxio = 6, "ENXIO", "no such device or address";
    E2big = 7, "E2BIG", "argument list too long";
    Enoexec = 8, "ENOEXEC", "not a program that can run";
    Ebadf = 9, "EBADF", "bad file descriptor";
    Echild = 10, "ECHILD", "no child processes";
    Eagain = 11, "EAGAIN", "try again";
    Enomem = 12, "ENOMEM", "out of memory, or not mapped";
    Eacces = 13, "EACCES", "permission denied";
    Efault = 14, "EFAULT", "bad address";
    Enotblk = 15, "ENOTBLK", "block device required";
    Ebusy = 16, "EBUSY", "busy";
    Eexist = 17, "EEXIST", "already there";
    Exdev = 18, "EXDEV", "link across devices";
    Enodev = 19, "ENODEV", "no such device";
    Enotdir = 20, "ENOTDIR", "not a directory";
    Eisdir = 21, "EISDIR", "is a directory";
    Einval = 22, "EINVAL", "invalid argument";
    Enfile = 23, "ENFILE", "too many open files in the system";
    Emfile = 24, "EMFILE", "too many open files";
    Enotty = 25, "ENOTTY", "not a terminal";
    Etxtbsy = 26, "ETXTBSY", "program file is busy";
    Efbig = 27, "EFBIG", "file too large";
    Enospc = 28, "ENOSPC", "no space left";
    Espipe = 29, "ESPIPE", "not seekable";
    Erofs = 30, "EROFS", "read-only file system";
    Emlink = 31, "EMLINK", "too many links";
    Epipe = 32, "EPIPE", "broken pipe";
    Edom = 33, "EDOM", "argument out of domain";
    Erange = 34, "ERANGE", "result out of range";
    Edeadlk = 35, "EDEADLK", "deadlock would occur";
    Enametoolong = 36, "ENAMETOOLONG", "file name too long";
    Enolck = 37, "ENOLCK", "no locks left";
    Enosys = 38, "ENOSYS", "no such system call";
    Enotempty = 39, "ENOTEMPTY", "directory not empty";
    Eloop = 40, "ELOOP", "too many symbolic links";
    Enodata = 61, "ENODATA", "no data";
    Etime = 62, "ETIME", "timer expired";
    Eproto = 71, "EPROTO", "protocol error";
    Eoverflow = 75, "EOVERFLOW", "value too large for its type";
    Elibbad = 80, "ELIBBAD", "corrupted shared library";
    Eilseq = 84, "EILSEQ", "illegal byte sequence";
    Erestart = 85, "ERESTART", "system call to be restarted";
    Enotsock = 88, "ENOTSOCK", "not a socket";
    Eopnotsupp = 95, "EOPNOTSUPP", "not supported";
    Eafnosupport = 97, "EAFNOSUPPORT", "address family not supported";
    Eaddrnotavail = 99, "EADDRNOTAVAIL", "address not available";
    Econnreset = 104, "ECONNRESET", "connection reset";
    Etimedout = 110, "ETIMEDOUT", "timed out";
    Ealready = 114, "EALREADY", "already in progress";
    Einprogress = 115, "EINPROGRESS", "in progress";
    Estale = 116, "ESTALE", "stale file handle";
    Euclean = 117, "EUCLEAN", "structure needs cleaning";
    Ecanceled = 125, "ECANCELED", "cancelled";
    Eownerdead = 130, "EOWNERDEAD", "owner died";
    Enotrecoverable = 131, "ENOTRECOVERABLE", "state not recoverable";
    Ehwpoison = 133, "EHWPOISON", "page is poisoned";
    Erestartsys = 512, "ERESTARTSYS", "restart if the handler says so";
    Erestartnointr = 513, "ERESTARTNOINTR", "restart always";
    Erestartnohand = 514, "ERESTARTNOHAND", "restart if there is no handler";
    ErestartRestartblock = 516, "ERESTART_RESTARTBLOCK", "restart by restart_syscall";
}

impl Errno {
    /// The positive number.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// What a system call leaves in RAX: the negative number.
    pub const fn result(self) -> u64 {
        (self as i64).wrapping_neg().cast_unsigned()
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}

impl core::error::Error for Errno {}
