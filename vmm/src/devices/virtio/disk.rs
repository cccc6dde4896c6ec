//! A disk: the thread that carries out its requests, and how it is held still.
//!
//! D1  a request is carried out as a whole while nobody holds the disk: [`Disk::hold`] returns when none is
//!     half done, so an audit or a dump sees a request's data, its status and its entry in the used ring,
//!     or nothing of it;
//! D2  a request that was taken from the queue and waits for its delay has changed nothing yet;
//! D3  after [`Disk::detach`] the thread does not touch the queue that it had;
//! D4  the thread holds no lock while it waits for the host's file.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::backing::{Backing, DiskError, Failure};
use super::block::Executor;
use super::msix::Msix;
use crate::{
    machine,
    memory::Memory,
    seccomp::{self, Filters},
};

/// What a disk did.
#[derive(Debug, Default)]
pub struct DiskCounters {
    reads: AtomicU64,
    sectors_read: AtomicU64,
    writes: AtomicU64,
    sectors_written: AtomicU64,
    flushes: AtomicU64,
    injected: AtomicU64,
    refused: AtomicU64,
    host_errors: AtomicU64,
    malformed: AtomicU64,
    interrupts: AtomicU64,
    notifications: AtomicU64,
    in_flight: AtomicU64,
}

impl DiskCounters {
    pub(super) fn read(&self, sectors: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.sectors_read.fetch_add(sectors, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, sectors: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.sectors_written.fetch_add(sectors, Ordering::Relaxed);
    }

    pub(super) fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, failure: Failure) {
        let counter = match failure {
            Failure::Injected => &self.injected,
            Failure::Invalid => &self.refused,
            Failure::Host => &self.host_errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A disk as it is seen from outside the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Its name.
    pub name: String,
    /// Where its bytes are: a path, or `temporary`.
    pub source: String,
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether a driver uses it.
    pub active: bool,
    /// Reads that were carried out.
    pub reads: u64,
    /// Sectors of 512 bytes that they read.
    pub sectors_read: u64,
    /// Writes that were carried out.
    pub writes: u64,
    /// Sectors of 512 bytes that they wrote.
    pub sectors_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that failed because the machine file says so.
    pub injected: u64,
    /// Requests for what there is not: past the end, not whole sectors, writes to a read-only disk.
    pub refused: u64,
    /// Requests that failed because the host's file did.
    pub host_errors: u64,
    /// Chains that are no requests.
    pub malformed: u64,
    /// Requests taken from the queue and not answered.
    pub in_flight: u64,
    /// Times that the driver rang.
    pub notifications: u64,
    /// Times that the driver was interrupted.
    pub interrupts: u64,
}

/// What the thread works on.
struct Work {
    queue: Option<Queue>,
    vector: u16,
    /// Changes whenever the queue does.
    generation: u64,
    holds: u8,
    busy: bool,
    stop: bool,
}

struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    counters: DiskCounters,
    /// The driver broke the rings, and must reset the device.
    broken: AtomicBool,
    interrupt_status: AtomicBool,
    msix: Msix,
    memory: Arc<Memory>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, work: MutexGuard<'a, Work>) -> MutexGuard<'a, Work> {
        self.changed.wait(work).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk of a guest.
pub struct Disk {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    name: String,
    source: String,
    sectors: u64,
    read_only: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.name)
            .field("sectors", &self.sectors)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens the disk that `spec` describes and starts its thread, which interrupts through `msix`.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn start(
        spec: &machine::Disk,
        memory: Arc<Memory>,
        msix: Msix,
        filters: Filters,
    ) -> Result<Disk, DiskError> {
        let backing = Backing::open(spec)?;
        let (sectors, read_only) = (backing.sectors(), backing.is_read_only());
        let shared = Arc::new(Shared {
            work: Mutex::new(Work {
                queue: None,
                vector: u16::MAX,
                generation: 0,
                holds: 0,
                busy: false,
                stop: false,
            }),
            changed: Condvar::new(),
            counters: DiskCounters::default(),
            broken: AtomicBool::new(false),
            interrupt_status: AtomicBool::new(false),
            msix,
            memory,
        });
        let worker = Worker {
            shared: shared.clone(),
            executor: Executor::new(backing, spec.name.clone()),
            delay: Duration::from_micros(spec.faults.delay_us),
        };
        let thread = thread::Builder::new()
            .name(format!("disk {}", spec.name))
            .spawn(move || worker.run(filters))
            .map_err(|source: io::Error| DiskError::Thread { disk: spec.name.clone(), source })?;
        Ok(Disk {
            shared,
            thread: Mutex::new(Some(thread)),
            name: spec.name.clone(),
            source: spec.source.to_string(),
            sectors,
            read_only,
        })
    }

    /// Sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may only read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What it did so far.
    pub fn stats(&self) -> DiskStats {
        let counters = &self.shared.counters;
        let is = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            name: self.name.clone(),
            source: self.source.clone(),
            sectors: self.sectors,
            read_only: self.read_only,
            active: self.shared.lock().queue.is_some(),
            reads: is(&counters.reads),
            sectors_read: is(&counters.sectors_read),
            writes: is(&counters.writes),
            sectors_written: is(&counters.sectors_written),
            flushes: is(&counters.flushes),
            injected: is(&counters.injected),
            refused: is(&counters.refused),
            host_errors: is(&counters.host_errors),
            malformed: is(&counters.malformed),
            in_flight: is(&counters.in_flight),
            notifications: is(&counters.notifications),
            interrupts: is(&counters.interrupts),
        }
    }

    /// Whether its thread works, which it does as long as the disk is there, unless it panicked.
    pub fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Holds the disk for the reason `bit`; returns when no request is half done (D1).
    pub fn hold(&self, bit: u8) {
        let mut work = self.shared.lock();
        work.holds |= bit;
        while work.busy {
            work = self.shared.wait(work);
        }
    }

    /// Ends a hold.
    pub fn release(&self, bit: u8) {
        self.shared.lock().holds &= !bit;
        self.shared.changed.notify_all();
    }

    /// Waits until nothing is half done and takes the queue away.
    pub(super) fn detach(&self) {
        let mut work = self.shared.lock();
        work.queue = None;
        work.generation += 1;
        while work.busy {
            work = self.shared.wait(work);
        }
        self.shared.broken.store(false, Ordering::Release);
        self.shared.interrupt_status.store(false, Ordering::Release);
        self.shared.counters.in_flight.store(0, Ordering::Relaxed);
    }

    /// Gives the thread a queue, whose interrupts are `vector`.
    pub(super) fn attach(&self, queue: Queue, vector: u16) {
        let mut work = self.shared.lock();
        work.queue = Some(queue);
        work.vector = vector;
        work.generation += 1;
        drop(work);
        self.shared.changed.notify_all();
    }

    /// The driver rang.
    pub(super) fn notify(&self) {
        self.shared.counters.notifications.fetch_add(1, Ordering::Relaxed);
        // Under the lock: the thread either sees what is new in the ring or hears this.
        let _work = self.shared.lock();
        self.shared.changed.notify_all();
    }

    /// Whether the driver broke the rings.
    pub(super) fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    /// Whether an entry of the used ring is new; reading forgets it (the transport's ISR status).
    pub(super) fn take_interrupt_status(&self) -> bool {
        self.shared.interrupt_status.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            tracing::error!("the thread of disk {} panicked: {panic:?}", self.name);
        }
    }
}

type Chain<'a> = virtio_queue::DescriptorChain<&'a GuestMemoryMmap>;

/// The thread's side.
struct Worker {
    shared: Arc<Shared>,
    executor: Executor,
    delay: Duration,
}

/// However the thread ends, nobody waits for it, and the driver finds a device that needs a reset.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut work = self.0.lock();
        work.busy = false;
        work.queue = None;
        drop(work);
        self.0.broken.store(true, Ordering::Release);
        self.0.changed.notify_all();
    }
}

impl Worker {
    fn run(mut self, filters: Filters) {
        if let Err(error) = seccomp::enter(filters, seccomp::Thread::Disk) {
            // Without the filter it does not work for a guest: its requests never end.
            tracing::error!("{error}");
            return;
        }
        let shared = self.shared.clone();
        let _end = End(&shared);
        let memory = shared.memory.guest();
        let mut waiting: VecDeque<(Instant, Chain<'_>)> = VecDeque::new();
        let mut generation = 0;
        let mut work = shared.lock();
        loop {
            if work.stop {
                return;
            }
            if work.generation != generation {
                generation = work.generation;
                waiting.clear();
            }
            if work.holds != 0 || work.queue.is_none() {
                work = shared.wait(work);
                continue;
            }
            if !self.take(&mut work, memory, &mut waiting) {
                work = shared.wait(work);
                continue;
            }
            let Some((due, _)) = waiting.front() else { continue };
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let (guard, _) =
                    shared.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner);
                work = guard;
                continue;
            }
            let Some((_, chain)) = waiting.pop_front() else { continue };
            work.busy = true;
            drop(work);
            let head = chain.head_index();
            let len = self.executor.execute(chain, memory, &shared.counters);
            work = shared.lock();
            shared.counters.in_flight.store(waiting.len() as u64, Ordering::Relaxed);
            if work.generation == generation {
                self.complete(&mut work, memory, head, len);
            }
            work.busy = false;
            shared.changed.notify_all();
        }
    }

    /// Moves what is new in the available ring to `waiting`; `false` if there is nothing to do.
    fn take<'a>(
        &self,
        work: &mut Work,
        memory: &'a GuestMemoryMmap,
        waiting: &mut VecDeque<(Instant, Chain<'a>)>,
    ) -> bool {
        let Some(queue) = &mut work.queue else { return false };
        let due = Instant::now() + self.delay;
        // A driver that offers more than the queue holds is not followed: it has taken back what waits.
        while waiting.len() < usize::from(queue.size()) {
            match queue.iter(memory).map(|mut chains| chains.next()) {
                Ok(Some(chain)) => waiting.push_back((due, chain)),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("disk {}: the driver's ring is broken: {error}", self.executor.name);
                    self.fail(work);
                    return false;
                }
            }
        }
        self.shared.counters.in_flight.store(waiting.len() as u64, Ordering::Relaxed);
        !waiting.is_empty()
    }

    fn complete(&self, work: &mut Work, memory: &GuestMemoryMmap, head: u16, len: u32) {
        let Some(queue) = &mut work.queue else { return };
        let told = queue.add_used(memory, head, len).and_then(|()| queue.needs_notification(memory));
        match told {
            Ok(true) => {
                self.shared.interrupt_status.store(true, Ordering::Release);
                self.shared.counters.interrupts.fetch_add(1, Ordering::Relaxed);
                self.shared.msix.notify(work.vector);
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!("disk {}: the driver's ring is broken: {error}", self.executor.name);
                self.fail(work);
            }
        }
    }

    /// The device needs a reset; nothing is done for this queue any more.
    fn fail(&self, work: &mut Work) {
        work.queue = None;
        work.generation += 1;
        self.shared.broken.store(true, Ordering::Release);
    }
}
