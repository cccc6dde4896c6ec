//! The end of a kernel that found itself broken: a report, an epitaph for the VMM, a stop.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use memvisor_abi::BootStage;
use memvisor_abi::port::ExitCode;

use crate::arch::{percpu, regs, trap};
use crate::drivers::{memvisor, power};
use crate::kallsyms::{Place, Return};
use crate::mm::paging;
use crate::printk::Level;
use crate::sync::Lock;
use crate::{console, introspect, printk, println, smp};

static PANICKING: AtomicBool = AtomicBool::new(false);

struct Epitaph {
    text: [u8; 256],
    len: usize,
}

impl Write for Epitaph {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for &byte in text.as_bytes().iter().take(256 - self.len) {
            self.text[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

static EPITAPH: Lock<Epitaph> = Lock::new(Epitaph { text: [0; 256], len: 0 });

/// Stops the other CPUs and takes the console. A panic inside a panic stops silently.
pub fn begin() {
    regs::irq_save();
    if PANICKING.swap(true, Ordering::AcqRel) {
        memvisor::exit(ExitCode::Panic as u8);
        regs::halt_forever();
    }
    printk::break_lock();
    console::break_lock();
    memvisor::break_lock();
    introspect::break_lock();
    smp::stop_others();
}

/// Ends the machine after the report.
pub fn end(code: ExitCode) -> ! {
    introspect::stage(BootStage::Panicked);
    power::exit(code)
}

/// Hands one line to the VMM, which shows it with the exit code. What does not fit is cut.
pub fn leave_epitaph(line: fmt::Arguments<'_>) {
    let mut epitaph = EPITAPH.lock();
    // `Epitaph` never fails.
    let _ = epitaph.write_fmt(line);
    memvisor::epitaph(&epitaph.text[..epitaph.len]);
}

/// Prints the walk of an address through the tables in CR3.
pub fn print_walk(va: u64) {
    paging::walk_current(va, |level, table, index, entry| {
        println!("  {level:4} table {table} [{index:3}] = {entry:#018x}");
    });
}

/// Prints return addresses by the chain of frame pointers, as long as it stays on one stack.
pub fn print_backtrace(level: Level, rip: u64, rbp: u64) {
    printk::print(level, format_args!("Call Trace:\n"));
    if rip != 0 {
        printk::print(level, format_args!("  {}\n", Place(rip)));
    }
    for_each_return_address(rbp, |address| {
        printk::print(level, format_args!("  {}\n", Return(address)));
        true
    });
}

/// Calls `f` with return addresses by the chain of frame pointers, innermost first, until it says no.
pub fn for_each_return_address(rbp: u64, mut f: impl FnMut(u64) -> bool) {
    let mut frame = rbp;
    for _ in 0..32 {
        let next = frame.wrapping_add(16);
        // `probe` keeps a wild frame pointer from ending the report.
        if frame == 0
            || frame & 7 != 0
            || trap::probe(trap::Probe::Read(frame)).is_err()
            || trap::probe(trap::Probe::Read(frame + 8)).is_err()
        {
            return;
        }
        // SAFETY: both words were just read without a fault.
        let (parent, address) = unsafe { (frame as *const [u64; 2]).read() }.into();
        if address == 0 || !f(address) || parent < next {
            return;
        }
        frame = parent;
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    println!("Kernel panic - not syncing: {} (CPU {})", info.message(), percpu::cpu());
    if let Some(place) = info.location() {
        println!("  at {place}");
    }
    print_backtrace(Level::Emerg, 0, regs::rbp());
    leave_epitaph(format_args!("{}", info.message()));
    end(ExitCode::Panic)
}
