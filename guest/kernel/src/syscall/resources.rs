//! Calls on limits and use of resources, and random bytes (Linux: kernel/sys.c, drivers/char/random.c).

use alloc::sync::Arc;

use guest_process::limits::{Resource, Rlimit};
use guest_process::time::MemoryFacts;
use memvisor_abi::NodeStat;
use mm_core::PAGE_SIZE;
use mm_vma::Errno;

use super::{int, signed};
use crate::arch::trap::TrapFrame;
use crate::fs::disk_file::bdev;
use crate::mm::{page_alloc, swap, vmstat};
use crate::sched::clock;
use crate::task::{self, Process, current};
use crate::{random, smp, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, ..] = super::arguments(frame);
    Some(match number {
        97 => prlimit(0, int(a), 0, b),
        98 => getrusage(signed(a), b),
        99 => sysinfo(a),
        160 => prlimit(0, int(a), b, 0),
        302 => prlimit(signed(a), int(b), c, d),
        318 => getrandom(a, b, int(c)),
        324 => membarrier(signed(a), int(b)),
        // rseq: C libraries go on without.
        334 => Err(Errno::Enosys),
        _ => return None,
    })
}

fn process(pid: i32) -> Result<Arc<Process>, Errno> {
    match pid {
        0 => current().map(|task| Arc::clone(&task.process)),
        _ => u32::try_from(pid).ok().and_then(task::find_task).map(|task| Arc::clone(&task.process)),
    }
    .ok_or(Errno::Esrch)
}

/// prlimit64, getrlimit, setrlimit. Everybody is root, and may raise what is hard.
fn prlimit(pid: i32, resource: u32, new: u64, old: u64) -> Result<u64, Errno> {
    let resource = Resource::new(resource)?;
    let wanted = match new {
        0 => None,
        new => Some(Rlimit::from_bytes(&uaccess::get_user(new)?)),
    };
    let process = process(pid)?;
    let before = {
        let mut limits = process.signals.limits.lock();
        match wanted {
            Some(wanted) => limits.set(resource, wanted, true)?,
            None => limits.limit(resource),
        }
    };
    if let Some(wanted) = wanted {
        process.with_limits(|limits| match resource {
            Resource::AddressSpace => limits.address_space = wanted.soft,
            Resource::Data => limits.data = wanted.soft,
            Resource::Stack => limits.stack = wanted.soft,
            Resource::Memlock => limits.memlock = wanted.soft,
            _ => {}
        });
    }
    if old != 0 {
        uaccess::put_user(old, before.to_bytes())?;
    }
    Ok(0)
}

fn getrusage(who: i32, address: u64) -> Result<u64, Errno> {
    const OWN: i32 = 0;
    const CHILDREN: i32 = -1;
    const THREAD: i32 = 1;
    let task = current().ok_or(Errno::Esrch)?;
    let usage = match who {
        OWN => task.process.usage(),
        CHILDREN => task.process.child_usage(),
        THREAD => task.usage(),
        _ => return Err(Errno::Einval),
    };
    uaccess::put_user(address, usage.to_bytes())?;
    Ok(0)
}

/// Differs from Linux: loads are not counted.
fn sysinfo(address: u64) -> Result<u64, Errno> {
    let (total, free) = page_alloc::managed_and_free();
    let threads = task::with_relations(|_, tasks| tasks.len());
    let (shared, buffers) = (vmstat::global(NodeStat::Shmem), bdev::nr_pages());
    let facts = MemoryFacts {
        uptime_ns: clock::now(),
        ram: [total, free, shared, buffers].map(|pages| pages * PAGE_SIZE),
        swap: [swap::total_swap_pages(), swap::nr_swap_pages()].map(|pages| pages * PAGE_SIZE),
        threads: u16::try_from(threads).unwrap_or(u16::MAX),
        ..MemoryFacts::default()
    };
    uaccess::put_user(address, facts.to_bytes())?;
    Ok(0)
}

fn getrandom(address: u64, len: u64, flags: u32) -> Result<u64, Errno> {
    const NONBLOCK: u32 = 1;
    const RANDOM: u32 = 2;
    const INSECURE: u32 = 4;
    if flags & !(NONBLOCK | RANDOM | INSECURE) != 0 || flags & (RANDOM | INSECURE) == RANDOM | INSECURE {
        return Err(Errno::Einval);
    }
    let mut done = 0;
    let mut bytes = [0; 256];
    // As much as one call gives on Linux.
    let len = len.min(i32::MAX.unsigned_abs().into());
    while done < len {
        let part = usize::try_from(len - done).map_or(bytes.len(), |left| left.min(bytes.len()));
        let piece = bytes.get_mut(..part).unwrap_or_default();
        random::fill(piece);
        if let Err(error) = uaccess::write(address.wrapping_add(done), piece) {
            return if done > 0 { Ok(done) } else { Err(error) };
        }
        done += part as u64;
        if task::signal_pending() {
            break;
        }
    }
    Ok(done)
}

/// membarrier: every CPU that runs the process makes a full barrier, by an interrupt.
fn membarrier(command: i32, flags: u32) -> Result<u64, Errno> {
    const QUERY: i32 = 0;
    const GLOBAL: i32 = 1;
    const PRIVATE_EXPEDITED: i32 = 8;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 16;
    if flags != 0 {
        return Err(Errno::Einval);
    }
    match command {
        QUERY => Ok(u64::from((GLOBAL | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED).unsigned_abs())),
        GLOBAL | PRIVATE_EXPEDITED => {
            // The interrupt and its answer are the barrier.
            smp::call_others(|| {});
            Ok(0)
        }
        REGISTER_PRIVATE_EXPEDITED => Ok(0),
        _ => Err(Errno::Einval),
    }
}
