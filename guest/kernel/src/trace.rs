//! Trace rings on this machine: `trace=EVENTS` makes one for every CPU and turns the events on.
//!
//! `EVENTS` is what `memvisor_abi::select_events` takes: groups, names, patterns. `trace_buf_size=SIZE` is the size
//! of each ring in bytes, rounded up to a power of two (Linux has a parameter of that name). Without
//! `trace=` nothing is allocated, and an event costs a load and a branch.

use core::sync::atomic::{AtomicU32, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{EventId, MASK_WORDS, PageKind, TRACE_RECORD_SIZE, select_events};
use mm_core::{Event, PAGE_SIZE, PhysAddr, PhysMem, Ring, Stamp, Trace, TraceMask};

use crate::arch::{percpu, regs};
use crate::mm::early;
use crate::mm::memmap::Vmemmap;
use crate::mm::phys::{self, DirectMap};
use crate::topology::CPUS;
use crate::{cmdline, introspect, pr_info, pr_warn};

/// Bytes of a ring: 4,096 records.
const BUF_SIZE: u64 = 256 << 10;
/// Largest ring: 64 MiB.
const BUF_SIZE_MAX: u64 = 64 << 20;

static MASK: TraceMask = TraceMask::new();
static RINGS: [Ring; MAX_CPUS] = [const { Ring::new() }; MAX_CPUS];
/// Interrupt handlers that run on each CPU.
static IN_INTERRUPT: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Where the kernel's own code emits, which works on no frames in particular.
#[derive(Clone, Copy, Debug)]
pub struct KernelTrace;

/// Types whose events go to the rings of this kernel.
macro_rules! emits {
    ($($ty:ty),*) => {$(
        impl Trace for $ty {
            #[inline(always)]
            fn wants(&self, id: EventId) -> bool {
                MASK.has(id)
            }

            #[inline(always)]
            fn is_tracing(&self) -> bool {
                MASK.is_any()
            }

            #[cold]
            fn record(&self, event: &Event) {
                record(event);
            }
        }
    )*};
}
emits!(KernelTrace, Vmemmap, crate::mm::slab::Pages, crate::mm::space::Spaces, crate::mm::vmalloc::Kernel);

/// Makes and publishes the rings if the command line asks for events. Called while memblock still allocates.
pub fn init() {
    let Some(mask) = wanted() else { return };
    let size = cmdline::number("trace_buf_size").unwrap_or(BUF_SIZE).clamp(PAGE_SIZE, BUF_SIZE_MAX);
    let pages = size.next_power_of_two() / PAGE_SIZE;
    let capacity = u32::try_from(pages * (PAGE_SIZE / TRACE_RECORD_SIZE)).unwrap_or(0);
    let count = CPUS.lock().count;
    for (number, ring) in (0..).zip(&RINGS[..count]) {
        let node = CPUS.lock().table[number].node;
        let Some(first) = early::alloc(pages, 1, Some(node), PageKind::Reserved) else {
            pr_warn!("trace: no memory for the ring of CPU {number}");
            continue;
        };
        for page in 0..pages {
            DirectMap.zero_frame(first.offset(page));
        }
        let cpu = u32::try_from(number).unwrap_or(0);
        ring.open(cpu, first.phys().as_u64(), capacity, mask, regs::rdtsc());
    }
    introspect::publish_trace(&RINGS[..count]);
    pr_info!("trace: {count} rings of {capacity} records");
    // A walkthrough records its parts and nothing around them.
    if cmdline::value("explain", |_| ()).is_none() {
        MASK.set(mask);
    }
}

/// Records the events that `trace=` names while `operation` runs.
pub fn record_during<T>(operation: impl FnOnce() -> T) -> T {
    let before = MASK.words();
    MASK.set(RINGS[0].mask());
    let result = operation();
    MASK.set(before);
    result
}

/// The events that the command line asks for.
fn wanted() -> Option<[u64; MASK_WORDS]> {
    cmdline::value("trace", |patterns| match select_events(patterns) {
        Ok(mask) => Some(mask),
        Err(word) => {
            pr_warn!("trace: no event is called {word}; nothing is traced");
            None
        }
    })
    .flatten()
}

fn record(event: &Event) {
    let flags = regs::irq_save();
    let cpu = percpu::cpu() as usize;
    let ring = &RINGS[cpu];
    let (buffer, capacity) = ring.buffer();
    let words = phys::words(PhysAddr::new(buffer), u64::from(capacity) * TRACE_RECORD_SIZE / 8);
    let in_interrupt = IN_INTERRUPT[cpu].load(Ordering::Relaxed) != 0;
    ring.push(words, event, Stamp { tsc: regs::rdtsc(), in_interrupt });
    regs::irq_restore(flags);
}

/// Says which process this CPU runs from now on; 0 for the kernel itself.
pub fn set_pid(pid: u32) {
    RINGS[percpu::cpu() as usize].set_pid(pid);
}

/// Calls a handler and marks what happens in it.
pub fn in_interrupt(vector: u8, handler: impl FnOnce()) {
    let nesting = &IN_INTERRUPT[percpu::cpu() as usize];
    nesting.fetch_add(1, Ordering::Relaxed);
    KernelTrace.emit(Event::IrqHandler { irq: vector });
    handler();
    KernelTrace.emit(Event::IrqHandlerRet {});
    nesting.fetch_sub(1, Ordering::Relaxed);
}
