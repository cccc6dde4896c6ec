//! COM1: a 16550 with the guest's console behind it.

use std::{
    fmt,
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

use super::{Console, Device, Effect};

/// GSI of COM1.
pub const COM1_IRQ: u32 = 4;

/// Raises the port's interrupt, where there is an interrupt controller that can take it.
struct Irq(Option<EventFd>);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |line| line.write(1))
    }
}

struct SharedConsole(Arc<Mutex<Console>>);

impl Write for SharedConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A serial port.
pub struct SerialPort {
    uart: Serial<Irq, NoEvents, SharedConsole>,
    waiting: Vec<u8>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// Typed-ahead input kept when the guest does not read; more is dropped.
const INPUT_MAX: usize = 4096;

impl SerialPort {
    /// A port that prints to `console` and raises `irq` if there is one (with the split interrupt
    /// controller there is no I/O APIC that could: the guest polls).
    pub fn new(console: Arc<Mutex<Console>>, irq: Option<EventFd>) -> SerialPort {
        SerialPort { uart: Serial::new(Irq(irq), SharedConsole(console)), waiting: Vec::new() }
    }

    /// Input for the guest.
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        let room = INPUT_MAX - self.waiting.len().min(INPUT_MAX);
        self.waiting.extend(bytes.iter().take(room));
        self.feed();
    }

    fn feed(&mut self) {
        let room = self.uart.fifo_capacity().min(self.waiting.len());
        if room == 0 {
            return;
        }
        let batch: Vec<u8> = self.waiting.drain(..room).collect();
        if let Err(error) = self.uart.enqueue_raw_bytes(&batch) {
            tracing::warn!("serial input lost: {error:?}");
        }
    }
}

impl Device for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // A wider access to an 8-bit device becomes accesses to consecutive ports.
        for (at, byte) in (offset..).zip(data) {
            *byte = u8::try_from(at).ok().filter(|at| *at < 8).map_or(0xff, |at| self.uart.read(at));
        }
        self.feed();
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        for (at, byte) in (offset..).zip(data) {
            let Some(at) = u8::try_from(at).ok().filter(|at| *at < 8) else { break };
            if let Err(error) = self.uart.write(at, *byte) {
                tracing::warn!("serial port write failed: {error:?}");
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::ConsoleTarget;

    #[test]
    fn output_reaches_the_console_and_input_the_guest() {
        let console = Arc::new(Mutex::new(Console::new(ConsoleTarget::Null)));
        let mut port = SerialPort::new(console.clone(), None);
        for byte in b"hi\n" {
            port.write(0, &[*byte]);
        }
        assert_eq!(console.lock().expect("not poisoned").transcript(), "hi\n");

        port.type_bytes(&[b'k'; 100]);
        let mut read = 0;
        loop {
            let mut lsr = [0];
            port.read(5, &mut lsr);
            if lsr[0] & 1 == 0 {
                break;
            }
            let mut byte = [0];
            port.read(0, &mut byte);
            assert_eq!(byte, [b'k']);
            read += 1;
        }
        assert_eq!(read, 100);
    }

    #[test]
    fn accesses_past_the_last_register_are_harmless() {
        let console = Arc::new(Mutex::new(Console::new(ConsoleTarget::Null)));
        let mut port = SerialPort::new(console, None);
        let mut wide = [0; 4];
        port.read(6, &mut wide);
        assert_eq!(wide[2..], [0xff, 0xff]);
        assert_eq!(port.write(7, &[1, 2, 3, 4]), None);
    }
}
