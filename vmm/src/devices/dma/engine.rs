//! Registers and transfers, without threads and hardware.
//!
//! E1  a start is checked as a whole before anything is moved: every byte of both sides is RAM below the engine's limit, or inside its own
//!     memory; a refused start moves nothing;
//! E2  what was checked is what is moved: registers of the setup do not change while a transfer goes on;
//! E3  a unit is moved as a whole or not at all, in ascending order: it is read, then written;
//! E4  a transfer ends: each unit has at least one byte, and there are at most [`dma::LENGTH_MAX`].

use memvisor_abi::dma::{
    self, BURST_MAX, Command, Error, LENGTH_MAX, Mode, OWN_BYTES, PAUSE_MAX, Register, UNIT_MAX, control,
    event, status,
};
use serde::{Deserialize, Serialize};

/// What the engine reaches: guest RAM.
pub trait DmaBus {
    /// Whether all of `addr..addr + len` is RAM.
    fn is_ram(&self, addr: u64, len: u64) -> bool;

    /// Fills `bytes` from `addr` on; `false` if that is not RAM.
    fn read(&self, addr: u64, bytes: &mut [u8]) -> bool;

    /// Writes `bytes` at `addr`; `false` if that is not RAM.
    fn write(&self, addr: u64, bytes: &[u8]) -> bool;
}

/// Transfers that were begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// One unit a start.
    pub single: u64,
    /// All at once.
    pub block: u64,
    /// By bursts.
    pub burst: u64,
    /// By stolen cycles.
    pub cycle_stealing: u64,
}

impl Started {
    fn of(&mut self, mode: Mode) -> &mut u64 {
        match mode {
            Mode::Single => &mut self.single,
            Mode::Block => &mut self.block,
            Mode::Burst => &mut self.burst,
            Mode::CycleStealing => &mut self.cycle_stealing,
        }
    }
}

/// What an engine did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Transfers that were begun.
    #[serde(flatten)]
    pub started: Started,
    /// Transfers that moved all their bytes.
    pub done: u64,
    /// Transfers that were stopped.
    pub stopped: u64,
    /// Starts that were refused because of an address beyond the mask.
    pub beyond_mask: u64,
    /// Starts that were refused because there is no RAM.
    pub no_ram: u64,
    /// Starts that were refused for another reason.
    pub refused: u64,
    /// Units moved.
    pub units: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Messages that were sent, or wait until they may be.
    pub interrupts: u64,
}

/// The registers that describe a transfer.
#[derive(Clone, Copy, Debug, Default)]
struct Setup {
    source: u64,
    destination: u64,
    length: u64,
    unit: u64,
    burst: u64,
    pause: u64,
    control: u64,
}

/// One side of a transfer.
#[derive(Clone, Copy, Debug)]
struct Side {
    at: u64,
    is_own: bool,
}

impl Setup {
    fn sides(&self) -> [Side; 2] {
        [
            Side { at: self.source, is_own: self.control & control::SOURCE_IS_OWN != 0 },
            Side { at: self.destination, is_own: self.control & control::DESTINATION_IS_OWN != 0 },
        ]
    }
}

/// An engine.
#[derive(Debug)]
pub struct Engine {
    bits: u32,
    setup: Setup,
    /// The transfer that goes on.
    active: Option<Mode>,
    /// Number of the last transfer.
    number: u64,
    status: u64,
    error: Error,
    error_address: u64,
    progress: u64,
    enabled: u64,
    happened: u64,
    /// A message is to be sent.
    message: bool,
    own: Vec<u8>,
    counters: Counters,
}

impl Engine {
    /// An engine that drives so many address bits, with a memory of zeroes.
    pub fn new(bits: u32) -> Engine {
        Engine {
            bits,
            setup: Setup::default(),
            active: None,
            number: 0,
            status: 0,
            error: Error::None,
            error_address: 0,
            progress: 0,
            enabled: 0,
            happened: 0,
            message: false,
            own: vec![0; usize::try_from(OWN_BYTES).unwrap_or(0)],
            counters: Counters::default(),
        }
    }

    /// Address bits that it drives.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// What it did.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether a transfer goes on.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// The number of the transfer that goes on by itself, if there is one: by bursts or stolen cycles.
    pub fn background(&self) -> Option<u64> {
        matches!(self.active, Some(Mode::Burst | Mode::CycleStealing)).then_some(self.number)
    }

    /// Microseconds for which the bus is free between two steps.
    pub fn pause_us(&self) -> u64 {
        self.setup.pause
    }

    /// Whether a message is to be sent; asking forgets it.
    pub fn take_message(&mut self) -> bool {
        std::mem::take(&mut self.message)
    }

    /// The value of a register.
    pub fn read(&self, register: Register) -> u64 {
        match register {
            Register::Id => dma::ID,
            Register::Capabilities => u64::from(self.bits) | dma::VERSION << 8 | OWN_BYTES << 32,
            Register::Source => self.setup.source,
            Register::Destination => self.setup.destination,
            Register::Length => self.setup.length,
            Register::Unit => self.setup.unit,
            Register::Burst => self.setup.burst,
            Register::Pause => self.setup.pause,
            Register::Control => self.setup.control,
            Register::Command => 0,
            Register::Status => self.status,
            Register::Error => self.error as u64,
            Register::ErrorAddress => self.error_address,
            Register::Progress => self.progress,
            Register::InterruptEnable => self.enabled,
            Register::InterruptStatus => self.happened,
        }
    }

    /// Takes `value` into the bits `mask` of a register. `is_master` says whether the function may use the bus.
    pub fn write(&mut self, register: Register, value: u64, mask: u64, bus: &dyn DmaBus, is_master: bool) {
        let merged = self.read(register) & !mask | value & mask;
        if register.is_setup() {
            if self.active.is_none() {
                self.write_setup(register, merged);
            }
            return;
        }
        match register {
            Register::Command => self.command(value & mask, bus, is_master),
            Register::InterruptEnable => {
                let before = self.enabled;
                self.enabled = merged & event::ALL;
                let newly = self.enabled & !before & self.happened;
                self.send(newly != 0);
            }
            Register::InterruptStatus => self.happened &= !(value & mask),
            _ => {}
        }
    }

    fn write_setup(&mut self, register: Register, value: u64) {
        let setup = &mut self.setup;
        match register {
            Register::Source => setup.source = value,
            Register::Destination => setup.destination = value,
            Register::Length => setup.length = value,
            Register::Unit => setup.unit = value,
            Register::Burst => setup.burst = value,
            Register::Pause => setup.pause = value.min(PAUSE_MAX),
            Register::Control => setup.control = value,
            _ => {}
        }
    }

    fn command(&mut self, value: u64, bus: &dyn DmaBus, is_master: bool) {
        if value == Command::Start as u64 {
            match self.active {
                None => self.start(bus, is_master),
                // A function that lost the bus moves nothing more until it has it again.
                Some(Mode::Single) if is_master => self.run(1, bus),
                Some(_) => {}
            }
        } else if value == Command::Stop as u64 {
            if self.active.take().is_some() {
                self.status = status::STOPPED;
                self.counters.stopped += 1;
            }
        } else if value == Command::Reset as u64 {
            let own = std::mem::take(&mut self.own);
            let number = self.number;
            *self = Engine { own, number, counters: self.counters, ..Engine::new(self.bits) };
        }
    }

    fn start(&mut self, bus: &dyn DmaBus, is_master: bool) {
        self.progress = 0;
        (self.error, self.error_address, self.status) = (Error::None, 0, 0);
        let mode = match self.check(bus, is_master) {
            Ok(mode) => mode,
            Err((error, address)) => {
                self.refuse(error, address);
                return;
            }
        };
        self.number += 1;
        self.active = Some(mode);
        self.status = status::ACTIVE;
        *self.counters.started.of(mode) += 1;
        match mode {
            Mode::Single => self.run(1, bus),
            Mode::Block => self.run(u64::MAX, bus),
            Mode::Burst | Mode::CycleStealing => {}
        }
    }

    /// E1.
    fn check(&self, bus: &dyn DmaBus, is_master: bool) -> Result<Mode, (Error, u64)> {
        let setup = &self.setup;
        if !is_master {
            return Err((Error::NotMaster, 0));
        }
        let mode = Mode::from_control(setup.control).filter(|_| setup.control & !control::KNOWN == 0);
        let mode = mode.ok_or((Error::Setup, 0))?;
        let burst_is_wrong = mode == Mode::Burst && !(1..=BURST_MAX).contains(&setup.burst);
        if !(1..=UNIT_MAX).contains(&setup.unit) || burst_is_wrong {
            return Err((Error::Setup, 0));
        }
        if !(1..=LENGTH_MAX).contains(&setup.length) {
            return Err((Error::Length, 0));
        }
        let sides = setup.sides();
        for side in sides.iter().filter(|side| side.is_own) {
            if side.at.checked_add(setup.length).is_none_or(|end| end > OWN_BYTES) {
                return Err((Error::Length, side.at));
            }
        }
        let limit = dma::last_address(self.bits);
        let memory = || sides.iter().filter(|side| !side.is_own);
        for side in memory() {
            // The length is not 0.
            match side.at.checked_add(setup.length - 1) {
                Some(last) if last <= limit => {}
                _ => return Err((Error::BeyondMask, side.at)),
            }
        }
        match memory().find(|side| !bus.is_ram(side.at, setup.length)) {
            Some(side) => Err((Error::NoRam, side.at)),
            None => Ok(mode),
        }
    }

    fn refuse(&mut self, error: Error, address: u64) {
        self.active = None;
        (self.error, self.error_address, self.status) = (error, address, status::ERROR);
        let counter = match error {
            Error::BeyondMask => &mut self.counters.beyond_mask,
            Error::NoRam => &mut self.counters.no_ram,
            _ => &mut self.counters.refused,
        };
        *counter += 1;
        self.tell(event::ERROR);
    }

    /// The next step of a transfer that goes on by itself.
    pub fn step(&mut self, bus: &dyn DmaBus) {
        match self.active {
            Some(Mode::Burst) => self.run(self.setup.burst, bus),
            Some(Mode::CycleStealing) => self.run(1, bus),
            _ => {}
        }
    }

    /// Moves at most `units` units of the transfer that goes on.
    fn run(&mut self, units: u64, bus: &dyn DmaBus) {
        let mut left = units;
        while left > 0 && self.progress < self.setup.length {
            if let Err(address) = self.move_unit(bus) {
                self.refuse(Error::NoRam, address);
                return;
            }
            left -= 1;
        }
        if self.progress >= self.setup.length {
            self.active = None;
            self.status = status::DONE;
            self.counters.done += 1;
            self.tell(event::DONE);
        } else if self.active == Some(Mode::Single) {
            self.tell(event::UNIT);
        }
    }

    /// E3. RAM does not go away while a guest runs; if it does, the address that is none is the error.
    fn move_unit(&mut self, bus: &dyn DmaBus) -> Result<(), u64> {
        #[expect(clippy::cast_possible_truncation, reason = "4096")]
        let mut buffer = [0; UNIT_MAX as usize];
        let len = self.setup.unit.min(self.setup.length - self.progress);
        let count = usize::try_from(len).unwrap_or(0);
        let [from, to] = self
            .setup
            .sides()
            .map(|side| Side { at: side.at.saturating_add(self.progress), is_own: side.is_own });
        let bytes = buffer.get_mut(..count).ok_or(from.at)?;
        let read = match own_range(from, count) {
            Some(range) => self.own.get(range).map(|own| bytes.copy_from_slice(own)).is_some(),
            None => !from.is_own && bus.read(from.at, bytes),
        };
        if !read {
            return Err(from.at);
        }
        let written = match own_range(to, count) {
            Some(range) => self.own.get_mut(range).map(|own| own.copy_from_slice(bytes)).is_some(),
            None => !to.is_own && bus.write(to.at, bytes),
        };
        if !written {
            return Err(to.at);
        }
        self.progress += len;
        self.counters.units += 1;
        self.counters.bytes += len;
        Ok(())
    }

    fn tell(&mut self, what: u64) {
        self.happened |= what;
        self.send(self.enabled & what != 0);
    }

    fn send(&mut self, is_due: bool) {
        if is_due {
            self.message = true;
            self.counters.interrupts += 1;
        }
    }
}

/// Where in the engine's own memory a side is, if it is there.
fn own_range(side: Side, count: usize) -> Option<std::ops::Range<usize>> {
    let at = usize::try_from(side.at).ok().filter(|_| side.is_own)?;
    Some(at..at.checked_add(count)?)
}
