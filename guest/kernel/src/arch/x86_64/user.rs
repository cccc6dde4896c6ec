//! Entering and leaving ring 3, and switching stacks.

use super::percpu::{USER_CS, USER_DS};
use super::trap::TrapFrame;

mod asm {
    use super::TrapFrame;
    unsafe extern "C" {
        pub(super) fn enter_user(frame: *const TrapFrame) -> u64;
        pub(super) fn leave_user(status: u64) -> !;
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
    // SAFETY: the frame returns to ring 3 with selectors of our GDT; whatever the addresses are,
    // ring 3 can only trap back.
    unsafe { asm::enter_user(&raw const frame) }
}

/// Leaves ring 3 for good: the pending [`enter`] of this CPU returns `status`.
pub fn leave(status: u64) -> ! {
    // SAFETY: called from a trap handler, so an `enter` is pending below on this very stack, and
    // nothing on the stack between needs a destructor.
    unsafe { asm::leave_user(status) }
}

/// Continues in `entry` on another stack.
///
/// # Safety
/// `top` is the 16-byte aligned top of a mapped stack that nobody uses.
pub unsafe fn call_on_stack(top: u64, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: as the caller promises.
    unsafe { asm::call_on_stack(top, entry) }
}
