//! The local APIC in xAPIC mode (SDM 3A chapter 11).

use core::sync::atomic::{AtomicU64, Ordering};

use super::{regs, trap};

const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;

const LVT_TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;
/// Divides the bus clock by 16.
const DIVIDE_BY_16: u32 = 3;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Tells the driver where the registers are mapped, uncached.
pub fn set_base(va: u64) {
    REGISTERS.store(va, Ordering::Relaxed);
}

fn read(offset: u64) -> u32 {
    let address = (REGISTERS.load(Ordering::Relaxed) + offset) as *const u32;
    // SAFETY: `set_base` got the mapping of the 4 KiB register page.
    unsafe { address.read_volatile() }
}

fn write(offset: u64, value: u32) {
    let address = (REGISTERS.load(Ordering::Relaxed) + offset) as *mut u32;
    // SAFETY: as for `read`.
    unsafe { address.write_volatile(value) }
}

/// Enables this CPU's local APIC with its inputs masked.
pub fn enable() {
    const MASKED: u32 = 1 << 16;
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, MASKED);
    write(SPURIOUS, 1 << 8 | u32::from(trap::VECTOR_SPURIOUS));
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

fn send(apic_id: u32, command: u32) {
    const PENDING: u32 = 1 << 12;
    const SHORTHAND: u32 = 3 << 18;
    // A handler that sends in between would write over the destination.
    let flags = regs::irq_save();
    // The one before must be on its way (Linux: `safe_apic_wait_icr_idle`).
    while read(ICR_LOW) & PENDING != 0 {
        core::hint::spin_loop();
    }
    if command & SHORTHAND == 0 {
        write(ICR_HIGH, apic_id << 24);
    }
    write(ICR_LOW, command);
    regs::irq_restore(flags);
}

/// Sends an interrupt to one CPU.
pub fn send_ipi(apic_id: u32, vector: u8) {
    send(apic_id, 1 << 14 | u32::from(vector));
}

/// Sends an interrupt to all other CPUs.
pub fn send_ipi_others(vector: u8) {
    send(0, 3 << 18 | 1 << 14 | u32::from(vector));
}

/// INIT, level asserted.
pub fn send_init(apic_id: u32) {
    send(apic_id, 5 << 8 | 1 << 14);
}

/// Startup: the CPU begins in real mode at `page` * 4096.
pub fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, 6 << 8 | 1 << 14 | u32::from(page));
}

/// Lets the timer interrupt this CPU once, in `count` units, at least 1; see [`count_timer`].
pub fn set_timer(count: u32) {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(LVT_TIMER, u32::from(trap::VECTOR_TIMER));
    write(TIMER_INITIAL, count);
}

/// Whether the timer can be set to a value of the time-stamp counter (SDM 3A 11.5.4.1). CPUID alone does not say: where it shows the
/// host's features, only what the register keeps does.
pub fn has_tsc_deadline() -> bool {
    if regs::cpuid(1, 0)[2] & 1 << 24 == 0 {
        return false;
    }
    write(LVT_TIMER, LVT_MASKED | LVT_TSC_DEADLINE | u32::from(trap::VECTOR_TIMER));
    let kept = read(LVT_TIMER) & LVT_TSC_DEADLINE != 0;
    write(LVT_TIMER, LVT_MASKED);
    kept
}

/// Lets the timer interrupt this CPU once, when its time-stamp counter is at least `value`, above 0.
pub fn set_tsc_deadline(value: u64) {
    if read(LVT_TIMER) & (LVT_TSC_DEADLINE | LVT_MASKED) != LVT_TSC_DEADLINE {
        write(LVT_TIMER, LVT_TSC_DEADLINE | u32::from(trap::VECTOR_TIMER));
        // The mode is in force before the value comes (SDM 3A 11.5.4.1: MFENCE).
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
    // SAFETY: the APIC keeps this mode, so the register exists.
    unsafe { regs::wrmsr(MSR_TSC_DEADLINE, value) };
}

/// No more interrupts of this CPU's timer.
pub fn stop_timer() {
    write(LVT_TIMER, LVT_MASKED);
    write(TIMER_INITIAL, 0);
}

/// Units of this CPU's timer that passed since [`count_timer`] began.
pub fn timer_units() -> u32 {
    u32::MAX - read(TIMER_CURRENT)
}

/// How many units of this CPU's timer pass while `f` runs. The timer is not in use.
pub fn count_timer(f: impl FnOnce()) -> u32 {
    write(TIMER_DIVIDE, DIVIDE_BY_16);
    write(LVT_TIMER, LVT_MASKED);
    write(TIMER_INITIAL, u32::MAX);
    f();
    let left = read(TIMER_CURRENT);
    write(TIMER_INITIAL, 0);
    u32::MAX - left
}
