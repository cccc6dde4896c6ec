//! Small machines with hand-made guests.

use memvisor_inspect::{FactCpu, FactE820, Facts, RamRegion};

use super::{AuditMode, Irqchip, VmConfig};
use crate::{
    devices::ConsoleTarget,
    loader::testing::ElfBuilder,
    machine::{Boot, Paging},
    seccomp::Filters,
};

const MIB: u64 = 1 << 20;
/// Where hand-made code is loaded.
pub const CODE: u64 = 2 * MIB;

/// Whether this machine has KVM; says so loudly if not.
pub fn has_kvm() -> bool {
    match crate::vcpu::open_kvm() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: no KVM here: {error}");
            false
        }
    }
}

/// A machine that boots `elf`.
pub fn config_of(elf: &ElfBuilder) -> VmConfig {
    let ram = vec![(0, 0x9_f000), (MIB, 15 * MIB)];
    let e820: Vec<FactE820> = ram.iter().map(|&(addr, size)| FactE820 { addr, size, kind: 1 }).collect();
    let facts = Facts {
        machine: "hand-made".into(),
        e820,
        cpus: vec![FactCpu { apic_id: 0, node: 0 }],
        ..Facts::default()
    };
    VmConfig {
        name: "hand-made".into(),
        facts,
        slots: ram.iter().map(|&(gpa, len)| RamRegion { gpa, len }).collect(),
        backed: Vec::new(),
        ram,
        firmware: Vec::new(),
        rsdp: 0xf_0000,
        kernel_name: "hand-made".into(),
        kernel: elf.build().into(),
        initrd: None,
        symbols: None,
        cmdline: String::new(),
        boot: Boot::Linux,
        paging: Paging::Four,
        irqchip: Irqchip::Auto,
        console: ConsoleTarget::Null,
        audit: AuditMode::Every,
        disks: Vec::new(),
        dma: Vec::new(),
        seccomp: Filters::On,
    }
}

/// A machine that runs `code` in 64-bit mode.
pub fn config(code: &[u8]) -> VmConfig {
    config_of(&ElfBuilder::new(CODE, code))
}
