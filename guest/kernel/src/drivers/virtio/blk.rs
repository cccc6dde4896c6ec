//! virtio-blk (Linux: drivers/block/virtio_blk.c): finds disks, and carries requests to them.
//!
//! A request's header and status are in the slot of its head descriptor; its answer goes into a ticket, which stays until
//! its owner has read it, because the descriptors are free again as soon as the device has answered.
//!
//! K1  a ticket is idle, in flight (and then exactly one head leads to it) or done;
//! K2  only who holds the disk's lock touches queue, tickets and slots; interrupts take it too;
//! K3  a device that breaks its queue is disabled, so that it reaches no memory any more; all that is in flight fails
//!     with EIO, and so does everything after it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_virtio::blk::{self, Op, config, feature};
use guest_virtio::pci::{MsixCap, VENDOR, msix, virtio_parts};
use guest_virtio::transport::{self, InitError, QueueSetup, Registers};
use guest_virtio::{Buffer, Layout, MAX_SIZE, RingMemory, SplitQueue};
use mm_core::{Errno, Event, EventId, MaySleep, Trace};

use super::memory::{DmaFrame, Mmio};
use crate::arch::trap::VECTOR_DISKS;
use crate::drivers::block::{Completion, Direction, Disk, Segment, Stats};
use crate::drivers::pci::Function;
use crate::sched::{WaitQueue, clock};
use crate::sync::Lock;
use crate::trace::KernelTrace;
use crate::{pr_info, pr_warn, topology};

const TICKETS: usize = MAX_SIZE as usize;
/// Descriptors of header and status.
const FRAME_DESCRIPTORS: u16 = 2;
/// Where the device's name is read to: behind the rings.
const ID_AT: u32 = 3584;
const ID_BYTES: u32 = 20;
/// The queue's interrupts.
const QUEUE_VECTOR: u16 = 0;

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Flying,
    Done(Result<(), Errno>),
}

#[derive(Clone, Copy, Debug)]
struct Request {
    state: State,
    direction: Direction,
    sectors: u64,
    /// Nanoseconds since boot.
    started: u64,
    /// Who is told of the end; nobody waits for the ticket then.
    completion: Option<Completion>,
}

struct Inner {
    queue: SplitQueue,
    /// `TICKETS`; not in the structure, which is made on a small stack.
    tickets: Vec<Request>,
    /// The ticket of each head in flight.
    of_head: [u16; TICKETS],
}

/// A request in flight. It must be waited for: until then the device may write the request's frames.
#[must_use = "the device may write the frames until the request is waited for"]
#[derive(Debug)]
pub struct Ticket(u16);

/// A device and its driver's state.
pub struct VirtioBlk {
    function: Function,
    registers: Mmio,
    doorbell: Mmio,
    doorbell_at: u32,
    rings: DmaFrame,
    slots: DmaFrame,
    inner: Lock<Inner>,
    /// Who waits for an answer, or for room.
    waiters: WaitQueue,
    stats: Stats,
    /// Answers that came by an interrupt.
    interrupts: AtomicU64,
}

/// What the device says about itself.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether what was written is kept only after a flush.
    pub has_flush: bool,
    /// Most pieces of data in a request.
    pub max_segments: u16,
    /// Its name, cut to 20 bytes.
    pub serial: [u8; ID_BYTES as usize],
}

/// Why a function that looks like a disk is none.
#[derive(Clone, Copy, Debug)]
enum ProbeError {
    /// It lacks registers or MSI-X.
    NoParts,
    /// Its registers are nowhere.
    NotMapped,
    /// No memory for the queue.
    NoMemory,
    Init(InitError),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeError::NoParts => "it lacks registers of virtio 1 or MSI-X",
            ProbeError::NotMapped => "firmware gave its registers no address",
            ProbeError::NoMemory => "no memory for its queue",
            ProbeError::Init(InitError::NoReset) => "it does not reset",
            ProbeError::Init(InitError::Legacy) => "it is older than virtio 1",
            ProbeError::Init(InitError::FeaturesRefused) => "it refuses the features that it offers",
            ProbeError::Init(InitError::NoQueue) => "it has no queue of 4 entries",
            ProbeError::Init(InitError::NoVector) => "it has no vector for its queue",
        })
    }
}

impl From<InitError> for ProbeError {
    fn from(error: InitError) -> ProbeError {
        ProbeError::Init(error)
    }
}

/// Whether a function is a disk of this driver.
pub fn matches((vendor, device): (u16, u16)) -> bool {
    vendor == VENDOR && matches!(device, blk::PCI_DEVICE | blk::PCI_DEVICE_TRANSITIONAL)
}

/// Starts the disk behind `function`, which becomes disk `index`; says so if it cannot be used.
pub fn probe(function: Function, index: u8, context: &MaySleep<'_>) -> Option<Disk> {
    match try_probe(function, index, context) {
        Ok(disk) => Some(disk),
        Err(error) => {
            function.disable();
            pr_warn!("virtio_blk 00:{:02x}.{}: not used: {error}", function.device, function.function);
            None
        }
    }
}

fn try_probe(function: Function, index: u8, context: &MaySleep<'_>) -> Result<Disk, ProbeError> {
    let parts = virtio_parts(&function).ok_or(ProbeError::NoParts)?;
    let msix = msix(&function).ok_or(ProbeError::NoParts)?;
    function.enable();
    let map = |part| Mmio::map(function, part, context).ok_or(ProbeError::NotMapped);
    let (registers, doorbell, device) = (map(parts.common)?, map(parts.notify)?, map(parts.device)?);
    set_vector(function, &msix, &map(msix.table)?, VECTOR_DISKS + index);

    let wanted = feature::SEG_MAX | feature::RO | feature::FLUSH;
    let features = transport::negotiate(&registers, wanted)?;
    let size = transport::queue_size(&registers, 0).min(MAX_SIZE);
    // The largest power of two.
    let size = if size == 0 { 0 } else { 1 << size.ilog2() };
    let layout = Layout::new(size).filter(|layout| layout.size > FRAME_DESCRIPTORS);
    let layout = layout.ok_or(InitError::NoQueue)?;
    let rings = DmaFrame::alloc().ok_or(ProbeError::NoMemory)?;
    let slots = DmaFrame::alloc().ok_or(ProbeError::NoMemory)?;
    let setup = QueueSetup {
        size: layout.size,
        rings: [layout.desc, layout.avail, layout.used].map(|part| rings.addr(part)),
        vector: QUEUE_VECTOR,
    };
    let number = transport::set_queue(&registers, 0, &setup)?;
    transport::start(&registers);

    let (capacity, seg_max) = transport::read_config(&registers, || {
        let low = device.read32(config::CAPACITY);
        let high = device.read32(config::CAPACITY + 4);
        (u64::from(low) | u64::from(high) << 32, device.read32(config::SEG_MAX))
    });
    let room = layout.size - FRAME_DESCRIPTORS;
    let max_segments = match features & feature::SEG_MAX {
        0 => 1,
        _ => u16::try_from(seg_max).unwrap_or(room).clamp(1, room),
    };
    let driver = Box::leak(Box::new(VirtioBlk {
        function,
        registers,
        doorbell,
        doorbell_at: u32::from(number) * parts.notify_multiplier,
        rings,
        slots,
        inner: Lock::new(Inner {
            queue: SplitQueue::new(layout),
            tickets: idle_tickets()?,
            of_head: [0; TICKETS],
        }),
        waiters: WaitQueue::new(),
        stats: Stats::new(),
        interrupts: AtomicU64::new(0),
    }));
    // From here on interrupts find it.
    super::super::block::set_driver(index, driver);
    let serial = driver.read_serial(context);
    let geometry = Geometry {
        capacity,
        read_only: features & feature::RO != 0,
        has_flush: features & feature::FLUSH != 0,
        max_segments,
        serial,
    };
    Ok(Disk { index, geometry, driver })
}

fn idle_tickets() -> Result<Vec<Request>, ProbeError> {
    let idle =
        Request { state: State::Idle, direction: Direction::Read, sectors: 0, started: 0, completion: None };
    let mut tickets = Vec::new();
    tickets.try_reserve_exact(TICKETS).map_err(|_| ProbeError::NoMemory)?;
    tickets.resize(TICKETS, idle);
    Ok(tickets)
}

/// Sends a function's interrupts of vector 0 to the boot CPU.
pub(in crate::drivers) fn set_vector(function: Function, cap: &MsixCap, table: &Mmio, vector: u8) {
    let apic_id = topology::CPUS.lock().table.first().map_or(0, |cpu| cpu.apic_id);
    let entry = u32::from(QUEUE_VECTOR) * guest_virtio::pci::MSIX_ENTRY;
    // Intel SDM volume 3, 11.11: fixed delivery to one CPU, edge-triggered.
    table.write32(entry, 0xfee0_0000 | (apic_id & 0xff) << 12);
    table.write32(entry + 4, 0);
    table.write32(entry + 8, u32::from(vector));
    table.write32(entry + 12, 0);
    function.enable_msix(cap);
}

impl VirtioBlk {
    /// What it did.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Requests that can be in flight at once with one piece of data each.
    pub fn depth(&self) -> u16 {
        self.inner.lock().queue.layout().size / (FRAME_DESCRIPTORS + 1)
    }

    /// Checks the queue and the tickets; says what is wrong.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn audit(&self) -> Result<(), &'static str> {
        self.inner.lock().queue.audit()
    }

    /// Begins a request, and waits for room if there is none.
    ///
    /// # Errors
    /// `EIO` if the device broke its queue.
    pub fn submit(
        &self,
        op: Op,
        sector: u64,
        segments: &[Segment],
        context: &MaySleep<'_>,
    ) -> Result<Ticket, Errno> {
        self.submit_with(op, (sector, segments), None, context)
    }

    /// Begins a request whose end `completion` is told of.
    ///
    /// # Errors
    /// As [`VirtioBlk::submit`].
    pub fn submit_to_end(
        &self,
        op: Op,
        what: (u64, &[Segment]),
        completion: Completion,
        context: &MaySleep<'_>,
    ) -> Result<(), Errno> {
        // The interrupt gives the ticket back.
        self.submit_with(op, what, Some(completion), context).map(|Ticket(_)| ())
    }

    fn submit_with(
        &self,
        op: Op,
        (sector, segments): (u64, &[Segment]),
        completion: Option<Completion>,
        context: &MaySleep<'_>,
    ) -> Result<Ticket, Errno> {
        loop {
            match self.try_submit(op, (sector, segments), completion) {
                Ok(Some(ticket)) => return Ok(ticket),
                Ok(None) => {}
                Err(error) => return Err(error),
            }
            let needed = segments.len() + usize::from(FRAME_DESCRIPTORS);
            // Whoever wants blocks is in the middle of what it wants them for.
            self.waiters.wait_event_midway(context, || {
                let inner = self.inner.lock();
                let idle = inner.tickets.iter().any(|ticket| matches!(ticket.state, State::Idle));
                inner.queue.is_broken() || idle && usize::from(inner.queue.nr_free()) >= needed
            });
        }
    }

    /// `None` if there is no room.
    fn try_submit(
        &self,
        op: Op,
        (sector, segments): (u64, &[Segment]),
        completion: Option<Completion>,
    ) -> Result<Option<Ticket>, Errno> {
        let mut inner = self.inner.lock();
        if inner.queue.is_broken() {
            return Err(Errno::Eio);
        }
        let Some(number) = inner.tickets.iter().position(|ticket| matches!(ticket.state, State::Idle)) else {
            return Ok(None);
        };
        let Ok(head) = inner.queue.next_head() else { return Ok(None) };
        let slot = u32::from(head) * blk::SLOT_BYTES;
        for (word, at) in op.header(sector).into_iter().zip((slot..).step_by(4)) {
            self.slots.store(at, word);
        }
        self.slots.store(slot + blk::STATUS, blk::STATUS_PENDING.into());
        let header = Buffer { addr: self.slots.addr(slot), len: blk::HEADER_BYTES, device_writes: false };
        let status = Buffer { addr: self.slots.addr(slot + blk::STATUS), len: 1, device_writes: true };
        let count = segments.len();
        let buffers = (0..count + usize::from(FRAME_DESCRIPTORS)).map(|at| match at.checked_sub(1) {
            None => header,
            Some(at) => segments.get(at).map_or(status, |segment| segment.buffer(op.device_writes())),
        });
        if inner.queue.add(&self.rings, buffers).is_err() {
            return Ok(None);
        }
        let direction = match op {
            Op::Write => Direction::Write,
            Op::Flush => Direction::Flush,
            Op::Read | Op::GetId => Direction::Read,
        };
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        let request = Request {
            state: State::Flying,
            direction,
            sectors: bytes / blk::SECTOR,
            started: clock::now(),
            completion,
        };
        inner.tickets[number] = request;
        // Below 128.
        let number = u16::try_from(number).unwrap_or(0);
        inner.of_head[usize::from(head)] = number;
        self.stats.begin();
        if inner.queue.publish(&self.rings) {
            self.doorbell.write16(self.doorbell_at, 0);
        }
        Ok(Some(Ticket(number)))
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// `EIO` if the request failed; `EOPNOTSUPP` if the device does not know it.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is good for one wait")]
    pub fn wait(&self, ticket: Ticket, context: &MaySleep<'_>) -> Result<(), Errno> {
        let number = usize::from(ticket.0);
        let mut outcome = None;
        self.waiters.wait_event_midway(context, || {
            let mut inner = self.inner.lock();
            if let State::Done(result) = inner.tickets[number].state {
                inner.tickets[number].state = State::Idle;
                outcome = Some(result);
            }
            outcome.is_some()
        });
        // Somebody may wait for a ticket.
        self.waiters.wake_up_all();
        outcome.unwrap_or(Err(Errno::Eio))
    }

    /// Takes what the device answered. In an interrupt.
    pub fn interrupt(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        // Those who are told may take locks above the disk's.
        while let Some((completion, result)) = self.next_told() {
            completion.tell(result);
        }
        self.waiters.wake_up_all();
    }

    /// Takes answers until one comes that somebody is told of.
    fn next_told(&self) -> Option<(Completion, Result<(), Errno>)> {
        let mut inner = self.inner.lock();
        loop {
            if inner.queue.is_broken() {
                return self.next_failed(&mut inner);
            }
            match inner.queue.pop(&self.rings) {
                Ok(None) => return None,
                Ok(Some(used)) => {
                    let status = self.slots.byte(u32::from(used.head) * blk::SLOT_BYTES + blk::STATUS);
                    let number = inner.of_head[usize::from(used.head)];
                    let result = blk::status(status).map_err(|failed| match failed {
                        blk::Failed::Unsupported => Errno::Eopnotsupp,
                        blk::Failed::Io | blk::Failed::Nonsense => Errno::Eio,
                    });
                    if let Some(completion) = self.finish(&mut inner, usize::from(number), result) {
                        return Some((completion, result));
                    }
                }
                Err(_) => self.give_up(&inner),
            }
        }
    }

    /// Ends a request; who is told of it. Else its answer stays in the ticket.
    fn finish(&self, inner: &mut Inner, number: usize, result: Result<(), Errno>) -> Option<Completion> {
        let request = inner.tickets[number];
        self.stats.end(request.direction, request.sectors, clock::now().saturating_sub(request.started));
        KernelTrace.emit_with(EventId::BlockRqComplete, || Event::BlockRqComplete {
            write: request.direction == Direction::Write,
            error: result.err().map_or(0, Errno::number),
            bytes: request.sectors * blk::SECTOR,
        });
        inner.tickets[number].state = match request.completion {
            Some(_) => State::Idle,
            None => State::Done(result),
        };
        request.completion
    }

    /// All that is in flight fails (K3), one by one.
    fn next_failed(&self, inner: &mut Inner) -> Option<(Completion, Result<(), Errno>)> {
        let result = Err(Errno::Eio);
        for number in 0..TICKETS {
            if matches!(inner.tickets[number].state, State::Flying)
                && let Some(completion) = self.finish(inner, number, result)
            {
                return Some((completion, result));
            }
        }
        None
    }

    /// K3.
    fn give_up(&self, inner: &Inner) {
        debug_assert!(inner.queue.is_broken(), "a queue that works was given up");
        self.function.disable();
        let _ = transport::reset(&self.registers);
        pr_info!(
            "virtio_blk 00:{:02x}.{}: the device broke its queue",
            self.function.device,
            self.function.function
        );
    }

    fn read_serial(&self, context: &MaySleep<'_>) -> [u8; ID_BYTES as usize] {
        let mut serial = [0; ID_BYTES as usize];
        let segment = Segment { pfn: self.rings.pfn(), offset: ID_AT, len: ID_BYTES };
        let done =
            self.submit(Op::GetId, 0, &[segment], context).and_then(|ticket| self.wait(ticket, context));
        if done.is_ok() {
            for (byte, at) in serial.iter_mut().zip(ID_AT..) {
                *byte = self.rings.byte(at);
            }
        }
        serial
    }
}
