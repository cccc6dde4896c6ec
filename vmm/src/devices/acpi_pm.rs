//! ACPI power management registers: power-off by PM1a control (ACPI 6.5 section 4.8.3).
//!
//! There is no legacy mode: SCI_EN always reads as set, and no event is ever pending.

use super::{Device, Effect};
use crate::machine::layout::{PM1_SLP_EN, PM1A_CNT, PM1A_EVT, S5_SLP_TYP};

/// SCI_EN: the machine is in ACPI mode.
const SCI_EN: u16 = 1;

/// PM1a status, enable and control; put it at [`PM1A_EVT`], length [`AcpiPm::LEN`].
#[derive(Debug, Default)]
pub struct AcpiPm {
    enable: u16,
    control: u16,
}

impl AcpiPm {
    /// Ports from the event block to the end of the control block.
    pub const LEN: u64 = AcpiPm::BYTES as u64;
    const BYTES: usize = (PM1A_CNT - PM1A_EVT) as usize + 2;
    const CONTROL: u64 = (PM1A_CNT - PM1A_EVT) as u64;

    fn bytes(&self) -> [u8; AcpiPm::BYTES] {
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = (self.control | SCI_EN).to_le_bytes();
        [0, 0, e0, e1, c0, c1]
    }
}

impl Device for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let value = match data {
            [low, high] => u16::from_le_bytes([*low, *high]),
            [low, high, ..] => u16::from_le_bytes([*low, *high]),
            [low] => u16::from(*low),
            [] => return None,
        };
        match offset {
            2 => self.enable = value,
            AcpiPm::CONTROL => {
                // SLP_EN is write-only: it reads as zero.
                self.control = value & !PM1_SLP_EN;
                let sleep_type = (value >> 10) & 7;
                if value & PM1_SLP_EN != 0 {
                    if sleep_type == u16::from(S5_SLP_TYP) {
                        return Some(Effect::PowerOff);
                    }
                    tracing::warn!("guest asked for sleep type {sleep_type}: only S5 exists");
                }
            }
            // Status bits are cleared by writing ones; none is ever set.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_slp_en_powers_off() {
        let mut pm = AcpiPm::default();
        let s5 = u16::from(S5_SLP_TYP) << 10;
        assert_eq!(pm.write(AcpiPm::CONTROL, &s5.to_le_bytes()), None);
        assert_eq!(pm.write(AcpiPm::CONTROL, &((3 << 10) | PM1_SLP_EN).to_le_bytes()), None);
        assert_eq!(pm.write(AcpiPm::CONTROL, &(s5 | PM1_SLP_EN).to_le_bytes()), Some(Effect::PowerOff));
    }

    #[test]
    fn acpi_mode_is_always_on_and_no_event_is_pending() {
        let mut pm = AcpiPm::default();
        pm.write(0, &[0xff, 0xff]);
        pm.write(2, &[0x20, 0x01]);
        let mut all = [0; 8];
        pm.read(0, &mut all);
        assert_eq!(all, [0, 0, 0x20, 0x01, 1, 0, 0xff, 0xff]);
    }
}
