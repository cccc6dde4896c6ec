//! What a signal handler finds on its stack (Linux: arch/x86/kernel/signal_64.c, `struct rt_sigframe`; arch/x86/kernel/signal.c,
//! `get_sigframe`).
//!
//! From the top down: 128 bytes that the program may use below its stack pointer, or the top of the alternate stack; the FPU's
//! state, on a multiple of 64; then 440 bytes: where the handler returns to, the context, the siginfo. The handler begins with
//! RSP there, 8 below a multiple of 16, as behind a call.
//!
//! What comes back at rt_sigreturn was in the program's hands, so all of it is checked: [`restore`].

#[cfg(test)]
mod tests;

use bitflags::bitflags;

use crate::bytes::{array, put, u16_at, u64_at};
use crate::signal::{ActionFlags, AltStack, Handled, Handler, SigInfo, SigSet};

/// Size of the frame: return address, context, siginfo.
pub const FRAME_LEN: usize = CONTEXT_LEN + 8 + SigInfo::LEN;
/// Size of the registers of the FPU that FXSAVE writes.
pub const FXSAVE_LEN: u64 = 512;
/// What a program may use below its stack pointer without moving it (the ABI's red zone).
const REDZONE: u64 = 128;

/// Size of `struct ucontext`.
const CONTEXT_LEN: usize = 304;
/// In the frame: the context, ...
const CONTEXT: usize = 8;
/// ... in it the alternate stack, ...
const STACK: usize = CONTEXT + 16;
/// ... the registers (`struct sigcontext`), ...
const REGISTERS: usize = CONTEXT + 40;
/// ... what was blocked, ...
const MASK: usize = CONTEXT + 296;
/// ... and behind it the siginfo.
const INFO: usize = CONTEXT + CONTEXT_LEN;
/// In the registers: those of 64 bits, in Linux's order.
const FLAGS: usize = REGISTERS + 136;
const SEGMENTS: usize = REGISTERS + 144;
const TRAP: usize = REGISTERS + 152;
const FPSTATE: usize = REGISTERS + 184;

/// `uc_flags`: the FPU's state is that of XSAVE.
const UC_FP_XSTATE: u64 = 1;
/// `uc_flags`: SS is saved, and a bad one is not repaired.
const UC_SS: u64 = 2 | 4;

bitflags! {
    /// Flags of a program.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Flags: u64 {
        const CARRY = 1;
        const PARITY = 1 << 2;
        const ADJUST = 1 << 4;
        const ZERO = 1 << 6;
        const SIGN = 1 << 7;
        const TRAP = 1 << 8;
        const DIRECTION = 1 << 10;
        const OVERFLOW = 1 << 11;
        const RESUME = 1 << 16;
        const ALIGNMENT = 1 << 18;
        const _ = !0;
    }
}

/// Flags that a frame may change (Linux: `FIX_EFLAGS`).
const CHANGEABLE: u64 = Flags::ALIGNMENT
    .union(Flags::OVERFLOW)
    .union(Flags::DIRECTION)
    .union(Flags::TRAP)
    .union(Flags::SIGN)
    .union(Flags::ZERO)
    .union(Flags::ADJUST)
    .union(Flags::PARITY)
    .union(Flags::CARRY)
    .union(Flags::RESUME)
    .bits();

/// Registers of a thread in its program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// R8 to R15.
    pub r8_to_r15: [u64; 8],
    /// RDI.
    pub rdi: u64,
    /// RSI.
    pub rsi: u64,
    /// RBP.
    pub rbp: u64,
    /// RBX.
    pub rbx: u64,
    /// RDX.
    pub rdx: u64,
    /// RAX.
    pub rax: u64,
    /// RCX.
    pub rcx: u64,
    /// RSP.
    pub rsp: u64,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// Segment selectors of every program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selectors {
    /// CS.
    pub cs: u16,
    /// SS.
    pub ss: u16,
}

/// What a frame that comes back is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The selectors that it must have.
    pub selectors: Selectors,
    /// The thread's flags now, of which a frame may change only some.
    pub rflags: u64,
    /// Bits of a virtual address: 48 or 57.
    pub address_bits: u32,
}

/// What the thread's last trap was, for handlers that ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// Error code.
    pub error: u64,
    /// Vector.
    pub vector: u64,
    /// Address of the last page fault.
    pub cr2: u64,
}

/// The thread as the signal finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Registers, those of an interrupted call already changed as its restart wants.
    pub registers: Registers,
    /// Selectors.
    pub selectors: Selectors,
    /// The last trap.
    pub trap: Trap,
    /// Alternate stack.
    pub altstack: AltStack,
    /// Bytes of the FPU's state that the kernel saves: [`FXSAVE_LEN`], or more of XSAVE's.
    pub fpu_len: u64,
}

/// A frame that cannot be: the handler cannot run, or what it returned to cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// The action has no function to return to (SA_RESTORER), without which x86-64 has none.
    NoRestorer,
    /// The alternate stack is too small for it.
    Overflow,
    /// RIP is not canonical, or the selectors are not those of a program.
    Registers,
}

/// Where a frame goes, and what the thread does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Address of the 440 bytes, and the handler's RSP.
    pub at: u64,
    /// Address of the FPU's state; a multiple of 64.
    pub fpu_at: u64,
    /// The handler's registers.
    pub registers: Registers,
    /// The frame runs on an alternate stack that is to be taken away now (SS_AUTODISARM).
    pub disarms: bool,
}

/// Places the frame of `handled` on the right stack and computes the registers that the handler begins with.
///
/// # Errors
/// [`BadFrame`]: then SIGSEGV is due.
pub fn place(context: &Context, handled: &Handled) -> Result<Frame, BadFrame> {
    let action = &handled.action;
    let Handler::At(handler) = action.handler else { return Err(BadFrame::NoRestorer) };
    if !action.flags.contains(ActionFlags::RESTORER) {
        return Err(BadFrame::NoRestorer);
    }
    let old = &context.registers;
    let altstack = &context.altstack;
    let below = old.rsp.wrapping_sub(REDZONE);
    let nested = altstack.contains(old.rsp);
    // Of one that disarms itself nobody is on it: it is taken from its top again.
    let enters = action.flags.contains(ActionFlags::ONSTACK) && altstack.len > 0 && !altstack.contains(below);
    let top = if enters { altstack.start.wrapping_add(altstack.len) } else { below };
    let fpu_at = top.wrapping_sub(context.fpu_len) & !63;
    let at = (fpu_at.wrapping_sub(FRAME_LEN as u64) & !15).wrapping_sub(8);
    if (nested || enters) && !altstack.holds(at) {
        return Err(BadFrame::Overflow);
    }
    let cleared = (Flags::DIRECTION | Flags::RESUME | Flags::TRAP).bits();
    let registers = Registers {
        rdi: u64::from(handled.info.signal.number()),
        rsi: at.wrapping_add(INFO as u64),
        rdx: at.wrapping_add(CONTEXT as u64),
        rax: 0,
        rsp: at,
        rip: handler,
        rflags: old.rflags & !cleared,
        ..*old
    };
    Ok(Frame { at, fpu_at, registers, disarms: altstack.disarms() })
}

/// The bytes of the frame. The FPU's state is written apart, to [`Frame::fpu_at`].
pub fn bytes(frame: &Frame, context: &Context, handled: &Handled) -> [u8; FRAME_LEN] {
    let mut bytes = [0; FRAME_LEN];
    let Registers { r8_to_r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags } = context.registers;
    let xstate = if context.fpu_len > FXSAVE_LEN { UC_FP_XSTATE } else { 0 };
    put(&mut bytes, 0, &handled.action.restorer.to_le_bytes());
    put(&mut bytes, CONTEXT, &(UC_SS | xstate).to_le_bytes());
    put(&mut bytes, STACK, &context.altstack.to_frame());
    let words = r8_to_r15.into_iter().chain([rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags]);
    for (index, word) in words.enumerate() {
        put(&mut bytes, REGISTERS + 8 * index, &word.to_le_bytes());
    }
    put(&mut bytes, SEGMENTS, &context.selectors.cs.to_le_bytes());
    put(&mut bytes, SEGMENTS + 6, &context.selectors.ss.to_le_bytes());
    let Trap { error, vector, cr2 } = context.trap;
    for (index, word) in [error, vector, handled.mask.bits(), cr2, frame.fpu_at].into_iter().enumerate() {
        put(&mut bytes, TRAP + 8 * index, &word.to_le_bytes());
    }
    put(&mut bytes, MASK, &handled.mask.bits().to_le_bytes());
    // Linux leaves it unwritten without SA_SIGINFO; zeroes tell a program nothing of the kernel's.
    if handled.action.flags.contains(ActionFlags::SIGINFO) {
        put(&mut bytes, INFO, &handled.info.to_bytes());
    }
    bytes
}

/// Where the frame is that a thread with stack pointer `rsp` returns from: its handler's `ret` took the first word.
pub const fn of_return(rsp: u64) -> u64 {
    rsp.wrapping_sub(8)
}

/// What a thread goes on with behind a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Registers.
    pub registers: Registers,
    /// What to block.
    pub mask: SigSet,
    /// `stack_t`, for [`AltStack::set`], whose errors do not matter here.
    pub altstack: [u8; AltStack::LEN],
    /// Where the FPU's state is; `None` for none, which means that of a new program.
    pub fpu_at: Option<u64>,
    /// Bytes there are XSAVE's.
    pub xstate: bool,
}

/// Reads a frame back (Linux: `restore_sigcontext`).
///
/// Differs from Linux: a frame with selectors of its own is bad at once and not at the return to the program, since programs
/// have no others.
///
/// # Errors
/// [`BadFrame::Registers`]: then SIGSEGV is due.
pub fn restore(bytes: &[u8; FRAME_LEN], bounds: &Bounds) -> Result<Restored, BadFrame> {
    let word = |index: usize| u64_at(bytes, REGISTERS + 8 * index);
    let registers = Registers {
        r8_to_r15: core::array::from_fn(word),
        rdi: word(8),
        rsi: word(9),
        rbp: word(10),
        rbx: word(11),
        rdx: word(12),
        rax: word(13),
        rcx: word(14),
        rsp: word(15),
        rip: word(16),
        rflags: bounds.rflags & !CHANGEABLE | u64_at(bytes, FLAGS) & CHANGEABLE,
    };
    let [cs, ss] = [SEGMENTS, SEGMENTS + 6].map(|at| u16_at(bytes, at) | 3);
    let Selectors { cs: own_cs, ss: own_ss } = bounds.selectors;
    if !is_canonical(registers.rip, bounds.address_bits) || (cs, ss) != (own_cs, own_ss) {
        return Err(BadFrame::Registers);
    }
    let fpu_at = u64_at(bytes, FPSTATE);
    Ok(Restored {
        registers,
        mask: SigSet::from_bits(u64_at(bytes, MASK)).blockable(),
        altstack: array(bytes, STACK).unwrap_or_default(),
        fpu_at: (fpu_at != 0).then_some(fpu_at),
        xstate: u64_at(bytes, CONTEXT) & UC_FP_XSTATE != 0,
    })
}

/// The bits that are not translated equal the last that is. IRET to another address faults in the kernel.
const fn is_canonical(address: u64, bits: u32) -> bool {
    let upper = address.cast_signed() >> (bits - 1);
    upper == 0 || upper == -1
}

/// Makes bytes that a program gave fit for FXRSTOR: bits of MXCSR that the CPU has not would fault (Linux: `mxcsr_feature_mask`;
/// of a mask of 0 the default is meant).
pub fn clean_fxsave(bytes: &mut [u8; 512], mxcsr_mask: u32) {
    const MXCSR: usize = 24;
    let mask = if mxcsr_mask == 0 { 0xffbf } else { mxcsr_mask };
    let mxcsr = array(bytes, MXCSR).map_or(0, u32::from_le_bytes) & mask;
    put(bytes, MXCSR, &mxcsr.to_le_bytes());
}
