//! Entering and leaving ring 3, and switching stacks.

use super::percpu::{self, PerCpu, USER_CS, USER_DS};
use super::regs;
use super::trap::TrapFrame;

mod asm {
    use super::{PerCpu, TrapFrame};
    unsafe extern "C" {
        pub(super) fn enter_user(frame: *const TrapFrame, percpu: *const PerCpu) -> u64;
        pub(super) fn leave_user(status: u64, percpu: *const PerCpu) -> !;
        pub(super) fn call_on_stack(stack_top: u64, entry: extern "C" fn() -> !) -> !;
    }
}

/// Runs ring 3 at `rip` on the stack at `rsp`, with `argument` in RDI, until [`leave`]; returns its
/// status. Interrupts are enabled in ring 3.
pub fn enter(rip: u64, rsp: u64, argument: u64) -> u64 {
    let frame = TrapFrame {
        rip,
        rsp,
        rdi: argument,
        cs: u64::from(USER_CS),
        ss: u64::from(USER_DS),
        rflags: 1 << 9 | 1 << 1,
        ..TrapFrame::default()
    };
    let percpu = percpu::current().expect("ring 3 runs after boot");
    // An interrupt between the switch to the frame and ring 3 would write over this very stack.
    let flags = regs::irq_save();
    // SAFETY: the frame returns to ring 3 with selectors of our GDT; whatever the addresses are,
    // ring 3 can only trap back.
    let status = unsafe { asm::enter_user(&raw const frame, percpu) };
    regs::irq_restore(flags);
    status
}

/// Leaves ring 3 for good: the pending [`enter`] of this CPU returns `status`.
pub fn leave(status: u64) -> ! {
    let percpu = percpu::current().expect("ring 3 runs after boot");
    // SAFETY: called from a trap handler, so an `enter` is pending below on this very stack, and
    // nothing on the stack between needs a destructor.
    unsafe { asm::leave_user(status, percpu) }
}

/// Continues in `entry` on another stack.
///
/// # Safety
/// `top` is the 16-byte aligned top of a mapped stack that nobody uses.
pub unsafe fn call_on_stack(top: u64, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: as the caller promises.
    unsafe { asm::call_on_stack(top, entry) }
}
