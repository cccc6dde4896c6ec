//! Calls on time (Linux: kernel/time/).

use mm_vma::Errno;

use crate::arch::trap::TrapFrame;
use crate::sched::{self, Woken};
use crate::uaccess;

const NANOSECONDS: u64 = 1_000_000_000;

/// The calls of this file.
pub fn call(number: u64, frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, ..] = super::arguments(frame);
    Some(match number {
        35 => nanosleep(a),
        _ => return None,
    })
}

/// nanosleep, without the rest that an interrupted one tells.
fn nanosleep(request: u64) -> Result<u64, Errno> {
    let [seconds, nanoseconds] = uaccess::get_user::<[u64; 2]>(request)?;
    if seconds.cast_signed() < 0 || nanoseconds >= NANOSECONDS {
        return Err(Errno::Einval);
    }
    let wanted = seconds.saturating_mul(NANOSECONDS).saturating_add(nanoseconds);
    let deadline = sched::clock::now().saturating_add(wanted);
    match sched::sleep_until(&sched::task_context(), deadline) {
        Woken::Interrupted => Err(Errno::Eintr),
        Woken::Event | Woken::TimedOut => Ok(0),
    }
}
