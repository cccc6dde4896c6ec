//! Block devices for the rest of the kernel: what page cache, swap and file systems read and write (Linux: block/).
//!
//! Requests name frames, not addresses: what is read goes where it is to stay. The caller keeps the frames until the request
//! has ended; the device writes them by their physical address.
//!
//! Differs from Linux: there is no scheduler and no merging: whoever asks knows what belongs together.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use guest_virtio::Buffer;
use guest_virtio::blk::{Op, SECTOR, is_inside};
use mm_core::{Errno, Event, EventId, MaySleep, PAGE_SIZE, Pfn, Trace};

use super::pci;
pub use super::virtio::blk::Ticket;
use super::virtio::blk::{self, Geometry, VirtioBlk};
use crate::pr_info;
use crate::sync::Lock;
use crate::trace::KernelTrace;

/// Most disks: vda to vdz, each with an interrupt vector.
pub const MAX_DISKS: u8 = 26;
const SLOTS: usize = MAX_DISKS as usize;
/// Major number of virtio disks: the first of Linux's dynamic ones, and what Debian's kernel gives them.
pub const MAJOR: u32 = 254;
/// Minor numbers of a disk: itself and its partitions (Linux: `PART_BITS`).
pub const MINORS: u32 = 16;

static DISKS: Lock<[Option<Disk>; SLOTS]> = Lock::new([None; SLOTS]);
static DRIVERS: Lock<[Option<&'static VirtioBlk>; SLOTS]> = Lock::new([None; SLOTS]);

/// Whole sectors in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The frame.
    pub pfn: Pfn,
    /// First byte in it.
    pub offset: u32,
    /// Bytes; with the offset at most a frame's.
    pub len: u32,
}

impl Segment {
    /// A whole frame.
    #[expect(clippy::cast_possible_truncation, reason = "4096")]
    pub const fn frame(pfn: Pfn) -> Segment {
        Segment { pfn, offset: 0, len: PAGE_SIZE as u32 }
    }

    pub(super) const fn buffer(self, device_writes: bool) -> Buffer {
        Buffer { addr: self.pfn.phys().as_u64() + self.offset as u64, len: self.len, device_writes }
    }

    fn is_valid(self) -> bool {
        let inside = self.offset.checked_add(self.len).is_some_and(|end| u64::from(end) <= PAGE_SIZE);
        inside && self.len > 0 && u64::from(self.len).is_multiple_of(SECTOR)
    }
}

/// Who is told that a request has ended, in the disk's interrupt and without its lock (Linux: `bi_end_io`, `bi_private`).
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Called with [`Completion::argument`] and how it ended. It neither sleeps nor begins requests.
    pub call: fn(u64, Result<(), Errno>),
    /// What it is about.
    pub argument: u64,
}

impl Completion {
    pub(super) fn tell(self, result: Result<(), Errno>) {
        (self.call)(self.argument, result);
    }
}

/// Kinds of requests, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk.
    Read = 0,
    /// To the disk.
    Write = 1,
    /// Keep what was written.
    Flush = 2,
}

/// What a disk did (Linux: `struct disk_stats`).
#[derive(Debug)]
pub struct Stats {
    /// Requests, sectors, nanoseconds, by direction.
    ended: [[AtomicU64; 3]; 3],
    in_flight: AtomicU64,
}

impl Stats {
    pub(super) const fn new() -> Stats {
        Stats { ended: [const { [const { AtomicU64::new(0) }; 3] }; 3], in_flight: AtomicU64::new(0) }
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self, direction: Direction, sectors: u64, ns: u64) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        for (counter, value) in self.ended[direction as usize].iter().zip([1, sectors, ns]) {
            counter.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests, sectors and nanoseconds of what has ended.
    pub fn of(&self, direction: Direction) -> [u64; 3] {
        let [requests, sectors, ns] = &self.ended[direction as usize];
        [requests, sectors, ns].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// A disk.
#[derive(Clone, Copy)]
pub struct Disk {
    /// 0 for vda.
    pub index: u8,
    /// What it says about itself.
    pub geometry: Geometry,
    pub(super) driver: &'static VirtioBlk,
}

impl Disk {
    /// Its name: vda, vdb and so on.
    pub fn name(&self) -> [u8; 3] {
        [b'v', b'd', b'a' + self.index]
    }

    /// Its name in the machine: the serial number that it tells.
    pub fn serial(&self) -> &str {
        let bytes = &self.geometry.serial;
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        core::str::from_utf8(bytes.get(..len).unwrap_or(&[])).unwrap_or("")
    }

    /// Sectors of 512 bytes.
    pub const fn capacity(&self) -> u64 {
        self.geometry.capacity
    }

    /// What it did.
    pub fn stats(&self) -> &'static Stats {
        self.driver.stats()
    }

    /// Its driver.
    pub const fn driver(&self) -> &'static VirtioBlk {
        self.driver
    }

    /// Reads sectors from `sector` on into `to`, one segment after the other, and waits for them.
    ///
    /// # Errors
    /// `EIO`, also for what is past the end (Linux: `bio_check_eod`); `EINVAL` for segments that are not whole sectors. What
    /// the frames hold is undefined then.
    pub fn read(&self, sector: u64, to: &[Segment], context: &MaySleep<'_>) -> Result<(), Errno> {
        self.transfer(Op::Read, sector, to, context)
    }

    /// Writes `from` to the sectors from `sector` on, and waits until the disk took them. They are kept after a
    /// [`Disk::flush`].
    ///
    /// # Errors
    /// As [`Disk::read`]; `EROFS` of a disk that is read-only. Some of the sectors may be written then.
    pub fn write(&self, sector: u64, from: &[Segment], context: &MaySleep<'_>) -> Result<(), Errno> {
        self.transfer(Op::Write, sector, from, context)
    }

    /// Waits until everything that was written before is kept (Linux: `blkdev_issue_flush`). At once on a disk without a
    /// cache.
    ///
    /// # Errors
    /// `EIO`.
    pub fn flush(&self, context: &MaySleep<'_>) -> Result<(), Errno> {
        if !self.geometry.has_flush {
            return Ok(());
        }
        let ticket = self.driver.submit(Op::Flush, 0, &[], context)?;
        self.driver.wait(ticket, context)
    }

    /// Begins a read of at most [`Geometry::max_segments`] segments; [`Disk::wait`] ends it. One task may have so many in
    /// flight as the queue has room for ([`VirtioBlk::depth`]); if it begins more before it waits for any, it waits for ever.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn begin_read(&self, sector: u64, to: &[Segment], context: &MaySleep<'_>) -> Result<Ticket, Errno> {
        self.begin(Op::Read, sector, to, context)
    }

    /// Begins a write, as [`Disk::begin_read`].
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn begin_write(
        &self,
        sector: u64,
        from: &[Segment],
        context: &MaySleep<'_>,
    ) -> Result<Ticket, Errno> {
        self.begin(Op::Write, sector, from, context)
    }

    /// Begins a read of at most [`Geometry::max_segments`] segments, whose end `completion` is told of. Without an error it is told once, perhaps
    /// before this returns.
    ///
    /// # Errors
    /// As [`Disk::read`]; nothing was begun.
    pub fn begin_read_to_end(
        &self,
        sector: u64,
        to: &[Segment],
        completion: Completion,
        context: &MaySleep<'_>,
    ) -> Result<(), Errno> {
        self.begin_to_end(Op::Read, (sector, to), completion, context)
    }

    /// Begins a write, as [`Disk::begin_read_to_end`].
    ///
    /// # Errors
    /// As [`Disk::write`]; nothing was begun.
    pub fn begin_write_to_end(
        &self,
        sector: u64,
        from: &[Segment],
        completion: Completion,
        context: &MaySleep<'_>,
    ) -> Result<(), Errno> {
        self.begin_to_end(Op::Write, (sector, from), completion, context)
    }

    fn begin_to_end(
        &self,
        op: Op,
        (sector, all): (u64, &[Segment]),
        completion: Completion,
        context: &MaySleep<'_>,
    ) -> Result<(), Errno> {
        self.check(op, sector, all)?;
        if all.is_empty() || all.len() > usize::from(self.geometry.max_segments) {
            return Err(Errno::Einval);
        }
        self.tell_issue(op, sector, all);
        self.driver.submit_to_end(op, (sector, all), completion, context)
    }

    /// Waits for the end of a request.
    ///
    /// # Errors
    /// `EIO`.
    pub fn wait(&self, ticket: Ticket, context: &MaySleep<'_>) -> Result<(), Errno> {
        self.driver.wait(ticket, context)
    }

    fn transfer(&self, op: Op, sector: u64, all: &[Segment], context: &MaySleep<'_>) -> Result<(), Errno> {
        self.check(op, sector, all)?;
        self.tell_issue(op, sector, all);
        let mut at = sector;
        for part in all.chunks(usize::from(self.geometry.max_segments)) {
            let ticket = self.driver.submit(op, at, part, context)?;
            self.driver.wait(ticket, context)?;
            at += sectors(part);
        }
        Ok(())
    }

    fn begin(&self, op: Op, sector: u64, all: &[Segment], context: &MaySleep<'_>) -> Result<Ticket, Errno> {
        self.check(op, sector, all)?;
        if all.is_empty() || all.len() > usize::from(self.geometry.max_segments) {
            return Err(Errno::Einval);
        }
        self.tell_issue(op, sector, all);
        self.driver.submit(op, sector, all, context)
    }

    fn tell_issue(&self, op: Op, sector: u64, all: &[Segment]) {
        KernelTrace.emit_with(EventId::BlockRqIssue, || Event::BlockRqIssue {
            disk: self.index,
            write: op == Op::Write,
            sector,
            bytes: sectors(all) * SECTOR,
        });
    }

    fn check(&self, op: Op, sector: u64, all: &[Segment]) -> Result<(), Errno> {
        if !all.iter().all(|segment| segment.is_valid()) {
            return Err(Errno::Einval);
        }
        if op == Op::Write && self.geometry.read_only {
            return Err(Errno::Erofs);
        }
        match is_inside(sector, sectors(all), self.capacity()) {
            true => Ok(()),
            false => Err(Errno::Eio),
        }
    }
}

fn sectors(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len) / SECTOR).sum()
}

/// Finds the disks of the machine.
pub fn init(context: &MaySleep<'_>) {
    let mut index = 0;
    pci::scan(|function, id| {
        if !blk::matches(id) || index >= MAX_DISKS {
            return;
        }
        let Some(disk) = blk::probe(function, index, context) else { return };
        let name = disk.name();
        pr_info!(
            "virtio_blk 00:{:02x}.{}: [{}] {} 512-byte logical blocks, serial \"{}\"{}",
            function.device,
            function.function,
            core::str::from_utf8(&name).unwrap_or("?"),
            disk.capacity(),
            disk.serial(),
            if disk.geometry.read_only { ", read-only" } else { "" },
        );
        DISKS.lock()[usize::from(index)] = Some(disk);
        index += 1;
    });
}

/// Disk `index`; 0 is vda.
pub fn disk(index: usize) -> Option<Disk> {
    DISKS.lock().get(index).copied().flatten()
}

/// The disk that the machine calls `serial`.
pub fn by_serial(serial: &str) -> Option<Disk> {
    all().find(|disk| disk.serial() == serial)
}

/// All disks.
pub fn all() -> impl Iterator<Item = Disk> {
    (0..SLOTS).map_while(disk)
}

/// Interrupts of disk `index` are for `driver` from now on.
pub(super) fn set_driver(index: u8, driver: &'static VirtioBlk) {
    DRIVERS.lock()[usize::from(index)] = Some(driver);
}

/// The interrupt of disk `index`.
pub fn interrupt(index: u8) {
    let driver = DRIVERS.lock().get(usize::from(index)).copied().flatten();
    if let Some(driver) = driver {
        driver.interrupt();
    }
}

/// /proc/partitions (Linux: block/genhd.c, `show_partition`).
///
/// # Errors
/// If `out` takes no more.
pub fn write_partitions(out: &mut dyn Write) -> fmt::Result {
    if disk(0).is_none() {
        return Ok(());
    }
    writeln!(out, "major minor  #blocks  name\n")?;
    for disk in all() {
        let name = disk.name();
        let name = core::str::from_utf8(&name).unwrap_or("?");
        writeln!(out, "{MAJOR:4}  {:7} {:10} {name}", u32::from(disk.index) * MINORS, disk.capacity() / 2)?;
    }
    Ok(())
}

/// /proc/diskstats (Linux: block/genhd.c, `diskstats_show`).
///
/// Differs from Linux: the time in which anything was in flight is not kept; it is the sum of all requests' times.
///
/// # Errors
/// If `out` takes no more.
pub fn write_diskstats(out: &mut dyn Write) -> fmt::Result {
    for disk in all() {
        let (name, stats) = (disk.name(), disk.stats());
        let name = core::str::from_utf8(&name).unwrap_or("?");
        let [read, write, flush] = [Direction::Read, Direction::Write, Direction::Flush].map(|direction| {
            let [requests, sectors, ns] = stats.of(direction);
            (requests, sectors, ns / 1_000_000)
        });
        let all = read.2 + write.2 + flush.2;
        writeln!(
            out,
            "{MAJOR:4} {:7} {name} {} 0 {} {} {} 0 {} {} {} {all} {all} 0 0 0 0 {} {}",
            u32::from(disk.index) * MINORS,
            read.0,
            read.1,
            read.2,
            write.0,
            write.1,
            write.2,
            stats.in_flight(),
            flush.0,
            flush.2,
        )?;
    }
    Ok(())
}
