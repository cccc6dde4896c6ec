use core::mem::offset_of;

use proptest::prelude::*;

use super::*;
use crate::signal::{AltStackFlags, SigAction, Signal, code};

const SELECTORS: Selectors = Selectors { cs: 0x33, ss: 0x2b };
const BOUNDS: Bounds = Bounds { selectors: SELECTORS, rflags: 0x202, address_bits: 48 };
const HANDLER: u64 = 0x40_1000;
const RESTORER: u64 = 0x40_2000;
const SP: u64 = 0x7ffe_1234_5678;

fn context() -> Context {
    let registers = Registers {
        r8_to_r15: [8, 9, 10, 11, 12, 13, 14, 15],
        rdi: 101,
        rsi: 102,
        rbp: 103,
        rbx: 104,
        rdx: 105,
        rax: 106,
        rcx: 107,
        rsp: SP,
        rip: 0x40_0123,
        rflags: 0x10746,
    };
    let trap = Trap { error: 6, vector: 14, cr2: 0x1000 };
    Context { registers, selectors: SELECTORS, trap, altstack: AltStack::default(), fpu_len: FXSAVE_LEN }
}

fn usr1(flags: ActionFlags) -> Handled {
    Handled {
        info: SigInfo::user(Signal::USR1, code::USER, 5, 6),
        action: SigAction {
            handler: Handler::At(HANDLER),
            flags: flags | ActionFlags::RESTORER,
            restorer: RESTORER,
            ..SigAction::default()
        },
        mask: SigSet::EMPTY.with(Signal::HUP),
    }
}

#[test]
fn offsets_are_those_of_libc() {
    assert_eq!(STACK - CONTEXT, offset_of!(libc::ucontext_t, uc_stack));
    assert_eq!(REGISTERS - CONTEXT, offset_of!(libc::ucontext_t, uc_mcontext));
    assert_eq!(MASK - CONTEXT, offset_of!(libc::ucontext_t, uc_sigmask));
    let registers = offset_of!(libc::mcontext_t, gregs);
    let at = |register: i32| REGISTERS + registers + 8 * usize::try_from(register).unwrap();
    assert_eq!((FLAGS, SEGMENTS, TRAP), (at(libc::REG_EFL), at(libc::REG_CSGSFS), at(libc::REG_ERR)));
    assert_eq!(FPSTATE, REGISTERS + offset_of!(libc::mcontext_t, fpregs));
    assert_eq!(AltStack::LEN, size_of::<libc::stack_t>());
    assert_eq!(FXSAVE_LEN, size_of::<libc::_libc_fpstate>() as u64);
    assert_eq!(FRAME_LEN, 440);
    let order = [libc::REG_R8, libc::REG_R15, libc::REG_RDI, libc::REG_RCX, libc::REG_RSP, libc::REG_RIP];
    assert_eq!(order, [0, 7, 8, 14, 15, 16]);
}

#[test]
fn a_handler_gets_its_three_arguments_and_an_aligned_stack() {
    let frame = place(&context(), &usr1(ActionFlags::SIGINFO)).unwrap();
    let Registers { rdi, rsi, rdx, rax, rsp, rip, rflags, rbx, .. } = frame.registers;
    assert_eq!((rdi, rax, rip, rbx), (10, 0, HANDLER, 104));
    assert_eq!((rsp % 16, frame.fpu_at % 64), (8, 0));
    assert!(frame.fpu_at + FXSAVE_LEN <= SP - REDZONE && rsp + FRAME_LEN as u64 <= frame.fpu_at);
    assert_eq!((rdx - rsp, rsi - rsp), (8, 312));
    assert_eq!(rflags, 0x10746 & !0x10500);
    let bytes = bytes(&frame, &context(), &usr1(ActionFlags::SIGINFO));
    assert_eq!(bytes[..8], RESTORER.to_le_bytes());
    assert_eq!(bytes[312..], usr1(ActionFlags::empty()).info.to_bytes());
    assert_eq!(bytes[FPSTATE..FPSTATE + 8], frame.fpu_at.to_le_bytes());
}

#[test]
fn what_was_saved_comes_back() {
    let frame = place(&context(), &usr1(ActionFlags::empty())).unwrap();
    let bytes = bytes(&frame, &context(), &usr1(ActionFlags::empty()));
    let restored = restore(&bytes, &BOUNDS).unwrap();
    let expected = Registers { rflags: 0x202 & !CHANGEABLE | 0x10746 & CHANGEABLE, ..context().registers };
    assert_eq!(restored.registers, expected);
    assert_eq!(restored.mask, SigSet::EMPTY.with(Signal::HUP));
    assert_eq!((restored.fpu_at, restored.xstate), (Some(frame.fpu_at), false));
    // The handler's `ret` took one word.
    assert_eq!(of_return(frame.registers.rsp + 8), frame.at);
}

#[test]
fn without_a_restorer_there_is_no_way_back() {
    let mut handled = usr1(ActionFlags::empty());
    handled.action.flags = ActionFlags::empty();
    assert_eq!(place(&context(), &handled), Err(BadFrame::NoRestorer));
}

#[test]
fn sa_onstack_switches_once() {
    let altstack = AltStack { start: 0x1000_0000, len: 0x2000, ..AltStack::default() };
    let context = Context { altstack, ..context() };
    let stays = place(&context, &usr1(ActionFlags::empty())).unwrap();
    assert!(stays.at > 0x7ffe_0000_0000);
    let first = place(&context, &usr1(ActionFlags::ONSTACK)).unwrap();
    assert!(altstack.contains(first.at) && first.fpu_at + FXSAVE_LEN == altstack.start + altstack.len);
    // A second signal, inside the first's handler.
    let registers = Registers { rsp: first.at, ..context.registers };
    let second = place(&Context { registers, ..context }, &usr1(ActionFlags::ONSTACK)).unwrap();
    assert!(altstack.contains(second.at) && second.fpu_at + FXSAVE_LEN <= first.at - REDZONE);
}

#[test]
fn an_alternate_stack_that_is_full_is_an_error() {
    let altstack = AltStack { start: 0x1000_0000, len: 2048, ..AltStack::default() };
    let registers = Registers { rsp: altstack.start + 1000, ..context().registers };
    let nested = Context { altstack, registers, ..context() };
    assert_eq!(place(&nested, &usr1(ActionFlags::ONSTACK)), Err(BadFrame::Overflow));
    let wide = Context { altstack, fpu_len: 2696, ..context() };
    assert_eq!(place(&wide, &usr1(ActionFlags::ONSTACK)), Err(BadFrame::Overflow));
}

#[test]
fn a_stack_that_disarms_itself_is_taken_from_its_top() {
    let given = AltStackFlags::AUTODISARM;
    let altstack = AltStack { start: 0x1000_0000, len: 0x4000, given };
    let registers = Registers { rsp: altstack.start + 0x1000, ..context().registers };
    let context = Context { altstack, registers, ..context() };
    let frame = place(&context, &usr1(ActionFlags::ONSTACK)).unwrap();
    assert!(frame.disarms && frame.fpu_at + FXSAVE_LEN == altstack.start + altstack.len);
    let bytes = bytes(&frame, &context, &usr1(ActionFlags::ONSTACK));
    assert_eq!(bytes[STACK + 8..STACK + 12], given.bits().to_le_bytes());
}

#[test]
fn a_frame_cannot_leave_the_program() {
    let frame = place(&context(), &usr1(ActionFlags::empty())).unwrap();
    let good = bytes(&frame, &context(), &usr1(ActionFlags::empty()));
    let with = |at: usize, value: u64| {
        let mut bytes = good;
        put(&mut bytes, at, &value.to_le_bytes());
        restore(&bytes, &BOUNDS)
    };
    let rip = REGISTERS + 8 * 16;
    assert_eq!(with(rip, 1 << 47), Err(BadFrame::Registers));
    assert!(with(rip, 0xffff_8000_0000_0000).is_ok(), "it faults in ring 3");
    assert_eq!(with(SEGMENTS, 0x2b_0000_0000_0000 | 0x10), Err(BadFrame::Registers));
    assert_eq!(with(SEGMENTS, 0x18_0000_0000_0033), Err(BadFrame::Registers));
    // IOPL, interrupts off, virtual-8086 mode: none of them.
    let flags = with(FLAGS, !0).unwrap().registers.rflags;
    assert_eq!(flags, 0x202 | CHANGEABLE);
    assert_eq!(with(MASK, !0).unwrap().mask, SigSet::ALL.blockable());
}

#[test]
fn mxcsr_loses_what_the_cpu_has_not() {
    let mut bytes = [0xff; 512];
    clean_fxsave(&mut bytes, 0);
    assert_eq!(bytes[24..28], 0xffbf_u32.to_le_bytes());
    clean_fxsave(&mut bytes, 0x2_ffff);
    assert_eq!(bytes[24..28], 0xffbf_u32.to_le_bytes());
}

proptest! {
    /// Whatever a program writes into its frame: it goes on in ring 3, with interrupts on.
    #[test]
    fn any_bytes_are_safe(words in prop::array::uniform32(any::<u64>()), start in 0..23_usize) {
        let frame = place(&context(), &usr1(ActionFlags::empty())).unwrap();
        let mut bytes = bytes(&frame, &context(), &usr1(ActionFlags::empty()));
        for (index, word) in words.iter().enumerate() {
            put(&mut bytes, 8 * (start + index), &word.to_le_bytes());
        }
        if let Ok(restored) = restore(&bytes, &BOUNDS) {
            prop_assert_eq!(restored.registers.rflags & !CHANGEABLE, 0x202);
            let high = restored.registers.rip >> 47;
            prop_assert!(high == 0 || high == 0x1_ffff);
            prop_assert!(restored.mask.intersection(SigSet::KERNEL_ONLY).is_empty());
        }
    }

    #[test]
    fn frames_are_always_aligned(sp in any::<u64>(), extra in 0..4096_u64, onstack in any::<bool>(), len in 0..0x1_0000_u64) {
        let altstack = AltStack { start: 0x1000_0000, len, ..AltStack::default() };
        let registers = Registers { rsp: sp, ..context().registers };
        let context = Context { registers, altstack, fpu_len: FXSAVE_LEN + extra, ..context() };
        let flags = if onstack { ActionFlags::ONSTACK } else { ActionFlags::empty() };
        if let Ok(frame) = place(&context, &usr1(flags)) {
            prop_assert!(frame.at % 16 == 8 && frame.fpu_at % 64 == 0);
            prop_assert!(!onstack || len == 0 || altstack.holds(frame.at));
        }
    }
}
