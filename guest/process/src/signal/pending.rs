//! Signals that were sent and not yet taken (Linux: `struct sigpending`, `collect_signal`).

use alloc::collections::VecDeque;

use super::{SigInfo, SigSet, Signal};

/// A queue: which signals are pending, and what is told with each.
///
/// A signal can be in the set without a record, if there was no memory for it: then it came from nobody.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    set: SigSet,
    records: VecDeque<SigInfo>,
}

impl Pending {
    /// Nothing.
    pub const fn new() -> Pending {
        Pending { set: SigSet::EMPTY, records: VecDeque::new() }
    }

    /// Which signals are pending.
    pub const fn set(&self) -> SigSet {
        self.set
    }

    /// Number of records: what RLIMIT_SIGPENDING counts.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Makes it pending, with its record; false if there was no memory for that, and then it is not pending either.
    pub(super) fn push(&mut self, info: SigInfo) -> bool {
        if self.records.try_reserve(1).is_err() {
            return false;
        }
        self.records.push_back(info);
        self.set = self.set.with(info.signal);
        true
    }

    /// Makes it pending without a record.
    pub(super) fn push_bare(&mut self, signal: Signal) {
        self.set = self.set.with(signal);
    }

    /// Takes the record of `signal` that came first.
    pub(super) fn take(&mut self, signal: Signal) -> Option<SigInfo> {
        if !self.set.contains(signal) {
            return None;
        }
        let found = self.records.iter().position(|info| info.signal == signal);
        let info = found.and_then(|at| self.records.remove(at));
        if !self.records.iter().any(|info| info.signal == signal) {
            self.set = self.set.without(signal);
        }
        Some(info.unwrap_or(SigInfo::user(signal, super::code::USER, 0, 0)))
    }

    /// The next of `wanted` (Linux: `next_signal`): those of the thread's own faults first, then the lowest.
    pub(super) fn next(&self, wanted: SigSet) -> Option<Signal> {
        let ready = self.set.intersection(wanted);
        ready.intersection(SigSet::SYNCHRONOUS).first().or(ready.first())
    }

    /// Takes what the thread itself caused, in the order it did (Linux: `dequeue_synchronous_signal`).
    pub(super) fn take_synchronous(&mut self, wanted: SigSet) -> Option<SigInfo> {
        let ready = self.set.intersection(wanted).intersection(SigSet::SYNCHRONOUS);
        if ready.is_empty() {
            return None;
        }
        let mine = |info: &SigInfo| info.is_from_kernel() && ready.contains(info.signal);
        let at = self.records.iter().position(mine)?;
        let info = self.records.remove(at)?;
        if !self.records.iter().any(|other| other.signal == info.signal) {
            self.set = self.set.without(info.signal);
        }
        Some(info)
    }

    /// Forgets all of `gone` (Linux: `flush_sigqueue_mask`).
    pub(super) fn discard(&mut self, gone: SigSet) {
        if self.set.intersection(gone).is_empty() {
            return;
        }
        self.set = self.set.minus(gone);
        self.records.retain(|info| !gone.contains(info.signal));
    }

    /// Every record is of a signal in the set, and of a standard signal there is one.
    pub(super) fn is_sound(&self) -> bool {
        let count = |signal| self.records.iter().filter(|info| info.signal == signal).count();
        self.records.iter().all(|info| self.set.contains(info.signal))
            && SigSet::ALL.iter().all(|signal| signal.is_realtime() || count(signal) <= 1)
    }
}
