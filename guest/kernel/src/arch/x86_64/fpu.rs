//! Registers of ring 3 that the kernel does not use itself: FPU and SSE, FS and GS bases (Linux: arch/x86/kernel/fpu/core.c,
//! process_64.c).
//!
//! Invariants:
//! F1  an area is written by the CPU that runs its task, and by whoever makes the task before it runs;
//! F2  the registers hold a task's state if `PerCpu::fpu_owner` names its area and the area names the CPU: a task that comes back to
//!     the CPU it left needs no restore.
//!
//! Differs from Linux: FXSAVE only. The kernel leaves CR4.OSXSAVE clear, so programs that ask see that AVX is not to be used.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::percpu::PerCpu;
use super::regs;

const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;

/// Words of an area (SDM 1, 10.5).
pub const FXSAVE_WORDS: usize = 64;
/// FCW: all exceptions masked, 64-bit precision (Linux: `fpstate_init_fxstate`).
const INITIAL_FCW: u64 = 0x37f;
/// MXCSR, in the upper bytes of word 3: all exceptions masked.
const INITIAL_MXCSR: u64 = 0x1f80;
/// The part of MXCSR that may be set on every CPU.
const MXCSR_MASK: u64 = 0xffff;
const NO_CPU: u32 = u32::MAX;

#[repr(C, align(16))]
struct Area([u64; FXSAVE_WORDS]);

/// Where the FPU registers of a task are while it does not run.
pub struct FpuState {
    area: Box<[UnsafeCell<Area>]>,
    /// CPU whose registers may still hold the state.
    cpu: AtomicU32,
}

// SAFETY: F1.
unsafe impl Sync for FpuState {}
// SAFETY: the area is plain memory.
unsafe impl Send for FpuState {}

impl core::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("FpuState").field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

impl FpuState {
    /// The state of a program that begins; `None` without memory.
    pub fn new() -> Option<FpuState> {
        let mut area = Vec::new();
        area.try_reserve_exact(1).ok()?;
        area.push(UnsafeCell::new(Area([0; FXSAVE_WORDS])));
        let state = FpuState { area: area.into_boxed_slice(), cpu: AtomicU32::new(NO_CPU) };
        state.reset();
        Some(state)
    }

    fn area(&self) -> *mut Area {
        // `new` made one.
        self.area.first().map_or(core::ptr::null_mut(), UnsafeCell::get)
    }

    /// What is in the area.
    pub fn words(&self) -> [u64; FXSAVE_WORDS] {
        // SAFETY: F1: the caller runs the task, or the task is new.
        unsafe { (*self.area()).0 }
    }

    /// Takes over the state of a task whose registers were saved.
    pub fn copy_from(&self, other: &FpuState) {
        // SAFETY: F1: nobody runs this task yet.
        let area = unsafe { &mut (*self.area()).0 };
        // SAFETY: F1: the other task runs here.
        area.copy_from_slice(unsafe { &(*other.area()).0 });
    }

    /// Puts a state into the area that a program made: bits that would fault are cleared.
    pub fn set_words(&self, words: &[u64; FXSAVE_WORDS]) {
        self.cpu.store(NO_CPU, Ordering::Relaxed);
        // SAFETY: F1, as for `words`.
        let area = unsafe { &mut (*self.area()).0 };
        area.copy_from_slice(words);
        area[3] &= MXCSR_MASK;
    }

    /// Puts the state of a program that begins into the area.
    pub fn reset(&self) {
        let mut words = [0; FXSAVE_WORDS];
        words[0] = INITIAL_FCW;
        words[3] = INITIAL_MXCSR;
        self.set_words(&words);
    }

    /// Makes the area what the registers of this CPU are, if they are this task's. Interrupts are off.
    pub fn save(&self, percpu: &PerCpu) {
        let area = self.area();
        if percpu.fpu_owner.load(Ordering::Relaxed) != area as u64 {
            return;
        }
        // SAFETY: 512 aligned bytes that nobody else touches (F1).
        unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
        self.cpu.store(percpu.cpu.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Makes the registers of this CPU what the area is. Interrupts are off.
    pub fn restore(&self, percpu: &PerCpu) {
        let (area, cpu) = (self.area(), percpu.cpu.load(Ordering::Relaxed));
        if percpu.fpu_owner.load(Ordering::Relaxed) == area as u64 && self.cpu.load(Ordering::Relaxed) == cpu
        {
            return;
        }
        // SAFETY: 512 aligned bytes, saved by `fxsave` or made by `set_words`.
        unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
        percpu.fpu_owner.store(area as u64, Ordering::Relaxed);
        self.cpu.store(cpu, Ordering::Relaxed);
    }
}

/// Sets the FS base of ring 3 on this CPU. The address is canonical and user space's.
pub fn set_fs_base(percpu: &PerCpu, base: u64) {
    if percpu.fs_base.swap(base, Ordering::Relaxed) != base {
        // SAFETY: the kernel does not use FS.
        unsafe { regs::wrmsr(MSR_FS_BASE, base) };
    }
}

/// Sets the GS base of ring 3 on this CPU. The address is canonical and user space's.
pub fn set_gs_base(percpu: &PerCpu, base: u64) {
    if percpu.gs_base.swap(base, Ordering::Relaxed) != base {
        // SAFETY: outside `syscall_entry` GS is the user's.
        unsafe { regs::wrmsr(MSR_GS_BASE, base) };
    }
}
