//! The ring of one CPU.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::Release, fence};

use memvisor_abi as abi;
use memvisor_abi::{MASK_WORDS, Phase, TRACE_RECORD_SIZE};

use super::Event;

const SLOT_WORDS: usize = (TRACE_RECORD_SIZE / 8) as usize;

/// [`abi::TraceRing`] with fields that its CPU changes while others read. `memvisor_abi`'s trace module has the
/// protocol.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Ring {
    head: AtomicU64,
    buffer_gpa: AtomicU64,
    capacity: AtomicU32,
    cpu: AtomicU32,
    depth: AtomicU32,
    pid: AtomicU32,
    mask: [AtomicU64; MASK_WORDS],
    start_tsc: AtomicU64,
}

const _: () = assert!(
    size_of::<Ring>() == size_of::<abi::TraceRing>()
        && align_of::<Ring>() == align_of::<abi::TraceRing>()
        && offset_of!(Ring, head) == offset_of!(abi::TraceRing, head)
        && offset_of!(Ring, buffer_gpa) == offset_of!(abi::TraceRing, buffer_gpa)
        && offset_of!(Ring, capacity) == offset_of!(abi::TraceRing, capacity)
        && offset_of!(Ring, cpu) == offset_of!(abi::TraceRing, cpu)
        && offset_of!(Ring, depth) == offset_of!(abi::TraceRing, depth)
        && offset_of!(Ring, pid) == offset_of!(abi::TraceRing, pid)
        && offset_of!(Ring, mask) == offset_of!(abi::TraceRing, mask)
        && offset_of!(Ring, start_tsc) == offset_of!(abi::TraceRing, start_tsc)
        && offset_of!(abi::TraceRecord, stamp) == 0
        && offset_of!(abi::TraceRecord, tsc) == 8
        && offset_of!(abi::TraceRecord, event) == 16
        && offset_of!(abi::TraceRecord, depth) == 18
        && offset_of!(abi::TraceRecord, context) == 19
        && offset_of!(abi::TraceRecord, pid) == 20
        && offset_of!(abi::TraceRecord, args) == 24
        && cfg!(target_endian = "little")
);

/// When and where an event happened.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Time-stamp counter.
    pub tsc: u64,
    /// Whether an interrupt handler runs.
    pub in_interrupt: bool,
}

impl Ring {
    /// A ring without slots, which drops everything.
    pub const fn new() -> Ring {
        Ring {
            head: AtomicU64::new(0),
            buffer_gpa: AtomicU64::new(0),
            capacity: AtomicU32::new(0),
            cpu: AtomicU32::new(0),
            depth: AtomicU32::new(0),
            pid: AtomicU32::new(0),
            mask: [const { AtomicU64::new(0) }; MASK_WORDS],
            start_tsc: AtomicU64::new(0),
        }
    }

    /// Says where the slots are. `slots` is what [`Ring::push`] will be given, `capacity` a power of two.
    pub fn open(&self, cpu: u32, buffer_gpa: u64, capacity: u32, mask: [u64; MASK_WORDS], tsc: u64) {
        debug_assert!(capacity.is_power_of_two());
        self.cpu.store(cpu, Relaxed);
        self.buffer_gpa.store(buffer_gpa, Relaxed);
        self.start_tsc.store(tsc, Relaxed);
        for (slot, word) in self.mask.iter().zip(mask) {
            slot.store(word, Relaxed);
        }
        self.capacity.store(capacity, Release);
    }

    /// Guest-physical address of the slots and their number, as [`Ring::open`] got them.
    pub fn buffer(&self) -> (u64, u32) {
        (self.buffer_gpa.load(Relaxed), self.capacity.load(Relaxed))
    }

    /// Events that [`Ring::open`] was told to record.
    pub fn mask(&self) -> [u64; MASK_WORDS] {
        self.mask.each_ref().map(|word| word.load(Relaxed))
    }

    /// Records written so far.
    pub fn head(&self) -> u64 {
        self.head.load(Relaxed)
    }

    /// Says which process the CPU runs from now on; 0 for the kernel itself.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Relaxed);
    }

    /// Replaces the depth of the call tree, which belongs to the task and not to the CPU, and returns the old one:
    /// for whoever switches tasks.
    pub fn swap_depth(&self, depth: u32) -> u32 {
        let old = self.depth.load(Relaxed);
        self.depth.store(depth, Relaxed);
        old
    }

    /// Writes a record over the oldest. Only the ring's own CPU calls this, with interrupts off, and with the same
    /// `words` every time: the slots, eight words each.
    pub fn push(&self, words: &[AtomicU64], event: &Event, stamp: Stamp) {
        let depth = self.depth.load(Relaxed);
        let depth = match event.phase() {
            Phase::Point => depth,
            Phase::Enter => {
                self.depth.store(depth.saturating_add(1), Relaxed);
                depth
            }
            Phase::Exit => {
                let depth = depth.saturating_sub(1);
                self.depth.store(depth, Relaxed);
                depth
            }
        };
        let number = self.head.load(Relaxed);
        let capacity = self.capacity.load(Relaxed);
        if capacity == 0 {
            return;
        }
        // The remainder is below the capacity, which is a u32.
        let slot = usize::try_from(number & u64::from(capacity - 1)).unwrap_or(0) * SLOT_WORDS;
        let Some(slot) = words.get(slot..slot + SLOT_WORDS) else { return };
        slot[0].store(0, Relaxed);
        // The old stamp is gone before the first new word shows.
        fence(Release);
        let what = u64::from(event.id() as u16)
            | u64::from(u8::try_from(depth).unwrap_or(u8::MAX)) << 16
            | u64::from(stamp.in_interrupt) << 24
            | u64::from(self.pid.load(Relaxed)) << 32;
        slot[1].store(stamp.tsc, Relaxed);
        slot[2].store(what, Relaxed);
        for (word, arg) in slot[3..].iter().zip(event.args()) {
            word.store(arg, Relaxed);
        }
        slot[0].store(number + 1, Release);
        self.head.store(number + 1, Release);
    }
}
