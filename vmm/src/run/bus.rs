//! The buses of a machine with its devices.

use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use memvisor_abi::dma::BAR_BYTES as DMA_BAR_BYTES;
use memvisor_abi::port;

use super::{RunError, VmConfig};
use crate::{
    devices::{
        AcpiPm, BusError, Cmos, Console, DeviceState, I8042, MemvisorDevice, SerialPort,
        dma::{DmaEngine, DmaFunction},
        pci::{Function, PciPorts, PciRoot, PciWindow},
        virtio::{BAR_BYTES, Disk, Msix, SignalMsi, VirtioPci},
    },
    machine::layout,
    memory::Memory,
    vcpu::SharedBus,
};

/// The buses with every device of a machine.
///
/// # Errors
/// [`BusError`]: two devices at one place, a mistake in memvisor.
pub fn build_bus(
    memory: &Arc<Memory>,
    console: &Arc<Mutex<Console>>,
    serial: &Arc<Mutex<SerialPort>>,
    device: &Arc<DeviceState>,
) -> Result<SharedBus, BusError> {
    let mut bus = SharedBus::default();
    bus.pio.insert("com1", layout::COM1.into(), layout::COM1_LEN.into(), serial.clone())?;
    let i8042_len = u64::from(layout::I8042_COMMAND - layout::I8042_DATA) + 1;
    bus.pio.insert("i8042", layout::I8042_DATA.into(), i8042_len, Arc::new(Mutex::new(I8042::default())))?;
    bus.pio.insert(
        "acpi-pm",
        layout::PM1A_EVT.into(),
        AcpiPm::LEN,
        Arc::new(Mutex::new(AcpiPm::default())),
    )?;
    bus.pio.insert("cmos", layout::CMOS_INDEX.into(), Cmos::LEN, Arc::new(Mutex::new(Cmos::default())))?;
    let memvisor = MemvisorDevice::new(memory.clone(), console.clone(), device.clone());
    bus.pio.insert("memvisor", port::BASE.into(), port::LEN.into(), Arc::new(Mutex::new(memvisor)))?;
    Ok(bus)
}

/// Sends messages through KVM. Holds the memory of the VM that it holds.
struct KvmMsi {
    vm: Arc<VmFd>,
    _memory: Arc<Memory>,
}

impl SignalMsi for KvmMsi {
    fn signal(&self, address: u64, data: u32) {
        let (address_lo, address_hi) = halves(address);
        let msi = kvm_msi { address_lo, address_hi, data, ..kvm_msi::default() };
        // KVM says 0 to a message that no local APIC takes, as a bus would.
        if let Err(errno) = self.vm.signal_msi(msi) {
            tracing::warn!("KVM_SIGNAL_MSI({address:#x}, {data:#x}): {errno}");
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// Disks and DMA engines of a guest.
pub(super) type Functions = (Vec<Arc<Disk>>, Vec<Arc<DmaEngine>>);

/// Opens the disks, starts the DMA engines and puts all on a PCI bus, which is there only if they are.
pub(super) fn add_functions(
    bus: &mut SharedBus,
    config: &VmConfig,
    vm: &Arc<VmFd>,
    memory: &Arc<Memory>,
) -> Result<Functions, RunError> {
    let to: Arc<dyn SignalMsi> = Arc::new(KvmMsi { vm: vm.clone(), _memory: memory.clone() });
    let mut disks = Vec::new();
    let mut functions: Vec<Box<dyn Function>> = Vec::new();
    for (spec, base) in config.disks.iter().zip((layout::DISK_BARS..).step_by(BAR_BYTES as usize)) {
        let msix = Msix::new(to.clone());
        let disk = Arc::new(Disk::start(spec, memory.clone(), msix.clone(), config.seccomp)?);
        functions.push(Box::new(VirtioPci::new(disk.clone(), memory.clone(), msix, base)));
        disks.push(disk);
    }
    let mut engines = Vec::new();
    for (number, base) in (0..config.dma.len()).zip((layout::DMA_BARS..).step_by(DMA_BAR_BYTES as usize)) {
        let Some(spec) = config.dma.get(number) else { continue };
        let msix = Msix::new(to.clone());
        let about = (number, spec.address_bits);
        let engine =
            Arc::new(DmaEngine::start(about, memory.clone(), &config.ram, msix.clone(), config.seccomp)?);
        functions.push(Box::new(DmaFunction::new(engine.clone(), msix, base)));
        engines.push(engine);
    }
    add_pci(bus, functions)?;
    Ok((disks, engines))
}

/// Puts `functions` on a PCI bus, unless there are none.
///
/// # Errors
/// [`BusError`]: another device is there.
pub fn add_pci(bus: &mut SharedBus, functions: Vec<Box<dyn Function>>) -> Result<(), BusError> {
    if functions.is_empty() {
        return Ok(());
    }
    let root = Arc::new(Mutex::new(PciRoot::new(functions)));
    let (base, len) = (layout::PCI_WINDOW, layout::PCI_WINDOW_END - layout::PCI_WINDOW);
    bus.pio.insert("pci", PciPorts::BASE, PciPorts::LEN, Arc::new(Mutex::new(PciPorts(root.clone()))))?;
    bus.mmio.insert("pci-window", base, len, Arc::new(Mutex::new(PciWindow { root, base })))
}
