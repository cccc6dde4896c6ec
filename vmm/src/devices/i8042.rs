//! The keyboard controller, of which only the reset line is used (port 0x64, command 0xfe).

use std::{
    convert::Infallible,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use vm_superio::{I8042Device, Trigger};

use super::{Device, Effect};

#[derive(Debug, Default)]
struct ResetLine(AtomicBool);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The controller; put it at port 0x60, length 5.
pub struct I8042(I8042Device<ResetLine>);

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("I8042")
    }
}

impl Default for I8042 {
    fn default() -> I8042 {
        I8042(I8042Device::new(ResetLine::default()))
    }
}

impl Device for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = u8::try_from(at).map_or(0xff, |at| self.0.read(at));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        for (at, byte) in (offset..).zip(data) {
            if let Ok(at) = u8::try_from(at) {
                let Ok(()) = self.0.write(at, *byte);
            }
        }
        self.0.reset_evt().0.swap(false, Ordering::Relaxed).then_some(Effect::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let mut device = I8042::default();
        assert_eq!(device.write(4, &[0xd1]), None);
        assert_eq!(device.write(0, &[0xfe]), None);
        assert_eq!(device.write(4, &[0xfe]), Some(Effect::Reset));
        assert_eq!(device.write(4, &[0xd1]), None);
    }
}
