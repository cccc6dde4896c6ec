//! CPU registers as every source gives them.

use serde::{Deserialize, Serialize};

/// Registers of one CPU. Serialized into the control socket's answers and into dumps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRegisters {
    /// CPU index in the VMM.
    pub index: u32,
    /// rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8..r15 (the order of `struct kvm_regs`).
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2: address of the last page fault.
    pub cr2: u64,
    /// Control register 3: top-level page table.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enables.
    pub efer: u64,
    /// Selectors: cs, ds, es, fs, gs, ss.
    pub selectors: [u16; 6],
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
}

impl CpuRegisters {
    /// EFER.NXE.
    pub const EFER_NXE: u64 = 1 << 11;
    /// CR4.LA57.
    pub const CR4_LA57: u64 = 1 << 12;

    /// Paging levels in force: 5 with CR4.LA57, else 4. `None` outside long mode with paging.
    pub const fn levels(&self) -> Option<u32> {
        let long = self.efer & (1 << 10) != 0 && self.cr0 & (1 << 31) != 0;
        if !long {
            None
        } else if self.cr4 & Self::CR4_LA57 != 0 {
            Some(5)
        } else {
            Some(4)
        }
    }
}
