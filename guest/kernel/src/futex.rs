//! Futexes (Linux: kernel/futex). Who waits where is in `guest_process::futex`, behind one lock.
//!
//! A waiter reads the word with the lock held before it is entered, and a waker takes the lock after the word was changed: no
//! wake-up falls between look and wait. A word is found through the page tables, under the lock, too; where it has to be brought in
//! first, that happens before, and the look is done again.

use core::sync::atomic::Ordering;

use guest_process::futex::robust::{self, Death};
use guest_process::futex::{ANY, Futexes, Key, WakeOp};
use mm_core::PhysAddr;
use mm_vma::{Access, Arena, Errno, Space, VmFlags, Vma, with_user_byte};

use crate::mm::kmap;
use crate::mm::space::{self, Spaces};
use crate::sched::{self, WaitQueue, Woken};
use crate::signal::RestartBlock;
use crate::sync::Lock;
use crate::task::{Current, current, find_task};
use crate::uaccess;

/// Threads by their number.
static FUTEXES: Lock<Futexes<u32>> = Lock::new(Futexes::new());
/// Waiters sleep on it; they are woken by their number.
static WAITING: WaitQueue = WaitQueue::new();

/// A wait.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The word.
    pub address: u64,
    /// What it must be.
    pub value: u32,
    /// What wakes.
    pub bitset: u32,
    /// No other process shares it.
    pub private: bool,
    /// End, nanoseconds since boot.
    pub deadline: Option<u64>,
    /// The end was given as a moment: the call can begin again as it was.
    pub absolute: bool,
}

fn task() -> Result<Current, Errno> {
    current().ok_or(Errno::Efault)
}

/// Which word it is (Linux: `get_futex_key`).
fn key(address: u64, private: bool) -> Result<Key, Errno> {
    if !address.is_multiple_of(4) {
        return Err(Errno::Einval);
    }
    if !space::is_user_address(address) {
        return Err(Errno::Efault);
    }
    let task = task()?;
    let mm = task.mm().ok_or(Errno::Efault)?;
    let own = Key::Private { mm: mm.as_u64(), address };
    if private {
        return Ok(own);
    }
    let space = Space::lock(&Spaces, mm, task.limits());
    let vma = space.mm().find(&Spaces, address).map(|id| Arena::<Vma>::at(&Spaces, id));
    let vma = vma.filter(|vma| vma.start() <= address).ok_or(Errno::Efault)?;
    match vma.mapping() {
        Some(mapping) if vma.flags().contains(VmFlags::SHARED) => {
            let offset = (vma.index_of(address) << 12).wrapping_add(address & 0xfff);
            Ok(Key::Shared { mapping: mapping.as_u64(), offset })
        }
        _ => Ok(own),
    }
}

/// Looks at the word, or changes it, with the waiters' lock held: `look` gets where it is, with the page tables locked so that it stays
/// there, and says `None` to be called again. `act` then has the waiters and what was seen.
fn with_word<T, R>(
    address: u64,
    access: Access,
    mut look: impl FnMut(PhysAddr) -> Option<T>,
    act: impl FnOnce(&mut Futexes<u32>, T) -> R,
) -> Result<R, Errno> {
    let mm = task()?.mm().ok_or(Errno::Efault)?;
    loop {
        // It may have to be brought in, which sleeps.
        uaccess::with_word(address, access, |_| ())?;
        let mut futexes = FUTEXES.lock();
        let write = access == Access::Write;
        let seen = with_user_byte(&Spaces, space::mm_of(mm), address, write, &mut look).flatten();
        if let Some(seen) = seen {
            return Ok(act(&mut futexes, seen));
        }
    }
}

/// The word.
fn load(word: PhysAddr) -> Option<u32> {
    Some(kmap::load_u32(word))
}

fn wake_task(tid: u32) {
    if let Some(task) = find_task(tid) {
        task.signals.futex_woken.store(true, Ordering::Release);
        sched::wake(task.number());
    }
}

/// Sleeps until somebody wakes it, as long as the word is what the caller says (Linux: `futex_wait`).
///
/// # Errors
/// EAGAIN if the word is another; ETIMEDOUT; a restart code for a signal; EINVAL, EFAULT, ENOMEM.
pub fn wait(wait: &Wait) -> Result<u64, Errno> {
    let task = task()?;
    let key = key(wait.address, wait.private)?;
    let woken = || task.signals.futex_woken.load(Ordering::Acquire);
    loop {
        with_word(wait.address, Access::Read, load, |futexes, word| {
            if word != wait.value {
                return Err(Errno::Eagain);
            }
            task.signals.futex_woken.store(false, Ordering::Release);
            futexes.wait(key, wait.bitset, task.tid())
        })??;
        let why = WAITING.wait_interruptible(&sched::task_context(), wait.deadline, woken);
        // Who was woken meanwhile was woken.
        if !FUTEXES.lock().cancel(key, &task.tid()) {
            return Ok(0);
        }
        match why {
            Woken::Event => {}
            Woken::TimedOut => return Err(Errno::Etimedout),
            Woken::Interrupted => return Err(interrupted(&task, wait)),
        }
    }
}

fn interrupted(task: &Current, wait: &Wait) -> Errno {
    let Wait { address, value, bitset, private, deadline, absolute } = *wait;
    match deadline {
        // A distance would begin anew: what goes on is the rest of it.
        Some(deadline) if !absolute => {
            task.signals.restart_by(RestartBlock::Futex { address, value, bitset, private, deadline })
        }
        _ => Errno::Erestartsys,
    }
}

/// Wakes up to `count` waiters (Linux: `futex_wake`).
///
/// # Errors
/// EINVAL, EFAULT.
pub fn wake(address: u64, private: bool, count: u32, bitset: u32) -> Result<u64, Errno> {
    let key = key(address, private)?;
    FUTEXES.lock().wake(key, count, bitset, wake_task).map(u64::from)
}

/// The word at `address` of the current process changed because a task ended.
pub fn wake_one(address: u64) {
    // Who waits with and without the private flag finds the same key, except in shared memory.
    for private in [true, false] {
        if matches!(wake(address, private, 1, ANY), Ok(1..)) {
            return;
        }
    }
}

/// Two words: addresses, and whether no other process shares them.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The first.
    pub from: u64,
    /// The second.
    pub to: u64,
    /// No other process shares them.
    pub private: bool,
}

impl Pair {
    fn keys(&self) -> Result<(Key, Key), Errno> {
        Ok((key(self.from, self.private)?, key(self.to, self.private)?))
    }
}

/// Wakes some waiters of the first word and lets others wait at the second, if the first is `expected` (Linux: `futex_requeue`).
///
/// # Errors
/// EAGAIN if the word is another; EINVAL for negative counts; EFAULT, ENOMEM.
pub fn requeue(pair: &Pair, wakes: u32, moves: u32, expected: Option<u32>) -> Result<u64, Errno> {
    if wakes.cast_signed() < 0 || moves.cast_signed() < 0 {
        return Err(Errno::Einval);
    }
    let keys = pair.keys()?;
    let run = |futexes: &mut Futexes<u32>| futexes.requeue(keys, (wakes, moves), wake_task);
    let Some(expected) = expected else { return run(&mut FUTEXES.lock()).map(u64::from) };
    with_word(pair.from, Access::Read, load, |futexes, word| {
        if word == expected { run(futexes) } else { Err(Errno::Eagain) }
    })?
    .map(u64::from)
}

/// Changes the second word, wakes waiters of the first and, if what the second was says so, of the second (Linux: `futex_wake_op`).
///
/// # Errors
/// EINVAL, EFAULT.
pub fn wake_op(pair: &Pair, first: u32, second: u32, op: &WakeOp) -> Result<u64, Errno> {
    let (from, to) = pair.keys()?;
    let change = |word| {
        let old = kmap::load_u32(word);
        // Somebody else may write it meanwhile.
        kmap::compare_exchange_u32(word, old, op.apply(old)).ok().map(|()| old)
    };
    with_word(pair.to, Access::Write, change, |futexes, old| {
        let woken = futexes.wake(from, first, ANY, wake_task);
        let more = if op.wakes(old) { futexes.wake(to, second, ANY, wake_task) } else { Ok(0) };
        woken.and_then(|woken| more.map(|more| u64::from(woken + more)))
    })?
}

/// A task ends: the locks that it holds say so (Linux: `exit_robust_list`).
pub fn exit_robust_list(task: &Current) {
    let head = task.robust_list.swap(0, Ordering::AcqRel);
    if head == 0 {
        return;
    }
    let read = |address: u64| uaccess::get_user::<u64>(address).ok();
    robust::walk(head, read, |entry| {
        if !entry.word.is_multiple_of(4) {
            return;
        }
        let change = |word| {
            let old = kmap::load_u32(word);
            let death = robust::death(old, task.tid(), &entry);
            if let Death::Write { word: new, .. } = death {
                kmap::compare_exchange_u32(word, old, new).ok()?;
            }
            Some(death)
        };
        let death = with_word(entry.word, Access::Write, change, |_, death| death);
        if matches!(death, Ok(Death::Wake | Death::Write { wake: true, .. })) {
            wake_one(entry.word);
        }
    });
}
