//! Calls on futexes (Linux: kernel/futex/syscalls.c).

use core::sync::atomic::Ordering;

use guest_process::futex::{Command, Op, WakeOp, robust};
use guest_process::time::Timespec;
use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::futex::{self, Pair, Wait};
use crate::sched::clock;
use crate::task::{self, current};
use crate::{time, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    Some(match number {
        202 => futex(super::arguments(frame)),
        273 => set_robust_list(frame.rdi, frame.rsi),
        274 => get_robust_list(signed(frame.rdi), frame.rsi, frame.rdx),
        _ => return None,
    })
}

fn futex([address, op, value, fourth, second, sixth]: [u64; 6]) -> Result<u64, Errno> {
    let command = Command::parse(int(op), int(sixth))?;
    let private = command.private;
    let pair = Pair { from: address, to: second, private };
    let (value, count) = (int(value), int(fourth));
    match command.op {
        Op::Wait { bitset, absolute, realtime } => {
            let deadline = deadline(fourth, absolute, realtime)?;
            futex::wait(&Wait { address, value, bitset, private, deadline, absolute })
        }
        Op::Wake { bitset } => futex::wake(address, private, value, bitset),
        Op::Requeue { compare } => futex::requeue(&pair, value, count, compare.then_some(int(sixth))),
        Op::WakeOp => futex::wake_op(&pair, value, count, &WakeOp::parse(int(sixth))?),
    }
}

/// The end of a wait, in nanoseconds since boot.
fn deadline(address: u64, absolute: bool, realtime: bool) -> Result<Option<u64>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let given = Timespec::from_bytes(&uaccess::get_user(address)?).to_ns()?;
    Ok(Some(match (absolute, realtime) {
        (false, _) => clock::now().saturating_add(given),
        (true, false) => given,
        (true, true) => given.saturating_sub(time::boot_realtime()),
    }))
}

fn set_robust_list(head: u64, len: u64) -> Result<u64, Errno> {
    if len != robust::HEAD_LEN {
        return Err(Errno::Einval);
    }
    current().ok_or(Errno::Esrch)?.robust_list.store(head, Ordering::Relaxed);
    Ok(0)
}

fn get_robust_list(tid: i32, head: u64, len: u64) -> Result<u64, Errno> {
    let list = match tid {
        0 => current().map(|task| task.robust_list.load(Ordering::Relaxed)),
        _ => u32::try_from(tid)
            .ok()
            .and_then(task::find_task)
            .map(|task| task.robust_list.load(Ordering::Relaxed)),
    };
    uaccess::put_user(len, robust::HEAD_LEN)?;
    uaccess::put_user(head, list.ok_or(Errno::Esrch)?)?;
    Ok(0)
}
