//! Virtio over PCI (virtio 1.2 section 4.1), for a disk: one queue, two MSI-X vectors, no legacy interface.
//!
//! T1  the registers are in BAR 0, a page for each of the parts that the capabilities name;
//! T2  a queue is given to the disk when the driver sets DRIVER_OK, and only if its rings are in RAM; what is
//!     written to a queue that is enabled is dropped, as after a reset everything is as at first;
//! T3  a driver that breaks a ring finds DEVICE_NEEDS_RESET in the status.

use std::sync::Arc;

use virtio_bindings::{
    virtio_blk::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX},
    virtio_config::{
        VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_VERSION_1,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
};
use virtio_queue::{Queue, QueueT};

use super::disk::Disk;
use super::msix::{Msix, VECTORS};
use crate::{
    devices::pci::{ConfigSpace, Function, Header},
    memory::Memory,
};

/// Bytes of BAR 0.
pub const BAR_BYTES: u32 = 0x8000;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 256;
/// No vector.
const NO_VECTOR: u16 = 0xffff;

// Parts of BAR 0.
const COMMON: u64 = 0x0000;
const COMMON_BYTES: usize = 0x3c;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const PART_MASK: u64 = 0xfff;

const VENDOR_REDHAT_QUMRANET: u16 = 0x1af4;
/// PCI device id of a modern device: this plus its virtio id.
const MODERN: u16 = 0x1040;
/// Mass storage, other.
const CLASS: u32 = 0x01_8000;

// Capabilities (virtio 1.2 section 4.1.4).
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// In the message control word.
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// A disk in a slot of the bus.
#[derive(Debug)]
pub struct VirtioPci {
    config: ConfigSpace,
    disk: Arc<Disk>,
    memory: Arc<Memory>,
    msix: Msix,
    msix_at: usize,
    window_at: usize,
    features: u64,
    registers: Registers,
    queue: Option<Queue>,
}

/// What the driver wrote.
#[derive(Debug)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queue_size: u16,
    queue_vector: u16,
    queue_enable: bool,
    /// Descriptor table, available ring, used ring.
    rings: [u64; 3],
}

impl Registers {
    const fn new() -> Registers {
        Registers {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queue_size: QUEUE_SIZE,
            queue_vector: NO_VECTOR,
            queue_enable: false,
            rings: [0; 3],
        }
    }
}

impl VirtioPci {
    /// Puts `disk`, which interrupts through `msix`, behind BAR 0 at `base`.
    pub fn new(disk: Arc<Disk>, memory: Arc<Memory>, msix: Msix, base: u32) -> VirtioPci {
        let id = u16::try_from(VIRTIO_ID_BLOCK).unwrap_or(0);
        let mut config = ConfigSpace::new(&Header {
            vendor: VENDOR_REDHAT_QUMRANET,
            device: MODERN + id,
            class: CLASS,
            revision: 1,
            subsystem: (VENDOR_REDHAT_QUMRANET, MODERN + id),
        });
        config.set_bar0(base, BAR_BYTES);
        let mut control = [0; 10];
        let size = u16::try_from(VECTORS).unwrap_or(1) - 1;
        fill(&mut control, 0, &size.to_le_bytes());
        fill(&mut control, 2, &u32::try_from(TABLE).unwrap_or(0).to_le_bytes());
        fill(&mut control, 6, &u32::try_from(PENDING).unwrap_or(0).to_le_bytes());
        let msix_at = config.add_capability(CAP_MSIX, &control, &(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
        let part = |kind, offset: u64, len: u32| {
            let mut body = [0; 14];
            fill(&mut body, 0, &[16, kind]);
            fill(&mut body, 6, &u32::try_from(offset).unwrap_or(0).to_le_bytes());
            fill(&mut body, 10, &len.to_le_bytes());
            body
        };
        config.add_capability(CAP_VENDOR, &part(CFG_COMMON, COMMON, 0x3c), &[]);
        config.add_capability(CAP_VENDOR, &part(CFG_ISR, ISR, 1), &[]);
        config.add_capability(CAP_VENDOR, &part(CFG_DEVICE, DEVICE, 0x1000), &[]);
        // A multiplier of 0 for one queue; four bytes more than the others.
        let mut notify = [0; 18];
        fill(&mut notify, 0, &part(CFG_NOTIFY, NOTIFY, 2));
        fill(&mut notify, 0, &[20]);
        config.add_capability(CAP_VENDOR, &notify, &[]);
        let mut window = [0; 18];
        fill(&mut window, 0, &part(CFG_PCI, 0, 0));
        fill(&mut window, 0, &[20]);
        // BAR, offset, length and the data itself.
        let mut writable = [0xff; 18];
        fill(&mut writable, 0, &[0, 0, 0xff, 0, 0, 0]);
        let window_at = config.add_capability(CAP_VENDOR, &window, &writable);
        let bits = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_F_VERSION_1];
        let read_only = disk.is_read_only().then_some(VIRTIO_BLK_F_RO);
        let features = bits.into_iter().chain(read_only).map(|bit| 1_u64 << bit).sum();
        VirtioPci {
            config,
            disk,
            memory,
            msix,
            msix_at,
            window_at,
            features,
            registers: Registers::new(),
            queue: None,
        }
    }

    /// The registers of the common part as bytes (virtio 1.2 section 4.1.4.3).
    fn common(&self) -> [u8; COMMON_BYTES] {
        let r = &self.registers;
        let selected = r.queue_select == 0;
        let queue = |value: u16| if selected { value } else { 0 };
        let mut bytes = [0; COMMON_BYTES];
        fill(&mut bytes, 0x00, &r.device_feature_select.to_le_bytes());
        fill(&mut bytes, 0x04, &half(self.features, r.device_feature_select).to_le_bytes());
        fill(&mut bytes, 0x08, &r.driver_feature_select.to_le_bytes());
        fill(&mut bytes, 0x0c, &half(r.driver_features, r.driver_feature_select).to_le_bytes());
        fill(&mut bytes, 0x10, &r.config_vector.to_le_bytes());
        fill(&mut bytes, 0x12, &1_u16.to_le_bytes());
        fill(&mut bytes, 0x14, &[self.status()]);
        fill(&mut bytes, 0x16, &r.queue_select.to_le_bytes());
        fill(&mut bytes, 0x18, &queue(r.queue_size).to_le_bytes());
        fill(&mut bytes, 0x1a, &(if selected { r.queue_vector } else { NO_VECTOR }).to_le_bytes());
        fill(&mut bytes, 0x1c, &queue(r.queue_enable.into()).to_le_bytes());
        if selected {
            for (ring, at) in r.rings.iter().zip([0x20, 0x28, 0x30]) {
                fill(&mut bytes, at, &ring.to_le_bytes());
            }
        }
        bytes
    }

    fn status(&self) -> u8 {
        let needs_reset = if self.disk.is_broken() { bit(VIRTIO_CONFIG_S_NEEDS_RESET) } else { 0 };
        self.registers.status | needs_reset
    }

    /// The device's own part: capacity, seg_max, blk_size (section 5.2.4).
    fn device(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        fill(&mut bytes, 0, &self.disk.sectors().to_le_bytes());
        // All descriptors but those of header and status.
        fill(&mut bytes, 12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        fill(&mut bytes, 20, &512_u32.to_le_bytes());
        bytes
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let short = || data.first_chunk().copied().map(u16::from_le_bytes);
        let long = || data.first_chunk().copied().map(u32::from_le_bytes);
        let r = &mut self.registers;
        // Rings and size are fixed once the queue is enabled.
        let open = r.queue_select == 0 && !r.queue_enable;
        match (offset, data.len(), short(), long()) {
            (0x00, 4, _, Some(value)) => r.device_feature_select = value,
            (0x08, 4, _, Some(value)) => r.driver_feature_select = value,
            (0x0c, 4, _, Some(value)) if r.status & bit(VIRTIO_CONFIG_S_FEATURES_OK) == 0 => {
                let shift = match r.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                r.driver_features =
                    r.driver_features & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
            }
            (0x10, 2, Some(value), _) => r.config_vector = known_vector(value),
            (0x14, 1, _, _) => self.write_status(data.first().copied().unwrap_or(0)),
            (0x16, 2, Some(value), _) => r.queue_select = value,
            (0x18, 2, Some(value), _) if open && value.is_power_of_two() && value <= QUEUE_SIZE => {
                r.queue_size = value;
            }
            (0x1a, 2, Some(value), _) if r.queue_select == 0 => r.queue_vector = known_vector(value),
            (0x1c, 2, Some(1), _) if r.queue_select == 0 => r.queue_enable = true,
            (0x20..0x38, 4, _, Some(value)) if open && offset.is_multiple_of(4) => {
                let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
                let index = usize::try_from((offset - 0x20) / 8).unwrap_or(0);
                if let Some(ring) = r.rings.get_mut(index) {
                    *ring = *ring & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
                }
            }
            (0x20..0x38, 8, _, _) if offset.is_multiple_of(8) => {
                if let Some((low, high)) = data.split_at_checked(4) {
                    self.write_common(offset, low);
                    self.write_common(offset + 4, high);
                }
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.disk.detach();
            self.queue = None;
            self.registers = Registers::new();
            return;
        }
        let mut status = value;
        let r = &self.registers;
        let acceptable =
            r.driver_features & !self.features == 0 && r.driver_features >> VIRTIO_F_VERSION_1 & 1 == 1;
        if !acceptable {
            status &= !bit(VIRTIO_CONFIG_S_FEATURES_OK);
        }
        let driver_ok = bit(VIRTIO_CONFIG_S_DRIVER_OK);
        let starts = status & !r.status & driver_ok != 0 && status & bit(VIRTIO_CONFIG_S_FEATURES_OK) != 0;
        if starts && r.queue_enable {
            match self.make_queue() {
                Some(queue) => self.disk.attach(queue, self.registers.queue_vector),
                None => status |= bit(VIRTIO_CONFIG_S_NEEDS_RESET),
            }
        }
        self.registers.status = status;
    }

    /// The queue that the driver described; `None` if it is not one, or not in RAM.
    fn make_queue(&self) -> Option<Queue> {
        let r = &self.registers;
        let mut queue = Queue::new(QUEUE_SIZE).ok()?;
        queue.set_size(r.queue_size);
        let [desc, avail, used] = r.rings.map(halves);
        queue.set_desc_table_address(desc.0, desc.1);
        queue.set_avail_ring_address(avail.0, avail.1);
        queue.set_used_ring_address(used.0, used.1);
        queue.set_ready(true);
        queue.is_valid(self.memory.guest()).then_some(queue)
    }

    /// Where the window in configuration space leads: offset in BAR 0 and length.
    fn window(&self) -> Option<(u64, usize)> {
        let mut head = [0; 16];
        self.config.read(self.window_at, &mut head);
        let bar = head.get(4).copied()?;
        let offset = u64::from(self.config.u32(self.window_at + 8));
        let len = self.config.u32(self.window_at + 12);
        let fits = bar == 0 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(u64::from(len));
        let inside = offset < u64::from(BAR_BYTES);
        (fits && inside).then_some((offset, usize::try_from(len).unwrap_or(4)))
    }
}

impl Function for VirtioPci {
    fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        if offset == self.window_at + 16
            && let Some((at, len)) = self.window()
        {
            let mut word = [0; 4];
            if let Some(part) = word.get_mut(..len) {
                self.bar_read(at, part);
            }
            self.config.write(offset, &word);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        if offset == self.window_at + 16
            && let Some((at, len)) = self.window()
            && let Some(part) = data.get(..len)
        {
            self.bar_write(at, part);
        }
        let control = self.config.u16(self.msix_at + 2);
        self.msix.control(control & MSIX_ENABLE != 0, control & MSIX_MASK != 0);
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = usize::try_from(offset & PART_MASK).unwrap_or(usize::MAX);
        match offset & !PART_MASK {
            COMMON => copy(&self.common(), within, data),
            ISR if within == 0 => {
                let used = u8::from(self.disk.take_interrupt_status());
                copy(&[used], 0, data);
            }
            DEVICE => copy(&self.device(), within, data),
            TABLE => self.msix.read_table(within, data),
            PENDING => copy(&self.msix.pending().to_le_bytes(), within, data),
            _ => {}
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        let within = offset & PART_MASK;
        match offset & !PART_MASK {
            COMMON => self.write_common(within, data),
            NOTIFY if within == 0 => self.disk.notify(),
            TABLE => self.msix.write_table(usize::try_from(within).unwrap_or(usize::MAX), data),
            _ => {}
        }
    }
}

/// A bit of the status byte.
fn bit(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(0)
}

fn known_vector(vector: u16) -> u16 {
    if usize::from(vector) < VECTORS { vector } else { NO_VECTOR }
}

/// The half of a 64-bit field that a select register names.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => halves(value).0.unwrap_or(0),
        1 => halves(value).1.unwrap_or(0),
        _ => 0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
fn halves(value: u64) -> (Option<u32>, Option<u32>) {
    (Some(value as u32), Some((value >> 32) as u32))
}

fn fill(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(part) = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        part.copy_from_slice(value);
    }
}

/// What of `bytes` is at `from` on; the rest of `data` stays.
fn copy(bytes: &[u8], from: usize, data: &mut [u8]) {
    for (to, byte) in data.iter_mut().zip(bytes.iter().skip(from)) {
        *to = *byte;
    }
}

#[cfg(test)]
mod tests;
