//! Ways to end the machine.

use core::sync::atomic::{AtomicU16, Ordering};

use memvisor_abi::CpuTlb;
use memvisor_abi::port::ExitCode;

use super::memvisor;
use crate::arch::percpu;
use crate::arch::regs::{self, halt_forever, outb, outl, outw};
use crate::mm::space;
use crate::{cmdline, console, println, smp, topology};

/// Powers off cleanly: ACPI S5 (ACPI 6.5 section 7.4), the ordinary way that every VMM has. An
/// `isa-debug-exit` port named on the command line (`debug_exit=0xf4`) goes first, because it can
/// report success.
pub fn power_off() -> ! {
    let masked: u64 = (0..smp::nr_online()).map(|cpu| percpu::of(cpu).masked.load(Ordering::Relaxed)).sum();
    if masked > 0 {
        println!("irq: {masked} interrupts came while interrupts were off, and were ignored");
    }
    println!("reboot: Power down");
    console::flush();
    smp::stop_others();
    // Whoever reads what is left of the machine finds it whole, if the other CPUs do not say otherwise.
    space::set_rests(percpu::cpu(), CpuTlb::CHECKPOINT);
    debug_exit(ExitCode::Ok as u8);
    if let Some(power) = topology::power_off_method() {
        outw(power.pm1a_control, power.slp_typ << 10 | 1 << 13);
    }
    memvisor::exit(ExitCode::Ok as u8);
    // A VMM may carry the request out while this CPU goes on for a moment.
    let begin = regs::rdtsc();
    while regs::rdtsc().wrapping_sub(begin) < 1 << 30 {
        core::hint::spin_loop();
    }
    println!("reboot: System halted: no way to power off was found");
    halt_forever()
}

/// Ends with a code that says what went wrong.
pub fn exit(code: ExitCode) -> ! {
    console::flush();
    smp::stop_others();
    memvisor::exit(code as u8);
    debug_exit(code as u8);
    // The i8042's reset line; under `-no-reboot` it ends the VMM.
    outb(0x64, 0xfe);
    halt_forever()
}

/// Port of isa-debug-exit, 0 if there is none. Read once, because a panic must not wait for locks.
static DEBUG_EXIT: AtomicU16 = AtomicU16::new(0);

/// Takes the port of isa-debug-exit from the command line.
pub fn init() {
    let port = cmdline::number("debug_exit").and_then(|port| u16::try_from(port).ok());
    DEBUG_EXIT.store(port.unwrap_or(0), Ordering::Relaxed);
}

/// QEMU's isa-debug-exit ends with status (code << 1) | 1.
fn debug_exit(code: u8) {
    let port = DEBUG_EXIT.load(Ordering::Relaxed);
    if port != 0 {
        outl(port, u32::from(code));
    }
}
