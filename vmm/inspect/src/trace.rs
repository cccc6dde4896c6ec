//! What a guest's tracepoints record, read while it runs.
//!
//! A [`TraceReader`] follows the rings that `memvisor_abi`'s trace module describes; it never makes the guest wait,
//! and counts what it was too slow for. Rings are as untrusted as all guest memory:
//! T1  a ring is accepted only if its buffer is RAM and its size sane, and both are read once;
//! T2  a poll copies at most one buffer a CPU, whatever the head says;
//! T3  a record counts as read only if its stamp and the head prove that the copy is whole;
//! T4  a head that falls is reported, and the ring is followed from there.
//!
//! [`EventText`] puts a record into words.

mod names;
mod text;

#[cfg(test)]
mod tests;

use std::mem::{offset_of, size_of};

use memvisor_abi as abi;
use memvisor_abi::{EventInfo, Phase, TRACE_CAPACITY_MAX, TRACE_RECORD_SIZE, TraceRecord, TraceRing};
use serde::Serialize;
use zerocopy::{FromZeros, IntoBytes};

use crate::{Guest, GuestError, MemorySource, ReadError, TableName};

pub use names::{alloc_flags, compact_result, gfp, migratetype};
pub use text::{EventText, Names};

/// A record that was read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// CPU that wrote it.
    pub cpu: u32,
    /// Its number on that CPU, from 0.
    pub number: u64,
    /// Cycles since the rings were made, on that CPU.
    pub cycles: u64,
    /// The record.
    pub record: TraceRecord,
}

impl TraceEntry {
    /// The event; `None` for a number that the catalogue does not have.
    pub fn info(&self) -> Option<&'static EventInfo> {
        EventInfo::of(self.record.event)
    }

    /// Place in the call tree; a point for an unknown event.
    pub fn phase(&self) -> Phase {
        self.info().map_or(Phase::Point, |info| info.phase)
    }

    /// Whether an interrupt handler did it.
    pub const fn in_interrupt(&self) -> bool {
        self.record.context & TraceRecord::IN_INTERRUPT != 0
    }
}

/// How far a CPU's ring was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RingCount {
    /// CPU.
    pub cpu: u32,
    /// Records read whole.
    pub read: u64,
    /// Records overwritten before they were read.
    pub lost: u64,
    /// Records whose stamp was not theirs although nothing had overwritten them: the guest broke the protocol.
    pub damaged: u64,
    /// Times that the head fell.
    pub resets: u64,
}

/// Follows all rings of a guest.
#[derive(Debug)]
pub struct TraceReader {
    rings: Vec<Follower>,
}

#[derive(Debug)]
struct Follower {
    /// Guest-physical address of the head.
    head_gpa: u64,
    buffer_gpa: u64,
    capacity: u64,
    start_tsc: u64,
    /// The next record to read.
    next: u64,
    count: RingCount,
    /// Room for the records of one poll.
    copy: Vec<TraceRecord>,
}

impl TraceReader {
    /// Accepts the rings that `guest` publishes; `None` if it does not trace. Reading starts with the oldest record
    /// that is still there.
    ///
    /// # Errors
    /// [`GuestError::Element`] for a ring that cannot be one, and as for any table.
    pub fn attach<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Option<TraceReader>, GuestError> {
        let place = guest.root().trace_rings;
        let mut rings = Vec::new();
        for (index, ring) in guest.trace_rings()?.iter().enumerate() {
            // A CPU for which there was no memory.
            if ring.capacity == 0 {
                continue;
            }
            check(guest.source(), index, ring)?;
            rings.push(Follower {
                head_gpa: place.gpa
                    + index as u64 * u64::from(place.stride)
                    + offset_of!(TraceRing, head) as u64,
                buffer_gpa: ring.buffer_gpa,
                capacity: ring.capacity.into(),
                start_tsc: ring.start_tsc,
                next: 0,
                count: RingCount { cpu: ring.cpu, ..RingCount::default() },
                copy: Vec::new(),
            });
        }
        Ok((place.gpa != 0).then_some(TraceReader { rings }))
    }

    /// Appends what came since the last poll to `entries`, in the order of the CPUs' clocks. Between CPUs the order
    /// is as good as their clocks agree, and holds within one poll.
    ///
    /// # Errors
    /// If RAM vanished.
    pub fn poll<S: MemorySource + ?Sized>(
        &mut self,
        source: &S,
        entries: &mut Vec<TraceEntry>,
    ) -> Result<(), ReadError> {
        let first = entries.len();
        for ring in &mut self.rings {
            ring.poll(source, entries)?;
        }
        if let Some(new) = entries.get_mut(first..) {
            new.sort_by_key(|entry| (entry.record.tsc, entry.cpu, entry.number));
        }
        Ok(())
    }

    /// What was read and lost, by CPU.
    pub fn counts(&self) -> impl Iterator<Item = RingCount> + '_ {
        self.rings.iter().map(|ring| ring.count)
    }
}

/// T1.
fn check<S: MemorySource + ?Sized>(source: &S, index: usize, ring: &TraceRing) -> Result<(), GuestError> {
    let wrong = |field, value, why| {
        Err(GuestError::Element { table: TableName::TraceRings, index, field, value, why })
    };
    if !ring.capacity.is_power_of_two() || ring.capacity > TRACE_CAPACITY_MAX {
        return wrong("capacity", ring.capacity.into(), "not a power of two up to 2^24");
    }
    let len = u64::from(ring.capacity) * TRACE_RECORD_SIZE;
    if !ring.buffer_gpa.is_multiple_of(TRACE_RECORD_SIZE) || !source.is_ram(ring.buffer_gpa, len) {
        return wrong("buffer_gpa", ring.buffer_gpa, "its slots are not RAM");
    }
    Ok(())
}

impl Follower {
    fn poll<S: MemorySource + ?Sized>(
        &mut self,
        source: &S,
        entries: &mut Vec<TraceEntry>,
    ) -> Result<(), ReadError> {
        let head = source.read_u64(self.head_gpa)?;
        if head < self.next {
            self.count.resets += 1;
            self.next = head;
            return Ok(());
        }
        let oldest = head.saturating_sub(self.capacity);
        if self.next < oldest {
            self.count.lost = self.count.lost.saturating_add(oldest - self.next);
            self.next = oldest;
        }
        let wanted = usize::try_from(head - self.next).unwrap_or(0);
        if wanted == 0 {
            return Ok(());
        }
        let mut copy = std::mem::take(&mut self.copy);
        copy.resize(wanted, TraceRecord::new_zeroed());
        // The part up to the end of the buffer, and the part at its start.
        let place = self.next & (self.capacity - 1);
        let here = usize::try_from(self.capacity - place).unwrap_or(0).min(wanted);
        let (upper, lower) = copy.split_at_mut(here);
        source.read(self.buffer_gpa + place * TRACE_RECORD_SIZE, upper.as_mut_bytes())?;
        if !lower.is_empty() {
            source.read(self.buffer_gpa, lower.as_mut_bytes())?;
        }
        let after = source.read_u64(self.head_gpa)?;
        for (number, record) in (self.next..head).zip(&copy) {
            // The writer works on record `after`, in the slot of `after - capacity`.
            if number.saturating_add(self.capacity) <= after {
                self.count.lost = self.count.lost.saturating_add(1);
            } else if record.stamp != number.wrapping_add(1) {
                self.count.damaged += 1;
            } else {
                self.count.read += 1;
                entries.push(TraceEntry {
                    cpu: self.count.cpu,
                    number,
                    cycles: record.tsc.wrapping_sub(self.start_tsc),
                    record: *record,
                });
            }
        }
        self.next = head;
        // Room for an ordinary poll is kept.
        copy.truncate(4096);
        copy.shrink_to(4096);
        self.copy = copy;
        Ok(())
    }
}

const _: () = assert!(size_of::<TraceRecord>() as u64 == abi::TRACE_RECORD_SIZE);
