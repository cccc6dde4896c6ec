//! Boot, in order (Linux: init/main.c `start_kernel`, arch/x86/kernel/setup.c `setup_arch`).

use alloc::vec::Vec;

use guest_firmware::BootInfo;
use memvisor_abi::port::ExitCode;
use memvisor_abi::{BootProtocol, BootStage, CpuTlb, E820Type, LayoutKind};
use mm_core::PhysAddr;
use mm_memblock::E820Table;
use mm_pgtable::layout as va_layout;

use crate::arch::{apic, cpu, percpu, regs, trap, user};
use crate::drivers::{block, dma as drivers_dma, memvisor, power, serial};
use crate::mm::layout::{APIC_VA, levels, percpu_area};
use crate::mm::phys::DirectMap;
use crate::mm::space::tlb;
use crate::mm::swap::zswap;
use crate::mm::vmscan::kswapd;
use crate::mm::{
    dma, early, fault_inject, kcompactd, kmap, layout, limits, memmap, oom, page_alloc, paging, phys,
    shuffle, slab, space, vmalloc, writeback,
};
use crate::sync::Lock;
use crate::task::End;
use crate::{
    cmdline, console, crash, explain, fs, introspect, ktest, pr_info, pr_warn, printk, println, proc, sched,
    seeded, smp, task, topology, trace,
};

/// The memory map.
pub struct E820 {
    /// As the boot loader gave it.
    pub raw: E820Table,
    /// Sorted, without overlaps.
    pub clean: E820Table,
}

/// See [`E820`].
pub static E820: Lock<E820> = Lock::new(E820 { raw: E820Table::new(), clean: E820Table::new() });

/// Where boot.s arrives: on the boot stack, early tables, interrupts off. `protocol` is an abi
/// `BootProtocol`, `info` the loader's structure, `image` the kernel's physical base.
#[unsafe(no_mangle)]
extern "C" fn start_kernel(protocol: u64, info: u64, image: u64) -> ! {
    layout::init();
    phys::init(image);
    console::init();
    trap::init_idt(false);
    trap::load_idt();
    introspect::init(cpu::detect(false).phys_bits);
    let boot = read_boot_info(protocol, info);
    printk::init();
    pr_info!("memvisor guest kernel {} ({} levels)", env!("CARGO_PKG_VERSION"), levels().count());
    fs::initrd::remember(boot.initrd);
    pr_info!("Boot protocol: {:?}", boot.protocol);
    power::init();
    cmdline::with(|line| pr_info!("Command line: {line}"));
    let features = cpu::detect(cmdline::flag("nogbpages"));
    let (smep, smap) = cpu::init_control_registers();
    pr_info!(
        "CPU: {} physical address bits, 1 GiB pages: {}, SMEP: {smep}, SMAP: {smap}",
        features.phys_bits,
        features.gbpages
    );
    init_memory(&boot, features.phys_bits);
    introspect::publish_memory(&boot);
    let apic_base = topology::init(boot.rsdp);
    topology::print();
    print_memblock();
    paging::init(paging::largest_leaf(features.gbpages), apic_base);
    apic::set_base(APIC_VA.as_u64());
    introspect::publish_paging();
    print_layout();
    smp::init_percpu();
    let base = percpu_area(0).as_u64();
    // SAFETY: the area was filled for this CPU, and its stack is fresh.
    unsafe { percpu::load(base) };
    trap::init_idt(true);
    cpu::init_syscall(base);
    apic::enable();
    // SAFETY: as above.
    unsafe { user::call_on_stack(percpu::kernel_stack_top(base), start_on_own_stack) }
}

extern "C" fn start_on_own_stack() -> ! {
    trace::init();
    dma::swiotlb::init();
    memmap::init();
    page_alloc::init();
    paging::use_buddy();
    slab::init();
    introspect::publish_zones();
    page_alloc::print();
    let phys_bits = cpu::detect(false).phys_bits;
    vmalloc::init(phys_bits);
    kmap::init();
    space::init();
    crate::mm::pti::init();
    sched::init(u32::try_from(topology::CPUS.lock().count).unwrap_or(0));
    introspect::publish_vmalloc();
    smp::start_others();
    if cpu::pat_is_linuxs() {
        pr_info!("x86/PAT: Configuration [0-7]: WB  WC  UC- UC  WB  WP  UC- WT");
    } else {
        pr_warn!("x86/PAT: the CPU does not keep its page attribute table: only WB and UC are right");
    }
    introspect::stage(BootStage::Smp);
    // Handlers and the APIC are ready; what must not be interrupted says so from here on.
    regs::irq_restore(regs::RFLAGS_IF);
    crash::run();
    kcompactd::init(&sched::task_context());
    space::shadows::init();
    kswapd::init(&sched::task_context());
    zswap::init(&sched::task_context());
    oom::init(&sched::task_context());
    task::init();
    block::init(&sched::task_context());
    drivers_dma::init(&sched::task_context());
    writeback::init(&sched::task_context());
    end_if_explained(explain::run());
    fs::init();
    end_if_explained(explain::run_program());
    if let Some(program) = fs::initrd::load() {
        run_file(program);
    }
    let passed = ktest::run();
    let clean = run_init().map(|clean| clean && passed);
    match clean {
        Some(true) => power::power_off(),
        Some(false) => {
            println!("a test failed");
            power::exit(ExitCode::TestFailed)
        }
        None => power::exit(ExitCode::BadMachine),
    }
}

fn end_if_explained(outcome: explain::Outcome) {
    match outcome {
        explain::Outcome::NotAsked => {}
        explain::Outcome::Done => power::power_off(),
        explain::Outcome::Failed => power::exit(ExitCode::BadMachine),
    }
}

/// Runs the first process from an initramfs. Its end is the machine's (Linux panics: "Attempted to kill init!").
fn run_file(program: Vec<u8>) -> ! {
    fault_inject::init();
    introspect::stage(BootStage::Running);
    let end = fs::initrd::run(program);
    checkpoint(1, c"exited");
    match end {
        Ok(End::Exited(0)) => {
            println!("init: ended; power down");
            power::power_off()
        }
        Ok(end) => println!("init: ended: {end:?}"),
        Err(error) => println!("init: {error}"),
    }
    power::exit(ExitCode::TestFailed)
}

/// Runs the ring-3 program twice: once to its end, after which everything must be free again, and once
/// to its `pause`, so that an audit sees a living process. `None` if a seeded fault has a wrong name.
fn run_init() -> Option<bool> {
    // What the program is to do: its place in the table of modes in guest/user/src/program.rs, whose last line names it.
    const MODES: &[&str] = &[
        "none",
        "pause",
        "process",
        "signal",
        "mmap",
        "fault",
        "cow",
        "rmap",
        "smp",
        "shm",
        "disk",
        "swap",
        "swap-errors",
        "swap-thrash",
        "zswap",
        "oom-basic",
        "oom-score",
        "oom-nested-forks",
        "oom-atomic",
        "overcommit",
        "min-free",
        "fork-bomb-limit",
        "mmap-shared-file",
        "file-cache",
        "dirty-throttle",
        "power-cut",
        "kswapd",
        "direct-reclaim",
        "mlock-pressure",
        "slab-pressure",
        "lazyfree",
        "max-map-count",
        "failslab",
        "fragmentation",
        "numa-pressure",
        "vm-patterns",
        "everything-at-once",
        "everything-long",
        "mempolicy",
    ];
    let mode = cmdline::value("user", |value| MODES.iter().position(|mode| *mode == value));
    if mode == Some(None) {
        println!("user=: the program has no such mode; it has {MODES:?}");
        return None;
    }
    shuffle::init(&sched::task_context());
    introspect::stage(BootStage::Running);
    fault_inject::init();
    ktest::atomic::begin();
    let ended = run_program(1, mode.flatten().unwrap_or(0) as u64, AtPause::GoesOn);
    let atomic = ktest::atomic::end();
    shuffle::end(&sched::task_context());
    checkpoint(1, c"exited");
    let paused = run_program(2, 1, AtPause::Stays);
    if !seeded::apply() {
        return None;
    }
    proc::print();
    checkpoint(2, c"running");
    Some(atomic && ended == Some(End::Exited(0)) && paused == Some(End::Paused))
}

/// What becomes of a program that pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtPause {
    /// It goes on after a checkpoint, which sees it and its children as they stand.
    GoesOn,
    /// It stays.
    Stays,
}

/// Number of the first checkpoint at which a program pauses and goes on.
const FIRST_PAUSE: u32 = 10;

/// Runs the program to its end or its last pause, and says which.
fn run_program(pid: u32, argument: u64, at_pause: AtPause) -> Option<End> {
    let process = match task::run_init(pid, argument) {
        Ok(process) => process,
        Err(error) => {
            println!("task[{pid}]: cannot be started: {error}");
            return None;
        }
    };
    let mut number = FIRST_PAUSE;
    let end = loop {
        let end = task::wait_init(&process);
        if end != End::Paused || at_pause == AtPause::Stays {
            break end;
        }
        checkpoint(number, c"paused");
        number += 1;
        task::end_pause(&process);
    };
    match end {
        End::Exited(status) => println!("task[{pid}]: exit status {status}"),
        End::Paused => println!("task[{pid}]: paused"),
    }
    Some(end)
}

/// Asks the VMM to audit. Under another VMM the line on the console is the request, and with
/// `checkpoint=serial` a byte on the serial line is the answer.
pub fn checkpoint(number: u32, name: &'static core::ffi::CStr) {
    let context = sched::might_sleep();
    if let Some(context) = &context {
        shuffle::hold(context);
        zswap::shrink::hold(context);
        kswapd::hold(context);
        kcompactd::wait_idle(context);
        smp::wait_flushes();
    }
    task::audit_all();
    if let Some(mm) = task::living_mm() {
        // Readers that follow this CPU's CR3 see a process, as they would if one ran here.
        tlb::use_mm(mm);
    }
    introspect::publish_counters();
    let text = name.to_str().unwrap_or("?");
    let cpu = percpu::cpu();
    space::set_rests(cpu, CpuTlb::CHECKPOINT);
    if memvisor::present() {
        memvisor::checkpoint(number, name);
    } else {
        let waits = cmdline::value("checkpoint", |value| value == "serial") == Some(true);
        if waits {
            serial::expect_answer();
        }
        println!("memvisor: checkpoint {number} {text}");
        if waits {
            serial::wait_for_answer();
        }
    }
    if cmdline::value("stop_at", |value| value == text) == Some(true) {
        power::power_off();
    }
    space::set_rests(cpu, 0);
    if context.is_some() {
        kswapd::go_on();
        zswap::shrink::go_on();
        shuffle::go_on();
    }
}

/// Reads the loader's structures into [`E820`] and the command line.
fn read_boot_info(protocol: u64, info: u64) -> BootInfo {
    let protocol = if protocol == 2 { BootProtocol::Pvh } else { BootProtocol::Linux64 };
    let raw = &mut E820.lock().raw;
    let boot = BootInfo::read(&DirectMap, protocol, info, &mut say, |entry| {
        if raw.push(entry).is_err() {
            pr_warn!("e820: too many entries; [mem {:#018x}+{:#x}] ignored", entry.addr, entry.size);
        }
    });
    let boot = boot.unwrap_or_else(|| panic!("{protocol:?}: no boot information at {info:#x}"));
    cmdline::set(boot.command_line_bytes(&DirectMap));
    boot
}

/// What readers of firmware have to say goes to the console.
pub fn say(line: core::fmt::Arguments<'_>) {
    pr_info!("{line}");
}

fn init_memory(boot: &BootInfo, phys_bits: u32) {
    let mut e820 = E820.lock();
    let E820 { raw, clean } = &mut *e820;
    print_e820("BIOS-provided physical RAM map", raw);
    raw.sanitize_into(phys_bits, clean);
    print_e820("sanitized physical RAM map", clean);
    let mut memblock = early::MEMBLOCK.lock();
    for entry in clean.entries().iter().filter(|entry| entry.kind == E820Type::Ram as u32) {
        memblock
            .add(PhysAddr::new(entry.addr), entry.size, memvisor_abi::NODE_NONE)
            .expect("memblock is full");
    }
    let image = phys::image();
    let mut reserve = |addr: u64, len: u64| {
        memblock.reserve(PhysAddr::new(addr), len).expect("memblock is full");
    };
    reserve(image.phys, image.len);
    reserve(boot.initrd.0, boot.initrd.1);
    for (addr, len) in boot.occupied {
        reserve(addr, len);
    }
    drop(memblock);
    drop(e820);
    limits::init_lowmem();
    early::own(PhysAddr::new(image.phys).pfn(), early::pages_for(image.len), memvisor_abi::PageKind::Kernel);
    smp::reserve_trampoline();
    // Firmware scribbles in the first MiB (Linux: `reserve_real_mode`).
    early::MEMBLOCK.lock().reserve(PhysAddr::new(0), 1 << 20).expect("memblock is full");
}

fn print_e820(title: &str, table: &E820Table) {
    pr_info!("{title}:");
    for entry in table.entries() {
        let last = entry.addr.wrapping_add(entry.size).wrapping_sub(1);
        pr_info!("  [mem {:#018x}-{last:#018x}] {}", entry.addr, E820Type::name(entry.kind));
    }
}

fn print_memblock() {
    let memblock = early::MEMBLOCK.lock();
    for (name, regions) in [("memory", memblock.memory()), ("reserved", memblock.reserved())] {
        pr_info!("memblock.{name}: {} regions", regions.len());
        for region in regions {
            crate::printk!(Info, "  [{:#018x}-{:#018x}]", region.base, region.base + region.size - 1);
            if region.node == memvisor_abi::NODE_NONE {
                pr_info!("");
            } else {
                pr_info!(" on node {}", region.node);
            }
        }
    }
}

fn print_layout() {
    pr_info!("Virtual memory layout, {} levels:", levels().count());
    for range in va_layout::layout(levels()) {
        let name = LayoutKind::from_raw(range.kind).map_or("?", LayoutKind::name);
        pr_info!("  {:#018x}-{:#018x} {name}", range.start, range.last);
    }
    let image = phys::image();
    pr_info!(
        "Kernel image at {:#x} (va {:#x}): text {} KiB, rodata {} KiB, data {} KiB",
        image.phys,
        image.va,
        image.text / 1024,
        (image.rodata - image.text) / 1024,
        (image.len - image.rodata) / 1024
    );
}
