//! The alternate stack of a thread (Linux: `do_sigaltstack`, include/linux/sched/signal.h).

use bitflags::bitflags;

use crate::Errno;
use crate::bytes::{put, u32_at, u64_at};

/// Least size (Linux: `MINSIGSTKSZ`).
const MIN_LEN: u64 = 2048;

bitflags! {
    /// `ss_flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AltStackFlags: u32 {
        /// The thread is on it now.
        const ONSTACK = 1;
        /// There is none.
        const DISABLE = 2;
        /// It is taken away while a handler runs on it, so that the handler may switch stacks.
        const AUTODISARM = 1 << 31;
        const _ = !0;
    }
}

/// The alternate stack; of no bytes if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    /// Lowest address.
    pub start: u64,
    /// Bytes; 0 for none.
    pub len: u64,
    /// The flags that it was set with.
    pub given: AltStackFlags,
}

impl AltStack {
    /// Size of `stack_t`.
    pub const LEN: usize = 24;

    /// None (Linux: `sas_ss_reset`).
    pub const NONE: AltStack = AltStack { start: 0, len: 0, given: AltStackFlags::DISABLE };

    /// It is taken away while a handler runs on it.
    pub const fn disarms(&self) -> bool {
        self.given.contains(AltStackFlags::AUTODISARM)
    }

    /// Whether `sp` is on it (Linux: `on_sig_stack`). Of one that disarms itself nobody is.
    pub const fn contains(&self, sp: u64) -> bool {
        !self.disarms() && self.holds(sp)
    }

    /// Linux: `__on_sig_stack`.
    pub(crate) const fn holds(&self, sp: u64) -> bool {
        sp > self.start && sp - self.start <= self.len
    }

    /// What `sigaltstack` says of it to a thread whose stack pointer is `sp`.
    pub const fn flags(&self, sp: u64) -> AltStackFlags {
        let mode = if self.len == 0 {
            AltStackFlags::DISABLE
        } else if self.contains(sp) {
            AltStackFlags::ONSTACK
        } else {
            AltStackFlags::empty()
        };
        if self.disarms() { mode.union(AltStackFlags::AUTODISARM) } else { mode }
    }

    /// `stack_t` as `sigaltstack` returns it to a thread whose stack pointer is `sp`.
    pub fn to_bytes(&self, sp: u64) -> [u8; AltStack::LEN] {
        self.with_flags(self.flags(sp))
    }

    /// `stack_t` as a handler's frame has it: with the flags it was set with (Linux: `save_altstack`).
    pub fn to_frame(&self) -> [u8; AltStack::LEN] {
        self.with_flags(self.given)
    }

    fn with_flags(&self, flags: AltStackFlags) -> [u8; AltStack::LEN] {
        let mut bytes = [0; AltStack::LEN];
        put(&mut bytes, 0, &self.start.to_le_bytes());
        put(&mut bytes, 8, &flags.bits().to_le_bytes());
        put(&mut bytes, 16, &self.len.to_le_bytes());
        bytes
    }

    /// Takes a `stack_t` from a thread whose stack pointer is `sp`.
    ///
    /// # Errors
    /// EPERM while it runs on the present one; EINVAL for unknown flags; ENOMEM for less than 2048 bytes.
    pub fn set(&mut self, bytes: &[u8; AltStack::LEN], sp: u64) -> Result<(), Errno> {
        let given = AltStackFlags::from_bits_retain(u32_at(bytes, 8));
        let mode = given.difference(AltStackFlags::AUTODISARM);
        let mut wanted = AltStack { start: u64_at(bytes, 0), len: u64_at(bytes, 16), given };
        if self.contains(sp) {
            return Err(Errno::Eperm);
        }
        if mode == AltStackFlags::DISABLE {
            (wanted.start, wanted.len) = (0, 0);
        } else if !mode.is_empty() && mode != AltStackFlags::ONSTACK {
            return Err(Errno::Einval);
        } else if wanted != *self && wanted.len < MIN_LEN {
            return Err(Errno::Enomem);
        }
        *self = wanted;
        Ok(())
    }
}
