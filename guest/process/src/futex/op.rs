//! What a futex call is to do.

use super::ANY;
use crate::Errno;

/// The operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Wait while the word is what the caller says.
    Wait {
        /// What wakes it.
        bitset: u32,
        /// The time limit is a moment, not a distance.
        absolute: bool,
        /// That moment is one of CLOCK_REALTIME, not of CLOCK_MONOTONIC.
        realtime: bool,
    },
    /// Wake some.
    Wake {
        /// Whom.
        bitset: u32,
    },
    /// Wake some and move others.
    Requeue {
        /// Only if the word is what the caller says.
        compare: bool,
    },
    /// Change a second word, wake some at the first, and, depending on what the second was, some there.
    WakeOp,
}

/// A futex call's first argument, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub op: Op,
    /// No other process shares the word (`FUTEX_PRIVATE_FLAG`).
    pub private: bool,
}

impl Command {
    /// `op` and the call's last argument, which some operations take as a set of bits.
    ///
    /// # Errors
    /// ENOSYS for what is not known; EINVAL for no bit.
    pub fn parse(op: u32, bits: u32) -> Result<Command, Errno> {
        const PRIVATE: u32 = 128;
        const REALTIME: u32 = 256;
        let realtime = op & REALTIME != 0;
        let known = match op & !(PRIVATE | REALTIME) {
            0 => Op::Wait { bitset: ANY, absolute: false, realtime: false },
            1 => Op::Wake { bitset: ANY },
            3 => Op::Requeue { compare: false },
            4 => Op::Requeue { compare: true },
            5 => Op::WakeOp,
            9 => Op::Wait { bitset: bits, absolute: true, realtime },
            10 => Op::Wake { bitset: bits },
            _ => return Err(Errno::Enosys),
        };
        if realtime && !matches!(known, Op::Wait { absolute: true, .. }) {
            return Err(Errno::Enosys);
        }
        if let Op::Wait { bitset: 0, .. } | Op::Wake { bitset: 0 } = known {
            return Err(Errno::Einval);
        }
        Ok(Command { op: known, private: op & PRIVATE != 0 })
    }

    /// The call's fourth argument is a time.
    pub const fn takes_time(&self) -> bool {
        matches!(self.op, Op::Wait { .. })
    }
}

/// What `FUTEX_WAKE_OP` does to the second word, and what it asks of what that was (Linux: `futex_atomic_op_inuser`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOp {
    op: u32,
    argument: i32,
    compare: u32,
    with: i32,
}

impl WakeOp {
    /// Reads the call's last argument.
    ///
    /// # Errors
    /// ENOSYS for an operation or a comparison that is not known.
    pub fn parse(encoded: u32) -> Result<WakeOp, Errno> {
        const SHIFT: u32 = 8;
        let signed = |bits: u32| (bits << 20).cast_signed() >> 20;
        let (op, compare) = (encoded >> 28 & 7, encoded >> 24 & 15);
        let mut argument = signed(encoded >> 12);
        if encoded >> 28 & SHIFT != 0 {
            // As Linux: what is no distance of bits is cut down to one.
            argument = (1_u32 << (argument.cast_unsigned() & 31)).cast_signed();
        }
        if op > 4 || compare > 5 {
            return Err(Errno::Enosys);
        }
        Ok(WakeOp { op, argument, compare, with: signed(encoded) })
    }

    /// What the second word becomes.
    pub const fn apply(&self, old: u32) -> u32 {
        let argument = self.argument.cast_unsigned();
        match self.op {
            0 => argument,
            1 => old.wrapping_add(argument),
            2 => old | argument,
            3 => old & !argument,
            _ => old ^ argument,
        }
    }

    /// Whether what it was makes waiters at the second word wake, too.
    pub const fn wakes(&self, old: u32) -> bool {
        let old = old.cast_signed();
        match self.compare {
            0 => old == self.with,
            1 => old != self.with,
            2 => old < self.with,
            3 => old <= self.with,
            4 => old > self.with,
            _ => old >= self.with,
        }
    }
}
