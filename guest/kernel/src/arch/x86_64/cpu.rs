//! Per-CPU processor setup: control registers, PAT, system-call registers.

use super::{percpu, pti, regs, trap};

const MSR_EFER: u32 = 0xc000_0080;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const MSR_PAT: u32 = 0x277;

const EFER_SCE: u64 = 1;
const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

/// Linux's page attribute table (arch/x86/mm/pat/memtype.c): WB WC UC- UC WB WP UC- WT. mm-pgtable's
/// cache modes index it.
const PAT: u64 = 0x0407_0506_0007_0106;

/// What the boot CPU found out; the other CPUs set the same.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// 1 GiB pages in page tables.
    pub gbpages: bool,
    /// Physical address bits.
    pub phys_bits: u32,
}

/// Reads what CPUID says about paging. `nogbpages` on the command line wins over CPUID, because
/// hypervisors exist that pass the bit through and refuse the pages.
pub fn detect(nogbpages: bool) -> Features {
    let gbpages = regs::cpuid(0x8000_0001, 0)[3] & 1 << 26 != 0 && !nogbpages;
    let phys_bits = match regs::cpuid(0x8000_0008, 0)[0] & 0xff {
        0 => 36,
        bits => bits,
    };
    Features { gbpages, phys_bits: phys_bits.min(52) }
}

/// Puts this CPU's control registers into the state all CPUs share; returns (SMEP, SMAP).
pub fn init_control_registers() -> (bool, bool) {
    // With page-table isolation no translation of the kernel's survives a load of ring 3's tables.
    let global = if pti::enabled() { 0 } else { CR4_PGE };
    let base = regs::cr4() & !CR4_PGE | global | CR4_OSFXSR | CR4_OSXMMEXCPT;
    let mut value = base;
    let leaf7 = regs::cpuid(7, 0);
    let wanted =
        [(leaf7[1] & 1 << 7, CR4_SMEP), (leaf7[1] & 1 << 20, CR4_SMAP), (leaf7[2] & 1 << 2, CR4_UMIP)];
    // A hypervisor may show a feature and refuse its bit: #GP then, and we go on without it.
    if trap::probe(trap::Probe::Cr4(value)).is_err() {
        value = regs::cr4();
    }
    for (offered, bit) in wanted {
        if offered != 0 && trap::probe(trap::Probe::Cr4(value | bit)).is_ok() {
            value |= bit;
        }
    }
    // SAFETY: the table gives index 0 (all mappings so far) the same type as the reset value.
    unsafe { regs::wrmsr(MSR_PAT, PAT) };
    (value & CR4_SMEP != 0, value & CR4_SMAP != 0)
}

/// Makes translations of the kernel's end with every load of CR3.
pub fn leave_global_pages() {
    regs::flush_all();
    // A CPU that refuses keeps them, and works on.
    let _ = trap::probe(trap::Probe::Cr4(regs::cr4() & !CR4_PGE));
}

/// Whether this is a virtual machine that says so.
pub fn has_hypervisor() -> bool {
    regs::cpuid(1, 0)[2] & 1 << 31 != 0
}

/// Whether the page attribute table holds what was written: else only write-back and uncached can be had.
pub fn pat_is_linuxs() -> bool {
    regs::rdmsr(MSR_PAT) == PAT
}

/// Lets ring 3 enter by `syscall` on this CPU.
pub fn init_syscall(percpu_base: u64) {
    // sysret would load CS = base + 16 and SS = base + 8; we return by iretq, but debuggers and
    // nested guests read these.
    let star = u64::from(percpu::KERNEL_DS | 3) << 48 | u64::from(percpu::KERNEL_CS) << 32;
    // SAFETY: selectors of our GDT.
    unsafe { regs::wrmsr(MSR_STAR, star) };
    // SAFETY: the entry point of trap.s.
    unsafe { regs::wrmsr(MSR_LSTAR, trap::syscall_entry_address()) };
    // Clears TF, IF, DF, IOPL, NT and AC on entry.
    // SAFETY: the entry expects interrupts off.
    unsafe { regs::wrmsr(MSR_SFMASK, 0x4_7700) };
    // SAFETY: `syscall_entry` reads this CPU's area through it.
    unsafe { regs::wrmsr(MSR_KERNEL_GS_BASE, percpu_base) };
    let efer = regs::rdmsr(MSR_EFER);
    // SAFETY: only adds the instruction.
    unsafe { regs::wrmsr(MSR_EFER, efer | EFER_SCE) };
}
