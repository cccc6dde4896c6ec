//! Starting and talking to the other CPUs (SDM 3A 8.4.4; Linux: arch/x86/kernel/smpboot.c).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_firmware::acpi::MAX_CPUS;
use memvisor_abi::{CpuState, CpuTlb, PageKind};
use mm_core::{PAGE_SIZE, PhysAddr, PhysMem, VirtAddr};
use mm_memblock::{AllocRange, Direction};
use mm_pgtable::{LeafSize, PageTable, Prot, layout};

use crate::arch::{apic, cpu, percpu, regs, trap};
use crate::mm::layout::{levels, percpu_area};
use crate::mm::paging::{self, Tables};
use crate::mm::phys::{self, DirectMap};
use crate::mm::{early, page_alloc, space};
use crate::sched::CpuMask;
use crate::topology::CPUS;
use crate::{introspect, pr_info, pr_warn, sched};

pub use flush::{
    Invalidation, Shootdown, ShootdownWords, answer_flush, flush_cpus, flush_others, wait_flushes,
};

mod flush;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_jump: u8;
    static ap_gdt_base: u8;
    static ap_long_pointer: u8;
    static ap_cr3: u8;
    static ap_cr4: u8;
    static ap_stack: u8;
    static ap_cpu: u8;
    static ap_entry: u8;
}

static ONLINE: AtomicU32 = AtomicU32::new(1);
/// APIC ids of the CPUs that run, for those who interrupt them and take no lock.
static TARGETS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(NOT_ONLINE) }; MAX_CPUS];
const NOT_ONLINE: u32 = u32::MAX;
/// CPUs that the firmware told of.
static KNOWN: AtomicU32 = AtomicU32::new(1);
static TRAMPOLINE: AtomicU64 = AtomicU64::new(0);
static IDENTITY: AtomicU64 = AtomicU64::new(0);

/// Reserves a frame below 1 MiB for the trampoline, while memblock still hands it out. The boot
/// data of loaders lies low, so the highest free frame is taken.
pub fn reserve_trampoline() {
    let range = AllocRange { min: PhysAddr::new(PAGE_SIZE), max: PhysAddr::new(0xa_0000) };
    let frame = early::MEMBLOCK.lock().alloc(PAGE_SIZE, PAGE_SIZE, range, None, Direction::TopDown);
    match frame {
        Some(frame) => TRAMPOLINE.store(frame.as_u64(), Ordering::Relaxed),
        None => pr_warn!("smp: no RAM below 640 KiB: only the boot CPU can run"),
    }
}

/// Allocates and maps the areas of all CPUs, on their nodes.
pub fn init_percpu() {
    let count = CPUS.lock().count;
    for number in 0..count {
        let node = CPUS.lock().table[number].node;
        let frames = early::alloc(percpu::AREA_FRAMES, 1, Some(node), PageKind::PerCpu)
            .expect("no memory for per-CPU areas");
        for index in 0..percpu::AREA_FRAMES {
            DirectMap.zero_frame(frames.offset(index));
        }
        let number_u32 = u32::try_from(number).expect("CPU numbers are small");
        paging::map_percpu(number_u32, frames);
        // SAFETY: mapped and zeroed just now, and used by nobody before `load`.
        unsafe { percpu::init_area(percpu_area(number_u32).as_u64(), number_u32) };
        percpu::of(number_u32).node.store(node, Ordering::Relaxed);
        let info = &mut CPUS.lock().table[number];
        info.percpu_gpa = frames.phys().as_u64();
        info.percpu_len = percpu::AREA_FRAMES * PAGE_SIZE;
    }
}

/// Interrupts that CPUs took since boot.
pub fn nr_interrupts() -> u64 {
    let cpus = u32::try_from(CPUS.lock().count).unwrap_or(0);
    (0..cpus).map(|cpu| percpu::of(cpu).interrupts.load(Ordering::Relaxed)).sum()
}

/// Starts every other CPU, one after the other, and waits for it.
pub fn start_others() {
    let count = CPUS.lock().count;
    let page = TRAMPOLINE.load(Ordering::Relaxed);
    KNOWN.store(u32::try_from(count).unwrap_or(1), Ordering::Relaxed);
    set_state(0, CpuState::Online);
    if count > 1 && page != 0 {
        install(page);
        for number in 1..count {
            start(number, page);
        }
    }
    if page != 0 {
        // The identity tree keeps the page executable, so no other mapping may write it.
        let alias = layout::phys_to_virt(levels(), PhysAddr::new(page)).expect("below 1 MiB");
        paging::protect_kernel(alias, PAGE_SIZE, Prot::KERNEL_RO);
    }
    pr_info!("smp: Brought up {} node(s), {} CPU(s)", page_alloc::nr_nodes(), ONLINE.load(Ordering::Relaxed));
}

fn set_state(number: usize, state: CpuState) {
    let apic_id = {
        let info = &mut CPUS.lock().table[number];
        info.state = state as u32;
        info.apic_id
    };
    if state == CpuState::Online {
        TARGETS[number].store(apic_id, Ordering::Release);
    }
}

/// CPUs that the firmware told of, running or not.
pub fn nr_known() -> usize {
    KNOWN.load(Ordering::Relaxed) as usize
}

/// Whether all of them run.
fn all_online() -> bool {
    nr_online() == KNOWN.load(Ordering::Relaxed)
}

/// Builds the tree that CPUs start on: the kernel half and an identity mapping of the trampoline's
/// page. Called while tables come from below 4 GiB, because the trampoline loads CR3 in 32-bit code.
pub fn init_identity(kernel: PageTable) {
    let page = TRAMPOLINE.load(Ordering::Relaxed);
    if page == 0 {
        return;
    }
    let table = PageTable::new(&mut Tables, levels()).expect("no memory for the trampoline's tables");
    table.share_upper_half(&Tables, kernel);
    let prot = Prot { exec: true, global: false, ..Prot::KERNEL_RO };
    let (va, pa) = (VirtAddr::new(page), PhysAddr::new(page));
    table.map(&mut Tables, va, pa, PAGE_SIZE, prot, LeafSize::Size4K).expect("mapping the trampoline");
    introspect::add_extra_table(table.root);
    IDENTITY.store(table.root.phys().as_u64(), Ordering::Relaxed);
}

/// Offset of a symbol of the trampoline.
fn offset(symbol: *const u8) -> u64 {
    symbol as u64 - &raw const ap_trampoline as u64
}

/// Copies the trampoline to its page and fills in what does not depend on the CPU.
fn install(page: u64) {
    let start = &raw const ap_trampoline;
    let len = usize::try_from(offset(&raw const ap_trampoline_end)).expect("one page");
    // SAFETY: the symbols enclose the trampoline's code in the kernel image.
    let code = unsafe { core::slice::from_raw_parts(start, len) };
    let pfn = PhysAddr::new(page).pfn();
    phys::copy_to_frame(pfn, 0, code);
    let patch = |symbol, len: usize, value: u64| {
        phys::copy_to_frame(pfn, offset(symbol), &value.to_le_bytes()[..len]);
    };
    let linear = |symbol| {
        let at = usize::try_from(offset(symbol)).expect("one page");
        let relative: [u8; 4] = code[at..at + 4].try_into().expect("four bytes");
        page + u64::from(u32::from_le_bytes(relative))
    };
    patch(&raw const ap_jump, 4, linear(&raw const ap_jump));
    patch(&raw const ap_gdt_base, 4, linear(&raw const ap_gdt_base));
    patch(&raw const ap_long_pointer, 4, linear(&raw const ap_long_pointer));
    patch(&raw const ap_cr3, 8, IDENTITY.load(Ordering::Relaxed));
    patch(&raw const ap_cr4, 8, regs::cr4() & (regs::CR4_LA57 | 1 << 5));
    patch(&raw const ap_entry, 8, ap_main as *const () as u64);
}

fn start(number: usize, page: u64) {
    /// About a second on a fast machine, and far more than an emulated one needs.
    const SPINS: u64 = 2_000_000_000;
    let number_u32 = u32::try_from(number).expect("CPU numbers are small");
    let apic_id = CPUS.lock().table[number].apic_id;
    let base = percpu_area(number_u32).as_u64();
    let pfn = PhysAddr::new(page).pfn();
    phys::copy_to_frame(pfn, offset(&raw const ap_stack), &percpu::kernel_stack_top(base).to_le_bytes());
    phys::copy_to_frame(pfn, offset(&raw const ap_cpu), &u64::from(number_u32).to_le_bytes());
    set_state(number, CpuState::Starting);
    let before = ONLINE.load(Ordering::Acquire);
    apic::send_init(apic_id);
    // A second STARTUP is for CPUs that missed the first; sent to a running CPU it is ignored.
    for _ in 0..2 {
        let begin = regs::rdtsc();
        apic::send_startup(apic_id, u8::try_from(page >> 12).expect("below 1 MiB"));
        while ONLINE.load(Ordering::Acquire) == before {
            if regs::rdtsc() - begin > SPINS {
                break;
            }
            core::hint::spin_loop();
        }
        if ONLINE.load(Ordering::Acquire) != before {
            return;
        }
    }
    set_state(number, CpuState::Failed);
    pr_warn!("smp: CPU {number} (APIC {apic_id:#x}) did not answer");
}

/// Where the trampoline arrives, on the CPU's own kernel stack.
extern "C" fn ap_main(number: u64) -> ! {
    let number_u32 = u32::try_from(number).expect("CPU numbers are small");
    let base = percpu_area(number_u32).as_u64();
    // SAFETY: the kernel's tables map what the identity tree maps in the upper half.
    unsafe { regs::write_cr3(paging::kernel().root.phys().as_u64()) };
    // SAFETY: the boot CPU filled the area for this CPU.
    unsafe { percpu::load(base) };
    trap::load_idt();
    cpu::init_control_registers();
    cpu::init_syscall(base);
    apic::enable();
    set_state(usize::try_from(number).unwrap_or(0), CpuState::Online);
    ONLINE.fetch_add(1, Ordering::AcqRel);
    idle()
}

/// The idle loop: runs threads, and waits for interrupts while there are none.
pub fn idle() -> ! {
    loop {
        sched::idle();
        run_call();
        answer_flush();
    }
}

// One call at a time; every CPU that has work finds it in its mailbox.
static CALLING: AtomicU32 = AtomicU32::new(0);

/// Runs `f` on every other online CPU and waits for all (Linux: `smp_call_function`). The caller holds no lock.
pub fn call_others(f: fn()) {
    call_others_while(f, || ());
}

/// [`call_others`], with `own` run here meanwhile.
pub fn call_others_while(f: fn(), own: impl FnOnce()) {
    // Whoever waits here with interrupts off still runs the calls of the one who is ahead.
    while CALLING.swap(1, Ordering::Acquire) == 1 {
        run_call();
        answer_flush();
        core::hint::spin_loop();
    }
    call_each(f, own);
    CALLING.store(0, Ordering::Release);
}

/// Runs `f` on this CPU inside an interrupt handler, and comes back when the handler has returned. `false` if interrupts are
/// off, so that none would come.
pub fn call_in_interrupt(f: fn()) -> bool {
    if !regs::irqs_enabled() {
        return false;
    }
    while CALLING.swap(1, Ordering::Acquire) == 1 {
        run_call();
        answer_flush();
        core::hint::spin_loop();
    }
    let this = percpu::cpu() as usize;
    let apic_id = CPUS.lock().table[this].apic_id;
    let own = mailbox(this);
    own.call.store(f as usize as u64, Ordering::Release);
    apic::send_ipi(apic_id, trap::VECTOR_CALL);
    while own.call.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    CALLING.store(0, Ordering::Release);
    true
}

fn call_each(f: fn(), own: impl FnOnce()) {
    let this = percpu::cpu() as usize;
    let count = nr_known();
    let online = |number: usize| {
        let apic_id = TARGETS[number].load(Ordering::Acquire);
        (number != this && apic_id != NOT_ONLINE).then_some((number, apic_id))
    };
    for (number, apic_id) in (0..count).filter_map(online) {
        let mailbox = mailbox(number);
        mailbox.call.store(f as usize as u64, Ordering::Release);
        apic::send_ipi(apic_id, trap::VECTOR_CALL);
    }
    own();
    for (number, _) in (0..count).filter_map(online) {
        while mailbox(number).call.load(Ordering::Acquire) != 0 {
            answer_flush();
            core::hint::spin_loop();
        }
    }
}

fn mailbox(number: usize) -> &'static percpu::PerCpu {
    percpu::of(u32::try_from(number).unwrap_or(0))
}

/// Runs the call in this CPU's mailbox, if there is one.
pub fn run_call() {
    let Some(percpu) = percpu::current() else { return };
    let call = percpu.call.load(Ordering::Acquire);
    if call != 0 {
        // SAFETY: `call_others` stores nothing but a `fn()`, and it lives in the kernel image.
        let f: fn() = unsafe { core::mem::transmute::<u64, fn()>(call) };
        f();
        percpu.call.store(0, Ordering::Release);
    }
}

/// Claims an idle CPU of a set for a task: `near`, a CPU of its node, or any; `None` if none of them is idle. The caller interrupts it by
/// [`reschedule`].
pub fn claim_idle(allowed: &CpuMask, near: u32) -> Option<u32> {
    let node = near_node(near);
    let states = |distance: u32| {
        (0..).zip(TARGETS.iter().take(nr_known())).filter_map(move |(cpu, target)| {
            let is = match cpu {
                cpu if cpu == near => 0,
                cpu if near_node(cpu) == node => 1,
                _ => 2,
            };
            let right =
                is == distance && target.load(Ordering::Relaxed) != NOT_ONLINE && allowed.contains(cpu);
            right.then(|| (cpu, &percpu::of(cpu).idle))
        })
    };
    sched::claim(states(0).chain(states(1)).chain(states(2)))
}

/// Node of a CPU, as its own area says.
pub fn near_node(cpu: u32) -> u32 {
    percpu::of(cpu).node.load(Ordering::Relaxed)
}

/// Whether a CPU runs.
pub fn is_online(cpu: u32) -> bool {
    TARGETS.get(cpu as usize).is_some_and(|target| target.load(Ordering::Relaxed) != NOT_ONLINE)
}

/// Makes another CPU leave ring 3 for a moment (Linux: `smp_send_reschedule`).
pub fn reschedule(cpu: u32) {
    let target = TARGETS.get(cpu as usize).map_or(NOT_ONLINE, |target| target.load(Ordering::Relaxed));
    if cpu != percpu::cpu() && target != NOT_ONLINE {
        apic::send_ipi(target, trap::VECTOR_RESCHEDULE);
    }
}

/// Node of a CPU; 0 if nobody said.
pub fn node_of(cpu: u32) -> u32 {
    let node = CPUS.lock().table.get(cpu as usize).map_or(0, |info| info.node);
    if node == memvisor_abi::NODE_NONE { 0 } else { node }
}

/// CPUs that run.
pub fn nr_online() -> u32 {
    ONLINE.load(Ordering::Relaxed)
}

/// Ends this CPU's work for good. Readers from outside learn whether it was in the middle of something: it was not in ring 3, and not
/// while it had nothing to do.
pub fn stop(from_user: bool) -> ! {
    let cpu = percpu::cpu();
    if from_user || space::rests(cpu) {
        space::set_rests(cpu, CpuTlb::CHECKPOINT);
    }
    regs::halt_forever()
}

/// Stops all other CPUs for good.
pub fn stop_others() {
    if ONLINE.load(Ordering::Relaxed) > 1 {
        apic::send_ipi_others(trap::VECTOR_STOP);
    }
}
