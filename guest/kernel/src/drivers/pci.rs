//! The PCI bus of a PC: configuration mechanism #1 and the functions of bus 0 (Linux: arch/x86/pci/direct.c).
//!
//! Differs from Linux: buses behind bridges are not looked at, and BARs stay where firmware put them.

use guest_virtio::pci::{self, ConfigSpace, MsixCap};

use crate::arch::regs::{inl, outl};
use crate::sync::Lock;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const COMMAND: u8 = 0x04;
/// The function answers in memory space.
const MEMORY_SPACE: u32 = 1 << 1;
/// The function may read and write memory.
const BUS_MASTER: u32 = 1 << 2;
/// The function has no interrupt line.
const NO_INTX: u32 = 1 << 10;
/// Upper half of the word: status bits, which a one clears.
const STATUS: u32 = 0xffff_0000;

/// The two ports are one register set for all CPUs.
static PORTS: Lock<()> = Lock::new(());

/// A function of bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl Function {
    fn address(self, offset: u8) -> u32 {
        ENABLE | u32::from(self.device) << 11 | u32::from(self.function) << 8 | u32::from(offset & !3)
    }

    /// Writes the word at `offset`.
    pub fn write(self, offset: u8, value: u32) {
        let _ports = PORTS.lock();
        outl(CONFIG_ADDRESS, self.address(offset));
        outl(CONFIG_DATA, value);
    }

    /// Lets it answer in memory space and reach memory (Linux: `pci_enable_device_mem`, `pci_set_master`).
    pub fn enable(self) {
        let command = self.read(COMMAND) & !STATUS;
        self.write(COMMAND, command | MEMORY_SPACE | BUS_MASTER | NO_INTX);
    }

    /// Lets it neither reach memory nor interrupt.
    pub fn disable(self) {
        let command = self.read(COMMAND) & !STATUS;
        self.write(COMMAND, command & !BUS_MASTER);
    }

    /// Turns MSI-X on with all vectors as their entries say.
    pub fn enable_msix(self, cap: &MsixCap) {
        let control = self.read(cap.at) & !pci::MSIX_MASK_ALL;
        self.write(cap.at, control | pci::MSIX_ENABLE);
    }
}

impl ConfigSpace for Function {
    fn read(&self, offset: u8) -> u32 {
        let _ports = PORTS.lock();
        outl(CONFIG_ADDRESS, self.address(offset));
        inl(CONFIG_DATA)
    }
}

/// Calls `found` for every function of bus 0, with its vendor and device; not at all on a machine without a bus.
pub fn scan(mut found: impl FnMut(Function, (u16, u16))) {
    let bridge = Function { device: 0, function: 0 };
    if pci::id(&bridge).is_none() {
        return;
    }
    for device in 0..32 {
        let first = Function { device, function: 0 };
        let Some(id) = pci::id(&first) else { continue };
        found(first, id);
        if !pci::is_multi_function(&first) {
            continue;
        }
        for function in 1..8 {
            let other = Function { device, function };
            if let Some(id) = pci::id(&other) {
                found(other, id);
            }
        }
    }
}
