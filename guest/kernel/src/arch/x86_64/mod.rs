//! Everything that is x86-64: entry, descriptor tables, traps, the local APIC, registers.

pub mod apic;
pub mod cpu;
pub mod fpu;
pub mod percpu;
pub mod pti;
pub mod regs;
pub mod stack;
pub mod trap;
pub mod user;

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));
// One piece: macros are known in their own only.
core::arch::global_asm!(
    include_str!("registers.s"),
    include_str!("trap.s"),
    include_str!("pti.s"),
    options(att_syntax)
);
core::arch::global_asm!(include_str!("switch.s"), options(att_syntax));
