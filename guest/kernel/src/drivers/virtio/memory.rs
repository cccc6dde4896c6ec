//! Memory that a device sees too: its registers, and the frames of a queue.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use guest_virtio::RingMemory;
use guest_virtio::pci::{self, Part};
use guest_virtio::transport::Registers;
use mm_core::{Gfp, MaySleep, Order, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};

use crate::drivers::pci::Function;
use crate::mm::ioremap::ioremap;
use crate::mm::{page_alloc, phys};

/// A part of a BAR, mapped uncached for ever. Offsets past its end are not accessed: they read as ones.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    va: VirtAddr,
    len: u32,
}

impl Mmio {
    /// Maps `part` of a BAR of `function`; `None` if firmware gave it no address or there is no room.
    pub fn map(function: Function, part: Part, context: &MaySleep<'_>) -> Option<Mmio> {
        let address = pci::part_address(&function, part)?;
        let within = address % PAGE_SIZE;
        let len = (within + u64::from(part.len)).next_multiple_of(PAGE_SIZE);
        let va = ioremap(PhysAddr::new(address - within), len, context).ok()?;
        Some(Mmio { va: VirtAddr::new(va.as_u64() + within), len: part.len })
    }

    fn address(&self, offset: u32, len: u32) -> Option<u64> {
        let fits = offset.is_multiple_of(len) && offset.checked_add(len)? <= self.len;
        fits.then_some(self.va.as_u64() + u64::from(offset))
    }
}

impl Registers for Mmio {
    fn read8(&self, offset: u32) -> u8 {
        let Some(address) = self.address(offset, 1) else { return u8::MAX };
        // SAFETY: inside a mapping that `map` made and nobody undoes; registers belong to no Rust object.
        unsafe { (address as *const u8).read_volatile() }
    }

    fn read16(&self, offset: u32) -> u16 {
        let Some(address) = self.address(offset, 2) else { return u16::MAX };
        // SAFETY: as for `read8`; aligned, because parts are and `address` checked the offset.
        unsafe { (address as *const u16).read_volatile() }
    }

    fn read32(&self, offset: u32) -> u32 {
        let Some(address) = self.address(offset, 4) else { return u32::MAX };
        // SAFETY: as for `read16`.
        unsafe { (address as *const u32).read_volatile() }
    }

    fn write8(&self, offset: u32, value: u8) {
        let Some(address) = self.address(offset, 1) else { return };
        // SAFETY: as for `read8`.
        unsafe { (address as *mut u8).write_volatile(value) }
    }

    fn write16(&self, offset: u32, value: u16) {
        let Some(address) = self.address(offset, 2) else { return };
        // SAFETY: as for `read16`.
        unsafe { (address as *mut u16).write_volatile(value) }
    }

    fn write32(&self, offset: u32, value: u32) {
        let Some(address) = self.address(offset, 4) else { return };
        // SAFETY: as for `read16`.
        unsafe { (address as *mut u32).write_volatile(value) }
    }
}

/// A frame that a device reads and writes while the kernel does.
#[derive(Clone, Copy, Debug)]
pub struct DmaFrame {
    pfn: Pfn,
    words: &'static [AtomicU32],
}

impl DmaFrame {
    /// A frame of zeroes in the direct map, kept for ever.
    pub fn alloc() -> Option<DmaFrame> {
        let pfn = page_alloc::alloc_here(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None)?;
        Some(DmaFrame { pfn, words: phys::half_words(pfn.phys(), PAGE_SIZE / 4) })
    }

    /// The frame.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// Physical address of the byte at `offset`.
    pub const fn addr(&self, offset: u32) -> u64 {
        self.pfn.phys().as_u64() + offset as u64
    }

    /// The byte at `offset`.
    pub fn byte(&self, offset: u32) -> u8 {
        let word = self.load(offset & !3).to_le_bytes();
        word.get((offset & 3) as usize).copied().unwrap_or(0)
    }

    fn word(&self, offset: u32) -> Option<&'static AtomicU32> {
        self.words.get((offset / 4) as usize)
    }
}

impl RingMemory for DmaFrame {
    fn load(&self, offset: u32) -> u32 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, offset: u32, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}
