//! What is told with a signal (Linux: include/uapi/asm-generic/siginfo.h).

use super::Signal;
use crate::Errno;
use crate::bytes::{array, put, u64_at};

/// Values of `si_code`.
pub mod code {
    /// `kill`.
    pub const USER: i32 = 0;
    /// The kernel.
    pub const KERNEL: i32 = 0x80;
    /// `sigqueue`.
    pub const QUEUE: i32 = -1;
    /// A POSIX timer.
    pub const TIMER: i32 = -2;
    /// `tkill`, `tgkill`.
    pub const TKILL: i32 = -6;
    /// SIGSEGV: nothing is mapped there.
    pub const SEGV_MAPERR: i32 = 1;
    /// SIGSEGV: the mapping does not allow it.
    pub const SEGV_ACCERR: i32 = 2;
    /// SIGBUS: bad alignment.
    pub const BUS_ADRALN: i32 = 1;
    /// SIGBUS: no such address, as behind a file's end.
    pub const BUS_ADRERR: i32 = 2;
    /// SIGILL: bad operand.
    pub const ILL_ILLOPN: i32 = 2;
    /// SIGFPE: division by zero.
    pub const FPE_INTDIV: i32 = 1;
    /// SIGTRAP: a breakpoint.
    pub const TRAP_BRKPT: i32 = 1;
    /// SIGTRAP: a single step.
    pub const TRAP_TRACE: i32 = 2;
}

/// What is told with a signal, as the kernel keeps it (Linux: `kernel_siginfo_t`, 48 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigInfo {
    /// `si_signo`.
    pub signal: Signal,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`: above 0 from the kernel, else from a program.
    pub code: i32,
    /// The rest; what it means depends on signal and code.
    fields: [u64; 4],
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl SigInfo {
    /// Size of a program's `siginfo_t`.
    pub const LEN: usize = 128;
    /// The part of it that is ever used; what lies behind is zero.
    const USED: usize = 48;

    const fn new(signal: Signal, code: i32, fields: [u64; 4]) -> SigInfo {
        SigInfo { signal, errno: 0, code, fields }
    }

    /// From `kill` ([`code::USER`]) or `tkill` ([`code::TKILL`]).
    pub const fn user(signal: Signal, code: i32, pid: u32, uid: u32) -> SigInfo {
        SigInfo::new(signal, code, [pair(pid, uid), 0, 0, 0])
    }

    /// From the kernel, with nothing to tell (Linux: `SEND_SIG_PRIV`).
    pub const fn kernel(signal: Signal) -> SigInfo {
        SigInfo::new(signal, code::KERNEL, [0; 4])
    }

    /// A fault of the thread's own at `address` (SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP).
    pub const fn fault(signal: Signal, code: i32, address: u64) -> SigInfo {
        SigInfo::new(signal, code, [address, 0, 0, 0])
    }

    /// SIGCHLD: code (`CLD_*`), child, its user, status, and its user and system time in clock ticks.
    pub const fn child(code: i32, pid: u32, uid: u32, status: u32, ticks: [u64; 2]) -> SigInfo {
        SigInfo::new(Signal::CHLD, code, [pair(pid, uid), status as u64, ticks[0], ticks[1]])
    }

    /// A POSIX timer's.
    pub const fn timer(signal: Signal, id: u32, overrun: u32, value: u64) -> SigInfo {
        SigInfo::new(signal, code::TIMER, [pair(id, overrun), value, 0, 0])
    }

    /// The same for another signal, as a child's end told by another than SIGCHLD.
    #[must_use]
    pub const fn with_signal(self, signal: Signal) -> SigInfo {
        SigInfo { signal, ..self }
    }

    /// From the kernel, not from a program (Linux: `si_fromuser`, `SI_FROMKERNEL`).
    pub const fn is_from_kernel(&self) -> bool {
        self.code > 0
    }

    /// `si_pid`, where there is one.
    pub const fn pid(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let pid = self.fields[0] as u32;
        pid
    }

    /// `si_uid`, where there is one.
    pub const fn uid(&self) -> u32 {
        (self.fields[0] >> 32) as u32
    }

    /// `si_addr`, where there is one.
    pub const fn address(&self) -> u64 {
        self.fields[0]
    }

    /// `si_status` of SIGCHLD.
    pub const fn status(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let status = self.fields[1] as u32;
        status
    }

    /// `si_value`, where there is one.
    pub const fn value(&self) -> u64 {
        self.fields[1]
    }

    /// The program's structure.
    pub fn to_bytes(&self) -> [u8; SigInfo::LEN] {
        let mut bytes = [0; SigInfo::LEN];
        put(&mut bytes, 0, &self.signal.number().to_le_bytes());
        put(&mut bytes, 4, &self.errno.to_le_bytes());
        put(&mut bytes, 8, &self.code.to_le_bytes());
        for (index, word) in self.fields.iter().enumerate() {
            put(&mut bytes, 16 + 8 * index, &word.to_le_bytes());
        }
        bytes
    }

    /// Takes what a program gives `rt_sigqueueinfo` for `signal` (Linux: `copy_siginfo_from_user`). `si_signo` is set, not
    /// checked.
    ///
    /// # Errors
    /// E2BIG if something is behind the part that is used, where only kernels to come could have a meaning for it.
    pub fn from_user(signal: Signal, bytes: &[u8; SigInfo::LEN]) -> Result<SigInfo, Errno> {
        if bytes[SigInfo::USED..].iter().any(|&byte| byte != 0) {
            return Err(Errno::E2big);
        }
        let signed = |at| array(bytes, at).map_or(0, i32::from_le_bytes);
        let fields = core::array::from_fn(|index| u64_at(bytes, 16 + 8 * index));
        Ok(SigInfo { signal, errno: signed(4), code: signed(8), fields })
    }
}
