//! Sending (Linux: `send_signal_locked`, `prepare_signal`, `complete_signal`, `force_sig_info_to_task`).

use super::{Thread, ThreadGroup, Tid, Wake, Waker};
use crate::Errno;
use crate::signal::{ActionFlags, DefaultAction, Handler, SigAction, SigInfo, SigSet, Signal, code};
use crate::wait::Exit;

/// To whom a signal goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the process: any thread may take it.
    Process,
    /// To this thread.
    Thread(Tid),
}

/// What a signal that must not be lost does about handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// The handler runs; if the signal is blocked or ignored, the process ends.
    Handler,
    /// The process ends, handler or not (Linux: `force_fatal_sig`).
    Default,
}

impl ThreadGroup {
    /// Sends `info` (Linux: `send_signal_locked`).
    ///
    /// # Errors
    /// EAGAIN if a realtime signal cannot be queued; ESRCH if the thread is not here. What is ignored is sent well.
    pub fn send(&mut self, info: SigInfo, target: Target, wake: Waker<'_>) -> Result<(), Errno> {
        let signal = info.signal;
        let at = match target {
            Target::Process => 0,
            Target::Thread(tid) => {
                self.threads.iter().position(|thread| thread.tid == tid).ok_or(Errno::Esrch)?
            }
        };
        let forced = info.code == code::KERNEL;
        if !self.prepare(signal, at, forced, wake) {
            return Ok(());
        }
        let records =
            self.shared.records() + self.threads.iter().map(|thread| thread.pending.records()).sum::<usize>();
        let limited = signal.is_realtime() || info.code < 0;
        let room = !limited || records < self.limit;
        let queue = match target {
            Target::Process => &mut self.shared,
            Target::Thread(_) => match self.threads.get_mut(at) {
                Some(thread) => &mut thread.pending,
                None => return Err(Errno::Esrch),
            },
        };
        // A standard signal counts once.
        if !signal.is_realtime() && queue.set().contains(signal) {
            return Ok(());
        }
        if !room || !queue.push(info) {
            if signal.is_realtime() && info.code != code::USER && info.code != code::KERNEL {
                return Err(Errno::Eagain);
            }
            queue.push_bare(signal);
        }
        self.complete(signal, at, target, forced, wake);
        Ok(())
    }

    /// Signals that stop and SIGCONT undo each other, handled or not. Says whether the signal is to be queued (Linux:
    /// `prepare_signal`).
    fn prepare(&mut self, signal: Signal, at: usize, forced: bool, wake: Waker<'_>) -> bool {
        if self.exit.is_some() {
            return false;
        }
        if signal.default_action() == DefaultAction::Stop {
            self.discard(SigSet::EMPTY.with(Signal::CONT));
        } else if signal == Signal::CONT {
            self.discard(SigSet::STOPS);
            self.resume(wake);
        }
        let Some(thread) = self.threads.get(at) else { return false };
        // What is blocked is not ignored: there may be a handler by the time it is not.
        thread.blocked.union(thread.real_blocked).contains(signal) || !self.ignored(signal, forced)
    }

    /// Linux: `sig_task_ignored`.
    fn ignored(&self, signal: Signal, forced: bool) -> bool {
        let action = self.action(signal);
        let spared = self.init && action.handler == Handler::Default && !(forced && signal.is_kernel_only());
        spared || action.ignores(signal)
    }

    /// Chooses who takes it, and wakes them (Linux: `complete_signal`).
    fn complete(&mut self, signal: Signal, at: usize, target: Target, forced: bool, wake: Waker<'_>) {
        let len = self.threads.len();
        let wants = |thread: &Thread| wants(thread, signal);
        let chosen = if self.threads.get(at).is_some_and(wants) {
            at
        } else if target != Target::Process {
            return;
        } else {
            let turn = self.turn;
            let Some(found) =
                (turn..turn + len).map(|at| at % len).find(|&at| self.threads.get(at).is_some_and(wants))
            else {
                // Who can take it looks already, or nobody can.
                return;
            };
            self.turn = found;
            found
        };
        let Some(thread) = self.threads.get_mut(chosen) else { return };
        let action = self.actions.get(signal.index()).map_or(Handler::Default, |action| action.handler);
        let ends = action == Handler::Default && signal.default_action() == DefaultAction::Terminate;
        if ends && !thread.real_blocked.contains(signal) && (!self.init || forced) {
            // Nothing can save the process: all threads are told at once.
            self.exit = Some(Exit::Killed { signal, dumped: false });
            self.stop.abandon();
            self.kill_all(None, wake);
            return;
        }
        thread.look = true;
        wake(thread.tid, if signal == Signal::KILL { Wake::Kill } else { Wake::Signal });
    }

    /// Sends what the thread caused itself and must not go on without (Linux: `force_sig_info_to_task`).
    pub fn force(&mut self, tid: Tid, info: SigInfo, force: Force, wake: Waker<'_>) {
        let signal = info.signal;
        let handler = self.action(signal).handler;
        let Some(thread) = self.thread_mut(tid) else { return };
        let blocked = thread.blocked.contains(signal);
        thread.blocked = thread.blocked.without(signal);
        let ends = blocked || handler == Handler::Ignore || force == Force::Default;
        if ends && let Some(action) = self.actions.get_mut(signal.index()) {
            *action = SigAction { handler: Handler::Default, ..*action };
        }
        if ends || handler == Handler::Default {
            // Not even the first process can go on.
            self.init = false;
        }
        // Cannot fail: the thread is here, and a standard signal needs no record.
        let _ = self.send(info, Target::Thread(tid), wake);
        // It may have been pending already, blocked until now.
        if let Some(thread) = self.thread_mut(tid) {
            thread.look = true;
        }
    }

    /// A frame for the handler of `failed` could not be built, or was bad when the handler returned (Linux: `force_sigsegv`).
    pub fn force_segv(&mut self, tid: Tid, failed: Option<Signal>, wake: Waker<'_>) {
        let force = if failed == Some(Signal::SEGV) { Force::Default } else { Force::Handler };
        self.force(tid, SigInfo::kernel(Signal::SEGV), force, wake);
    }

    /// The handler runs no more than once.
    pub(super) fn reset_handler(&mut self, signal: Signal, action: &SigAction) {
        if action.flags.contains(ActionFlags::RESETHAND)
            && let Some(kept) = self.actions.get_mut(signal.index())
        {
            kept.handler = Handler::Default;
        }
    }
}

/// Linux: `wants_signal`.
fn wants(thread: &Thread, signal: Signal) -> bool {
    if thread.exiting || thread.blocked.contains(signal) {
        return false;
    }
    signal == Signal::KILL || !thread.stopped && !thread.look
}
