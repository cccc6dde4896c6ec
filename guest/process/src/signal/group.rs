//! Signals of a process and of its threads (Linux: `struct signal_struct`, `struct sighand_struct`, and what `task_struct` has).
//!
//! Invariants, which the tests look at after every step ([`ThreadGroup::audit`]):
//! G1  SIGKILL and SIGSTOP are never blocked, never ignored, never handled;
//! G2  SIGCONT and signals that stop are never pending together, in whatever queues;
//! G3  a standard signal has at most one record in a queue;
//! G4  a thread that could take a signal knows that it should look ([`ThreadGroup::has_pending`]), or another thread that can take
//!     it too does;
//! G5  while the process ends, every thread knows it.
//!
//! Differs from Linux: threads of a process and its actions cannot be had apart (CLONE_SIGHAND without CLONE_THREAD), which only
//! LinuxThreads used; and RLIMIT_SIGPENDING is of a process, not of a user.

mod next;
mod send;
mod stop;

use alloc::vec::Vec;

use super::{ActionFlags, AltStack, Handler, Pending, SigAction, SigInfo, SigSet, Signal};
use crate::Errno;
use crate::wait::Exit;

pub use next::{Delivery, Handled};
pub use send::{Force, Target};
pub use stop::Notice;

/// Number of a thread.
pub type Tid = u32;

/// How a thread is to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// From sleeps that a signal may interrupt.
    Signal,
    /// From every sleep that the end of the process may interrupt, and from a stop.
    Kill,
    /// From a stop.
    Continue,
}

/// Who wakes threads. It may be called with the group's lock held.
pub type Waker<'a> = &'a mut dyn FnMut(Tid, Wake);

/// What a new process keeps (Linux: `copy_sighand`, `copy_process`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeps {
    /// CLONE_CLEAR_SIGHAND: handlers become the default, as with execve.
    pub clear_handlers: bool,
    /// CLONE_VM without CLONE_VFORK: it runs on another stack, so the alternate stack is not its own.
    pub shares_memory: bool,
}

/// What the end of a child means to its parent (Linux: `do_notify_parent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOfChild {
    /// Nobody waits for it: it is forgotten at once.
    pub reap: bool,
    /// What to send.
    pub signal: Option<Signal>,
}

/// A thread's part.
#[derive(Clone, Debug)]
struct Thread {
    tid: Tid,
    blocked: SigSet,
    /// What is blocked but for [`ThreadGroup::begin_wait`]; empty outside of it.
    real_blocked: SigSet,
    /// What to block again once a handler that interrupted sigsuspend returns (Linux: TIF_RESTORE_SIGMASK).
    saved: Option<SigSet>,
    pending: Pending,
    altstack: AltStack,
    /// It should look for signals before it goes back to its program (Linux: TIF_SIGPENDING).
    look: bool,
    /// It is to stop, with the others (Linux: JOBCTL_STOP_PENDING).
    to_stop: bool,
    /// It stopped.
    stopped: bool,
    /// It takes no more signals.
    exiting: bool,
}

impl Thread {
    fn new(tid: Tid) -> Thread {
        Thread {
            tid,
            blocked: SigSet::EMPTY,
            real_blocked: SigSet::EMPTY,
            saved: None,
            pending: Pending::new(),
            altstack: AltStack::default(),
            look: false,
            to_stop: false,
            stopped: false,
            exiting: false,
        }
    }
}

/// Signals of a process. A thread that is not in it is as one that takes no signals.
#[derive(Clone, Debug)]
pub struct ThreadGroup {
    /// One for each signal.
    actions: Vec<SigAction>,
    shared: Pending,
    threads: Vec<Thread>,
    /// The process ends, so (Linux: SIGNAL_GROUP_EXIT).
    exit: Option<Exit>,
    /// This thread alone goes on, in another program (Linux: `group_exec_task`).
    exec: Option<Tid>,
    stop: stop::Stop,
    /// The first process: what it does not handle does nothing (Linux: SIGNAL_UNKILLABLE).
    init: bool,
    /// Records that may be queued (RLIMIT_SIGPENDING).
    limit: usize,
    /// Whose turn it is to be woken.
    turn: usize,
}

impl ThreadGroup {
    /// A process of one thread without handlers; `init` is for the first process of all. `limit` is RLIMIT_SIGPENDING.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new(tid: Tid, limit: usize, init: bool) -> Result<ThreadGroup, Errno> {
        let mut actions = Vec::new();
        actions.try_reserve_exact(64).map_err(|_| Errno::Enomem)?;
        actions.resize(64, SigAction::default());
        let mut group = ThreadGroup {
            actions,
            shared: Pending::new(),
            threads: Vec::new(),
            exit: None,
            exec: None,
            stop: stop::Stop::default(),
            init,
            limit,
            turn: 0,
        };
        group.push_thread(Thread::new(tid))?;
        Ok(group)
    }

    fn push_thread(&mut self, thread: Thread) -> Result<(), Errno> {
        self.threads.try_reserve(1).map_err(|_| Errno::Enomem)?;
        self.threads.push(thread);
        Ok(())
    }

    /// The child that thread `from` creates by fork: the same actions, the same signals blocked, nothing pending.
    ///
    /// # Errors
    /// ENOMEM; ESRCH if `from` is not here.
    pub fn fork(&self, from: Tid, child: Tid, keeps: Keeps) -> Result<ThreadGroup, Errno> {
        let parent = self.thread(from).ok_or(Errno::Esrch)?;
        let mut group = ThreadGroup::new(child, self.limit, false)?;
        group.actions.copy_from_slice(&self.actions);
        if keeps.clear_handlers {
            group.forget_handlers();
        }
        let thread = group.threads.first_mut().ok_or(Errno::Esrch)?;
        thread.blocked = parent.blocked;
        if !keeps.shares_memory {
            thread.altstack = parent.altstack;
        }
        Ok(group)
    }

    /// Adds a thread that `from` creates: it blocks what `from` does.
    ///
    /// # Errors
    /// ENOMEM; ESRCH if `from` is not here; ERESTARTNOINTR while the process ends or stops, so that no thread escapes it (Linux:
    /// the last look in `copy_process`).
    pub fn add_thread(&mut self, from: Tid, tid: Tid) -> Result<(), Errno> {
        let parent = self.thread(from).ok_or(Errno::Esrch)?;
        if parent.look {
            return Err(Errno::Erestartnointr);
        }
        let blocked = parent.blocked;
        self.push_thread(Thread { blocked, ..Thread::new(tid) })
    }

    /// Takes a thread out that ends (Linux: `exit_signals`). What only it was woken for, another is woken for. Says whether it
    /// was the last; the group is then without threads.
    pub fn remove_thread(&mut self, tid: Tid, wake: Waker<'_>) -> bool {
        if let Some(thread) = self.thread_mut(tid) {
            thread.exiting = true;
            let open = SigSet::ALL.minus(thread.blocked);
            let to_stop = core::mem::take(&mut thread.to_stop);
            self.retarget(tid, open, wake);
            if to_stop {
                self.stop.one_less();
            }
        }
        self.threads.retain(|thread| thread.tid != tid);
        self.threads.is_empty()
    }

    /// Ends the other threads, because `tid` executes a new program (Linux: `de_thread`). Says how many there are; they leave by
    /// [`Delivery::ExitThread`].
    ///
    /// # Errors
    /// EAGAIN if the process ends already, or another thread was first.
    pub fn begin_exec(&mut self, tid: Tid, wake: Waker<'_>) -> Result<usize, Errno> {
        if self.exit.is_some() || self.exec.is_some() {
            return Err(Errno::Eagain);
        }
        self.exec = Some(tid);
        self.stop.abandon();
        self.kill_all(Some(tid), wake);
        Ok(self.threads.iter().filter(|thread| thread.tid != tid).count())
    }

    /// Threads other than `tid`.
    pub fn others(&self, tid: Tid) -> usize {
        self.threads.iter().filter(|thread| thread.tid != tid).count()
    }

    /// The new program begins: `tid`, the only thread, is now number `pid`, nothing is handled, the alternate stack is gone;
    /// what is ignored, blocked or pending stays so (Linux: `flush_signal_handlers`).
    pub fn finish_exec(&mut self, tid: Tid, pid: Tid) {
        self.exec = None;
        self.forget_handlers();
        if let Some(thread) = self.thread_mut(tid) {
            thread.tid = pid;
            thread.altstack = AltStack::default();
        }
    }

    /// The exec that began cannot go on.
    pub fn cancel_exec(&mut self) {
        self.exec = None;
    }

    fn forget_handlers(&mut self) {
        for action in &mut self.actions {
            let handler = if action.handler == Handler::Ignore { Handler::Ignore } else { Handler::Default };
            *action = SigAction { handler, ..SigAction::default() };
        }
    }

    /// Ends the process (Linux: `do_group_exit`): every other thread is told. Says how it ends, which an earlier call may have
    /// decided.
    pub fn exit(&mut self, tid: Tid, exit: Exit, wake: Waker<'_>) -> Exit {
        if let Some(earlier) = self.exit {
            return earlier;
        }
        self.exit = Some(exit);
        self.stop.abandon();
        self.kill_all(Some(tid), wake);
        exit
    }

    /// How the process ends, once that is decided.
    pub const fn exiting(&self) -> Option<Exit> {
        self.exit
    }

    /// Linux: `zap_other_threads`.
    fn kill_all(&mut self, but: Option<Tid>, wake: Waker<'_>) {
        for thread in self.threads.iter_mut().filter(|thread| Some(thread.tid) != but) {
            thread.to_stop = false;
            thread.stopped = false;
            thread.look = true;
            wake(thread.tid, Wake::Kill);
        }
    }

    /// The thread is to end as soon as it can, and must not begin to sleep where that could not interrupt it (Linux:
    /// `fatal_signal_pending`).
    pub fn is_killed(&self, tid: Tid) -> bool {
        self.exit.is_some() || self.exec.is_some_and(|only| only != tid)
    }

    /// The thread must look for signals before it goes back to its program, and not begin to sleep where a signal may interrupt
    /// (Linux: `signal_pending`).
    pub fn has_pending(&self, tid: Tid) -> bool {
        self.thread(tid).is_some_and(|thread| thread.look)
    }

    fn thread(&self, tid: Tid) -> Option<&Thread> {
        self.threads.iter().find(|thread| thread.tid == tid)
    }

    fn thread_mut(&mut self, tid: Tid) -> Option<&mut Thread> {
        self.threads.iter_mut().find(|thread| thread.tid == tid)
    }

    fn action(&self, signal: Signal) -> SigAction {
        self.actions.get(signal.index()).copied().unwrap_or_default()
    }

    /// What is done with `signal`.
    pub fn sigaction(&self, signal: Signal) -> SigAction {
        self.action(signal)
    }

    /// Changes it, and says what it was (Linux: `do_sigaction`). What is ignored from now on is no longer pending.
    ///
    /// # Errors
    /// EINVAL for SIGKILL and SIGSTOP.
    pub fn set_sigaction(&mut self, signal: Signal, new: SigAction) -> Result<SigAction, Errno> {
        if signal.is_kernel_only() {
            return Err(Errno::Einval);
        }
        let new = SigAction { mask: new.mask.blockable(), ..new };
        let old = self.action(signal);
        if let Some(action) = self.actions.get_mut(signal.index()) {
            *action = new;
        }
        if new.ignores(signal) {
            self.discard(SigSet::EMPTY.with(signal));
        }
        Ok(old)
    }

    fn discard(&mut self, gone: SigSet) {
        self.shared.discard(gone);
        for thread in &mut self.threads {
            thread.pending.discard(gone);
        }
    }

    /// What the thread blocks.
    pub fn blocked(&self, tid: Tid) -> SigSet {
        self.thread(tid).map_or(SigSet::EMPTY, |thread| thread.blocked)
    }

    /// What is pending and blocked (Linux: `do_sigpending`).
    pub fn sigpending(&self, tid: Tid) -> SigSet {
        self.thread(tid).map_or(SigSet::EMPTY, |thread| {
            thread.pending.set().union(self.shared.set()).intersection(thread.blocked)
        })
    }

    /// What is pending for the thread, and for the process, blocked or not (`SigPnd` and `ShdPnd` of `/proc/PID/status`).
    pub fn all_pending(&self, tid: Tid) -> (SigSet, SigSet) {
        (self.thread(tid).map_or(SigSet::EMPTY, |thread| thread.pending.set()), self.shared.set())
    }

    /// What is ignored, and what is handled (`SigIgn` and `SigCgt` of `/proc/PID/status`).
    pub fn ignored_and_handled(&self) -> (SigSet, SigSet) {
        let with = |which: fn(Handler) -> bool| {
            SigSet::ALL
                .iter()
                .filter(|&signal| which(self.action(signal).handler))
                .fold(SigSet::EMPTY, SigSet::with)
        };
        (with(|handler| handler == Handler::Ignore), with(|handler| matches!(handler, Handler::At(_))))
    }

    /// Changes what the thread blocks (Linux: `set_current_blocked`). Another is woken for what it can no longer take.
    pub fn set_blocked(&mut self, tid: Tid, new: SigSet, wake: Waker<'_>) {
        let new = new.blockable();
        let Some(thread) = self.thread_mut(tid) else { return };
        let newly = new.minus(thread.blocked);
        let looked = thread.look;
        thread.blocked = new;
        if looked {
            self.retarget(tid, newly, wake);
        }
        self.recalc(tid);
    }

    /// Sleeps until a signal, with `mask` blocked meanwhile (Linux: `sigsuspend`, `set_user_sigmask`). What was blocked before
    /// comes back behind the handler, or by [`ThreadGroup::restore`].
    pub fn suspend(&mut self, tid: Tid, mask: SigSet, wake: Waker<'_>) {
        if let Some(thread) = self.thread_mut(tid) {
            thread.saved = Some(thread.blocked);
        }
        self.set_blocked(tid, mask, wake);
    }

    /// Blocks again what was blocked before [`ThreadGroup::suspend`], if that has not happened (Linux: `restore_saved_sigmask`).
    pub fn restore(&mut self, tid: Tid, wake: Waker<'_>) {
        if let Some(saved) = self.thread_mut(tid).and_then(|thread| thread.saved.take()) {
            self.set_blocked(tid, saved, wake);
        }
    }

    /// The thread's alternate stack.
    pub fn altstack(&self, tid: Tid) -> AltStack {
        self.thread(tid).map_or_else(AltStack::default, |thread| thread.altstack)
    }

    /// Changes it.
    pub fn set_altstack(&mut self, tid: Tid, altstack: AltStack) {
        if let Some(thread) = self.thread_mut(tid) {
            thread.altstack = altstack;
        }
    }

    /// Begins to wait for one of `wanted` (sigtimedwait): they wake the thread although they are blocked.
    pub fn begin_wait(&mut self, tid: Tid, wanted: SigSet) {
        if let Some(thread) = self.thread_mut(tid) {
            thread.real_blocked = thread.blocked;
            thread.blocked = thread.blocked.minus(wanted);
        }
        self.recalc(tid);
    }

    /// Ends that wait.
    pub fn end_wait(&mut self, tid: Tid, wake: Waker<'_>) {
        let Some(thread) = self.thread_mut(tid) else { return };
        let before = core::mem::take(&mut thread.real_blocked);
        self.set_blocked(tid, before, wake);
    }

    /// Takes one of `wanted` without a handler: the thread's own first (Linux: `dequeue_signal`).
    pub fn take(&mut self, tid: Tid, wanted: SigSet) -> Option<SigInfo> {
        let wanted = wanted.blockable();
        let thread = self.thread_mut(tid)?;
        let info = match thread.pending.next(wanted) {
            Some(signal) => thread.pending.take(signal),
            None => self.shared.next(wanted).and_then(|signal| self.shared.take(signal)),
        };
        self.recalc(tid);
        info
    }

    /// Whether the thread must look (Linux: `recalc_sigpending`).
    fn recalc(&mut self, tid: Tid) {
        let ending = self.is_killed(tid) || self.stop.has_notice();
        let shared = self.shared.set();
        if let Some(thread) = self.thread_mut(tid) {
            let sent = shared.union(thread.pending.set()).minus(thread.blocked);
            thread.look = ending || thread.to_stop || !sent.is_empty();
        }
    }

    /// Thread `tid` cannot take `which` any more: wakes others for those of them that are pending for the process (Linux:
    /// `retarget_shared_pending`).
    fn retarget(&mut self, tid: Tid, which: SigSet, wake: Waker<'_>) {
        let mut left = self.shared.set().intersection(which);
        for thread in self.threads.iter_mut().filter(|thread| thread.tid != tid && !thread.exiting) {
            let able = left.minus(thread.blocked);
            if able.is_empty() {
                continue;
            }
            left = left.minus(able);
            if !core::mem::replace(&mut thread.look, true) {
                wake(thread.tid, Wake::Signal);
            }
        }
    }

    /// What the end of a child that tells it by `exit_signal` means to this process.
    pub fn end_of_child(&self, exit_signal: Option<Signal>) -> EndOfChild {
        let Some(signal) = exit_signal else { return EndOfChild { reap: true, signal: None } };
        let action = self.action(Signal::CHLD);
        let ignores = action.handler == Handler::Ignore;
        if signal != Signal::CHLD {
            return EndOfChild { reap: false, signal: Some(signal) };
        }
        EndOfChild {
            reap: ignores || action.flags.contains(ActionFlags::NOCLDWAIT),
            signal: (!ignores).then_some(signal),
        }
    }

    /// Whether this process wants SIGCHLD when a child stops or continues (Linux: `do_notify_parent_cldstop`).
    pub fn wants_stops(&self) -> bool {
        let action = self.action(Signal::CHLD);
        action.handler != Handler::Ignore && !action.flags.contains(ActionFlags::NOCLDSTOP)
    }

    /// The invariants that can be seen from one moment: the number of the first that does not hold.
    pub fn audit(&self) -> Result<(), &'static str> {
        let catchable = |signal| self.action(signal).handler == Handler::Default;
        let open = |thread: &Thread| thread.blocked.intersection(SigSet::KERNEL_ONLY).is_empty();
        if !catchable(Signal::KILL) || !catchable(Signal::STOP) || !self.threads.iter().all(open) {
            return Err("G1");
        }
        let queues = || self.threads.iter().map(|thread| &thread.pending).chain([&self.shared]);
        let pending = queues().fold(SigSet::EMPTY, |all, queue| all.union(queue.set()));
        if pending.contains(Signal::CONT) && !pending.intersection(SigSet::STOPS).is_empty() {
            return Err("G2");
        }
        if !queues().all(Pending::is_sound) {
            return Err("G3");
        }
        for thread in self.threads.iter().filter(|thread| !thread.look && !thread.stopped) {
            if !thread.pending.set().minus(thread.blocked).is_empty() || thread.to_stop {
                return Err("G4");
            }
            let able = self.shared.set().minus(thread.blocked);
            let taken =
                |signal| self.threads.iter().any(|other| other.look && !other.blocked.contains(signal));
            if !able.iter().all(taken) {
                return Err("G4");
            }
        }
        if self.exit.is_some()
            && self.threads.len() > 1
            && !self.threads.iter().skip(1).any(|thread| thread.look)
        {
            return Err("G5");
        }
        Ok(())
    }
}
