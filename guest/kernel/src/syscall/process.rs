//! Calls on processes (Linux: kernel/fork.c, exit.c, sys.c, sched/syscalls.c, arch/x86/kernel/process_64.c).

mod ids;
mod sched_calls;
mod system;

use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::task::{self, CloneArgs, CloneFlags, SIGCHLD, Selector, WaitFlags, Waited, current};
use crate::uaccess;

/// The calls of this file and its parts.
pub fn call(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, e, _] = super::arguments(frame);
    Some(match number {
        56 => clone(frame, [a, b, c, d, e]),
        57 => fork(frame, CloneFlags::empty()),
        58 => fork(frame, CloneFlags::VFORK | CloneFlags::VM),
        60 => task::do_exit((int(a) & 0xff) << 8),
        61 => wait4(signed(a), b, int(c), d),
        231 => task::do_group_exit((int(a) & 0xff) << 8),
        247 => waitid(signed(a), int(b), c, int(d), e),
        // clone3: glibc and musl go on with clone.
        435 => Err(Errno::Enosys),
        _ => {
            return ids::call(number, frame)
                .or_else(|| sched_calls::call(number, frame))
                .or_else(|| system::call(number, frame));
        }
    })
}

fn fork(frame: &TrapFrame, flags: CloneFlags) -> Result<u64, Errno> {
    let args = CloneArgs { flags, exit_signal: SIGCHLD, stack: 0, parent_tid: 0, child_tid: 0, tls: 0 };
    task::clone(frame, &args).map(u64::from)
}

fn clone(frame: &TrapFrame, [flags, stack, parent_tid, child_tid, tls]: [u64; 5]) -> Result<u64, Errno> {
    /// Linux: `CSIGNAL`.
    const SIGNAL: u64 = 0xff;
    // Only the lower half of the register has flags.
    let flags = u64::from(int(flags));
    let args = CloneArgs {
        flags: CloneFlags::from_bits_retain(flags & !SIGNAL),
        exit_signal: int(flags & SIGNAL),
        stack,
        parent_tid,
        child_tid,
        tls,
    };
    task::clone(frame, &args).map(u64::from)
}

fn own_group() -> Result<u32, Errno> {
    Ok(current().ok_or(Errno::Echild)?.process.pgid())
}

fn wait4(pid: i32, status: u64, options: u32, usage: u64) -> Result<u64, Errno> {
    let allowed = WaitFlags::NOHANG
        | WaitFlags::STOPPED
        | WaitFlags::CONTINUED
        | WaitFlags::NOTHREAD
        | WaitFlags::CLONE
        | WaitFlags::ALL;
    let flags =
        WaitFlags::from_bits(options).filter(|flags| allowed.contains(*flags)).ok_or(Errno::Einval)?;
    let which = match pid {
        // No group has that number.
        i32::MIN => return Err(Errno::Esrch),
        -1 => Selector::Any,
        0 => Selector::Group(own_group()?),
        1.. => Selector::Pid(pid.unsigned_abs()),
        _ => Selector::Group(pid.unsigned_abs()),
    };
    let Some(waited) = task::do_wait(which, flags | WaitFlags::EXITED)? else { return Ok(0) };
    if usage != 0 {
        uaccess::put_user(usage, rusage(&waited))?;
    }
    if status != 0 {
        uaccess::put_user(status, waited.status)?;
    }
    Ok(u64::from(waited.pid))
}

/// `struct rusage`: faults only.
fn rusage(waited: &Waited) -> [u64; 18] {
    const MINFLT: usize = 8;
    let mut usage = [0; 18];
    [usage[MINFLT], usage[MINFLT + 1]] = waited.faults;
    usage
}

fn waitid(kind: i32, id: u32, info: u64, options: u32, usage: u64) -> Result<u64, Errno> {
    const ALL: i32 = 0;
    const PID: i32 = 1;
    const PGID: i32 = 2;
    let flags = WaitFlags::from_bits(options).ok_or(Errno::Einval)?;
    if !flags.intersects(WaitFlags::EXITED | WaitFlags::STOPPED | WaitFlags::CONTINUED) {
        return Err(Errno::Einval);
    }
    let which = match kind {
        ALL => Selector::Any,
        PID if id.cast_signed() > 0 => Selector::Pid(id),
        PGID if id == 0 => Selector::Group(own_group()?),
        PGID if id.cast_signed() > 0 => Selector::Group(id),
        _ => return Err(Errno::Einval),
    };
    let waited = task::do_wait(which, flags)?;
    if let Some(waited) = waited.filter(|_| usage != 0) {
        uaccess::put_user(usage, rusage(&waited))?;
    }
    if info != 0 {
        // Only these fields are written, with zeroes if nobody had anything to tell.
        let words = waited.map_or([0; 7], |waited| siginfo(&waited));
        uaccess::put_user(info, [words[0], words[1], words[2]])?;
        uaccess::put_user(info + 16, [words[4], words[5], words[6]])?;
    }
    Ok(0)
}

/// `siginfo_t` of a child: signo, errno, code, nothing, pid, uid, status.
fn siginfo(waited: &Waited) -> [u32; 7] {
    const EXITED: u32 = 1;
    const KILLED: u32 = 2;
    const DUMPED: u32 = 3;
    const STOPPED: u32 = 5;
    const CONTINUED: u32 = 6;
    let status = waited.status;
    let (code, status) = match status & 0xff {
        _ if status == 0xffff => (CONTINUED, 18),
        0 => (EXITED, status >> 8 & 0xff),
        0x7f => (STOPPED, status >> 8 & 0xff),
        signal if signal & 0x80 != 0 => (DUMPED, signal & 0x7f),
        signal => (KILLED, signal),
    };
    [SIGCHLD, 0, code, 0, waited.pid, 0, status]
}
