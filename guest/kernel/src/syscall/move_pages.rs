//! Pages to other nodes, of any process: migrate_pages, move_pages (Linux 6.1: mm/mempolicy.c, `kernel_migrate_pages`; mm/migrate.c,
//! `kernel_move_pages`). Everybody is root, who may move every process's pages.
//!
//! Differs from Linux: move_pages moves one page after the other, and stores the status of each at once.

use mm_vma::{Errno, Id, MbindFlags, Mm, migrate_nodes, move_page, page_node};

use super::mempolicy::{read_nodes, with_memory};
use super::{arguments, int};
use crate::arch::trap::TrapFrame;
use crate::mm::space::{self, Spaces};
use crate::{task, uaccess};

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, e, f] = arguments(frame);
    Some(match number {
        256 => migrate_pages(int(a), b, (c, d)),
        279 => move_pages(int(a), b, c, (d, e), f),
        _ => return None,
    })
}

/// Calls `f` with the address space of a process, 0 for the one that asks, which stays meanwhile (Linux: `find_mm_struct`).
fn with_mm<R>(pid: u32, f: impl FnOnce(Id<Mm>) -> Result<R, Errno>) -> Result<R, Errno> {
    let mm = match pid {
        0 => task::current().ok_or(Errno::Esrch)?.mm(),
        pid => task::find_task(pid).ok_or(Errno::Esrch)?.mm(),
    };
    let mm = mm.ok_or(Errno::Einval)?;
    if !space::mm_tryget(mm) {
        return Err(Errno::Einval);
    }
    let result = f(mm);
    space::mm_put(mm);
    result
}

/// How many pages stayed where they are not to be.
fn migrate_pages(pid: u32, maxnode: u64, masks: (u64, u64)) -> Result<u64, Errno> {
    let (from, to) = (read_nodes(masks.0, maxnode)?, read_nodes(masks.1, maxnode)?);
    with_mm(pid, |mm| {
        let to = to.and(with_memory());
        if to.is_empty() { Err(Errno::Einval) } else { Ok(migrate_nodes(&Spaces, mm, from, to, true)) }
    })
}

/// 0, or how many pages were not tried from the first on that could not be moved.
fn move_pages(pid: u32, count: u64, pages: u64, told: (u64, u64), flags: u64) -> Result<u64, Errno> {
    let (nodes, status) = told;
    let flags = MbindFlags::from_bits_retain(flags);
    if !(MbindFlags::MOVE | MbindFlags::MOVE_ALL).contains(flags) {
        return Err(Errno::Einval);
    }
    with_mm(pid, |mm| {
        for index in 0..count {
            let word = |base: u64, size: u64| {
                index.checked_mul(size).and_then(|offset| base.checked_add(offset)).ok_or(Errno::Efault)
            };
            let addr: u64 = uaccess::get_user(word(pages, 8)?)?;
            let told = if nodes == 0 {
                page_node(&Spaces, mm, addr)
            } else {
                let node: u32 = uaccess::get_user(word(nodes, 4)?)?;
                if !with_memory().contains(node) {
                    return Err(Errno::Enodev);
                }
                match move_page(&Spaces, mm, addr, node, flags.contains(MbindFlags::MOVE_ALL)) {
                    Err(Errno::Ebusy) => return Ok(count - index),
                    moved => moved.map(|_| node),
                }
            };
            uaccess::put_user(word(status, 4)?, told.map_or_else(|errno| -errno.number(), u32::cast_signed))?;
        }
        Ok(0)
    })
}
