//! Switching stacks (switch.s).

mod asm {
    unsafe extern "C" {
        pub(super) fn switch_stacks(save: *mut u64, load: u64);
        pub(super) fn thread_start();
        pub(super) fn call_on_irq_stack(arg: u64, f: extern "C" fn(u64), top: u64);
    }
}

/// Words on a new thread's stack: six callee-saved registers and where to begin.
pub const FIRST_FRAME: u64 = 7 * 8;

/// Address at which every thread begins; it calls `thread_main`.
pub fn thread_start() -> u64 {
    asm::thread_start as *const () as u64
}

/// Leaves this stack, with its pointer in `save`, and continues on the stack whose pointer is `load`.
///
/// # Safety
/// `load` was saved by this function or laid out for [`thread_start`], its stack is mapped and on no CPU, and `save`
/// is valid until somebody switches back.
pub unsafe fn switch(save: *mut u64, load: u64) {
    // SAFETY: as the caller promises.
    unsafe { asm::switch_stacks(save, load) }
}

/// Calls `f(arg)` on the stack that ends at `top`.
///
/// # Safety
/// `top` is the 16-byte aligned end of a mapped stack that nobody uses until `f` returns.
pub unsafe fn call_on(top: u64, f: extern "C" fn(u64), arg: u64) {
    // SAFETY: as the caller promises.
    unsafe { asm::call_on_irq_stack(arg, f, top) }
}
