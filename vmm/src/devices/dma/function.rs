//! An engine's place on the PCI bus.

use std::sync::Arc;

use memvisor_abi::dma::{BAR_BYTES, CLASS, DEVICE, MSIX_PENDING, MSIX_TABLE, Register, VENDOR};

use super::DmaEngine;
use crate::devices::{
    pci::{ConfigSpace, Function, Header},
    virtio::{MSIX_VECTORS, Msix},
};

const CAP_MSIX: u8 = 0x11;
/// In the message control word.
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;
const COMMAND: usize = 0x04;
/// In the command register.
const BUS_MASTER: u16 = 1 << 2;
const PAGE_MASK: u64 = 0xfff;

/// An engine in a slot of the bus.
#[derive(Debug)]
pub struct DmaFunction {
    config: ConfigSpace,
    engine: Arc<DmaEngine>,
    msix: Msix,
    msix_at: usize,
}

impl DmaFunction {
    /// Puts `engine`, which interrupts through `msix`, behind BAR 0 at `base`.
    pub fn new(engine: Arc<DmaEngine>, msix: Msix, base: u32) -> DmaFunction {
        let mut config = ConfigSpace::new(&Header {
            vendor: VENDOR,
            device: DEVICE,
            class: CLASS,
            revision: 1,
            subsystem: (VENDOR, DEVICE),
        });
        config.set_bar0(base, BAR_BYTES);
        // Message control, then offset and BAR (0) of the table and of the pending bits.
        let size = u16::try_from(MSIX_VECTORS).unwrap_or(1) - 1;
        let body = [&size.to_le_bytes()[..], &MSIX_TABLE.to_le_bytes(), &MSIX_PENDING.to_le_bytes()].concat();
        let msix_at = config.add_capability(CAP_MSIX, &body, &(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
        DmaFunction { config, engine, msix, msix_at }
    }
}

/// The register and the bits of it that an access of `len` bytes means: all, or one half.
fn decode(offset: u64, len: usize) -> Option<(Register, u32, u64)> {
    let register = Register::at(offset & !7)?;
    match (len, offset & 7) {
        (8, 0) => Some((register, 0, u64::MAX)),
        (4, 0) => Some((register, 0, u64::from(u32::MAX))),
        (4, 4) => Some((register, 32, u64::from(u32::MAX) << 32)),
        _ => None,
    }
}

impl Function for DmaFunction {
    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.config.u16(self.msix_at + 2);
        self.msix.control(control & MSIX_ENABLE != 0, control & MSIX_MASK != 0);
        self.engine.set_master(self.config.u16(COMMAND) & BUS_MASTER != 0);
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset & PAGE_MASK;
        let in_page = usize::try_from(within).unwrap_or(usize::MAX);
        match u32::try_from(offset & !PAGE_MASK) {
            Ok(0) => {
                let Some((register, shift, _)) = decode(within, data.len()) else { return };
                let value = self.engine.read(register) >> shift;
                data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte);
            }
            Ok(MSIX_TABLE) => self.msix.read_table(in_page, data),
            Ok(MSIX_PENDING) => {
                let pending = self.msix.pending().to_le_bytes();
                data.iter_mut().zip(pending.iter().skip(in_page)).for_each(|(to, byte)| *to = *byte);
            }
            _ => {}
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        let within = offset & PAGE_MASK;
        match u32::try_from(offset & !PAGE_MASK) {
            Ok(0) => {
                let Some((register, shift, mask)) = decode(within, data.len()) else { return };
                let mut bytes = [0; 8];
                bytes.iter_mut().zip(data).for_each(|(to, byte)| *to = *byte);
                self.engine.write(register, u64::from_le_bytes(bytes) << shift, mask);
            }
            Ok(MSIX_TABLE) => self.msix.write_table(usize::try_from(within).unwrap_or(usize::MAX), data),
            _ => {}
        }
    }
}
