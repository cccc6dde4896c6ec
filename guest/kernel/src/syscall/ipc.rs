//! Calls on System V shared memory (Linux: ipc/shm.c).

use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::ipc::shm;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, ..] = super::arguments(frame);
    Some(match number {
        29 => shm::shmget(signed(a), b, int(c)),
        30 => shm::shmat(signed(a), b, int(c)),
        31 => shm::shmctl(signed(a), signed(b), c),
        67 => shm::shmdt(a),
        _ => return None,
    })
}
