//! A PCI bus: configuration mechanism #1 and the window of memory in which functions have their BARs
//! (PCI Local Bus 3.0 sections 3.2.2.3.2 and 6).
//!
//! P1  there is bus 0 only; device 0 is the host bridge, every further device has function 0 only;
//! P2  a function answers in the window where its BAR 0 says, and only while memory space is enabled in its
//!     command register; where two say the same, the one of the lower number answers;
//! P3  whatever is not there reads as ones, and writes to it are dropped.

mod config;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

pub use config::{ConfigSpace, Header};

use super::{Device, Effect};

/// Functions of a bus besides the host bridge.
pub const MAX_FUNCTIONS: usize = 31;

/// A function in a slot of the bus.
pub trait Function: Send {
    /// Its configuration space.
    fn config(&mut self) -> &mut ConfigSpace;

    /// Fills `data` from configuration byte `offset` on; `offset + data.len()` is at most 256.
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Takes `data` at configuration byte `offset`.
    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config().write(offset, data);
    }

    /// Fills `data` from `offset` bytes into BAR 0 on.
    fn bar_read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data` at `offset` bytes into BAR 0.
    fn bar_write(&mut self, offset: u64, data: &[u8]);
}

/// The host bridge and the functions behind it.
pub struct PciRoot {
    address: u32,
    bridge: ConfigSpace,
    functions: Vec<Box<dyn Function>>,
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciRoot").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

/// The host bridge's ids: Red Hat's of QEMU's generic bridge, which no driver binds to.
const BRIDGE: Header =
    Header { vendor: 0x1b36, device: 0x0008, class: 0x06_0000, revision: 1, subsystem: (0x1af4, 0x1100) };

/// CONFIG_ADDRESS: accesses to CONFIG_DATA are configuration cycles.
const ENABLE: u32 = 1 << 31;

impl PciRoot {
    /// A bus with `functions` in slots from 1 on; those past [`MAX_FUNCTIONS`] are not reachable.
    pub fn new(functions: Vec<Box<dyn Function>>) -> PciRoot {
        PciRoot { address: 0, bridge: ConfigSpace::new(&BRIDGE), functions }
    }

    /// Calls `f` with the slot that CONFIG_ADDRESS names, and the first byte of the addressed word.
    fn selected<R>(&mut self, f: impl FnOnce(Slot<'_>, usize) -> R) -> Option<R> {
        let (bus, slot) = (self.address >> 16 & 0xff, self.address >> 11 & 0x1f);
        if self.address & ENABLE == 0 || bus != 0 || self.address >> 8 & 7 != 0 {
            return None;
        }
        let at = (self.address & 0xfc) as usize;
        match (slot as usize).checked_sub(1) {
            None => Some(f(Slot::Bridge(&mut self.bridge), at)),
            Some(index) => {
                self.functions.get_mut(index).map(|function| f(Slot::Function(&mut **function), at))
            }
        }
    }

    /// The function that answers at `address`, and the offset in its BAR.
    fn find(&mut self, address: u64, len: u64) -> Option<(&mut Box<dyn Function>, u64)> {
        self.functions.iter_mut().find_map(|function| {
            let range = function.config().bar0()?;
            let offset = address.checked_sub(range.base)?;
            let end = offset.checked_add(len)?;
            (end <= range.len).then_some((function, offset))
        })
    }
}

enum Slot<'a> {
    Bridge(&'a mut ConfigSpace),
    Function(&'a mut dyn Function),
}

/// CONFIG_ADDRESS and CONFIG_DATA; put it at [`PciPorts::BASE`], length [`PciPorts::LEN`].
#[derive(Debug)]
pub struct PciPorts(pub Arc<Mutex<PciRoot>>);

impl PciPorts {
    /// CONFIG_ADDRESS.
    pub const BASE: u64 = 0xcf8;
    /// Ports.
    pub const LEN: u64 = 8;
}

impl Device for PciPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut root = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < 4 {
            // Only whole words reach the register.
            if let (0, Some(word)) = (offset, data.first_chunk_mut()) {
                *word = root.address.to_le_bytes();
            }
            return;
        }
        // At most one word: offset is 4 to 7.
        let within = (offset & 3) as usize;
        let len = data.len().min(4 - within);
        let Some(part) = data.get_mut(..len) else { return };
        root.selected(|slot, at| match slot {
            Slot::Bridge(config) => config.read(at + within, part),
            Slot::Function(function) => function.config_read(at + within, part),
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let mut root = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < 4 {
            if let (0, Some(word)) = (offset, data.first_chunk()) {
                root.address = u32::from_le_bytes(*word);
            }
            return None;
        }
        let within = (offset & 3) as usize;
        let part = data.get(..data.len().min(4 - within))?;
        root.selected(|slot, at| match slot {
            Slot::Bridge(config) => config.write(at + within, part),
            Slot::Function(function) => function.config_write(at + within, part),
        });
        None
    }
}

/// The memory window of the bus, whose first address is `base`.
#[derive(Debug)]
pub struct PciWindow {
    /// The bus.
    pub root: Arc<Mutex<PciRoot>>,
    /// First address.
    pub base: u64,
}

impl Device for PciWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, offset)) = root.find(self.base + offset, data.len() as u64) {
            function.bar_read(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let mut root = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, offset)) = root.find(self.base + offset, data.len() as u64) {
            function.bar_write(offset, data);
        }
        None
    }
}

#[cfg(test)]
mod tests;
