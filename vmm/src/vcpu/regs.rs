//! Registers at entry, and registers as readers get them.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use memvisor_inspect::CpuRegisters;

use crate::{
    loader::{BOOT_CODE, BOOT_DATA, Entry, FlatSegment},
    machine::{Boot, layout},
};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default: what firmware leaves behind.
const MTRR_ENABLE_WB: u64 = (1 << 11) | 6;

/// Puts the first vCPU at the kernel's entry.
///
/// # Errors
/// The ioctl that failed, with KVM's answer.
pub fn set_boot_registers(vcpu: &VcpuFd, entry: &Entry) -> Result<(), (&'static str, kvm_ioctls::Error)> {
    let mut sregs = vcpu.get_sregs().map_err(|errno| ("KVM_GET_SREGS", errno))?;
    match entry.boot {
        Boot::Linux => enter_long_mode(&mut sregs, entry.cr3, entry.levels),
        Boot::Pvh => enter_protected_mode(&mut sregs),
    }
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = 31;
    sregs.idt.base = layout::BOOT_IDT;
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs).map_err(|errno| ("KVM_SET_SREGS", errno))?;
    let mut regs = kvm_regs { rip: entry.rip, rflags: 2, ..Default::default() };
    match entry.boot {
        Boot::Linux => (regs.rsi, regs.rsp) = (entry.argument, layout::BOOT_STACK_TOP),
        Boot::Pvh => regs.rbx = entry.argument,
    }
    vcpu.set_regs(&regs).map_err(|errno| ("KVM_SET_REGS", errno))
}

/// Makes memory write-back, as firmware leaves it on every CPU; one that differs is an inconsistency
/// that an OS complains about.
pub fn set_memory_type(vcpu: &VcpuFd) {
    let msr = kvm_msr_entry { index: MSR_MTRR_DEF_TYPE, data: MTRR_ENABLE_WB, ..Default::default() };
    if let Ok(msrs) = Msrs::from_entries(&[msr])
        && vcpu.set_msrs(&msrs).is_ok_and(|count| count == 1)
    {
        return;
    }
    // Guests of this KVM have no MTRRs then; memory is write-back all the same.
    tracing::debug!("KVM does not take IA32_MTRR_DEF_TYPE");
}

/// 64-bit mode with paging at `levels`.
pub(super) fn enter_long_mode(sregs: &mut kvm_sregs, cr3: u64, levels: u32) {
    set_segments(sregs, true);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = cr3;
    sregs.cr4 = CR4_PAE | if levels == 5 { CpuRegisters::CR4_LA57 } else { 0 };
    sregs.efer = EFER_LME | EFER_LMA;
}

/// 32-bit protected mode without paging.
fn enter_protected_mode(sregs: &mut kvm_sregs) {
    set_segments(sregs, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    sregs.cs = flat(BOOT_CODE, long);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = flat(BOOT_DATA, false);
    }
    // PVH asks for a 32-bit TSS with base 0 and limit 0x67; VMX wants a busy TSS in any mode.
    sregs.tr =
        kvm_segment { base: 0, limit: 0x67, selector: 0, type_: 0xb, present: 1, ..Default::default() };
}

fn flat(segment: FlatSegment, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: segment.selector,
        type_: segment.kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Registers of a vCPU that is not running.
///
/// # Errors
/// KVM's answer.
pub fn read_registers(index: u32, vcpu: &VcpuFd) -> Result<CpuRegisters, kvm_ioctls::Error> {
    let r = vcpu.get_regs()?;
    let s = vcpu.get_sregs()?;
    Ok(CpuRegisters {
        index,
        gpr: [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        efer: s.efer,
        selectors: [s.cs.selector, s.ds.selector, s.es.selector, s.fs.selector, s.gs.selector, s.ss.selector],
        fs_base: s.fs.base,
        gs_base: s.gs.base,
    })
}
