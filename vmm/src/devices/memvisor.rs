//! The memvisor device (`memvisor_abi::port`): bulk console, checkpoints, exit codes.
//!
//! Every argument is a guest's claim: ranges must be RAM, lengths have limits, text is made
//! printable. A bad argument gives [`Status::Invalid`] and nothing else happens.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memvisor_abi::{
    Root,
    port::{self, Command, Status},
};
use memvisor_inspect::MemorySource;

use super::{Console, Device, Effect};
use crate::memory::Memory;

/// Longest checkpoint name in bytes.
const NAME_MAX: u64 = 63;

/// What the guest told the device, shared with the run loop.
#[derive(Debug, Default)]
pub struct DeviceState {
    /// Guest-physical address of the root descriptor; 0 until announced.
    root_gpa: AtomicU64,
    status: AtomicU32,
    epitaph: Mutex<Option<String>>,
}

impl DeviceState {
    /// Address of the announced root descriptor.
    pub fn root_gpa(&self) -> Option<u64> {
        Some(self.root_gpa.load(Ordering::Acquire)).filter(|gpa| *gpa != 0)
    }

    /// Sets what the guest reads as the result of its last command.
    pub fn set_status(&self, status: Status) {
        self.status.store(status as u32, Ordering::Release);
    }

    /// The report of a guest that panicked.
    pub fn epitaph(&self) -> Option<String> {
        self.epitaph.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The device; put it at [`port::BASE`], length [`port::LEN`].
pub struct MemvisorDevice {
    memory: Arc<Memory>,
    console: Arc<Mutex<Console>>,
    state: Arc<DeviceState>,
    address: u64,
    len: u32,
}

impl fmt::Debug for MemvisorDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemvisorDevice").field("state", &self.state).finish_non_exhaustive()
    }
}

impl MemvisorDevice {
    /// A device that reads `memory`, prints to `console` and leaves what it learns in `state`.
    pub fn new(memory: Arc<Memory>, console: Arc<Mutex<Console>>, state: Arc<DeviceState>) -> MemvisorDevice {
        MemvisorDevice { memory, console, state, address: 0, len: 0 }
    }

    fn run(&mut self, raw: u32) -> (Status, Option<Effect>) {
        const INVALID: (Status, Option<Effect>) = (Status::Invalid, None);
        match Command::from_raw(raw) {
            Some(Command::Console) => match self.text() {
                Some(bytes) => {
                    self.console.lock().unwrap_or_else(PoisonError::into_inner).put(&bytes);
                    (Status::Ok, None)
                }
                None => INVALID,
            },
            Some(Command::Epitaph) => match self.text() {
                Some(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    *self.state.epitaph.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
                    (Status::Ok, None)
                }
                None => INVALID,
            },
            Some(Command::Checkpoint) => match self.name() {
                Some(name) => (Status::Ok, Some(Effect::Checkpoint { number: self.len, name })),
                None => INVALID,
            },
            Some(Command::Exit) => match u8::try_from(self.len) {
                Ok(code) => (Status::Ok, Some(Effect::Exit(code))),
                Err(_) => INVALID,
            },
            Some(Command::Announce) => {
                if self.is_root(self.address) {
                    self.state.root_gpa.store(self.address, Ordering::Release);
                    (Status::Ok, None)
                } else {
                    INVALID
                }
            }
            None => INVALID,
        }
    }

    /// The `len` bytes at `address`, if that is RAM and not too much.
    fn text(&self) -> Option<Vec<u8>> {
        if self.len > port::CONSOLE_MAX || !self.memory.is_ram(self.address, u64::from(self.len)) {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(self.len).ok()?];
        self.memory.read(self.address, &mut bytes).ok()?;
        Some(bytes)
    }

    /// The NUL-terminated name at `address`; empty if that is 0.
    fn name(&self) -> Option<String> {
        if self.address == 0 {
            return Some(String::new());
        }
        let mut name = String::new();
        for at in 0..=NAME_MAX {
            let mut byte = [0];
            self.memory.read(self.address.checked_add(at)?, &mut byte).ok()?;
            match byte[0] {
                0 => return Some(name),
                printable @ 0x20..=0x7e => name.push(char::from(printable)),
                _ => name.push('?'),
            }
        }
        None
    }

    fn is_root(&self, gpa: u64) -> bool {
        let mut magic = [0; 16];
        gpa != 0
            && gpa.is_multiple_of(Root::ALIGN)
            && self.memory.is_ram(gpa, size_of::<Root>() as u64)
            && self.memory.read(gpa, &mut magic).is_ok()
            && magic == Root::MAGIC
    }
}

impl Device for MemvisorDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        const fn at(register: u16) -> u64 {
            (register - port::BASE) as u64
        }
        let [low, high] = halves(self.address);
        let value = match offset {
            o if o == at(port::ID) => port::ID_VALUE,
            o if o == at(port::VERSION) => port::VERSION_VALUE,
            o if o == at(port::ARG_LO) => low,
            o if o == at(port::ARG_HI) => high,
            o if o == at(port::ARG_LEN) => self.len,
            o if o == at(port::STATUS) => self.state.status.load(Ordering::Acquire),
            _ => u32::MAX,
        };
        // Registers are 32 bits wide; narrower reads of a register give its low bytes.
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        let value = u32::from_le_bytes(data.try_into().ok()?);
        let register = u16::try_from(offset).ok().and_then(|offset| port::BASE.checked_add(offset))?;
        let [low, high] = halves(self.address);
        match register {
            port::ARG_LO => self.address = (u64::from(high) << 32) | u64::from(value),
            port::ARG_HI => self.address = (u64::from(value) << 32) | u64::from(low),
            port::ARG_LEN => self.len = value,
            port::COMMAND => {
                let (status, effect) = self.run(value);
                if status == Status::Invalid {
                    tracing::warn!(
                        "guest gave the memvisor device command {value} with address {:#x}, length {}: invalid",
                        self.address,
                        self.len
                    );
                }
                self.state.set_status(status);
                return effect;
            }
            _ => {}
        }
        None
    }
}

/// Low and high half of an address.
fn halves(address: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use memvisor_inspect::RamRegion;
    use proptest::prelude::*;

    use super::*;
    use crate::devices::ConsoleTarget;

    struct Bench {
        memory: Arc<Memory>,
        console: Arc<Mutex<Console>>,
        state: Arc<DeviceState>,
        device: MemvisorDevice,
    }

    fn bench() -> Bench {
        let memory = Arc::new(Memory::new(&[RamRegion { gpa: 0, len: 0x20000 }]).expect("small memfd"));
        let console = Arc::new(Mutex::new(Console::new(ConsoleTarget::Null)));
        let state = Arc::new(DeviceState::default());
        let device = MemvisorDevice::new(memory.clone(), console.clone(), state.clone());
        Bench { memory, console, state, device }
    }

    impl Bench {
        fn set(&mut self, register: u16, value: u32) -> Option<Effect> {
            self.device.write(u64::from(register - port::BASE), &value.to_le_bytes())
        }

        fn status(&mut self) -> u32 {
            let mut word = [0; 4];
            self.device.read(u64::from(port::STATUS - port::BASE), &mut word);
            u32::from_le_bytes(word)
        }

        fn command(&mut self, command: Command, address: u64, len: u32) -> Option<Effect> {
            let [low, high] = halves(address);
            self.set(port::ARG_LO, low);
            self.set(port::ARG_HI, high);
            self.set(port::ARG_LEN, len);
            self.set(port::COMMAND, command as u32)
        }
    }

    #[test]
    fn console_takes_ram_only() {
        let mut bench = bench();
        bench.memory.write(0x1000, b"hello\n").expect("RAM");
        bench.command(Command::Console, 0x1000, 6);
        assert_eq!(bench.status(), Status::Ok as u32);
        for (address, len) in [(0x1fffe, 6), (u64::MAX, 1), (0, port::CONSOLE_MAX + 1), (1 << 40, 1)] {
            bench.command(Command::Console, address, len);
            assert_eq!(bench.status(), Status::Invalid as u32, "{address:#x} {len}");
        }
        assert_eq!(bench.console.lock().expect("not poisoned").transcript(), "hello\n");
    }

    #[test]
    fn checkpoints_carry_number_and_name() {
        let mut bench = bench();
        bench.memory.write(0x2000, b"after\x01boot\0").expect("RAM");
        assert_eq!(
            bench.command(Command::Checkpoint, 0x2000, 7),
            Some(Effect::Checkpoint { number: 7, name: "after?boot".into() })
        );
        assert_eq!(
            bench.command(Command::Checkpoint, 0, 1),
            Some(Effect::Checkpoint { number: 1, name: String::new() })
        );
        bench.memory.write(0x3000, &[b'n'; 64]).expect("RAM");
        assert_eq!(bench.command(Command::Checkpoint, 0x3000, 1), None);
        assert_eq!(bench.status(), Status::Invalid as u32);
    }

    #[test]
    fn a_root_must_carry_its_magic() {
        let mut bench = bench();
        bench.command(Command::Announce, 0x4000, 0);
        assert_eq!((bench.status(), bench.state.root_gpa()), (Status::Invalid as u32, None));
        bench.memory.write(0x4000, &Root::MAGIC).expect("RAM");
        bench.command(Command::Announce, 0x4000, 0);
        assert_eq!((bench.status(), bench.state.root_gpa()), (Status::Ok as u32, Some(0x4000)));
    }

    #[test]
    fn exit_codes_fit_a_byte() {
        let mut bench = bench();
        assert_eq!(bench.command(Command::Exit, 0, 101), Some(Effect::Exit(101)));
        assert_eq!(bench.command(Command::Exit, 0, 256), None);
        assert_eq!(bench.status(), Status::Invalid as u32);
    }

    #[test]
    fn the_device_names_itself() {
        let mut bench = bench();
        let mut id = [0; 4];
        bench.device.read(0, &mut id);
        assert_eq!(u32::from_le_bytes(id), port::ID_VALUE);
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses in prop::collection::vec(
            (0u64..0x24, any::<u32>(), 1usize..9), 0..200)) {
            let mut bench = bench();
            for (offset, value, width) in accesses {
                let bytes = u64::from(value).to_le_bytes();
                let bytes = bytes.get(..width).unwrap_or(&bytes);
                let _ = bench.device.write(offset, bytes);
                let mut back = [0; 8];
                bench.device.read(offset, &mut back);
            }
        }
    }
}
