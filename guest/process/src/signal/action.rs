//! What is done with a signal (Linux: `struct k_sigaction`, `do_sigaction`).

use bitflags::bitflags;

use super::{SigSet, Signal};
use crate::Errno;
use crate::bytes::{put, u64_at};

bitflags! {
    /// `sa_flags`; unknown ones are dropped, as programs find out by that (Linux: `UAPI_SA_FLAGS`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ActionFlags: u64 {
        /// `SA_NOCLDSTOP`: no SIGCHLD when a child stops or continues.
        const NOCLDSTOP = 1;
        /// `SA_NOCLDWAIT`: children leave nothing to wait for.
        const NOCLDWAIT = 2;
        /// `SA_SIGINFO`: the handler takes three arguments.
        const SIGINFO = 4;
        /// `SA_EXPOSE_TAGBITS`: without effect here.
        const EXPOSE_TAGBITS = 0x800;
        /// `SA_RESTORER`: there is a function that the handler returns to.
        const RESTORER = 0x0400_0000;
        /// `SA_ONSTACK`: run on the alternate stack.
        const ONSTACK = 0x0800_0000;
        /// `SA_RESTART`: calls that it interrupts begin again.
        const RESTART = 0x1000_0000;
        /// `SA_NODEFER`: it is not blocked in its own handler.
        const NODEFER = 0x4000_0000;
        /// `SA_RESETHAND`: once only.
        const RESETHAND = 0x8000_0000;
    }
}

/// What a signal without handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    /// Ends the process.
    Terminate,
    /// Ends the process. Linux writes its memory to a file if RLIMIT_CORE lets it; by default it does not.
    Core,
    /// Nothing.
    Ignore,
    /// Stops the process.
    Stop,
    /// Continues the process; that has happened when it was sent.
    Continue,
}

impl Signal {
    /// signal(7); Linux: `SIG_KERNEL_*_MASK`.
    pub const fn default_action(self) -> DefaultAction {
        match self {
            Signal::CHLD | Signal::WINCH | Signal::URG => DefaultAction::Ignore,
            Signal::CONT => DefaultAction::Continue,
            Signal::STOP | Signal::TSTP | Signal::TTIN | Signal::TTOU => DefaultAction::Stop,
            Signal::QUIT | Signal::ILL | Signal::TRAP | Signal::ABRT | Signal::BUS | Signal::FPE => {
                DefaultAction::Core
            }
            Signal::SEGV | Signal::XCPU | Signal::XFSZ | Signal::SYS => DefaultAction::Core,
            _ => DefaultAction::Terminate,
        }
    }

    /// Nothing happens without a handler (Linux: `sig_kernel_ignore`, which has SIGCONT too).
    pub(super) const fn is_ignored_by_default(self) -> bool {
        matches!(self.default_action(), DefaultAction::Ignore | DefaultAction::Continue)
    }
}

/// Who handles a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handler {
    /// `SIG_DFL`.
    #[default]
    Default,
    /// `SIG_IGN`.
    Ignore,
    /// The program, at this address.
    At(u64),
}

/// What is done with a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigAction {
    /// Who handles it.
    pub handler: Handler,
    /// How.
    pub flags: ActionFlags,
    /// Where the handler returns to.
    pub restorer: u64,
    /// What is blocked meanwhile; never SIGKILL and SIGSTOP.
    pub mask: SigSet,
}

impl SigAction {
    /// Size of the structure that `rt_sigaction` takes: handler, flags, restorer, mask.
    pub const LEN: usize = 32;

    /// Reads what a program gives.
    pub fn from_bytes(bytes: &[u8; SigAction::LEN]) -> SigAction {
        let handler = match u64_at(bytes, 0) {
            0 => Handler::Default,
            1 => Handler::Ignore,
            address => Handler::At(address),
        };
        SigAction {
            handler,
            flags: ActionFlags::from_bits_truncate(u64_at(bytes, 8)),
            restorer: u64_at(bytes, 16),
            mask: SigSet::from_bits(u64_at(bytes, 24)).blockable(),
        }
    }

    /// What a program reads.
    pub fn to_bytes(&self) -> [u8; SigAction::LEN] {
        let handler = match self.handler {
            Handler::Default => 0,
            Handler::Ignore => 1,
            Handler::At(address) => address,
        };
        let mut bytes = [0; SigAction::LEN];
        for (at, word) in
            [handler, self.flags.bits(), self.restorer, self.mask.bits()].into_iter().enumerate()
        {
            put(&mut bytes, 8 * at, &word.to_le_bytes());
        }
        bytes
    }

    /// Whether a signal with this action would do nothing at all (Linux: `sig_handler_ignored`).
    pub(super) fn ignores(&self, signal: Signal) -> bool {
        match self.handler {
            Handler::Ignore => true,
            Handler::Default => signal.is_ignored_by_default(),
            Handler::At(_) => false,
        }
    }
}

/// What becomes of an interrupted call (Linux: `handle_signal`, `arch_do_signal_or_restart`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It returned what it returned.
    No,
    /// It returns EINTR.
    Interrupted,
    /// It begins again: the program goes back to the instruction, with the call's number in RAX.
    Again,
    /// As [`Restart::Again`], but the call is `restart_syscall`.
    Block,
}

impl Restart {
    /// `errno` is the restart code that the call returned, `action` that of the handler that comes first, or `None` if
    /// none does.
    pub fn of(errno: Errno, action: Option<&SigAction>) -> Restart {
        let restarts = action.is_none_or(|action| action.flags.contains(ActionFlags::RESTART));
        match errno {
            Errno::Erestartnointr => Restart::Again,
            Errno::Erestartsys if restarts => Restart::Again,
            Errno::Erestartnohand if action.is_none() => Restart::Again,
            Errno::ErestartRestartblock if action.is_none() => Restart::Block,
            Errno::Erestartsys | Errno::Erestartnohand | Errno::ErestartRestartblock => Restart::Interrupted,
            _ => Restart::No,
        }
    }
}
