//! VMs that live as long as a run of suites on bed nested, so that L1's kernel need not patch its own code.
//!
//! KVM counts VMs, and vCPUs in some states, in static keys: whenever a count leaves or reaches zero Linux rewrites
//! instructions of its scheduler and of KVM, by way of a breakpoint (text_poke_bp). QEMU 7.2's software CPU can
//! then keep executing the breakpoint that is no longer there, on every CPU that comes by, for ever (seen in
//! `__schedule`, at the branch of preempt_notifier_key, once in about a hundred VMs). With one VM more
//! in each of these states than the cases make, the counts never come to zero.

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::vcpu::open_kvm;

/// I/O APIC pins of the VM that has a local APIC, as many as memvisor's guests have.
const PINS: u64 = 24;

/// Two VMs that never run.
#[derive(Debug)]
pub struct Anchor {
    // A vCPU without local APIC (kvm_has_noapic_vcpu), and one whose local APIC is never turned on
    // (apic_sw_disabled). A VM's counts go when its last descriptor does.
    _vms: [(VmFd, VcpuFd); 2],
}

impl Anchor {
    /// Makes them.
    ///
    /// # Errors
    /// If KVM does not.
    pub fn hold() -> anyhow::Result<Anchor> {
        let kvm = open_kvm()?;
        let bare = kvm.create_vm()?;
        let without_apic = bare.create_vcpu(0)?;
        let split = kvm.create_vm()?;
        split.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [PINS, 0, 0, 0],
            ..kvm_enable_cap::default()
        })?;
        let with_apic = split.create_vcpu(0)?;
        Ok(Anchor { _vms: [(bare, without_apic), (split, with_apic)] })
    }
}
