//! Which stack an address belongs to, for the report of an overflow; with `debug_stack_usage` on the command line, how much of their stacks
//! tasks use (Linux: CONFIG_DEBUG_STACK_USAGE).

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::THREAD_SIZE;
use mm_core::{PAGE_SIZE, VirtAddr};

use super::{SLOTS, current, text};
use crate::arch::percpu::{self, AREA_SIZE, STACKS};
use crate::mm::layout::{percpu_area, percpu_contains};
use crate::mm::phys;
use crate::{cmdline, pr_info};

/// The fewest bytes that any task left of its stack.
static LOWEST: AtomicU64 = AtomicU64::new(THREAD_SIZE);

/// The stack of a CPU's idle task: lowest address and length.
pub(super) fn kernel_stack(cpu: u32) -> (u64, u64) {
    let (_, page, pages) = STACKS[0];
    (percpu_area(cpu).as_u64() + page * PAGE_SIZE, pages * PAGE_SIZE)
}

/// A stack whose guard page was touched.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Lowest address.
    pub start: u64,
    /// One past the highest address.
    pub end: u64,
    /// Kind of a CPU's stack; "task" for the current task's own.
    kind: &'static str,
    name: [u8; 16],
    pid: u32,
}

/// Whose stack it is.
pub struct Owner<'g>(&'g Guard);

impl Guard {
    /// "NAME (pid N)" or "the IRQ stack of CPU N, under NAME (pid N)".
    pub const fn owner(&self) -> Owner<'_> {
        Owner(self)
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Guard { kind, name, pid, .. } = self.0;
        if *kind != "task" {
            write!(f, "the {kind} stack of CPU {}, under ", percpu::cpu())?;
        }
        write!(f, "{} (pid {pid})", text(name))
    }
}

/// The stack of the current task or CPU whose guard page holds `va` (Linux: `get_stack_guard_info`).
pub fn stack_guard(va: u64) -> Option<Guard> {
    let percpu = percpu::current()?;
    // The lock may be held by whoever overflowed.
    let slot = &SLOTS[current()];
    slot.break_open();
    let info = slot.lock().info;
    let guards = |start: u64| {
        start.checked_sub(PAGE_SIZE).is_some_and(|low| Range { start: low, end: start }.contains(&va))
    };
    let found = |start, pages, kind| Guard {
        start,
        end: start + pages * PAGE_SIZE,
        kind,
        name: info.name,
        pid: info.pid,
    };
    if info.stack != 0 && guards(info.stack) {
        return Some(found(info.stack, info.stack_len / PAGE_SIZE, "task"));
    }
    let area = &raw const *percpu as u64;
    if !percpu_contains(va) || va & !(AREA_SIZE - 1) != area {
        return None;
    }
    STACKS
        .iter()
        .find(|(_, page, _)| guards(area + page * PAGE_SIZE))
        .map(|&(kind, page, pages)| found(area + page * PAGE_SIZE, pages, kind))
}

fn counts_usage() -> bool {
    cmdline::flag("debug_stack_usage")
}

/// The stack at `base` is somebody's next: what is not zero later was used.
pub(super) fn begin_usage(base: u64) {
    if counts_usage() {
        (0..THREAD_SIZE / PAGE_SIZE)
            .for_each(|page| phys::zero_mapped(VirtAddr::new(base + page * PAGE_SIZE)));
    }
}

/// Its task is off it for ever; says so if none used more (Linux: `check_stack_usage`).
pub(super) fn end_usage(base: u64, name: &[u8; 16], pid: u32) {
    if !counts_usage() {
        return;
    }
    let unused =
        (base..base + THREAD_SIZE).step_by(8).take_while(|va| phys::read_mapped(VirtAddr::new(*va)) == 0);
    let left = unused.count() as u64 * 8;
    if left < LOWEST.fetch_min(left, Ordering::Relaxed) {
        pr_info!("{} ({pid}) used greatest stack depth: {left} bytes left", text(name));
    }
}
