//! Taking signals on the way back to the program (Linux: `get_signal`, `signal_delivered`).

use super::{Notice, ThreadGroup, Tid, Waker};
use crate::signal::{ActionFlags, DefaultAction, Handler, SigAction, SigInfo, SigSet, Signal};
use crate::wait::Exit;

/// A signal whose handler is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    /// What is told.
    pub info: SigInfo,
    /// What to do.
    pub action: SigAction,
    /// What is blocked again when the handler returns.
    pub mask: SigSet,
}

/// What a thread is to do before it goes back to its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Run a handler; then [`ThreadGroup::handled`].
    Handler(Handled),
    /// Sleep until [`ThreadGroup::is_stopped`] is false; the parent may have to be told ([`ThreadGroup::take_notice`]).
    Stop,
    /// Tell the parent, and ask again.
    Notice(Notice),
    /// End the process.
    Exit(Exit),
    /// End the thread alone: another executes a new program.
    ExitThread,
}

impl ThreadGroup {
    /// What is next for the thread; `None` if it may go back to its program. `orphaned` is asked whether nobody outside its process
    /// group would continue it, so that only SIGSTOP stops it (Linux: `is_current_pgrp_orphaned`).
    pub fn next(&mut self, tid: Tid, orphaned: impl Fn() -> bool, wake: Waker<'_>) -> Option<Delivery> {
        if let Some(exit) = self.exit {
            return Some(Delivery::Exit(exit));
        }
        if self.is_killed(tid) {
            return Some(Delivery::ExitThread);
        }
        if let Some(notice) = self.take_notice() {
            return Some(Delivery::Notice(notice));
        }
        loop {
            let thread = self.thread(tid)?;
            if thread.to_stop {
                self.stop_here(tid);
                return Some(Delivery::Stop);
            }
            let Some(info) = self.dequeue(tid) else {
                self.restore(tid, wake);
                self.recalc(tid);
                return None;
            };
            let signal = info.signal;
            let action = self.action(signal);
            match action.handler {
                Handler::Ignore => continue,
                Handler::At(_) => {
                    self.reset_handler(signal, &action);
                    let thread = self.thread(tid)?;
                    let mask = thread.saved.unwrap_or(thread.blocked);
                    return Some(Delivery::Handler(Handled { info, action, mask }));
                }
                Handler::Default => {}
            }
            match signal.default_action() {
                DefaultAction::Ignore | DefaultAction::Continue => continue,
                // Those that end or stop the first process were forced on it, and then it is no longer the first.
                _ if self.init && !signal.is_kernel_only() => continue,
                DefaultAction::Stop if signal != Signal::STOP && orphaned() => continue,
                DefaultAction::Stop => self.begin_stop(tid, signal, wake),
                DefaultAction::Terminate | DefaultAction::Core => {
                    let exit = self.exit(tid, Exit::Killed { signal, dumped: false }, wake);
                    return Some(Delivery::Exit(exit));
                }
            }
        }
    }

    /// The thread's own faults first, then its own queue, then the process's.
    fn dequeue(&mut self, tid: Tid) -> Option<SigInfo> {
        let thread = self.thread_mut(tid)?;
        let wanted = SigSet::ALL.minus(thread.blocked);
        if let Some(info) = thread.pending.take_synchronous(wanted) {
            return Some(info);
        }
        match thread.pending.next(wanted) {
            Some(signal) => thread.pending.take(signal),
            None => self.shared.next(wanted).and_then(|signal| self.shared.take(signal)),
        }
    }

    /// The handler's frame is on the stack: blocks what is blocked while it runs (Linux: `signal_delivered`).
    pub fn handled(&mut self, tid: Tid, handled: &Handled, wake: Waker<'_>) {
        let Some(thread) = self.thread_mut(tid) else { return };
        thread.saved = None;
        let mut blocked = thread.blocked.union(handled.action.mask);
        if !handled.action.flags.contains(ActionFlags::NODEFER) {
            blocked = blocked.with(handled.info.signal);
        }
        self.set_blocked(tid, blocked, wake);
    }
}
