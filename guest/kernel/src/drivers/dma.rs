//! memvisor's DMA engine (guest/abi/src/dma.rs): finds engines, starts transfers and waits for their interrupts.
//!
//! N1  one task at a time has an engine ([`Engine::claim`]); interrupts only note what happened;
//! N2  a transfer that was begun is waited for or stopped before the engine is given to somebody else.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_virtio::pci::{Part, msix};
use guest_virtio::transport::Registers;
use memvisor_abi::dma::{self, Command, Error, Mode, Register, control, event, status};
use mm_core::{Errno, MaySleep, PhysAddr};
use mm_dma::{DmaDevice, DmaMask};

use super::pci::{self, Function};
use super::virtio::blk::set_vector;
use super::virtio::memory::Mmio;
use crate::arch::trap::VECTOR_DMA;
use crate::mm::dma::dma_set_mask;
use crate::pr_info;
use crate::sched::WaitQueue;
use crate::sync::Lock;

/// Most engines, each with an interrupt vector.
pub const MAX_ENGINES: u8 = 4;
const SLOTS: usize = MAX_ENGINES as usize;

static ENGINES: Lock<[Option<&'static Engine>; SLOTS]> = Lock::new([None; SLOTS]);

/// An engine and its driver's state.
pub struct Engine {
    registers: Mmio,
    device: DmaDevice,
    bits: u32,
    claimed: AtomicBool,
    /// Events of the transfer that goes on.
    events: AtomicU64,
    interrupts: AtomicU64,
    waiters: WaitQueue,
}

/// Which way a transfer goes; the other side is the engine's own memory, from the offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Memory is read.
    ToEngine {
        /// Offset in the engine's memory.
        own: u64,
    },
    /// Memory is written.
    FromEngine {
        /// Offset in the engine's memory.
        own: u64,
    },
    /// Memory is read and other memory written.
    ToMemory {
        /// Where it is written.
        to: PhysAddr,
    },
}

/// A transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The address of memory, for the device.
    pub addr: PhysAddr,
    /// Where the other side is.
    pub way: Way,
    /// Bytes.
    pub len: u64,
    /// How it takes the bus.
    pub mode: Mode,
    /// Bytes of a unit.
    pub unit: u64,
    /// Units of a burst.
    pub burst: u64,
    /// Microseconds for which the bus is free after a burst or a stolen unit.
    pub pause_us: u64,
}

/// Why a transfer was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The engine says why, and what the address was.
    Engine(Error, u64),
    /// It was stopped.
    Stopped,
}

/// An engine that nobody else uses.
pub struct Claimed<'a> {
    engine: &'a Engine,
    context: &'a MaySleep<'a>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        if self.engine.get(Register::Status) & status::ACTIVE != 0 {
            self.engine.command(Command::Stop);
        }
        self.engine.claimed.store(false, Ordering::Release);
        self.engine.waiters.wake_up_all();
    }
}

/// Finds the engines of the machine.
pub fn init(context: &MaySleep<'_>) {
    let mut index = 0;
    pci::scan(|function, id| {
        if id != (dma::VENDOR, dma::DEVICE) || index >= MAX_ENGINES {
            return;
        }
        match probe(function, index, context) {
            Ok(engine) => {
                pr_info!(
                    "memvisor_dma 00:{:02x}.{}: dma{index}, {} address bits",
                    function.device,
                    function.function,
                    engine.bits
                );
                index += 1;
            }
            Err(reason) => {
                function.disable();
                pr_info!("memvisor_dma 00:{:02x}.{}: not used: {reason}", function.device, function.function);
            }
        }
    });
}

fn probe(function: Function, index: u8, context: &MaySleep<'_>) -> Result<&'static Engine, &'static str> {
    let cap = msix(&function).ok_or("it has no MSI-X")?;
    function.enable();
    let page = Part { bar: 0, offset: 0, len: 0x1000 };
    let registers = Mmio::map(function, page, context).ok_or("its registers are nowhere")?;
    let table = Mmio::map(function, cap.table, context).ok_or("its MSI-X table is nowhere")?;
    if read(&registers, Register::Id) != dma::ID {
        return Err("it says that it is something else");
    }
    let capabilities = read(&registers, Register::Capabilities);
    let (bits, version) = (capabilities & 0xff, capabilities >> 8 & 0xff);
    if version != dma::VERSION {
        return Err("it has another version");
    }
    let bits = u32::try_from(bits).unwrap_or(0);
    let mask = DmaMask::from_bits(bits).ok_or("it drives no address bits")?;
    let device = dma_set_mask(mask, context).map_err(|errno| match errno {
        Errno::Enomem => "no memory for its bounce buffers",
        _ => "its mask cannot be served",
    })?;
    let engine: &'static Engine = Box::leak(Box::new(Engine {
        registers,
        device,
        bits,
        claimed: AtomicBool::new(false),
        events: AtomicU64::new(0),
        interrupts: AtomicU64::new(0),
        waiters: WaitQueue::new(),
    }));
    // From here on interrupts find it.
    ENGINES.lock()[usize::from(index)] = Some(engine);
    set_vector(function, &cap, &table, VECTOR_DMA + index);
    engine.command(Command::Reset);
    engine.set(Register::InterruptEnable, event::ALL);
    Ok(engine)
}

/// Engine `index`.
pub fn engine(index: usize) -> Option<&'static Engine> {
    ENGINES.lock().get(index).copied().flatten()
}

/// All engines.
pub fn all() -> impl Iterator<Item = &'static Engine> {
    (0..SLOTS).filter_map(engine)
}

/// The interrupt of engine `index`.
pub fn interrupt(index: u8) {
    if let Some(engine) = engine(index.into()) {
        engine.interrupt();
    }
}

fn read(registers: &Mmio, register: Register) -> u64 {
    let at = register as u32;
    u64::from(registers.read32(at)) | u64::from(registers.read32(at + 4)) << 32
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

impl Engine {
    /// What it reaches.
    pub const fn device(&self) -> &DmaDevice {
        &self.device
    }

    /// Address bits that it drives.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    fn get(&self, register: Register) -> u64 {
        read(&self.registers, register)
    }

    fn set(&self, register: Register, value: u64) {
        let (low, high) = halves(value);
        self.registers.write32(register as u32, low);
        self.registers.write32(register as u32 + 4, high);
    }

    /// One half says all of a command.
    fn command(&self, command: Command) {
        self.registers.write32(Register::Command as u32, halves(command as u64).0);
    }

    fn interrupt(&self) {
        let happened = self.registers.read32(Register::InterruptStatus as u32);
        self.registers.write32(Register::InterruptStatus as u32, happened);
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_or(happened.into(), Ordering::AcqRel);
        self.waiters.wake_up_all();
    }

    /// Waits until nobody uses the engine, and keeps others away until the answer is dropped.
    pub fn claim<'a>(&'a self, context: &'a MaySleep<'a>) -> Claimed<'a> {
        self.waiters.wait_event_midway(context, || !self.claimed.swap(true, Ordering::AcqRel));
        Claimed { engine: self, context }
    }
}

impl Claimed<'_> {
    /// Describes a transfer and starts it: of a single one the first unit, of a block all of it.
    pub fn begin(&self, transfer: &Transfer) {
        let (source, destination, sides) = match transfer.way {
            Way::ToEngine { own } => (transfer.addr.as_u64(), own, control::DESTINATION_IS_OWN),
            Way::FromEngine { own } => (own, transfer.addr.as_u64(), control::SOURCE_IS_OWN),
            Way::ToMemory { to } => (transfer.addr.as_u64(), to.as_u64(), 0),
        };
        self.engine.events.store(0, Ordering::Release);
        for (register, value) in [
            (Register::Source, source),
            (Register::Destination, destination),
            (Register::Length, transfer.len),
            (Register::Unit, transfer.unit),
            (Register::Burst, transfer.burst),
            (Register::Pause, transfer.pause_us),
            (Register::Control, transfer.mode as u64 | sides),
        ] {
            self.engine.set(register, value);
        }
        self.engine.command(Command::Start);
    }

    /// Bytes that the transfer has moved.
    pub fn progress(&self) -> u64 {
        self.engine.get(Register::Progress)
    }

    /// Ends the transfer where it is.
    pub fn stop(&self) {
        self.engine.command(Command::Stop);
    }

    /// Waits for an interrupt that tells one of `events`; which came.
    fn wait_for(&self, events: u64) -> u64 {
        let mut came = 0;
        self.engine.waiters.wait_event_midway(self.context, || {
            came = self.engine.events.load(Ordering::Acquire) & events;
            came != 0
        });
        self.engine.events.fetch_and(!came, Ordering::AcqRel);
        came
    }

    /// Waits for the end of what was begun, and starts each further unit of a single transfer.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn wait(&self) -> Result<(), Refusal> {
        loop {
            let came = self.wait_for(event::ALL);
            if came & event::ERROR != 0 {
                let error = Error::from_raw(self.engine.get(Register::Error)).unwrap_or(Error::None);
                return Err(Refusal::Engine(error, self.engine.get(Register::ErrorAddress)));
            }
            if came & event::DONE != 0 {
                return Ok(());
            }
            self.engine.command(Command::Start);
        }
    }

    /// The outcome of a transfer that somebody stopped.
    ///
    /// # Errors
    /// [`Refusal::Stopped`] if it had not ended before.
    pub fn stopped(&self) -> Result<(), Refusal> {
        match self.engine.get(Register::Status) & status::STOPPED {
            0 => Ok(()),
            _ => Err(Refusal::Stopped),
        }
    }

    /// Carries a transfer out.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was moved.
    pub fn run(&self, transfer: &Transfer) -> Result<(), Refusal> {
        self.begin(transfer);
        self.wait()
    }
}
