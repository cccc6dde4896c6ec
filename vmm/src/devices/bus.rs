//! An address space of devices.
//!
//! Reads that no device answers give all ones and writes are dropped, as on a PC bus. Both are
//! counted: a guest that probes wildly shows up in the statistics, not in a crash.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use thiserror::Error;

use super::{Device, Effect};

/// A range that cannot be claimed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BusError {
    /// Empty, or past the end of the address space.
    #[error("device {name} cannot claim {base:#x} (+{len:#x}): empty or wraps")]
    BadRange {
        /// The device.
        name: &'static str,
        /// First address.
        base: u64,
        /// Addresses.
        len: u64,
    },
    /// Another device is there.
    #[error("device {name} at {base:#x} (+{len:#x}) overlaps {other}")]
    Overlap {
        /// The device.
        name: &'static str,
        /// First address.
        base: u64,
        /// Addresses.
        len: u64,
        /// The device that is already there.
        other: &'static str,
    },
}

struct Slot {
    name: &'static str,
    len: u64,
    device: Arc<Mutex<dyn Device>>,
}

/// Devices by address: one bus for ports, one for MMIO.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
    unclaimed: AtomicU64,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.slots.iter().map(|(base, slot)| (base, slot.name))).finish()
    }
}

impl Bus {
    /// Puts `device` at `base..base + len`. One device may be put at several ranges.
    ///
    /// # Errors
    /// If the range is empty, wraps, or overlaps another device.
    pub fn insert(
        &mut self,
        name: &'static str,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn Device>>,
    ) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|more| base.checked_add(more));
        let Some(last) = last else { return Err(BusError::BadRange { name, base, len }) };
        if let Some((&start, slot)) = self.slots.range(..=last).next_back()
            && start + (slot.len - 1) >= base
        {
            return Err(BusError::Overlap { name, base, len, other: slot.name });
        }
        self.slots.insert(base, Slot { name, len, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`; all ones if no device is there.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.find(address) {
            Some((offset, slot)) => {
                slot.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => self.count_unclaimed("read", address, data.len()),
        }
    }

    /// Writes `data` at `address`; dropped if no device is there.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<Effect> {
        match self.find(address) {
            Some((offset, slot)) => {
                slot.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data)
            }
            None => {
                self.count_unclaimed("write", address, data.len());
                None
            }
        }
    }

    /// Accesses that no device answered.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64) -> Option<(u64, &Slot)> {
        let (&base, slot) = self.slots.range(..=address).next_back()?;
        let offset = address - base;
        (offset < slot.len).then_some((offset, slot))
    }

    fn count_unclaimed(&self, what: &str, address: u64, len: usize) {
        self.unclaimed.fetch_add(1, Ordering::Relaxed);
        tracing::debug!("{what} of {len} bytes at {address:#x}: no device");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Answers its tag and remembers the last write.
    struct Tag(u8, Option<(u64, Vec<u8>)>);

    impl Device for Tag {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(u8::try_from(offset).unwrap_or(0)));
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
            self.1 = Some((offset, data.to_vec()));
            Some(Effect::Exit(self.0))
        }
    }

    fn tag(value: u8) -> Arc<Mutex<Tag>> {
        Arc::new(Mutex::new(Tag(value, None)))
    }

    #[test]
    fn an_access_reaches_its_device_with_the_offset() {
        let mut bus = Bus::default();
        let device = tag(0x40);
        bus.insert("a", 0x3f8, 8, device.clone()).expect("free range");
        let mut byte = [0];
        bus.read(0x3fd, &mut byte);
        assert_eq!(byte, [0x45]);
        assert_eq!(bus.write(0x3f9, &[7]), Some(Effect::Exit(0x40)));
        assert_eq!(device.lock().expect("not poisoned").1, Some((1, vec![7])));
    }

    #[test]
    fn nobody_home_reads_all_ones_and_is_counted() {
        let bus = Bus::default();
        let mut word = [0; 4];
        bus.read(0xcf8, &mut word);
        assert_eq!(word, [0xff; 4]);
        assert_eq!(bus.write(u64::MAX, &[0]), None);
        assert_eq!(bus.unclaimed(), 2);
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.insert("a", 0x10, 0x10, tag(0)).expect("free range");
        for (base, len) in [(0, 0x11), (0x1f, 1), (0x18, 2), (0, 0x100)] {
            let error = bus.insert("b", base, len, tag(1)).expect_err("overlap");
            assert!(matches!(error, BusError::Overlap { other: "a", .. }), "{error}");
        }
        assert!(matches!(bus.insert("c", u64::MAX, 2, tag(1)), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.insert("c", 5, 0, tag(1)), Err(BusError::BadRange { .. })));
        bus.insert("d", 0x20, 1, tag(1)).expect("adjacent is free");
        bus.insert("e", u64::MAX, 1, tag(1)).expect("the last address is one");
    }

    proptest! {
        #[test]
        fn find_agrees_with_a_linear_search(
            ranges in prop::collection::vec((0u64..200, 1u64..20), 0..12),
            probes in prop::collection::vec(0u64..240, 0..40),
        ) {
            let mut bus = Bus::default();
            let mut model: Vec<(u64, u64, u8)> = Vec::new();
            for (number, &(base, len)) in (0u8..).zip(&ranges) {
                let free = model.iter().all(|&(b, l, _)| base + len <= b || b + l <= base);
                let put = bus.insert("x", base, len, tag(number)).is_ok();
                prop_assert_eq!(put, free);
                if put {
                    model.push((base, len, number));
                }
            }
            for probe in probes {
                let want = model.iter().find(|&&(b, l, _)| probe >= b && probe < b + l);
                let got = bus.write(probe, &[0]);
                prop_assert_eq!(got, want.map(|&(_, _, number)| Effect::Exit(number)));
            }
        }
    }
}
