//! Waiting for children (Linux: kernel/exit.c, `do_wait` and what it calls).
//!
//! The kernel looks through its children and asks [`Wait::look`] about each; the first that has something to tell is what
//! the call returns. If none has, [`Wait::nothing`] says whether to sleep.

#[cfg(test)]
mod tests;

use bitflags::bitflags;

use crate::Errno;
use crate::signal::{SigInfo, Signal};

bitflags! {
    /// Options of wait4 and waitid.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Options: u32 {
        /// `WNOHANG`: do not sleep.
        const NOHANG = 1;
        /// `WUNTRACED`, `WSTOPPED`: also children that a signal stopped.
        const STOPPED = 2;
        /// `WEXITED`: children that ended; wait4 always asks for them.
        const EXITED = 4;
        /// `WCONTINUED`: also children that SIGCONT continued.
        const CONTINUED = 8;
        /// `WNOWAIT`: leave the child as it is.
        const NOWAIT = 0x0100_0000;
        /// `__WNOTHREAD`: only children of this very thread.
        const NOTHREAD = 0x2000_0000;
        /// `__WALL`: children of any kind.
        const ALL = 0x4000_0000;
        /// `__WCLONE`: only children that tell their end by another signal than SIGCHLD, or by none.
        const CLONE = 0x8000_0000;
        const _ = !0;
    }
}

/// Which children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Any.
    Any,
    /// The one with this number.
    Pid(u32),
    /// Those of this process group.
    Group(u32),
}

/// A wait, its arguments checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Which children.
    pub which: Which,
    /// What for.
    pub options: Options,
}

/// How a process ended: what wait4 stores (Linux: `exit_code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By `exit` with this status.
    Code(u8),
    /// By a signal.
    Killed {
        /// Which.
        signal: Signal,
        /// The program's memory was written to a file.
        dumped: bool,
    },
}

impl Exit {
    /// The status word (`WIFEXITED`, `WEXITSTATUS`, `WIFSIGNALED`, `WTERMSIG`, `WCOREDUMP`).
    pub const fn status(self) -> u32 {
        match self {
            Exit::Code(code) => (code as u32) << 8,
            Exit::Killed { signal, dumped } => signal.number() | (dumped as u32) << 7,
        }
    }

    /// From a status word.
    pub const fn from_status(status: u32) -> Exit {
        match Signal::new(status & 0x7f) {
            Some(signal) => Exit::Killed { signal, dumped: status & 0x80 != 0 },
            #[expect(clippy::cast_possible_truncation, reason = "a byte")]
            None => Exit::Code((status >> 8) as u8),
        }
    }
}

/// What there is to know of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its number.
    pub pid: u32,
    /// Its process group.
    pub group: u32,
    /// Its user, for waitid.
    pub uid: u32,
    /// The signal by which it tells its end; `None` for none.
    pub exit_signal: Option<Signal>,
    /// The waiting thread itself created it, not another thread of the same process.
    pub own: bool,
    /// What it has to tell.
    pub state: State,
}

/// What a child has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs or sleeps.
    Alive,
    /// It stopped, and nobody has waited for that yet.
    Stopped(Signal),
    /// It was continued, and nobody has waited for that yet.
    Continued,
    /// It ended, all its threads.
    Ended(Exit),
    /// Its first thread ended, but others run: it is a child, and has nothing to tell yet.
    Leaderless,
}

/// What a wait found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A child ended; unless NOWAIT was given, it is to be forgotten now.
    Ended(Exit),
    /// A child stopped.
    Stopped(Signal),
    /// A child continued.
    Continued,
}

impl Event {
    /// The status word of wait4.
    pub const fn status(self) -> u32 {
        match self {
            Event::Ended(exit) => exit.status(),
            Event::Stopped(signal) => signal.number() << 8 | 0x7f,
            Event::Continued => 0xffff,
        }
    }

    /// What waitid stores, and what SIGCHLD tells. Times are in clock ticks (100 a second).
    pub const fn info(self, child: u32, uid: u32, ticks: [u64; 2]) -> SigInfo {
        let (code, status) = match self {
            Event::Ended(Exit::Code(code)) => (1, code as u32),
            Event::Ended(Exit::Killed { signal, dumped: false }) => (2, signal.number()),
            Event::Ended(Exit::Killed { signal, dumped: true }) => (3, signal.number()),
            Event::Stopped(signal) => (5, signal.number()),
            Event::Continued => (6, Signal::CONT.number()),
        };
        SigInfo::child(code, child, uid, status, ticks)
    }
}

/// What a look at one process says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is none of those waited for.
    Other,
    /// It is, but has nothing to tell.
    Later,
    /// It has this to tell.
    Now(Event),
}

impl Wait {
    /// Checks what wait4 was called with; `own_group` is the caller's process group.
    ///
    /// # Errors
    /// EINVAL for unknown options; ESRCH for the least number, which has no opposite.
    pub fn wait4(pid: i32, options: u32, own_group: u32) -> Result<Wait, Errno> {
        let known = Options::NOHANG | Options::STOPPED | Options::CONTINUED | Options::kind();
        let options = Options::from_bits_retain(options);
        if !known.contains(options) {
            return Err(Errno::Einval);
        }
        let which = match pid {
            i32::MIN => return Err(Errno::Esrch),
            -1 => Which::Any,
            0 => Which::Group(own_group),
            1.. => Which::Pid(pid.unsigned_abs()),
            _ => Which::Group(pid.unsigned_abs()),
        };
        Ok(Wait { which, options: options | Options::EXITED })
    }

    /// Checks what waitid was called with.
    ///
    /// # Errors
    /// EINVAL for unknown options, no event at all, an unknown kind of number or one that no process can have; EBADF for a
    /// process descriptor, of which there are none.
    pub fn waitid(kind: i32, id: i32, options: u32, own_group: u32) -> Result<Wait, Errno> {
        let events = Options::EXITED | Options::STOPPED | Options::CONTINUED;
        let known = Options::NOHANG | Options::NOWAIT | events | Options::kind();
        let options = Options::from_bits_retain(options);
        if !known.contains(options) || !options.intersects(events) {
            return Err(Errno::Einval);
        }
        let which = match (kind, id) {
            (0, _) => Which::Any,
            (1, 1..) => Which::Pid(id.unsigned_abs()),
            (2, 0) => Which::Group(own_group),
            (2, 1..) => Which::Group(id.unsigned_abs()),
            (3, 0..) => return Err(Errno::Ebadf),
            _ => return Err(Errno::Einval),
        };
        Ok(Wait { which, options })
    }

    /// Linux: `eligible_child`, `wait_consider_task`.
    pub fn look(&self, child: &Child) -> Look {
        let named = match self.which {
            Which::Any => true,
            Which::Pid(pid) => child.pid == pid,
            Which::Group(group) => child.group == group,
        };
        let cloned = child.exit_signal != Some(Signal::CHLD);
        let kind = self.options.contains(Options::ALL) || cloned == self.options.contains(Options::CLONE);
        if !named || !kind || self.options.contains(Options::NOTHREAD) && !child.own {
            return Look::Other;
        }
        let (asked, event) = match child.state {
            State::Alive | State::Leaderless => return Look::Later,
            // Who does not wait for its end can wait for nothing of it any more.
            State::Ended(_) if !self.options.contains(Options::EXITED) => return Look::Other,
            State::Ended(exit) => (Options::EXITED, Event::Ended(exit)),
            State::Stopped(signal) => (Options::STOPPED, Event::Stopped(signal)),
            State::Continued => (Options::CONTINUED, Event::Continued),
        };
        if self.options.contains(asked) { Look::Now(event) } else { Look::Later }
    }

    /// Nobody had anything to tell; `any` says whether a look was [`Look::Later`]. `Ok` means sleep and look again.
    ///
    /// # Errors
    /// [`Nothing`]: do not sleep.
    pub fn nothing(&self, any: bool) -> Result<(), Nothing> {
        match (any, self.options.contains(Options::NOHANG)) {
            (false, _) => Err(Nothing::NoChild),
            (true, true) => Err(Nothing::NotYet),
            (true, false) => Ok(()),
        }
    }
}

/// Why a wait ends without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// There is no such child: ECHILD.
    NoChild,
    /// NOHANG was given: the call returns 0.
    NotYet,
}

impl Options {
    const fn kind() -> Options {
        Options::NOTHREAD.union(Options::ALL).union(Options::CLONE)
    }
}
