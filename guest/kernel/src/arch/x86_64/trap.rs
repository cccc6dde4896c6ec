//! Interrupt descriptor table and trap dispatch.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::port::ExitCode;

use super::{apic, percpu, pti, regs, stack};
use crate::drivers::{block, dma};
use crate::printk::Level;
use crate::sync::Lock;
use crate::{panic, println, smp, syscall, task};

/// Vector number that `syscall_entry` reports.
pub const VECTOR_SYSCALL: u64 = 256;
const VECTOR_NMI: u64 = 2;
const VECTOR_DOUBLE_FAULT: u64 = 8;
const VECTOR_MACHINE_CHECK: u64 = 18;
/// Page fault.
pub const VECTOR_PAGE_FAULT: u64 = 14;
/// Interrupts of the first disk; those of the others follow.
pub const VECTOR_DISKS: u8 = 0x40;
const VECTOR_DISKS_END: u8 = VECTOR_DISKS + block::MAX_DISKS;
/// Interrupts of the first DMA engine; those of the others follow.
pub const VECTOR_DMA: u8 = 0x60;
const VECTOR_DMA_END: u8 = VECTOR_DMA + dma::MAX_ENGINES;
/// A call for this CPU waits in its mailbox.
pub const VECTOR_CALL: u8 = 0xf0;
/// Another CPU changed kernel mappings: drop translations.
pub const VECTOR_FLUSH: u8 = 0xf2;
/// The local APIC's timer.
pub const VECTOR_TIMER: u8 = 0xf4;
/// A thread waits for a CPU.
pub const VECTOR_RESCHEDULE: u8 = 0xf3;
/// Another CPU panicked or powers off: stop.
pub const VECTOR_STOP: u8 = 0xf1;
/// The local APIC withdrew an interrupt.
pub const VECTOR_SPURIOUS: u8 = 0xff;

/// What trap.s leaves on the stack.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// Whether the trap came from ring 3.
    pub const fn came_from_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "RIP: {:04x}:{:016x} EFLAGS: {:08x}", self.cs, self.rip, self.rflags)?;
        writeln!(f, "RSP: {:04x}:{:016x} ERR: {:x}", self.ss, self.rsp, self.error)?;
        writeln!(f, "RAX: {:016x} RBX: {:016x} RCX: {:016x}", self.rax, self.rbx, self.rcx)?;
        writeln!(f, "RDX: {:016x} RSI: {:016x} RDI: {:016x}", self.rdx, self.rsi, self.rdi)?;
        writeln!(f, "RBP: {:016x} R08: {:016x} R09: {:016x}", self.rbp, self.r8, self.r9)?;
        writeln!(f, "R10: {:016x} R11: {:016x} R12: {:016x}", self.r10, self.r11, self.r12)?;
        writeln!(f, "R13: {:016x} R14: {:016x} R15: {:016x}", self.r13, self.r14, self.r15)?;
        write!(
            f,
            "CR0: {:016x} CR2: {:016x} CR3: {:016x} CR4: {:08x}",
            regs::cr0(),
            regs::cr2(),
            regs::cr3(),
            regs::cr4()
        )
    }
}

const NAMES: [&str; 22] = [
    "divide error",
    "debug",
    "NMI",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
    "reserved",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualization exception",
    "control protection",
];

/// A vector's name.
pub fn name(vector: u64) -> &'static str {
    usize::try_from(vector).ok().and_then(|index| NAMES.get(index)).copied().unwrap_or("interrupt")
}

unsafe extern "C" {
    static trap_stubs: [u8; 4096];
    static probe_start: u8;
    static probe_end: u8;
    static probe_fault: u8;
    static halt: u8;
    static halted: u8;
    fn syscall_entry();
    fn halt_until_interrupt();
    static raised: u8;
    fn raise_interrupt(stub: *const u8, rip: u64);
    fn probe_read(address: u64) -> u64;
    fn probe_write(address: u64) -> u64;
    fn probe_exec(address: u64) -> u64;
    fn probe_cr4(value: u64) -> u64;
}

/// Where `syscall` enters.
pub fn syscall_entry_address() -> u64 {
    if pti::enabled() {
        return pti::syscall_entry_address();
    }
    syscall_entry as *const () as u64
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate(u64, u64);

/// On pages of its own, which ring 3's tables may have.
#[repr(C, align(4096))]
struct Idt(Lock<[Gate; 256]>);

static IDT: Idt = Idt(Lock::new([Gate(0, 0); 256]));

/// The pages that hold the table.
pub fn idt_pages() -> core::ops::Range<u64> {
    let start = &raw const IDT as u64;
    start..start + size_of::<Idt>() as u64
}

/// Fills the table. The stacks of `ist` are used once [`percpu::load`] ran on every CPU; until then
/// pass `false`.
pub fn init_idt(ist: bool) {
    let base = if pti::enabled() { pti::stubs() } else { &raw const trap_stubs as u64 };
    let mut idt = IDT.0.lock();
    for (vector, gate) in idt.iter_mut().enumerate() {
        let address = base + 16 * vector as u64;
        let stack = match vector {
            8 if ist => percpu::IST_DF,
            2 if ist => percpu::IST_NMI,
            18 if ist => percpu::IST_MC,
            14 if ist => percpu::IST_PF,
            _ => 0,
        };
        // Ring 3 may raise #BP and #OF itself.
        let dpl: u64 = if vector == 3 || vector == 4 { 3 } else { 0 };
        let low = address & 0xffff
            | u64::from(percpu::KERNEL_CS) << 16
            | u64::from(stack) << 32
            | (0x8e | dpl << 5) << 40
            | (address >> 16 & 0xffff) << 48;
        *gate = Gate(low, address >> 32);
    }
}

/// Executes an undefined instruction.
pub fn invalid_opcode() {
    // SAFETY: the trap ends the kernel.
    unsafe { core::arch::asm!("ud2", options(nomem, nostack)) }
}

/// Makes a vector undeliverable, for the test of #DF.
pub fn break_gate(vector: usize) {
    IDT.0.lock()[vector] = Gate(0, 0);
}

/// Loads the table on this CPU.
pub fn load_idt() {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer { limit: 4095, base: IDT.0.as_ptr() as u64 };
    // SAFETY: the table is static and its gates lead to trap.s.
    unsafe {
        core::arch::asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
    }
}

/// An access that is allowed to fail.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    /// Reads eight bytes.
    Read(u64),
    /// Reads a byte and writes it back.
    Write(u64),
    /// Calls a `ret` instruction at the address.
    Exec(u64),
    /// Writes CR4.
    Cr4(u64),
}

static PROBE_EXEC: AtomicU64 = AtomicU64::new(0);

/// Tries an access.
///
/// # Errors
/// The vector of the trap that it raised.
pub fn probe(what: Probe) -> Result<(), u64> {
    // SAFETY (all arms): trap_entry recovers from every fault inside the probe functions; the
    // accesses themselves keep memory as it is, and CR4 bits are chosen by the caller among those
    // that only restrict.
    let outcome = match what {
        // SAFETY: as above.
        Probe::Read(address) => unsafe { probe_read(address) },
        // SAFETY: as above.
        Probe::Write(address) => unsafe { probe_write(address) },
        Probe::Exec(address) => {
            PROBE_EXEC.store(address, Ordering::Relaxed);
            // SAFETY: as above.
            let outcome = unsafe { probe_exec(address) };
            PROBE_EXEC.store(0, Ordering::Relaxed);
            outcome
        }
        // SAFETY: as above.
        Probe::Cr4(value) => unsafe { probe_cr4(value) },
    };
    if outcome == 0 { Ok(()) } else { Err(outcome - 1) }
}

/// Whether the trap belongs to a probe; redirects it to the probe's recovery.
fn recover(frame: &mut TrapFrame) -> bool {
    let range = &raw const probe_start as u64..&raw const probe_end as u64;
    let exec = PROBE_EXEC.load(Ordering::Relaxed);
    if exec != 0 && frame.rip == exec {
        frame.rsp += 8; // the return address that the probe's call pushed
    } else if !range.contains(&frame.rip) {
        return false;
    }
    frame.rip = &raw const probe_fault as u64;
    frame.rax = frame.vector + 1;
    true
}

/// Whether this page fault is a system call in disguise: under KVM without hardware support
/// `syscall` jumps to LSTAR in ring 3, and the fetch from a supervisor page faults.
fn is_syscall_fault(frame: &TrapFrame, address: u64) -> bool {
    frame.vector == VECTOR_PAGE_FAULT
        && frame.error == 0x15
        && frame.rip == syscall_entry_address()
        && address == frame.rip
}

#[unsafe(no_mangle)]
extern "C" fn trap_entry(frame: &mut TrapFrame) {
    if !frame.came_from_user() {
        if frame.vector >= 32 {
            if frame.rflags & regs::RFLAGS_IF != 0 { take_interrupt(frame) } else { ignore_interrupt() }
        } else if !recover(frame) {
            die(frame);
        }
        return;
    }
    if matches!(frame.vector, VECTOR_NMI | VECTOR_DOUBLE_FAULT | VECTOR_MACHINE_CHECK) {
        // On a stack of its own; none of them is the program's doing.
        die(frame);
    }
    // Another trap of this CPU changes it.
    let address = regs::cr2();
    if is_syscall_fault(frame, address) {
        frame.rip = frame.rcx;
        frame.rflags = frame.r11;
        frame.vector = VECTOR_SYSCALL;
        frame.error = 0;
    }
    if (32..VECTOR_SYSCALL).contains(&frame.vector) {
        take_interrupt(frame);
    } else {
        // From ring 3 nothing is held: the handler may sleep.
        regs::irq_restore(regs::RFLAGS_IF);
        match frame.vector {
            VECTOR_SYSCALL => syscall::dispatch(frame),
            VECTOR_PAGE_FAULT => task::page_fault(frame, address),
            _ => task::trap(frame),
        }
        regs::irq_save();
    }
    task::exit_to_user(frame);
}

/// Waits for an interrupt with interrupts enabled, and disables them again. One that comes before it waits ends the wait.
pub fn wait_for_interrupt() {
    // SAFETY: interrupt handlers are installed before anybody enables interrupts.
    unsafe { halt_until_interrupt() }
}

/// Does what the CPU does when an interrupt comes, even if interrupts are off.
pub fn raise(vector: u8) {
    raise_at(vector, &raw const raised);
}

/// [`raise`], as if the interrupt came between `sti` and `hlt` of [`wait_for_interrupt`].
pub fn raise_before_halt(vector: u8) {
    raise_at(vector, &raw const halt);
}

fn raise_at(vector: u8, rip: *const u8) {
    // SAFETY: a vector's stub is in the table.
    let stub = unsafe { (&raw const trap_stubs).cast::<u8>().add(16 * usize::from(vector)) };
    // SAFETY: the stub comes back to `rip`, from where a `ret` leads here.
    unsafe { raise_interrupt(stub, rip as u64) }
}

/// An interrupt between `sti` and `hlt` may have brought the work that the CPU is about to sleep over. `sti` keeps it from there, but not
/// wherever this kernel runs: QEMU forgets that when it enters a nested guest (Linux on other architectures: `rollback_idle`).
fn skip_halt(frame: &mut TrapFrame) {
    if frame.rip == &raw const halt as u64 {
        frame.rip = &raw const halted as u64;
    }
}

/// Runs the handler on the CPU's interrupt stack (Linux: `run_irq_on_irqstack_cond`): what it needs does not
/// depend on how deep the interrupted stack is. Handlers keep interrupts off, so the stack is never in use.
fn take_interrupt(frame: &mut TrapFrame) {
    skip_halt(frame);
    if frame.vector == u64::from(VECTOR_STOP) {
        smp::stop(frame.cs & 3 == 3);
    }
    let Some(percpu) = percpu::current() else { return interrupt(frame.vector) };
    percpu.interrupts.fetch_add(1, Ordering::Relaxed);
    percpu.hardirq.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the top of the mapped interrupt stack of this CPU, which no handler uses.
    unsafe { stack::call_on(percpu::irq_stack_top(percpu), interrupt, frame.vector) };
    percpu.hardirq.fetch_sub(1, Ordering::Relaxed);
}

/// An interrupt that comes while interrupts are off does not exist: QEMU 7.2 delivers one that KVM injected into a nested guest a second
/// time, whatever runs then (docs/beds.md). Its handler ran or will run; here it would find the locks taken that keep interrupts off.
fn ignore_interrupt() {
    if let Some(percpu) = percpu::current() {
        percpu.masked.fetch_add(1, Ordering::Relaxed);
    }
}

extern "C" fn interrupt(vector: u64) {
    match u8::try_from(vector) {
        Ok(VECTOR_CALL) => {
            apic::end_of_interrupt();
            crate::trace::in_interrupt(VECTOR_CALL, crate::smp::run_call);
        }
        Ok(VECTOR_FLUSH) => {
            apic::end_of_interrupt();
            crate::smp::answer_flush();
        }
        Ok(VECTOR_RESCHEDULE) => apic::end_of_interrupt(),
        Ok(VECTOR_TIMER) => {
            apic::end_of_interrupt();
            crate::sched::tick();
        }
        Ok(vector @ VECTOR_DISKS..VECTOR_DISKS_END) => {
            apic::end_of_interrupt();
            crate::trace::in_interrupt(vector, || block::interrupt(vector - VECTOR_DISKS));
        }
        Ok(vector @ VECTOR_DMA..VECTOR_DMA_END) => {
            apic::end_of_interrupt();
            crate::trace::in_interrupt(vector, || dma::interrupt(vector - VECTOR_DMA));
        }
        Ok(VECTOR_SPURIOUS) | Err(_) => {}
        Ok(vector) => {
            apic::end_of_interrupt();
            println!("irq: unexpected vector {vector}");
        }
    }
}

/// An unexpected trap in ring 0: report everything and stop.
fn die(frame: &TrapFrame) -> ! {
    panic::begin();
    let cr2 = regs::cr2();
    let overflow = crate::sched::stack_guard(cr2).filter(|_| matches!(frame.vector, 8 | VECTOR_PAGE_FAULT));
    if let Some(stack) = &overflow {
        println!(
            "BUG: stack guard page was hit at {cr2:#x} (stack is {:#x}..{:#x})",
            stack.start,
            stack.end - 1
        );
        println!("kernel stack overflow in {}", stack.owner());
    }
    println!(
        "Oops: {} (vector {}), error {:#x}, CPU {}",
        name(frame.vector),
        frame.vector,
        frame.error,
        percpu::cpu()
    );
    println!("{frame}");
    if frame.vector == VECTOR_PAGE_FAULT {
        panic::print_walk(cr2);
    }
    panic::print_backtrace(Level::Emerg, frame.rip, frame.rbp);
    if let Some(stack) = overflow {
        panic::leave_epitaph(format_args!("kernel stack overflow in {}", stack.owner()));
        panic::end(ExitCode::Trap)
    }
    panic::leave_epitaph(format_args!(
        "{} at rip {:#x}, cr2 {cr2:#x}, error {:#x}, CPU {}",
        name(frame.vector),
        frame.rip,
        frame.error,
        percpu::cpu()
    ));
    panic::end(ExitCode::Trap)
}
