//! Stopping and continuing a process (Linux: `do_signal_stop`, `task_participate_group_stop`).

use super::{ThreadGroup, Tid, Wake, Waker};
use crate::signal::Signal;
use crate::wait::State;

/// What the parent is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// All threads stopped, by this signal.
    Stopped(Signal),
    /// SIGCONT came.
    Continued,
}

/// How far a process is with stopping.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stop {
    /// Threads that are still to stop (Linux: `group_stop_count`).
    missing: usize,
    /// The signal (Linux: `group_exit_code`).
    signal: Option<Signal>,
    /// All have stopped (Linux: SIGNAL_STOP_STOPPED).
    complete: bool,
    /// What a wait would find.
    untold: Option<Notice>,
    /// What the parent has not been woken for.
    notice: Option<Notice>,
}

impl Stop {
    /// The process ends instead.
    pub(super) fn abandon(&mut self) {
        *self = Stop { notice: self.notice, ..Stop::default() };
    }

    pub(super) const fn has_notice(&self) -> bool {
        self.notice.is_some()
    }

    /// A thread stops, or ends instead. If it is the last, the parent is to be told.
    pub(super) fn one_less(&mut self) {
        self.missing = self.missing.saturating_sub(1);
        if self.missing > 0 || self.complete {
            return;
        }
        self.complete = true;
        let stopped = self.signal.map(Notice::Stopped);
        (self.untold, self.notice) = (stopped, stopped);
    }
}

impl ThreadGroup {
    /// SIGCONT was sent: every thread goes on (Linux: the part of `prepare_signal`).
    pub(super) fn resume(&mut self, wake: Waker<'_>) {
        for thread in &mut self.threads {
            thread.to_stop = false;
            if core::mem::take(&mut thread.stopped) {
                // What was sent while it was stopped woke nobody.
                thread.look = true;
                wake(thread.tid, Wake::Continue);
            }
        }
        let stop = &mut self.stop;
        if stop.complete {
            stop.notice = Some(Notice::Continued);
        } else if stop.missing > 0 {
            // It was about to stop: that is told, as if it had.
            stop.notice = stop.signal.map(Notice::Stopped);
        } else {
            return;
        }
        stop.untold = Some(Notice::Continued);
        (stop.missing, stop.signal, stop.complete) = (0, None, false);
        for thread in &mut self.threads {
            // Whoever comes first tells.
            thread.look = true;
        }
    }

    /// Thread `tid` takes a signal that stops: all threads are to.
    pub(super) fn begin_stop(&mut self, tid: Tid, signal: Signal, wake: Waker<'_>) {
        if !self.stop.complete {
            self.stop.signal = Some(signal);
        }
        self.stop.missing = 0;
        for thread in self.threads.iter_mut().filter(|thread| !thread.exiting && !thread.stopped) {
            thread.to_stop = true;
            self.stop.missing += 1;
            if thread.tid != tid {
                thread.look = true;
                wake(thread.tid, Wake::Signal);
            }
        }
    }

    /// Thread `tid` stops now.
    pub(super) fn stop_here(&mut self, tid: Tid) {
        if let Some(thread) = self.thread_mut(tid) {
            thread.to_stop = false;
            thread.stopped = true;
            self.stop.one_less();
        }
    }

    /// The thread stopped, and has not been continued: it sleeps until then (Linux: TASK_STOPPED).
    pub fn is_stopped(&self, tid: Tid) -> bool {
        self.thread(tid).is_some_and(|thread| thread.stopped)
    }

    /// What the parent is to be told and has not been; afterwards it has. To be asked for after [`super::Delivery::Stop`] and
    /// after a thread is removed.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.stop.notice.take()
    }

    /// What a wait of the parent finds.
    pub const fn wait_state(&self) -> State {
        match self.stop.untold {
            Some(Notice::Stopped(signal)) => State::Stopped(signal),
            Some(Notice::Continued) => State::Continued,
            None => State::Alive,
        }
    }

    /// The parent has found it.
    pub fn waited(&mut self) {
        self.stop.untold = None;
    }
}
