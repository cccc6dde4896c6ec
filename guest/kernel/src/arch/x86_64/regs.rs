//! Single instructions as functions: ports, control registers, MSRs, flags.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

macro_rules! read_port {
    ($read:ident, $ty:ty, $in:literal, $reg:tt) => {
        /// Reads an I/O port.
        pub fn $read(port: u16) -> $ty {
            let value: $ty;
            // SAFETY: a port read changes no memory that Rust knows; devices may act on it, and
            // the drivers own their ports.
            unsafe {
                asm!($in, out($reg) value, in("dx") port, options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

macro_rules! write_port {
    ($write:ident, $ty:ty, $out:literal, $reg:tt) => {
        /// Writes an I/O port. A device that reads memory by address sees all earlier writes.
        pub fn $write(port: u16, value: $ty) {
            // SAFETY: the ports this kernel writes only make devices read memory or end the
            // machine; none writes memory behind Rust's back.
            unsafe {
                asm!($out, in($reg) value, in("dx") port, options(nostack, preserves_flags));
            }
        }
    };
}

read_port!(inb, u8, "in al, dx", "al");
read_port!(inl, u32, "in eax, dx", "eax");
write_port!(outb, u8, "out dx, al", "al");
write_port!(outw, u16, "out dx, ax", "ax");
write_port!(outl, u32, "out dx, eax", "eax");

macro_rules! read_register {
    ($name:ident, $text:literal, $doc:literal) => {
        #[doc = $doc]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading a control register has no side effect.
            unsafe {
                asm!($text, out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }
    };
}

read_register!(cr0, "mov {}, cr0", "Control register 0.");
read_register!(cr2, "mov {}, cr2", "Address of the last page fault.");
read_register!(cr3, "mov {}, cr3", "Top-level page table.");
read_register!(cr4, "mov {}, cr4", "Control register 4.");
read_register!(rsp, "mov {}, rsp", "Stack pointer.");
read_register!(rbp, "mov {}, rbp", "Frame pointer.");

/// CR4.LA57: 5-level paging.
pub const CR4_LA57: u64 = 1 << 12;

/// Loads the top-level page table and drops all non-global translations.
///
/// # Safety
/// The tables map the running code, its stack and everything Rust refers to as they were.
pub unsafe fn write_cr3(value: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags));
    }
}

/// Drops the translation of one page on this CPU (SDM 3A 4.10.4.1: the paging-structure caches too).
pub fn invlpg(va: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe {
        asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags));
    }
}

/// Drops all translations on this CPU, global ones too, by toggling CR4.PGE (SDM 3A 4.10.4.1).
pub fn flush_all() {
    const PGE: u64 = 1 << 7;
    let value = cr4();
    if value & PGE == 0 {
        // SAFETY: the value is the one in force.
        unsafe { write_cr3(cr3()) };
        return;
    }
    // SAFETY: PGE only decides whether global pages survive a reload.
    unsafe {
        asm!("mov cr4, {}", in(reg) value & !PGE, options(nostack, preserves_flags));
    }
    // SAFETY: restores the value in force.
    unsafe {
        asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags));
    }
}

/// Reads a model-specific register that exists on every 64-bit CPU.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: callers name architectural MSRs only; reading one has no side effect.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value keeps the machine in the state that Rust code relies on.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a 64-bit value")]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// CPUID leaf and subleaf as eax, ebx, ecx, edx; zeroes for a leaf the CPU does not have.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let max = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > max {
        return [0; 4];
    }
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: reading the counter has no side effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Disables interrupts and returns the flags before.
pub fn irq_save() -> u64 {
    let flags: u64;
    // SAFETY: no memory is touched but the stack slot of the push.
    unsafe {
        asm!("pushfq", "pop {}", "cli", out(reg) flags);
    }
    flags
}

/// Interrupts are on.
pub const RFLAGS_IF: u64 = 1 << 9;

/// Enables interrupts if they were enabled in `flags`.
pub fn irq_restore(flags: u64) {
    if flags & RFLAGS_IF != 0 {
        // SAFETY: interrupt handlers are installed before anybody enables interrupts.
        unsafe {
            asm!("sti", options(nostack));
        }
    }
}

/// Runs `f`, which may read pages of ring 3, with interrupts off (Linux: `stac`, `clac`). By POPF: not every hypervisor that emulates
/// ring 0 knows STAC.
pub fn with_user_access<R>(f: impl FnOnce() -> R) -> R {
    let flags = irq_save();
    set_ac(true);
    let result = f();
    set_ac(false);
    irq_restore(flags);
    result
}

fn set_ac(on: bool) {
    const AC: u64 = 1 << 18;
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe {
        asm!("pushfq", "pop {}", out(reg) flags);
    }
    let flags = if on { flags | AC } else { flags & !AC };
    // SAFETY: in ring 0 the flag only suspends SMAP (SDM 3A, 4.6.1); the others stay.
    unsafe {
        asm!("push {}", "popfq", in(reg) flags);
    }
}

/// Whether interrupts are enabled.
pub fn irqs_enabled() -> bool {
    let flags: u64;
    // SAFETY: as for `irq_save`.
    unsafe {
        asm!("pushfq", "pop {}", out(reg) flags);
    }
    flags & RFLAGS_IF != 0
}

/// Stops this CPU for good (an NMI only returns here).
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: nothing runs after this.
        unsafe {
            asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}
