//! Per-CPU areas: data, descriptor tables and stacks of one CPU.
//!
//! An area is [`AREA_SIZE`] bytes of virtual space, aligned to its size, in the layout's per-CPU
//! range. Its frames are physically contiguous, on the CPU's node. Guard pages separate the stacks:
//!
//! | page | what |
//! |---|---|
//! | 0 | [`PerCpu`] |
//! | 1 | GDT and TSS |
//! | 3..7 | kernel stack |
//! | 8..10, 11..13, 14..16, 17..19 | IST stacks of #DF, NMI, #MC, #PF |
//!
//! | 20..24 | interrupt stack |
//! | 32..48 | windows of kmap_local, empty at boot |
//!
//! All other pages are guards. RSP masked by the area's size gives the area. Kernel threads have their
//! stacks in the vmalloc range, aligned to their size; the last words of such a stack ([`ThreadInfo`]) say on which CPU
//! it runs (Linux before 4.9 found `thread_info` this way). GS stays the user's.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memvisor_abi::{KM_MAX_IDX, THREAD_SIZE};
use mm_core::{PAGE_SIZE, PFN_NONE};
use mm_pgtable::layout;

use super::regs;
use crate::sched::CPU_WORDS;
use crate::smp::ShootdownWords;

/// Virtual bytes of an area.
pub const AREA_SIZE: u64 = 0x4_0000;
/// Frames of an area.
pub const AREA_FRAMES: u64 = 18;
/// First page and number of pages of every mapped run, in the order of the frames.
pub const AREA_RUNS: [(u64, u64); 7] = [(0, 2), (3, 4), (8, 2), (11, 2), (14, 2), (17, 2), (20, 4)];

/// Stacks of an area: name, first page, pages. The page below each is a guard.
pub const STACKS: [(&str, u64, u64); 6] =
    [("task", 3, 4), ("#DF", 8, 2), ("NMI", 11, 2), ("#MC", 14, 2), ("#PF", 17, 2), ("IRQ", 20, 4)];
/// First page of the windows of kmap_local.
pub const KMAP_PAGE: u64 = 32;

const KSTACK_TOP: u64 = 7 * PAGE_SIZE;
const IRQ_STACK_TOP: u64 = 24 * PAGE_SIZE;
const IST_TOPS: [u64; 4] = [10 * PAGE_SIZE, 13 * PAGE_SIZE, 16 * PAGE_SIZE, 19 * PAGE_SIZE];

/// IST slots (1-based, as gates name them).
pub const IST_DF: u8 = 1;
/// See [`IST_DF`].
pub const IST_NMI: u8 = 2;
/// See [`IST_DF`].
pub const IST_MC: u8 = 3;
/// See [`IST_DF`].
pub const IST_PF: u8 = 4;

/// Selectors in every CPU's GDT. User code follows user data, as `sysret` wants it.
pub const KERNEL_CS: u16 = 0x08;
/// See [`KERNEL_CS`].
pub const KERNEL_DS: u16 = 0x10;
/// See [`KERNEL_CS`].
pub const USER_DS: u16 = 0x18 | 3;
/// See [`KERNEL_CS`].
pub const USER_CS: u16 = 0x20 | 3;
const TSS_SELECTOR: u16 = 0x28;

/// First page of an area. trap.s knows the offsets.
#[derive(Debug)]
#[repr(C)]
pub struct PerCpu {
    /// CPU number, index into [`crate::smp`]'s table.
    pub cpu: AtomicU32,
    pad: u32,
    /// Where a trap from ring 3 starts its stack; equals TSS.RSP0.
    pub kstack_top: AtomicU64,
    /// The user's RSP while `syscall_entry` switches stacks.
    pub scratch: AtomicU64,
    /// Address of the TSS's RSP0.
    pub tss_rsp0: AtomicU64,
    /// Work for this CPU: see [`crate::smp::call`].
    pub call: AtomicU64,
    /// Interrupts taken.
    pub interrupts: AtomicU64,
    /// Those that came while interrupts were off.
    pub masked: AtomicU64,
    /// Interrupt handlers that run (Linux: `hardirq_count`).
    pub hardirq: AtomicU32,
    /// Sections that must not be left by switching (Linux: `preempt_count`).
    pub preempt: AtomicU32,
    /// Number of the task that runs: see [`crate::sched`].
    pub current: AtomicU32,
    /// 1 while the CPU halts for want of work.
    pub idle: AtomicU32,
    /// CPUs that wait for a flush of this one.
    pub flush_from: [AtomicU64; CPU_WORDS],
    /// CPUs that have not answered this one.
    pub flush_left: [AtomicU64; CPU_WORDS],
    /// What this one asks for.
    pub shootdown: ShootdownWords,
    /// Flushes of the loaded address space that this CPU has done (Linux: `cpu_tlbstate.ctxs[].tlb_gen`).
    pub tlb_generation: AtomicU64,
    /// The user task that runs, as [`crate::task::current`] knows it; 0 for none.
    pub user: AtomicU64,
    /// Its process, or 0: for those who may not look at the task.
    pub pid: AtomicU32,
    /// Number of the task that ran before this one, for the first steps on a new stack.
    pub prev: AtomicU32,
    /// The task shall give up the CPU on its way to ring 3 (Linux: `TIF_NEED_RESCHED`).
    pub need_resched: AtomicU32,
    /// The periodic timer runs.
    pub tick: AtomicU32,
    /// Address space whose tables are in CR3; 0 for the kernel's own (Linux: `cpu_tlbstate.loaded_mm`).
    pub loaded_mm: AtomicU64,
    /// Nobody who uses that address space runs here: a flush may as well take it away (Linux: `cpu_tlbstate_shared.is_lazy`).
    pub lazy: AtomicU32,
    /// Its node.
    pub node: AtomicU32,
    /// The user task whose registers the FPU holds (Linux: `fpu_fpregs_owner_ctx`).
    pub fpu_owner: AtomicU64,
    /// What the FS and GS bases of ring 3 are.
    pub fs_base: AtomicU64,
    /// See [`PerCpu::fs_base`].
    pub gs_base: AtomicU64,
    /// See [`mm_vma::Kernel::vma_hint`]; 0 for none.
    pub vma_hint: AtomicU64,
    /// Page faults from ring 3 (Linux: `PGFAULT`).
    pub faults: AtomicU64,
    /// System calls.
    pub syscalls: AtomicU64,
    /// What the windows of kmap_local map.
    pub kmaps: [KmapLocalSlot; KM_MAX_IDX],
}

/// A window of kmap_local: [`memvisor_abi::KmapSlot`] that only its CPU writes.
#[derive(Debug)]
#[repr(C)]
pub struct KmapLocalSlot {
    /// Frame, or `PFN_NONE`.
    pub pfn: AtomicU64,
    /// 1 if it is mapped.
    pub count: AtomicU32,
    next: AtomicU32,
}

/// The last words of a kernel thread's stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ThreadInfo {
    /// Area of the CPU that it runs on.
    pub percpu: u64,
    /// Number of the task.
    pub task: u64,
}

/// Bytes at the top of a kernel thread's stack that are not stack.
pub const THREAD_TOP: u64 = 64;

const _: () = assert!(
    offset_of!(PerCpu, kstack_top) == 8
        && offset_of!(PerCpu, scratch) == 16
        && offset_of!(PerCpu, tss_rsp0) == 24
        && size_of::<PerCpu>() as u64 <= PAGE_SIZE
);

/// Second page of an area.
#[repr(C)]
struct Tables {
    gdt: [u64; 8],
    // 64-bit TSS (SDM 3A 8.7): reserved word first, so the 64-bit fields are unaligned by 4.
    tss: [u32; 26],
}

/// The address of the area of the CPU that runs this, or `None` on a boot stack.
#[inline]
fn area() -> Option<u64> {
    let rsp = regs::rsp();
    // Threads first, who ask most: their stacks are the only ones below the areas. Boot's is in the image, above them.
    if rsp < layout::PERCPU_START.as_u64() {
        // SAFETY: this code runs on a thread's stack, so its last words are mapped.
        return Some(unsafe { (*thread_info(rsp)).percpu });
    }
    let base = rsp & !(AREA_SIZE - 1);
    crate::mm::layout::percpu_contains(base).then_some(base)
}

/// The last words of the kernel thread's stack that holds `rsp`.
pub const fn thread_info(rsp: u64) -> *mut ThreadInfo {
    ((rsp & !(THREAD_SIZE - 1)) + THREAD_SIZE - size_of::<ThreadInfo>() as u64) as *mut ThreadInfo
}

/// Counts an event of this CPU, which alone writes the counter and does not switch tasks in between.
pub fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Address of a CPU's interrupt stack's end.
pub fn irq_stack_top(percpu: &PerCpu) -> u64 {
    (&raw const *percpu as u64) + IRQ_STACK_TOP
}

/// This CPU's data; `None` until the CPU runs on its own stack.
#[inline]
pub fn current() -> Option<&'static PerCpu> {
    let base = area()? as *const PerCpu;
    // SAFETY: areas are mapped, initialised by `init_area` before any CPU runs on them, and never
    // unmapped; all fields are atomics.
    Some(unsafe { &*base })
}

/// The data of another CPU, below the number of CPUs.
pub fn of(cpu: u32) -> &'static PerCpu {
    let base = crate::mm::layout::percpu_area(cpu).as_u64() as *const PerCpu;
    // SAFETY: as for `current`: the areas of all CPUs exist since `smp::init_percpu`.
    unsafe { &*base }
}

/// Traps from ring 3 begin at `top` from now on, which is 16-byte aligned (Linux: `load_sp0`).
pub fn set_kernel_stack(percpu: &PerCpu, top: u64) {
    percpu.kstack_top.store(top, Ordering::Relaxed);
    set_kernel_stack_of_tss(percpu, top);
}

/// Where the CPU itself puts what it pushes first.
pub fn set_kernel_stack_of_tss(percpu: &PerCpu, top: u64) {
    let rsp0 = percpu.tss_rsp0.load(Ordering::Relaxed) as *mut u64;
    // SAFETY: `init_area` put the address of the TSS's RSP0 there, or pti.rs that of a word for nothing; only this CPU reads and
    // writes it.
    unsafe { rsp0.write_unaligned(top) };
}

/// Top of the kernel stack of the area at `base`.
pub const fn kernel_stack_top(base: u64) -> u64 {
    base + KSTACK_TOP
}

/// Number of this CPU; 0 while only the boot CPU runs.
pub fn cpu() -> u32 {
    current().map_or(0, |percpu| percpu.cpu.load(Ordering::Relaxed))
}

/// Fills in a mapped area.
///
/// # Safety
/// `base` is the start of a mapped, zeroed area that no CPU uses.
#[expect(clippy::cast_possible_truncation, reason = "halves of addresses go into descriptors")]
pub unsafe fn init_area(base: u64, cpu: u32) {
    let tables = (base + PAGE_SIZE) as *mut Tables;
    // SAFETY: the caller owns the area.
    let tables = unsafe { &mut *tables };
    let tss = &raw const tables.tss as u64;
    let mut set = |word: usize, value: u64| {
        tables.tss[word] = value as u32;
        tables.tss[word + 1] = (value >> 32) as u32;
    };
    set(1, base + KSTACK_TOP);
    for (index, top) in IST_TOPS.iter().enumerate() {
        set(9 + 2 * index, base + top);
    }
    tables.tss[25] = (size_of::<[u32; 26]>() as u32) << 16;
    let limit = size_of::<[u32; 26]>() as u64 - 1;
    tables.gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
        tss >> 32,
        0,
    ];
    // SAFETY: as above.
    let percpu = unsafe { &*(base as *const PerCpu) };
    percpu.cpu.store(cpu, Ordering::Relaxed);
    percpu.current.store(cpu, Ordering::Relaxed);
    for slot in &percpu.kmaps {
        slot.pfn.store(PFN_NONE, Ordering::Relaxed);
    }
    percpu.kstack_top.store(base + KSTACK_TOP, Ordering::Relaxed);
    percpu.tss_rsp0.store(tss + 4, Ordering::Relaxed);
}

/// Loads this CPU's descriptor tables.
///
/// # Safety
/// `base` is an area filled by [`init_area`], and this CPU is the one that owns it.
pub unsafe fn load(base: u64) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer { limit: 8 * 8 - 1, base: base + PAGE_SIZE };
    // SAFETY: the new GDT holds the selectors in use at the same places with the same meaning.
    unsafe {
        core::arch::asm!(
            "lgdt [{pointer}]",
            "mov {scratch:e}, {ds}",
            "mov ds, {scratch:e}",
            "mov es, {scratch:e}",
            "mov ss, {scratch:e}",
            "push {cs}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            pointer = in(reg) &raw const pointer,
            scratch = out(reg) _,
            ds = const KERNEL_DS,
            cs = const KERNEL_CS,
        );
    }
    // SAFETY: the descriptor names the TSS that `init_area` wrote.
    unsafe {
        core::arch::asm!("ltr {0:x}", in(reg) TSS_SELECTOR);
    }
}
