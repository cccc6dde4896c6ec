//! An engine with its thread, which moves what goes on while CPUs run, and how it is held still.
//!
//! D1  whoever holds the engine ([`DmaEngine::hold`]) sees whole units only: all moving is done under the lock that a hold takes;
//! D2  the thread keeps the lock for one burst at most, so that a driver can read the progress meanwhile.

use std::{
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use memvisor_abi::dma::{Register, VECTOR};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::engine::{Counters, DmaBus, Engine};
use crate::{
    devices::virtio::Msix,
    machine::Range,
    memory::Memory,
    seccomp::{self, Filters},
};

/// Why an engine could not be made.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The host gives no thread.
    #[error("cannot start the thread of DMA engine {number}")]
    Thread {
        /// Number of the engine in the machine file.
        number: usize,
        /// The host's answer.
        source: io::Error,
    },
}

/// An engine as it is seen from outside the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaStats {
    /// Address bits that it drives.
    pub address_bits: u32,
    /// Whether a transfer goes on.
    pub active: bool,
    /// What it did.
    #[serde(flatten)]
    pub counters: Counters,
}

impl DmaStats {
    fn of(engine: &Engine) -> DmaStats {
        DmaStats { address_bits: engine.bits(), active: engine.is_active(), counters: engine.counters() }
    }
}

/// Guest RAM as the engine reaches it: what nodes have, not firmware's tables.
struct Ram {
    memory: Arc<Memory>,
    /// Ascending, apart from each other.
    ranges: Vec<Range>,
}

impl Ram {
    fn new(memory: Arc<Memory>, ram: &[(u64, u64)]) -> Ram {
        let mut ranges: Vec<Range> = ram.iter().map(|&(base, len)| Range { base, len }).collect();
        ranges.sort();
        ranges.dedup_by(|next, last| {
            let joins = next.base == last.end();
            if joins {
                *last = Range::new(last.base, next.end());
            }
            joins
        });
        Ram { memory, ranges }
    }
}

impl DmaBus for Ram {
    fn is_ram(&self, addr: u64, len: u64) -> bool {
        let Some(end) = addr.checked_add(len) else { return false };
        self.ranges.iter().any(|range| range.base <= addr && end <= range.end())
    }

    fn read(&self, addr: u64, bytes: &mut [u8]) -> bool {
        self.is_ram(addr, bytes.len() as u64)
            && self.memory.guest().read_slice(bytes, GuestAddress(addr)).is_ok()
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> bool {
        self.is_ram(addr, bytes.len() as u64)
            && self.memory.guest().write_slice(bytes, GuestAddress(addr)).is_ok()
    }
}

struct Work {
    engine: Engine,
    is_master: bool,
    holds: u8,
    stop: bool,
}

struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    ram: Ram,
    msix: Msix,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the message that the engine has for the driver, if it has one.
    fn deliver(&self, engine: &mut Engine) {
        if engine.take_message() {
            self.msix.notify(VECTOR);
        }
    }
}

/// An engine of a guest.
pub struct DmaEngine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    number: usize,
}

impl fmt::Debug for DmaEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaEngine").field("number", &self.number).finish_non_exhaustive()
    }
}

impl DmaEngine {
    /// Starts the thread of engine `number`, which drives `bits` address bits, reaches `ram` (addresses and lengths) of `memory`, and
    /// interrupts through `msix`.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn start(
        (number, bits): (usize, u32),
        memory: Arc<Memory>,
        ram: &[(u64, u64)],
        msix: Msix,
        filters: Filters,
    ) -> Result<DmaEngine, DmaError> {
        let work = Work { engine: Engine::new(bits), is_master: false, holds: 0, stop: false };
        let shared = Arc::new(Shared {
            work: Mutex::new(work),
            changed: Condvar::new(),
            ram: Ram::new(memory, ram),
            msix,
        });
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name(format!("dma {number}"))
            .spawn(move || work_on(&of_thread, filters))
            .map_err(|source| DmaError::Thread { number, source })?;
        Ok(DmaEngine { shared, thread: Mutex::new(Some(thread)), number })
    }

    /// What it did so far.
    pub fn stats(&self) -> DmaStats {
        DmaStats::of(&self.shared.lock().engine)
    }

    /// Holds the engine for the reason `bit`; D1.
    pub fn hold(&self, bit: u8) {
        self.shared.lock().holds |= bit;
    }

    /// Ends a hold.
    pub fn release(&self, bit: u8) {
        self.shared.lock().holds &= !bit;
        self.shared.changed.notify_all();
    }

    /// Whether its thread works, which it does as long as the engine is there, unless it panicked.
    pub fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    pub(super) fn read(&self, register: Register) -> u64 {
        self.shared.lock().engine.read(register)
    }

    /// Takes `value` into the bits `mask` of a register.
    pub(super) fn write(&self, register: Register, value: u64, mask: u64) {
        let mut work = self.shared.lock();
        let is_master = work.is_master;
        work.engine.write(register, value, mask, &self.shared.ram, is_master);
        self.shared.deliver(&mut work.engine);
        let works = work.engine.background().is_some();
        drop(work);
        if works {
            self.shared.changed.notify_all();
        }
    }

    /// Whether the function may use the bus.
    pub(super) fn set_master(&self, is_master: bool) {
        self.shared.lock().is_master = is_master;
        self.shared.changed.notify_all();
    }
}

impl Drop for DmaEngine {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            tracing::error!("the thread of DMA engine {} panicked: {panic:?}", self.number);
        }
    }
}

/// The thread: bursts and stolen cycles.
fn work_on(shared: &Shared, filters: Filters) {
    if let Err(error) = seccomp::enter(filters, seccomp::Thread::Dma) {
        // Without the filter it does not work for a guest: its transfers never end.
        tracing::error!("{error}");
        return;
    }
    // The transfer that had the bus last, and until when it leaves it free.
    let mut free_until: Option<(u64, Instant)> = None;
    let mut work = shared.lock();
    while !work.stop {
        let number = work.engine.background().filter(|_| work.holds == 0 && work.is_master);
        let Some(number) = number else {
            work = shared.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let left = free_until
            .filter(|(last, _)| *last == number)
            .map(|(_, until)| until.saturating_duration_since(Instant::now()))
            .filter(|left| !left.is_zero());
        if let Some(left) = left {
            work = shared.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        work.engine.step(&shared.ram);
        shared.deliver(&mut work.engine);
        free_until = Some((number, Instant::now() + Duration::from_micros(work.engine.pause_us())));
        // Others get the lock between two steps even if there is no pause.
        drop(work);
        thread::yield_now();
        work = shared.lock();
    }
}
