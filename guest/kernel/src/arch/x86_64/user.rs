//! Entering ring 3, and switching stacks.

use super::percpu::{USER_CS, USER_DS};
use super::trap::TrapFrame;
use super::{pti, regs};

mod asm {
    use super::TrapFrame;
    unsafe extern "C" {
        pub(super) fn enter_user(frame: *const TrapFrame) -> !;
        pub(super) fn pti_enter_user(frame: *const TrapFrame) -> !;
        pub(super) fn call_on_stack(stack_top: u64, entry: extern "C" fn() -> !) -> !;
    }
}

/// Flags of a program that begins: interrupts on, and the bit that is always set.
const RFLAGS: u64 = regs::RFLAGS_IF | 1 << 1;

/// The registers of a program that begins at `rip` with its stack at `rsp` (Linux: `start_thread`).
pub fn start_frame(rip: u64, rsp: u64) -> TrapFrame {
    TrapFrame {
        rip,
        rsp,
        cs: u64::from(USER_CS),
        ss: u64::from(USER_DS),
        rflags: RFLAGS,
        ..TrapFrame::default()
    }
}

/// Puts a frame on a kernel stack that nobody runs on, at its top.
pub fn store_frame(address: u64, frame: &TrapFrame) {
    // SAFETY: the caller made the stack, and nobody uses it yet.
    unsafe { (address as *mut TrapFrame).write(*frame) }
}

/// Continues in ring 3 with the registers of `frame`, after `last` had its look at it with interrupts off. Whatever is on this kernel
/// stack is forgotten.
pub fn enter(frame: &mut TrapFrame, last: fn(&mut TrapFrame)) -> ! {
    // An interrupt after the switch to the frame would write over it.
    regs::irq_save();
    last(frame);
    assert!(
        frame.came_from_user() && frame.rflags & regs::RFLAGS_IF != 0,
        "a frame that does not lead to ring 3"
    );
    if pti::enabled() {
        // SAFETY: as below; the frame is on a thread's stack.
        unsafe { asm::pti_enter_user(&raw const *frame) }
    }
    // SAFETY: the frame returns to ring 3 with selectors of our GDT; whatever the addresses are, ring 3 can only trap back.
    unsafe { asm::enter_user(&raw const *frame) }
}

/// [`enter`] with the frame that [`store_frame`] put on the stack of the thread that runs this.
pub fn enter_at(address: u64, last: fn(&mut TrapFrame)) -> ! {
    // SAFETY: it lies above everything that the thread uses of its stack, and nobody else knows it.
    let frame = unsafe { &mut *(address as *mut TrapFrame) };
    enter(frame, last)
}

/// Continues in `entry` on another stack.
///
/// # Safety
/// `top` is the 16-byte aligned top of a mapped stack that nobody uses.
pub unsafe fn call_on_stack(top: u64, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: as the caller promises.
    unsafe { asm::call_on_stack(top, entry) }
}
