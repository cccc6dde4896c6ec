//! The interrupt controller in KVM.

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_PIT_SPEAKER_DUMMY, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::{RunError, vm::kvm_error};
use crate::{devices::COM1_IRQ, machine::layout};

/// Interrupt controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// Split for our own kernel, full for a foreign one.
    #[default]
    Auto,
    /// Local APICs in KVM, nothing else: faster to make, and all that our own guest uses.
    Split,
    /// PIC, I/O APIC and PIT in KVM too.
    Full,
}

/// Makes the interrupt controller; the line of COM1 if there is one that takes it.
pub(super) fn create_irqchip(vm: &VmFd, full: bool) -> Result<Option<EventFd>, RunError> {
    // Intel processors without unrestricted guests need both; others ignore them.
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
    vm.set_tss_address(tss).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    let line = match full {
        false => {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
            cap.args[0] = 24;
            vm.enable_cap(&cap).map_err(kvm_error("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
            None
        }
        true => {
            vm.create_irq_chip().map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
            vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
                .map_err(kvm_error("KVM_CREATE_PIT2"))?;
            let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(|source| RunError::Host { step: "create an eventfd", source })?;
            vm.register_irqfd(&line, COM1_IRQ).map_err(kvm_error("KVM_IRQFD"))?;
            Some(line)
        }
    };
    // APIC ids above 254 need it; older KVMs that lack it have machines with fewer CPUs.
    let mut x2apic = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
    x2apic.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
    if let Err(errno) = vm.enable_cap(&x2apic) {
        tracing::info!("KVM_CAP_X2APIC_API: {errno}");
    }
    Ok(line)
}
