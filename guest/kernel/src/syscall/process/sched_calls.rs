//! Calls on scheduling (Linux: kernel/sched/syscalls.c).

use mm_vma::Errno;

use super::super::{arguments, int, signed};
use crate::arch::percpu;
use crate::arch::trap::TrapFrame;
use crate::sched::{self, CPU_WORDS, CpuMask};
use crate::task::{self, current};
use crate::{smp, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, ..] = arguments(frame);
    Some(match number {
        24 => {
            sched::yield_now(&sched::task_context());
            Ok(0)
        }
        203 => setaffinity(signed(a), int(b), c),
        204 => getaffinity(signed(a), int(b), c),
        309 => getcpu(a, b),
        _ => return None,
    })
}

/// Number in `sched` of the task `tid`, 0 for the caller.
fn number_of(tid: i32) -> Result<usize, Errno> {
    match tid {
        0 => current().map(|task| task.number()),
        _ => u32::try_from(tid).ok().and_then(task::find_task).map(|task| task.number()),
    }
    .ok_or(Errno::Esrch)
}

fn setaffinity(tid: i32, len: u32, address: u64) -> Result<u64, Errno> {
    let mut words = [0_u64; CPU_WORDS];
    for (word, at) in words.iter_mut().zip((0..u64::from(len)).step_by(8)) {
        let mut bytes = [0; 8];
        let part = (u64::from(len) - at).min(8);
        let part = usize::try_from(part).unwrap_or(0);
        uaccess::read(address + at, bytes.get_mut(..part).unwrap_or_default())?;
        *word = u64::from_le_bytes(bytes);
    }
    let allowed = CpuMask::from_words(words).and(&CpuMask::below(smp::nr_online()));
    let number = number_of(tid)?;
    if allowed.is_empty() {
        return Err(Errno::Einval);
    }
    sched::set_allowed(number, allowed);
    if number == sched::current() && !allowed.contains(percpu::cpu()) {
        sched::yield_now(&sched::task_context());
    }
    Ok(0)
}

fn getaffinity(tid: i32, len: u32, address: u64) -> Result<u64, Errno> {
    if !len.is_multiple_of(8) || u64::from(len) * 8 < u64::from(smp::nr_online()) {
        return Err(Errno::Einval);
    }
    let allowed = sched::allowed(number_of(tid)?).and(&CpuMask::below(smp::nr_online()));
    let mut written = 0;
    for (word, at) in allowed.words().iter().zip((0..u64::from(len)).step_by(8)) {
        uaccess::put_user(address + at, *word)?;
        written = at + 8;
    }
    Ok(written)
}

fn getcpu(cpu: u64, node: u64) -> Result<u64, Errno> {
    if cpu != 0 {
        uaccess::put_user(cpu, percpu::cpu())?;
    }
    if node != 0 {
        uaccess::put_user(node, smp::node_of(percpu::cpu()))?;
    }
    Ok(0)
}
