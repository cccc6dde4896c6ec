//! Signals (Linux: kernel/signal.c, include/linux/signal.h).
//!
//! [`ThreadGroup`] holds all that the signals of a process are: actions, the queue of the process, and for each thread its queue
//! and what it blocks. The kernel keeps one behind a lock (Linux: `sighand->siglock`), and acts on what it returns.

mod action;
mod altstack;
mod group;
mod info;
mod pending;
#[cfg(test)]
mod tests;

use core::fmt;

pub use action::{ActionFlags, DefaultAction, Handler, Restart, SigAction};
pub use altstack::{AltStack, AltStackFlags};
pub use group::{Delivery, EndOfChild, Force, Handled, Keeps, Notice, Target, ThreadGroup, Tid, Wake, Waker};
pub use info::{SigInfo, code};
pub use pending::Pending;

/// The number of a signal: 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

macro_rules! signals {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Signal {
            $(#[doc = $text] pub const $name: Signal = Signal($number);)*
            const NAMES: [&'static str; 31] = [$(stringify!($name)),*];
        }
    };
}

signals! {
    HUP = 1, "The terminal is gone.";
    INT = 2, "Ctrl-C.";
    QUIT = 3, "Ctrl-\\.";
    ILL = 4, "A bad instruction.";
    TRAP = 5, "A breakpoint.";
    ABRT = 6, "`abort`.";
    BUS = 7, "Memory that is mapped, but not there.";
    FPE = 8, "Arithmetic.";
    KILL = 9, "The end, never caught.";
    USR1 = 10, "The program's own.";
    SEGV = 11, "Memory that is not mapped, or not so.";
    USR2 = 12, "The program's own.";
    PIPE = 13, "Nobody reads the pipe.";
    ALRM = 14, "The timer of `alarm`.";
    TERM = 15, "Please end.";
    STKFLT = 16, "Never sent.";
    CHLD = 17, "A child ended, stopped or continued.";
    CONT = 18, "Go on.";
    STOP = 19, "Stop, never caught.";
    TSTP = 20, "Ctrl-Z.";
    TTIN = 21, "Reads from the terminal in the background.";
    TTOU = 22, "Writes to the terminal in the background.";
    URG = 23, "Urgent data.";
    XCPU = 24, "Too much CPU time.";
    XFSZ = 25, "Too large a file.";
    VTALRM = 26, "The timer of user time.";
    PROF = 27, "The timer of user and system time.";
    WINCH = 28, "The terminal's size changed.";
    IO = 29, "A descriptor is ready.";
    PWR = 30, "Power fails.";
    SYS = 31, "A bad system call.";
}

impl Signal {
    /// The first realtime signal: those are queued each time they are sent.
    pub const RTMIN: Signal = Signal(32);
    /// The last signal.
    pub const MAX: Signal = Signal(64);

    /// `None` for anything but 1 to 64.
    pub const fn new(number: u32) -> Option<Signal> {
        #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
        if matches!(number, 1..=64) { Some(Signal(number as u8)) } else { None }
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// Every time it is sent counts.
    pub const fn is_realtime(self) -> bool {
        self.0 >= Signal::RTMIN.0
    }

    /// SIGKILL and SIGSTOP: never caught, blocked or ignored (Linux: `sig_kernel_only`).
    pub const fn is_kernel_only(self) -> bool {
        matches!(self, Signal::KILL | Signal::STOP)
    }

    pub(crate) const fn index(self) -> usize {
        self.0 as usize - 1
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::NAMES.get(self.index()) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "SIGRTMIN+{}", self.0 - Signal::RTMIN.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of signals: bit n - 1 is signal n, as programs have it (Linux: `sigset_t`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SigSet(u64);

impl SigSet {
    /// None.
    pub const EMPTY: SigSet = SigSet(0);
    /// All 64.
    pub const ALL: SigSet = SigSet(!0);
    /// Signals whose default is to stop (Linux: `SIG_KERNEL_STOP_MASK`).
    pub const STOPS: SigSet =
        SigSet::EMPTY.with(Signal::STOP).with(Signal::TSTP).with(Signal::TTIN).with(Signal::TTOU);
    /// Signals that an instruction of the thread itself causes (Linux: `SYNCHRONOUS_MASK`).
    pub const SYNCHRONOUS: SigSet = SigSet::EMPTY
        .with(Signal::SEGV)
        .with(Signal::BUS)
        .with(Signal::ILL)
        .with(Signal::TRAP)
        .with(Signal::FPE)
        .with(Signal::SYS);
    /// SIGKILL and SIGSTOP.
    pub const KERNEL_ONLY: SigSet = SigSet::EMPTY.with(Signal::KILL).with(Signal::STOP);

    /// From a program's word.
    pub const fn from_bits(bits: u64) -> SigSet {
        SigSet(bits)
    }

    /// A program's word.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, signal: Signal) -> SigSet {
        SigSet(self.0 | 1 << signal.index())
    }

    /// With one less.
    #[must_use]
    pub const fn without(self, signal: Signal) -> SigSet {
        SigSet(self.0 & !(1 << signal.index()))
    }

    /// Those in either.
    #[must_use]
    pub const fn union(self, other: SigSet) -> SigSet {
        SigSet(self.0 | other.0)
    }

    /// Those in both.
    #[must_use]
    pub const fn intersection(self, other: SigSet) -> SigSet {
        SigSet(self.0 & other.0)
    }

    /// Those not in `other`.
    #[must_use]
    pub const fn minus(self, other: SigSet) -> SigSet {
        SigSet(self.0 & !other.0)
    }

    /// Whether it is in.
    pub const fn contains(self, signal: Signal) -> bool {
        self.0 & 1 << signal.index() != 0
    }

    /// None is in.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest.
    pub const fn first(self) -> Option<Signal> {
        Signal::new(self.0.trailing_zeros() + 1)
    }

    /// From the lowest to the highest.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        (1..=64).filter_map(Signal::new).filter(move |&signal| self.contains(signal))
    }

    /// What a program may block: all but SIGKILL and SIGSTOP.
    #[must_use]
    pub const fn blockable(self) -> SigSet {
        self.minus(SigSet::KERNEL_ONLY)
    }
}

impl fmt::Debug for SigSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
