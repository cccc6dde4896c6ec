//! poll and select (Linux: fs/select.c).

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_fs::{FdSet, PollFlags, SELECT_EXCEPT, SELECT_READ, SELECT_WRITE};
use mm_vma::Errno;

use super::{ints, with_files};
use crate::arch::trap::TrapFrame;
use crate::fs::OpenFile;
use crate::sched::{self, WaitQueue, Woken};
use crate::syscall::{int, signed};
use crate::uaccess;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let ([a, b, c, d, e, ..], _) = ints(frame);
    let sets = [b, c, d];
    Some(match number {
        7 => {
            let limit = u64::try_from(signed(c)).ok().map(|limit| limit * MILLISECOND);
            poll(a, int(b), limit)
        }
        23 => time_at(e, 1000).and_then(|limit| select(signed(a), sets, limit)),
        270 => time_at(e, 1).and_then(|limit| select(signed(a), sets, limit)),
        271 => time_at(c, 1).and_then(|limit| poll(a, int(b), limit)),
        _ => return None,
    })
}

/// A limit from a program's memory; none at address 0. `unit` is in nanoseconds.
fn time_at(address: u64, unit: u64) -> Result<Option<u64>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let [seconds, parts] = uaccess::get_user::<[u64; 2]>(address)?;
    if seconds.cast_signed() < 0 || parts >= SECOND / unit && unit == 1 {
        return Err(Errno::Einval);
    }
    Ok(Some(seconds.saturating_mul(SECOND).saturating_add(parts.saturating_mul(unit))))
}

/// Calls `look` until it finds something or the time is over; it is called again when one of `files` may have changed.
fn wait<'a>(
    limit: Option<u64>,
    files: impl Iterator<Item = &'a Arc<OpenFile>>,
    mut look: impl FnMut() -> u64,
) -> Result<u64, Errno> {
    let mut found = look();
    if found > 0 || limit == Some(0) {
        return Ok(found);
    }
    let deadline = limit.map(|limit| sched::clock::now().saturating_add(limit));
    let mut queues: Vec<&WaitQueue> = Vec::new();
    for queue in files.flat_map(|file| file.poll_queues()).flatten() {
        queues.try_reserve(1).map_err(|_| Errno::Enomem)?;
        queues.push(queue);
    }
    let woken = sched::wait_any(&sched::task_context(), &queues, deadline, || {
        found = look();
        found > 0
    });
    // What came after the time was over is told as well.
    if woken == Woken::Interrupted { Err(Errno::Eintr) } else { Ok(found) }
}

fn poll(address: u64, count: u32, limit: Option<u64>) -> Result<u64, Errno> {
    const LEN: u64 = 8;
    if count > 1024 {
        return Err(Errno::Einval);
    }
    let mut entries: Vec<(Option<Arc<OpenFile>>, PollFlags, PollFlags)> = Vec::new();
    entries.try_reserve_exact(count as usize).map_err(|_| Errno::Enomem)?;
    for number in 0..u64::from(count) {
        let word: u64 = uaccess::get_user(address + LEN * number)?;
        let fd = signed(word);
        let [_, _, _, _, low, high, ..] = word.to_le_bytes();
        let events = PollFlags::from_bits_retain(u16::from_le_bytes([low, high]));
        let file =
            if fd < 0 { Ok(None) } else { with_files(|files| files.get(fd.cast_unsigned())).map(Some) };
        let bad = file.is_err();
        entries.push((file.unwrap_or(None), events, if bad { PollFlags::NVAL } else { PollFlags::empty() }));
    }
    let mut results: Vec<PollFlags> = Vec::new();
    results.try_reserve_exact(entries.len()).map_err(|_| Errno::Enomem)?;
    results.extend(entries.iter().map(|(_, _, bad)| *bad));
    let files = entries.iter().filter_map(|(file, ..)| file.as_ref());
    let found = wait(limit, files, || {
        let mut found = 0;
        for ((file, events, _), got) in entries.iter().zip(&mut results) {
            if let Some(file) = file {
                *got = file.poll().reported(*events);
            }
            found += u64::from(!got.is_empty());
        }
        found
    })?;
    for (number, got) in (0..).zip(&results) {
        uaccess::put_user(address + LEN * number + 6, got.bits())?;
    }
    Ok(found)
}

fn select(count: i32, addresses: [u64; 3], limit: Option<u64>) -> Result<u64, Errno> {
    const WANTED: [PollFlags; 3] = [SELECT_READ, SELECT_WRITE, SELECT_EXCEPT];
    let count = usize::try_from(count).map_err(|_| Errno::Einval)?.min(1024);
    let mut wanted = [FdSet::default(), FdSet::default(), FdSet::default()];
    for (set, address) in wanted.iter_mut().zip(addresses).filter(|(_, address)| *address != 0) {
        *set = FdSet::new(count)?;
        uaccess::read(address, set.bytes_mut())?;
    }
    let mut files: Vec<(usize, Arc<OpenFile>)> = Vec::new();
    for fd in (0..count).filter(|fd| wanted.iter().any(|set| set.contains(*fd))) {
        files.try_reserve(1).map_err(|_| Errno::Enomem)?;
        let number = u32::try_from(fd).map_err(|_| Errno::Ebadf)?;
        files.push((fd, with_files(|files| files.get(number))?));
    }
    let mut found = [FdSet::default(), FdSet::default(), FdSet::default()];
    for set in &mut found {
        *set = FdSet::new(count)?;
    }
    let total = wait(limit, files.iter().map(|(_, file)| file), || {
        let mut total = 0;
        for (fd, file) in &files {
            let now = file.poll();
            for ((set, out), mask) in wanted.iter().zip(&mut found).zip(WANTED) {
                if set.contains(*fd) && now.intersects(mask) {
                    out.insert(*fd);
                    total += 1;
                }
            }
        }
        total
    })?;
    for (set, address) in found.iter_mut().zip(addresses).filter(|(_, address)| *address != 0) {
        uaccess::write(address, set.bytes_mut())?;
    }
    Ok(total)
}
