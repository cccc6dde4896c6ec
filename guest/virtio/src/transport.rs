//! How driver and device agree, by the common registers (virtio 1.2 sections 3.1 and 4.1.4.3).

/// The common registers.
pub trait Registers {
    /// Reads a byte.
    fn read8(&self, offset: u32) -> u8;
    /// Reads two bytes.
    fn read16(&self, offset: u32) -> u16;
    /// Reads a word.
    fn read32(&self, offset: u32) -> u32;
    /// Writes a byte.
    fn write8(&self, offset: u32, value: u8);
    /// Writes two bytes.
    fn write16(&self, offset: u32, value: u16);
    /// Writes a word.
    fn write32(&self, offset: u32, value: u32);
}

const DEVICE_FEATURE_SELECT: u32 = 0x00;
const DEVICE_FEATURE: u32 = 0x04;
const DRIVER_FEATURE_SELECT: u32 = 0x08;
const DRIVER_FEATURE: u32 = 0x0c;
const CONFIG_VECTOR: u32 = 0x10;
const STATUS: u32 = 0x14;
const GENERATION: u32 = 0x15;
const QUEUE_SELECT: u32 = 0x16;
const QUEUE_SIZE: u32 = 0x18;
const QUEUE_VECTOR: u32 = 0x1a;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_NOTIFY_OFF: u32 = 0x1e;
const QUEUE_RINGS: u32 = 0x20;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;
const FAILED: u8 = 0x80;

/// The device has the interface of virtio 1; always asked for.
pub const VERSION_1: u64 = 1 << 32;
/// No vector.
pub const NO_VECTOR: u16 = 0xffff;
/// Reads of the status after which a device that does not reset never will.
const RESET_READS: u32 = 1_000_000;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitError {
    /// Its status never becomes 0.
    NoReset,
    /// It is older than virtio 1.
    Legacy,
    /// It does not accept the features that it offers.
    FeaturesRefused,
    /// It has no such queue.
    NoQueue,
    /// It has no vector for the queue.
    NoVector,
}

/// A queue as the device is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries.
    pub size: u16,
    /// Physical addresses of descriptor table, available ring and used ring.
    pub rings: [u64; 3],
    /// Entry of the MSI-X table for its interrupts.
    pub vector: u16,
}

/// Resets the device and agrees on those of `wanted` that it offers; they are the answer.
///
/// # Errors
/// [`InitError`]; the device is marked as failed.
pub fn negotiate(registers: &impl Registers, wanted: u64) -> Result<u64, InitError> {
    reset(registers)?;
    registers.write8(STATUS, ACKNOWLEDGE);
    registers.write8(STATUS, ACKNOWLEDGE | DRIVER);
    registers.write32(DEVICE_FEATURE_SELECT, 0);
    let low = registers.read32(DEVICE_FEATURE);
    registers.write32(DEVICE_FEATURE_SELECT, 1);
    let high = registers.read32(DEVICE_FEATURE);
    let offered = u64::from(low) | u64::from(high) << 32;
    if offered & VERSION_1 == 0 {
        return Err(fail(registers, InitError::Legacy));
    }
    let features = offered & (wanted | VERSION_1);
    let (low, high) = halves(features);
    registers.write32(DRIVER_FEATURE_SELECT, 0);
    registers.write32(DRIVER_FEATURE, low);
    registers.write32(DRIVER_FEATURE_SELECT, 1);
    registers.write32(DRIVER_FEATURE, high);
    registers.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if registers.read8(STATUS) & FEATURES_OK == 0 {
        return Err(fail(registers, InitError::FeaturesRefused));
    }
    Ok(features)
}

/// Resets the device.
///
/// # Errors
/// [`InitError::NoReset`].
pub fn reset(registers: &impl Registers) -> Result<(), InitError> {
    registers.write8(STATUS, 0);
    match (0..RESET_READS).any(|_| registers.read8(STATUS) == 0) {
        true => Ok(()),
        false => Err(InitError::NoReset),
    }
}

/// Most entries of queue `index`; 0 if there is no such queue.
pub fn queue_size(registers: &impl Registers, index: u16) -> u16 {
    registers.write16(QUEUE_SELECT, index);
    registers.read16(QUEUE_SIZE)
}

/// Gives the device queue `index`; the number of its doorbell.
///
/// # Errors
/// [`InitError`]; the device is marked as failed.
pub fn set_queue(registers: &impl Registers, index: u16, queue: &QueueSetup) -> Result<u16, InitError> {
    if queue_size(registers, index) < queue.size {
        return Err(fail(registers, InitError::NoQueue));
    }
    registers.write16(CONFIG_VECTOR, NO_VECTOR);
    registers.write16(QUEUE_SIZE, queue.size);
    registers.write16(QUEUE_VECTOR, queue.vector);
    if registers.read16(QUEUE_VECTOR) != queue.vector {
        return Err(fail(registers, InitError::NoVector));
    }
    for (ring, at) in queue.rings.into_iter().zip([QUEUE_RINGS, QUEUE_RINGS + 8, QUEUE_RINGS + 16]) {
        let (low, high) = halves(ring);
        registers.write32(at, low);
        registers.write32(at + 4, high);
    }
    let doorbell = registers.read16(QUEUE_NOTIFY_OFF);
    registers.write16(QUEUE_ENABLE, 1);
    Ok(doorbell)
}

/// The driver is ready: the device may begin.
pub fn start(registers: &impl Registers) {
    registers.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

/// Whether the device asks for a reset.
pub fn needs_reset(registers: &impl Registers) -> bool {
    registers.read8(STATUS) & NEEDS_RESET != 0
}

/// Reads the device's configuration with `read` until it did not change meanwhile; at most eight times.
pub fn read_config<R>(registers: &impl Registers, mut read: impl FnMut() -> R) -> R {
    for _ in 0..7 {
        let before = registers.read8(GENERATION);
        let value = read();
        if registers.read8(GENERATION) == before {
            return value;
        }
    }
    read()
}

fn fail(registers: &impl Registers, error: InitError) -> InitError {
    registers.write8(STATUS, FAILED);
    error
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Registers that keep what is written, and their effects as the specification has them.
    struct Model {
        bytes: RefCell<[u8; 0x40]>,
        offered: u64,
        accepts: bool,
        resets: bool,
        vectors: u16,
    }

    impl Model {
        fn new() -> Model {
            let model = Model {
                bytes: RefCell::new([0; 0x40]),
                offered: VERSION_1 | 0x204,
                accepts: true,
                resets: true,
                vectors: 2,
            };
            model.put(QUEUE_SIZE, &256_u16.to_le_bytes());
            model.put(QUEUE_NOTIFY_OFF, &3_u16.to_le_bytes());
            model
        }

        fn put(&self, at: u32, value: &[u8]) {
            self.bytes.borrow_mut()[at as usize..at as usize + value.len()].copy_from_slice(value);
        }

        fn take<const N: usize>(&self, at: u32) -> [u8; N] {
            self.bytes.borrow()[at as usize..at as usize + N].try_into().expect("N bytes")
        }
    }

    impl Registers for Model {
        fn read8(&self, offset: u32) -> u8 {
            self.take::<1>(offset)[0]
        }
        fn read16(&self, offset: u32) -> u16 {
            u16::from_le_bytes(self.take(offset))
        }
        fn read32(&self, offset: u32) -> u32 {
            if offset == DEVICE_FEATURE {
                let (low, high) = halves(self.offered);
                return if self.read32(DEVICE_FEATURE_SELECT) == 0 { low } else { high };
            }
            u32::from_le_bytes(self.take(offset))
        }
        fn write8(&self, offset: u32, value: u8) {
            let value = match offset {
                STATUS if !self.accepts => value & !FEATURES_OK,
                STATUS if value == 0 && !self.resets => 1,
                _ => value,
            };
            self.put(offset, &[value]);
        }
        fn write16(&self, offset: u32, value: u16) {
            let lacks = offset == QUEUE_VECTOR && value >= self.vectors;
            self.put(offset, &if lacks { NO_VECTOR } else { value }.to_le_bytes());
        }
        fn write32(&self, offset: u32, value: u32) {
            self.put(offset, &value.to_le_bytes());
        }
    }

    #[test]
    fn a_device_and_its_driver_agree_on_what_both_have() {
        let device = Model::new();
        assert_eq!(negotiate(&device, 0x208), Ok(VERSION_1 | 0x200));
        assert_eq!(device.read32(DRIVER_FEATURE), 1);
        let queue = QueueSetup { size: 128, rings: [0x1_0000_1000, 0x2000, 0x3000], vector: 1 };
        assert_eq!(set_queue(&device, 0, &queue), Ok(3));
        assert_eq!((device.read32(QUEUE_RINGS), device.read32(QUEUE_RINGS + 4)), (0x1000, 1));
        assert_eq!((device.read16(QUEUE_SIZE), device.read16(QUEUE_ENABLE)), (128, 1));
        start(&device);
        assert_eq!(device.read8(STATUS), 0xf);
        assert!(!needs_reset(&device));
    }

    #[test]
    fn a_device_that_does_not_agree_is_given_up() {
        let refuses = Model { accepts: false, ..Model::new() };
        assert_eq!(negotiate(&refuses, 0), Err(InitError::FeaturesRefused));
        let legacy = Model { offered: 0x204, ..Model::new() };
        assert_eq!(negotiate(&legacy, 0), Err(InitError::Legacy));
        assert_eq!(legacy.read8(STATUS), FAILED);
        let dead = Model { resets: false, ..Model::new() };
        assert_eq!(negotiate(&dead, 0), Err(InitError::NoReset));
        let queue = QueueSetup { size: 128, rings: [0; 3], vector: 1 };
        let one_vector = Model { vectors: 1, ..Model::new() };
        assert_eq!(set_queue(&one_vector, 0, &queue), Err(InitError::NoVector));
        let small = Model::new();
        small.put(QUEUE_SIZE, &[0, 0]);
        assert_eq!(set_queue(&small, 0, &queue), Err(InitError::NoQueue));
    }
}
