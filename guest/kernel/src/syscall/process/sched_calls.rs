//! Calls on scheduling (Linux: kernel/sched/syscalls.c).

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_process::priority::Policy;
use mm_vma::Errno;

use super::super::{arguments, int, signed};
use crate::arch::percpu;
use crate::arch::trap::TrapFrame;
use crate::sched::{self, CPU_WORDS, CpuMask};
use crate::task::{self, Task, current};
use crate::{smp, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, ..] = arguments(frame);
    Some(match number {
        24 => {
            sched::yield_at_rest(&sched::task_context());
            Ok(0)
        }
        140 => getpriority(signed(a), signed(b)),
        141 => setpriority(signed(a), signed(b), signed(c)),
        142 => setparam(signed(a), b),
        143 => getparam(signed(a), b),
        144 => setscheduler(signed(a), int(b), c),
        145 => number_of(signed(a)).map(|number| u64::from(sched::priority(number).policy_number())),
        146 => Policy::from_number(int(a)).map(|policy| policy.priorities().1.into()).ok_or(Errno::Einval),
        147 => Policy::from_number(int(a)).map(|policy| policy.priorities().0.into()).ok_or(Errno::Einval),
        148 => rr_get_interval(signed(a), b),
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
        sched::yield_at_rest(&sched::task_context());
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

/// Threads that `which` and `who` name: a process's first one, those of a process group, or all.
fn named(which: i32, who: i32) -> Result<Vec<Arc<Task>>, Errno> {
    const PROCESS: i32 = 0;
    const GROUP: i32 = 1;
    const USER: i32 = 2;
    let own = current().ok_or(Errno::Esrch)?;
    let who = u32::try_from(who).map_err(|_| Errno::Esrch)?;
    let tasks = match which {
        PROCESS => task::find_task(if who == 0 { own.tid() } else { who }).into_iter().collect(),
        GROUP => {
            let group = if who == 0 { own.process.pgid() } else { who };
            task::tasks_where(|task| task.process.pgid() == group)?
        }
        // Everybody is root.
        USER if who == 0 => task::tasks_where(|_| true)?,
        USER => Vec::new(),
        _ => return Err(Errno::Einval),
    };
    if tasks.is_empty() { Err(Errno::Esrch) } else { Ok(tasks) }
}

/// The least nice of those named.
fn getpriority(which: i32, who: i32) -> Result<u64, Errno> {
    let tasks = named(which, who)?;
    let values = tasks.iter().map(|task| sched::priority(task.number()).nice_to_rlimit());
    values.max().ok_or(Errno::Esrch)
}

fn setpriority(which: i32, who: i32, nice: i32) -> Result<u64, Errno> {
    for task in named(which, who)? {
        let number = task.number();
        sched::set_priority(number, sched::priority(number).with_nice(nice));
    }
    Ok(0)
}

/// Linux: negative numbers and no structure are EINVAL, before the task is looked for.
fn param_of(tid: i32, address: u64) -> Result<(), Errno> {
    if tid < 0 || address == 0 { Err(Errno::Einval) } else { Ok(()) }
}

fn setscheduler(tid: i32, policy: u32, param: u64) -> Result<u64, Errno> {
    if policy.cast_signed() < 0 {
        return Err(Errno::Einval);
    }
    param_of(tid, param)?;
    let priority: i32 = uaccess::get_user(param)?;
    let number = number_of(tid)?;
    sched::set_priority(number, sched::priority(number).with_policy(policy, priority)?);
    Ok(0)
}

fn setparam(tid: i32, param: u64) -> Result<u64, Errno> {
    param_of(tid, param)?;
    let priority: i32 = uaccess::get_user(param)?;
    let number = number_of(tid)?;
    let old = sched::priority(number);
    sched::set_priority(number, old.with_policy(old.policy_number(), priority)?);
    Ok(0)
}

fn getparam(tid: i32, param: u64) -> Result<u64, Errno> {
    param_of(tid, param)?;
    uaccess::put_user(param, u32::from(sched::priority(number_of(tid)?).real_time))?;
    Ok(0)
}

/// A slice: one tick; for FIFO, which has none, 0.
fn rr_get_interval(tid: i32, address: u64) -> Result<u64, Errno> {
    if tid < 0 {
        return Err(Errno::Einval);
    }
    let fifo = sched::priority(number_of(tid)?).policy == Policy::Fifo;
    let ns = if fifo { 0 } else { 1_000_000_000 / sched::clock::HZ };
    uaccess::put_user(address, [0, ns])?;
    Ok(0)
}
