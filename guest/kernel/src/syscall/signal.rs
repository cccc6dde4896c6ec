//! Calls on signals (Linux: kernel/signal.c).

use guest_process::signal::{AltStack, SigAction, SigInfo, SigSet, Signal, Target, code};
use guest_process::time::Timespec;
use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::sched::{self, WaitQueue, Woken, clock};
use crate::signal::{self, waker, with_own};
use crate::task::{self, Process, current};
use crate::uaccess;

/// Size of a program's set of signals, which most calls are told.
const SET_LEN: u64 = 8;

/// The calls of this file.
pub fn call(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, ..] = super::arguments(frame);
    Some(match number {
        13 => sigaction(int(a), b, c, d),
        14 => sigprocmask(signed(a), b, c, d),
        15 => Ok(signal::return_from_handler(frame)),
        34 => Err(task::pause()),
        62 => kill(signed(a), int(b)),
        127 => sigpending(a, b),
        128 => sigtimedwait(a, b, c, d),
        129 => sigqueueinfo(signed(a), int(b), c),
        130 => sigsuspend(a, b),
        131 => sigaltstack(frame.rsp, a, b),
        200 => tkill(None, signed(a), int(b)),
        234 => tkill(Some(signed(a)), signed(b), int(c)),
        297 => tgsigqueueinfo(signed(a), signed(b), int(c), d),
        _ => return None,
    })
}

fn check_len(len: u64) -> Result<(), Errno> {
    if len == SET_LEN { Ok(()) } else { Err(Errno::Einval) }
}

fn signal(number: u32) -> Result<Signal, Errno> {
    Signal::new(number).ok_or(Errno::Einval)
}

/// A signal to be sent; `None` is number 0, which only asks whether it could be.
fn to_send(number: u32) -> Result<Option<Signal>, Errno> {
    if number == 0 { Ok(None) } else { signal(number).map(Some) }
}

fn sigaction(number: u32, new: u64, old: u64, len: u64) -> Result<u64, Errno> {
    check_len(len)?;
    let action = match new {
        0 => None,
        new => Some(SigAction::from_bytes(&uaccess::get_user(new)?)),
    };
    let signal = signal(number)?;
    let before = with_own(|group, _| match action {
        Some(action) => group.set_sigaction(signal, action),
        None => Ok(group.sigaction(signal)),
    })??;
    if old != 0 {
        uaccess::put_user(old, before.to_bytes())?;
    }
    Ok(0)
}

fn sigprocmask(how: i32, new: u64, old: u64, len: u64) -> Result<u64, Errno> {
    const BLOCK: i32 = 0;
    const UNBLOCK: i32 = 1;
    const SETMASK: i32 = 2;
    check_len(len)?;
    let before = with_own(|group, tid| group.blocked(tid))?;
    if new != 0 {
        let given = SigSet::from_bits(uaccess::get_user(new)?);
        let blocked = match how {
            BLOCK => before.union(given),
            UNBLOCK => before.minus(given),
            SETMASK => given,
            _ => return Err(Errno::Einval),
        };
        with_own(|group, tid| group.set_blocked(tid, blocked, &mut waker()))?;
    }
    if old != 0 {
        uaccess::put_user(old, before.bits())?;
    }
    Ok(0)
}

fn sigpending(set: u64, len: u64) -> Result<u64, Errno> {
    if len > SET_LEN {
        return Err(Errno::Einval);
    }
    let pending = with_own(|group, tid| group.sigpending(tid))?.bits().to_le_bytes();
    // A shorter set gets its part, as on Linux.
    let part = usize::try_from(len).ok().and_then(|len| pending.get(..len)).unwrap_or_default();
    uaccess::write(set, part)?;
    Ok(0)
}

fn sigsuspend(mask: u64, len: u64) -> Result<u64, Errno> {
    static NOBODY_WAKES: WaitQueue = WaitQueue::new();
    check_len(len)?;
    let mask = SigSet::from_bits(uaccess::get_user(mask)?);
    with_own(|group, tid| group.suspend(tid, mask, &mut waker()))?;
    NOBODY_WAKES.wait_interruptible(&sched::task_context(), None, || false);
    Err(Errno::Erestartnohand)
}

fn sigtimedwait(set: u64, info: u64, timeout: u64, len: u64) -> Result<u64, Errno> {
    static NOBODY_WAKES: WaitQueue = WaitQueue::new();
    check_len(len)?;
    let wanted = SigSet::from_bits(uaccess::get_user(set)?).blockable();
    let timeout = match timeout {
        0 => None,
        timeout => Some(Timespec::from_bytes(&uaccess::get_user(timeout)?).to_ns()?),
    };
    let mut taken = with_own(|group, tid| group.take(tid, wanted))?;
    let mut woken = Woken::TimedOut;
    if taken.is_none() && timeout != Some(0) {
        with_own(|group, tid| group.begin_wait(tid, wanted))?;
        let deadline = timeout.map(|timeout| clock::now().saturating_add(timeout));
        woken = NOBODY_WAKES.wait_interruptible(&sched::task_context(), deadline, || false);
        taken = with_own(|group, tid| {
            group.end_wait(tid, &mut waker());
            group.take(tid, wanted)
        })?;
    }
    let Some(taken) = taken else {
        return Err(if woken == Woken::TimedOut { Errno::Eagain } else { Errno::Eintr });
    };
    if info != 0 {
        uaccess::write(info, &taken.to_bytes())?;
    }
    Ok(u64::from(taken.signal.number()))
}

fn sigaltstack(sp: u64, new: u64, old: u64) -> Result<u64, Errno> {
    let given: Option<[u8; AltStack::LEN]> = match new {
        0 => None,
        new => Some(uaccess::get_user(new)?),
    };
    let before = with_own(|group, tid| group.altstack(tid))?;
    if let Some(given) = given {
        let mut altstack = before;
        altstack.set(&given, sp)?;
        with_own(|group, tid| group.set_altstack(tid, altstack))?;
    }
    if old != 0 {
        uaccess::put_user(old, before.to_bytes(sp))?;
    }
    Ok(0)
}

fn own_pid() -> Result<u32, Errno> {
    Ok(current().ok_or(Errno::Esrch)?.process.pid)
}

/// kill. Everybody is root, so that nobody may not.
fn kill(pid: i32, number: u32) -> Result<u64, Errno> {
    let signal = to_send(number)?;
    let me = own_pid()?;
    let info = |signal| SigInfo::user(signal, code::USER, me, 0);
    let send = |process: &Process| match signal {
        Some(signal) => signal::send(process, Target::Process, info(signal)),
        None => Ok(()),
    };
    if pid > 0 {
        let process = task::find_process(pid.unsigned_abs()).ok_or(Errno::Esrch)?;
        return send(&process).map(|()| 0);
    }
    let group = match pid {
        i32::MIN => return Err(Errno::Esrch),
        0 => Some(current().ok_or(Errno::Esrch)?.process.pgid()),
        -1 => None,
        _ => Some(pid.unsigned_abs()),
    };
    let chosen = signal::choose(|process| match group {
        Some(group) => process.pgid() == group,
        None => process.pid > 1 && process.pid != me,
    })?;
    let mut result = Err(Errno::Esrch);
    for process in &chosen {
        let sent = send(process);
        // One that worked is enough.
        if result.is_err() {
            result = sent;
        }
    }
    result.map(|()| 0)
}

/// tkill and tgkill.
fn tkill(tgid: Option<i32>, tid: i32, number: u32) -> Result<u64, Errno> {
    if tid <= 0 || tgid.is_some_and(|tgid| tgid <= 0) {
        return Err(Errno::Einval);
    }
    let info = |signal, me| SigInfo::user(signal, code::TKILL, me, 0);
    let me = own_pid()?;
    send_to_thread(tgid, tid, to_send(number)?.map(|signal| info(signal, me)))
}

fn send_to_thread(tgid: Option<i32>, tid: i32, info: Option<SigInfo>) -> Result<u64, Errno> {
    let task = task::find_task(tid.unsigned_abs()).ok_or(Errno::Esrch)?;
    if tgid.is_some_and(|tgid| tgid.unsigned_abs() != task.process.pid) {
        return Err(Errno::Esrch);
    }
    if let Some(info) = info {
        signal::send(&task.process, Target::Thread(task.tid()), info)?;
    }
    Ok(0)
}

/// What a program wants to tell with a signal; only to itself may it say that the kernel or kill sent it.
fn queue_info(number: u32, address: u64, other: bool) -> Result<SigInfo, Errno> {
    let bytes = uaccess::get_user::<[u8; SigInfo::LEN]>(address)?;
    // Number 0 is checked by whoever sends.
    let info = SigInfo::from_user(Signal::new(number).unwrap_or(Signal::HUP), &bytes)?;
    if other && (info.code >= 0 || info.code == code::TKILL) { Err(Errno::Eperm) } else { Ok(info) }
}

fn sigqueueinfo(pid: i32, number: u32, address: u64) -> Result<u64, Errno> {
    let info = queue_info(number, address, own_pid()? != pid.unsigned_abs())?;
    let wanted = to_send(number)?;
    let process = u32::try_from(pid).ok().and_then(task::find_process).ok_or(Errno::Esrch)?;
    if wanted.is_some() {
        signal::send(&process, Target::Process, info)?;
    }
    Ok(0)
}

fn tgsigqueueinfo(tgid: i32, tid: i32, number: u32, address: u64) -> Result<u64, Errno> {
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::Einval);
    }
    let info = queue_info(number, address, own_pid()? != tgid.unsigned_abs())?;
    send_to_thread(Some(tgid), tid, to_send(number)?.map(|_| info))
}
