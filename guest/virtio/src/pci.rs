//! What a PCI function says about itself: capabilities, BARs, and where virtio's registers are (virtio 1.2 section 4.1.4,
//! PCI 3.0 chapter 6). Everything is read through words, and nothing that is read leads to end-less work.

/// Configuration space of a function.
pub trait ConfigSpace {
    /// The word at `offset`, a multiple of 4.
    fn read(&self, offset: u8) -> u32;
}

/// Vendor of all virtio devices.
pub const VENDOR: u16 = 0x1af4;
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
/// Most capabilities: so many fit.
const MAX_CAPABILITIES: usize = 48;
/// Status: there is a list of capabilities.
const CAPABILITY_LIST: u32 = 1 << (16 + 4);

/// Vendor and device, or nobody.
pub fn id(config: &impl ConfigSpace) -> Option<(u16, u16)> {
    let word = config.read(0);
    let (device, vendor) = halves(word);
    (vendor != 0xffff && vendor != 0).then_some((vendor, device))
}

/// Whether the device has more functions than the one that is asked.
pub fn is_multi_function(config: &impl ConfigSpace) -> bool {
    config.read(0x0c) & 1 << 23 != 0
}

/// A part of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The BAR.
    pub bar: u8,
    /// First byte in it.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// Where virtio's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioParts {
    /// Common registers.
    pub common: Part,
    /// Doorbells.
    pub notify: Part,
    /// Bytes from a queue's doorbell to the next one's.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: Part,
    /// The device's own configuration.
    pub device: Part,
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCap {
    /// Where it is in configuration space; message control is in the upper half of this word.
    pub at: u8,
    /// Entries of the table.
    pub entries: u16,
    /// The table.
    pub table: Part,
}

/// Message control: MSI-X is on.
pub const MSIX_ENABLE: u32 = 1 << 31;
/// Message control: all vectors are masked.
pub const MSIX_MASK_ALL: u32 = 1 << 30;
/// Bytes of an entry of the table.
pub const MSIX_ENTRY: u32 = 16;

/// Capabilities of a function: id and place. A list that leads in circles ends.
pub fn capabilities(config: &impl ConfigSpace) -> impl Iterator<Item = (u8, u8)> {
    let first = if config.read(0x04) & CAPABILITY_LIST != 0 { byte(config.read(0x34), 0) & !3 } else { 0 };
    let mut at = first;
    let mut left = MAX_CAPABILITIES;
    core::iter::from_fn(move || {
        if at < 0x40 || left == 0 {
            return None;
        }
        left -= 1;
        let word = config.read(at);
        let this = (byte(word, 0), at);
        at = byte(word, 1) & !3;
        Some(this)
    })
}

/// Where virtio's registers are; of several parts of one kind the first counts. `None` if one is missing.
pub fn virtio_parts(config: &impl ConfigSpace) -> Option<VirtioParts> {
    let mut parts = [None; 5];
    let mut notify_multiplier = 0;
    for (id, at) in capabilities(config) {
        // The largest of them must end inside configuration space.
        if id != CAP_VENDOR || at > 0xec {
            continue;
        }
        let kind = byte(config.read(at), 3);
        let part = Part {
            bar: byte(config.read(at + 4), 0),
            offset: config.read(at + 8),
            len: config.read(at + 12),
        };
        match parts.get_mut(usize::from(kind)) {
            Some(slot @ None) if part.bar < 6 => {
                *slot = Some(part);
                if kind == 2 {
                    notify_multiplier = config.read(at + 16);
                }
            }
            _ => {}
        }
    }
    let [_, common, notify, isr, device] = parts;
    let large_enough = |part: Option<Part>, len: u32| part.filter(|part| part.len >= len);
    Some(VirtioParts {
        common: large_enough(common, 0x38)?,
        notify: large_enough(notify, 2)?,
        notify_multiplier,
        isr: large_enough(isr, 1)?,
        device: large_enough(device, 8)?,
    })
}

/// The MSI-X capability, if there is one.
pub fn msix(config: &impl ConfigSpace) -> Option<MsixCap> {
    let (_, at) = capabilities(config).find(|(id, at)| *id == CAP_MSIX && *at <= 0xf0)?;
    let (control, _) = halves(config.read(at));
    let entries = (control & 0x7ff) + 1;
    let table = config.read(at + 4);
    let bar = byte(table, 0) & 7;
    let table = Part { bar, offset: table & !7, len: u32::from(entries) * MSIX_ENTRY };
    (bar < 6).then_some(MsixCap { at, entries, table })
}

/// Physical address of a BAR in memory space, as firmware set it; `None` for an unused one and for one of ports.
pub fn bar_address(config: &impl ConfigSpace, bar: u8) -> Option<u64> {
    if bar > 5 {
        return None;
    }
    let low = config.read(0x10 + bar * 4);
    if low & 1 != 0 {
        return None;
    }
    let base = u64::from(low & !0xf);
    let base = match low >> 1 & 3 {
        0 => base,
        2 if bar < 5 => base | u64::from(config.read(0x14 + bar * 4)) << 32,
        _ => return None,
    };
    (base != 0).then_some(base)
}

/// Physical address of a part; `None` if it is nowhere or wraps.
pub fn part_address(config: &impl ConfigSpace, part: Part) -> Option<u64> {
    let address = bar_address(config, part.bar)?.checked_add(part.offset.into())?;
    address.checked_add(part.len.into())?;
    Some(address)
}

/// The byte of `word` at `index`.
fn byte(word: u32, index: usize) -> u8 {
    word.to_le_bytes().get(index).copied().unwrap_or(0)
}

/// Upper and lower half.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
const fn halves(word: u32) -> (u16, u16) {
    ((word >> 16) as u16, word as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Bytes(Vec<u8>);

    impl ConfigSpace for Bytes {
        fn read(&self, offset: u8) -> u32 {
            assert!(offset.is_multiple_of(4));
            let at = usize::from(offset);
            u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
        }
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// A function with BAR 4 of 64 bits, as QEMU has it.
    fn function() -> Bytes {
        let mut bytes = vec![0; 256];
        put(&mut bytes, 0, &[0xf4, 0x1a, 0x42, 0x10, 0, 0, 0x10, 0]);
        put(&mut bytes, 0x20, &[0x0c, 0x40, 0, 0x80, 0x03, 0, 0, 0]);
        bytes[0x34] = 0x40;
        let parts: [(u8, u32, u32); 4] =
            [(1, 0, 0x38), (3, 0x1000, 1), (4, 0x2000, 0x1000), (2, 0x3000, 0x1000)];
        for (index, (kind, offset, len)) in parts.into_iter().enumerate() {
            let at = 0x40 + index * 20;
            let next = u8::try_from(at + 20).expect("small");
            put(&mut bytes, at, &[CAP_VENDOR, next, 20, kind, 4, 0, 0, 0]);
            put(&mut bytes, at + 8, &offset.to_le_bytes());
            put(&mut bytes, at + 12, &len.to_le_bytes());
        }
        put(&mut bytes, 0x7c + 16, &4_u32.to_le_bytes());
        put(&mut bytes, 0x90, &[CAP_MSIX, 0, 0x02, 0x00, 0x01, 0x08, 0, 0]);
        Bytes(bytes)
    }

    #[test]
    fn a_functions_registers_are_found() {
        let config = function();
        assert_eq!(id(&config), Some((VENDOR, 0x1042)));
        let parts = virtio_parts(&config).expect("all four");
        assert_eq!(parts.common, Part { bar: 4, offset: 0, len: 0x38 });
        assert_eq!(parts.notify, Part { bar: 4, offset: 0x3000, len: 0x1000 });
        assert_eq!(parts.notify_multiplier, 4);
        assert_eq!(part_address(&config, parts.device), Some(0x3_8000_6000));
        let msix = msix(&config).expect("MSI-X");
        assert_eq!(msix, MsixCap { at: 0x90, entries: 3, table: Part { bar: 1, offset: 0x800, len: 48 } });
        assert_eq!(bar_address(&config, 1), None, "no such BAR");
    }

    #[test]
    fn nobody_and_what_is_incomplete_are_nothing() {
        assert_eq!(id(&Bytes(vec![0xff; 256])), None);
        assert!(virtio_parts(&Bytes(vec![0xff; 256])).is_none());
        let mut short = function();
        short.0[0x40 + 12] = 0x10;
        assert!(virtio_parts(&short).is_none(), "a common part of 16 bytes");
        let mut no_list = function();
        no_list.0[6] = 0;
        assert_eq!(capabilities(&no_list).count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_in_bounded_time(bytes in prop::collection::vec(any::<u8>(), 256)) {
            let mut bytes = Bytes(bytes);
            bytes.0[6] |= 0x10;
            prop_assert!(capabilities(&bytes).count() <= MAX_CAPABILITIES);
            let _ = (virtio_parts(&bytes), msix(&bytes), id(&bytes), is_multi_function(&bytes));
            for bar in 0..=u8::MAX {
                let _ = part_address(&bytes, Part { bar, offset: u32::MAX, len: u32::MAX });
            }
        }
    }
}
