//! Calls on signals (Linux: kernel/signal.c).

use mm_vma::Errno;

use crate::arch::trap::TrapFrame;
use crate::task;

/// The calls of this file.
pub fn call(number: u64, _frame: &mut TrapFrame) -> Option<Result<u64, Errno>> {
    Some(match number {
        34 => pause(),
        _ => return None,
    })
}

fn pause() -> Result<u64, Errno> {
    task::pause();
    Err(Errno::Eintr)
}
