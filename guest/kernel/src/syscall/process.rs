//! Calls on processes (Linux: kernel/fork.c, exit.c, sys.c, sched/syscalls.c, arch/x86/kernel/process_64.c).

mod ids;
mod sched_calls;
mod system;

use guest_process::wait::Wait;
use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::task::{self, CloneArgs, CloneFlags, SIGCHLD, Waited, current};
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
        247 => waitid(signed(a), signed(b), c, int(d), e),
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

#[inline(never)]
fn wait4(pid: i32, status: u64, options: u32, usage: u64) -> Result<u64, Errno> {
    let wait = Wait::wait4(pid, options, own_group()?)?;
    let Some(waited) = task::do_wait(&wait)? else { return Ok(0) };
    if usage != 0 {
        uaccess::put_user(usage, rusage(&waited))?;
    }
    if status != 0 {
        uaccess::put_user(status, waited.event.status())?;
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

#[inline(never)]
fn waitid(kind: i32, id: i32, info: u64, options: u32, usage: u64) -> Result<u64, Errno> {
    let wait = Wait::waitid(kind, id, options, own_group()?)?;
    let waited = task::do_wait(&wait)?;
    if let Some(waited) = waited.filter(|_| usage != 0) {
        uaccess::put_user(usage, rusage(&waited))?;
    }
    if info != 0 {
        // Only these fields are written, with zeroes if nobody had anything to tell.
        let (head, child) = waited.map_or(([0; 3], [0; 3]), |waited| {
            let info = waited.event.info(waited.pid, 0, [0; 2]);
            let head = [info.signal.number(), info.errno.cast_unsigned(), info.code.cast_unsigned()];
            (head, [info.pid(), info.uid(), info.status()])
        });
        uaccess::put_user(info, head)?;
        uaccess::put_user(info + 16, child)?;
    }
    Ok(0)
}
