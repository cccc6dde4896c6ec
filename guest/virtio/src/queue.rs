//! The split virtqueue (virtio 1.2 section 2.7), as the driver has it.
//!
//! Q1  every descriptor is free or in the chain of exactly one request in flight; free ones are linked by `next`, those of
//!     a chain too, from its head on;
//! Q2  what the device may write (the used ring) is read once, checked, and believed only about chains in flight; nothing
//!     that the device may write decides which memory the driver touches;
//! Q3  a chain's descriptors are written before its entry in the available ring, that before the ring's index.

/// Memory of the rings, by offset. Words are aligned, and seen by the device.
pub trait RingMemory {
    /// Reads a word; what is read later was not read earlier (acquire).
    fn load(&self, offset: u32) -> u32;

    /// Writes a word; what was written before is seen before (release).
    fn store(&self, offset: u32, value: u32);

    /// What was written before is seen before anything that is read later (Linux: `mb`).
    fn barrier(&self);
}

/// Most entries: so many have their rings in one page, and their requests' headers in another.
pub const MAX_SIZE: u16 = 128;
const ENTRIES: usize = MAX_SIZE as usize;

const DESC_F_NEXT: u32 = 1;
const DESC_F_WRITE: u32 = 2;
/// In the used ring's flags: the device does not want to be notified.
const USED_F_NO_NOTIFY: u32 = 1;
/// End of a list.
const NONE: u16 = u16::MAX;

/// Where the parts of a queue are in its memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub desc: u32,
    /// Available ring.
    pub avail: u32,
    /// Used ring.
    pub used: u32,
    /// Bytes of all.
    pub bytes: u32,
}

impl Layout {
    /// The layout of `size` entries, a power of two from 2 to [`MAX_SIZE`].
    ///
    /// ```
    /// let layout = guest_virtio::Layout::new(128).unwrap();
    /// assert!(layout.bytes <= 4096);
    /// assert!(guest_virtio::Layout::new(100).is_none());
    /// ```
    pub const fn new(size: u16) -> Option<Layout> {
        if !size.is_power_of_two() || size < 2 || size > MAX_SIZE {
            return None;
        }
        let entries = size as u32;
        let avail = 16 * entries;
        let used = (avail + 4 + 2 * entries + 2).next_multiple_of(4);
        // A word more for the event index, which nobody uses.
        Some(Layout { size, desc: 0, avail, used, bytes: used + 4 + 8 * entries + 4 })
    }
}

/// A piece of memory in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it; else it reads it.
    pub device_writes: bool,
}

/// Too few descriptors are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The device answered what was not asked; the queue cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// An answered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its head, as [`SplitQueue::add`] gave it.
    pub head: u16,
    /// How many bytes the device says to have written.
    pub len: u32,
}

/// A queue.
#[derive(Debug)]
pub struct SplitQueue {
    layout: Layout,
    next: [u16; ENTRIES],
    /// Descriptors of the chain that begins here; 0 where none in flight does.
    chain: [u16; ENTRIES],
    free: u16,
    nr_free: u16,
    avail: u16,
    used: u16,
    broken: bool,
}

impl SplitQueue {
    /// An empty queue; its memory is zero.
    pub fn new(layout: Layout) -> SplitQueue {
        let mut next = [NONE; ENTRIES];
        for (link, following) in next.iter_mut().zip(1..layout.size) {
            *link = following;
        }
        SplitQueue {
            layout,
            next,
            chain: [0; ENTRIES],
            free: 0,
            nr_free: layout.size,
            avail: 0,
            used: 0,
            broken: false,
        }
    }

    /// Where its parts are.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Free descriptors.
    pub const fn nr_free(&self) -> u16 {
        self.nr_free
    }

    /// Whether the device broke it.
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// The head that the next request will have.
    ///
    /// # Errors
    /// [`Full`].
    pub const fn next_head(&self) -> Result<u16, Full> {
        if self.nr_free == 0 { Err(Full) } else { Ok(self.free) }
    }

    /// Puts a request of `buffers`, at least one, into the rings; its head. The device sees it after
    /// [`SplitQueue::publish`].
    ///
    /// # Errors
    /// [`Full`], and nothing has changed; also of a broken queue.
    pub fn add(
        &mut self,
        memory: &impl RingMemory,
        buffers: impl ExactSizeIterator<Item = Buffer>,
    ) -> Result<u16, Full> {
        let count = buffers.len();
        if self.broken || count == 0 || count > usize::from(self.nr_free) {
            return Err(Full);
        }
        let head = self.free;
        let mut at = head;
        let mut last = head;
        for (number, buffer) in (1..).zip(buffers) {
            let following = self.link(at);
            let more = if number < count { DESC_F_NEXT } else { 0 };
            let write = if buffer.device_writes { DESC_F_WRITE } else { 0 };
            let desc = self.layout.desc + 16 * u32::from(at);
            let next = if number < count { u32::from(following) } else { 0 };
            let (low, high) = halves(buffer.addr);
            memory.store(desc, low);
            memory.store(desc + 4, high);
            memory.store(desc + 8, buffer.len);
            memory.store(desc + 12, more | write | next << 16);
            (last, at) = (at, following);
        }
        self.free = at;
        self.set_link(last, NONE);
        // At most `nr_free`.
        let count = u16::try_from(count).unwrap_or(self.nr_free);
        self.nr_free -= count;
        if let Some(len) = self.chain.get_mut(usize::from(head)) {
            *len = count;
        }
        let slot = u32::from(self.avail & (self.layout.size - 1));
        let word = self.layout.avail + 4 + (slot & !1) * 2;
        let shift = (slot & 1) * 16;
        memory.store(word, memory.load(word) & !(0xffff << shift) | u32::from(head) << shift);
        self.avail = self.avail.wrapping_add(1);
        Ok(head)
    }

    /// Shows the device what was added; whether it wants to be notified.
    pub fn publish(&mut self, memory: &impl RingMemory) -> bool {
        memory.store(self.layout.avail, u32::from(self.avail) << 16);
        // The device turns notifications on before it looks at the index for the last time.
        memory.barrier();
        memory.load(self.layout.used) & USED_F_NO_NOTIFY == 0
    }

    /// The next answered request, whose descriptors are free again.
    ///
    /// # Errors
    /// [`Broken`], for ever, if it is none of those in flight.
    pub fn pop(&mut self, memory: &impl RingMemory) -> Result<Option<Used>, Broken> {
        if self.broken {
            return Err(Broken);
        }
        let (index, _) = split(memory.load(self.layout.used));
        if index == self.used {
            return Ok(None);
        }
        let entry = self.layout.used + 4 + 8 * u32::from(self.used & (self.layout.size - 1));
        let (id, len) = (memory.load(entry), memory.load(entry + 4));
        let head = u16::try_from(id).unwrap_or(NONE);
        match self.chain.get_mut(usize::from(head)).map(core::mem::take) {
            None | Some(0) => {
                self.broken = true;
                Err(Broken)
            }
            Some(count) => {
                self.used = self.used.wrapping_add(1);
                self.give_back(head, count);
                Ok(Some(Used { head, len }))
            }
        }
    }

    fn give_back(&mut self, head: u16, count: u16) {
        let mut last = head;
        for _ in 1..count {
            last = self.link(last);
        }
        self.set_link(last, self.free);
        self.free = head;
        self.nr_free += count;
    }

    fn link(&self, at: u16) -> u16 {
        self.next.get(usize::from(at)).copied().unwrap_or(NONE)
    }

    fn set_link(&mut self, at: u16, to: u16) {
        if let Some(link) = self.next.get_mut(usize::from(at)) {
            *link = to;
        }
    }

    /// Checks Q1; says what is wrong.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn audit(&self) -> Result<(), &'static str> {
        let mut seen = [false; ENTRIES];
        let mut walk = |first: u16, count: u16| {
            let mut at = first;
            for _ in 0..count {
                match seen.get_mut(usize::from(at)) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) => return Err("a descriptor is in two lists"),
                    None => return Err("a list ends early"),
                }
                at = self.link(at);
            }
            if at == NONE { Ok(()) } else { Err("a list goes on") }
        };
        walk(if self.nr_free == 0 { NONE } else { self.free }, self.nr_free)?;
        for (head, count) in (0..self.layout.size).zip(self.chain) {
            if count > 0 {
                walk(head, count)?;
            }
        }
        match seen.iter().filter(|seen| **seen).count() == usize::from(self.layout.size) {
            true => Ok(()),
            false => Err("a descriptor is in no list"),
        }
    }
}

/// Upper and lower half of a word of a ring: index and flags.
#[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
const fn split(word: u32) -> (u16, u16) {
    ((word >> 16) as u16, word as u16)
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of an address")]
const fn halves(addr: u64) -> (u32, u32) {
    (addr as u32, (addr >> 32) as u32)
}

#[cfg(test)]
mod tests;
