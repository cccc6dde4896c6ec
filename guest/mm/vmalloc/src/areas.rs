//! Ranges of addresses: allocation, lazy release, purge (Linux: `alloc_vmap_area`, `free_vmap_area_noflush`,
//! `__purge_vmap_area_lazy`).

use core::fmt;
use core::mem::offset_of;
use core::panic::Location;

use memvisor_abi::{VM_AREAS_PER_FRAME, VmArea, VmFlags, VmState};
use mm_core::{Gfp, Order, PAGE_SIZE, PFN_NONE, PageAlloc, PhysMem, VirtAddr};
use mm_pgtable::CacheMode;

use crate::VmError;
use crate::node::{Id, NONE, Nodes};

/// Frames of area descriptors; 32 descriptors each.
///
/// Differs from Linux: at most 131,072 areas, because the directory of frames is an array; Linux is limited by memory.
pub const DIRECTORY_FRAMES: usize = 4096;

/// All areas of one space. See the invariants of the crate.
pub struct Areas {
    /// Frames of descriptors, [`PFN_NONE`] from `nr_frames` on.
    pub(crate) directory: [u64; DIRECTORY_FRAMES],
    nr_frames: usize,
    nr_unused: u32,
    unused: Id,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) free: Id,
    pub(crate) busy: Id,
    pub(crate) lazy: Id,
    pub(crate) purging: Id,
    pub(crate) lazy_pages: u64,
    pub(crate) purging_pages: u64,
    nr_busy: u32,
    purges: u64,
}

/// A busy area as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: VirtAddr,
    /// Bytes, the guard page included.
    pub len: u64,
    /// Pages that are mapped from the start on.
    pub nr_pages: u64,
    /// What it is for.
    pub flags: VmFlags,
    /// Physical address of a device mapping.
    pub phys: u64,
    /// PAT index of the mapping.
    pub cache: u32,
    pub(crate) id: Id,
}

/// What becomes a busy area.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Bytes without the guard page.
    pub size: u64,
    pub align: u64,
    pub flags: VmFlags,
    pub cache: CacheMode,
    pub phys: u64,
    pub caller: &'static Location<'static>,
}

impl Areas {
    /// No space yet.
    pub const fn new() -> Areas {
        Areas {
            directory: [PFN_NONE; DIRECTORY_FRAMES],
            nr_frames: 0,
            nr_unused: 0,
            unused: NONE,
            start: 0,
            end: 0,
            free: NONE,
            busy: NONE,
            lazy: NONE,
            purging: NONE,
            lazy_pages: 0,
            purging_pages: 0,
            nr_busy: 0,
            purges: 0,
        }
    }

    /// Makes `start..start + len` free space. Called once (Linux: `vmalloc_init`).
    pub fn init<M: PhysMem + PageAlloc>(
        &mut self,
        mem: &M,
        start: VirtAddr,
        len: u64,
    ) -> Result<(), VmError> {
        assert!(self.end == 0, "the space is initialised once");
        self.reserve(mem, 1)?;
        (self.start, self.end) = (start.as_u64(), start.as_u64() + len);
        self.add_free(mem, self.start, self.end);
        Ok(())
    }

    /// The directory of frames that hold descriptors, for outside readers; unused entries are [`PFN_NONE`].
    pub const fn directory(&self) -> &[u64; DIRECTORY_FRAMES] {
        &self.directory
    }

    /// Pages of lazy areas, guard pages included (Linux: `vmap_lazy_nr`).
    pub const fn lazy_pages(&self) -> u64 {
        self.lazy_pages
    }

    /// Busy areas.
    pub const fn nr_busy(&self) -> u32 {
        self.nr_busy
    }

    /// Purges so far.
    pub const fn purges(&self) -> u64 {
        self.purges
    }

    /// Whether `va` is in the space (Linux: `is_vmalloc_addr`).
    pub const fn contains(&self, va: VirtAddr) -> bool {
        va.as_u64() >= self.start && va.as_u64() < self.end
    }

    /// The busy area that holds `va` (Linux: `find_vmap_area`).
    pub fn find<M: PhysMem>(&self, mem: &M, va: VirtAddr) -> Option<Area> {
        let nodes = self.nodes(mem);
        nodes.find(self.busy, va.as_u64()).map(|id| area(&nodes, id))
    }

    /// Calls `f` for every busy area, ascending.
    pub fn for_each_busy<M: PhysMem>(&self, mem: &M, mut f: impl FnMut(Area)) {
        let nodes = self.nodes(mem);
        nodes.each(self.busy, &mut |id| {
            f(area(&nodes, id));
            true
        });
    }

    /// Calls `f` with the first and the last address plus one of every lazy area, the last one released first.
    pub fn for_each_lazy<M: PhysMem>(&self, mem: &M, mut f: impl FnMut(u64, u64)) {
        let nodes = self.nodes(mem);
        let mut id = self.lazy;
        while id != NONE {
            f(nodes.start(id), nodes.end(id));
            id = nodes.next(id);
        }
    }

    /// Who asked for a busy area: the end of the path of a source file, padded with NUL, and a line.
    pub fn caller<M: PhysMem>(&self, mem: &M, area: &Area) -> ([u8; 32], u32) {
        self.nodes(mem).caller(area.id)
    }

    /// Takes the lowest range that fits.
    pub(crate) fn alloc<M: PhysMem + PageAlloc>(
        &mut self,
        mem: &M,
        wanted: &Wanted,
    ) -> Result<Area, VmError> {
        if !wanted.align.is_power_of_two() || wanted.align < PAGE_SIZE {
            return Err(VmError::BadAlign { align: wanted.align });
        }
        let guard = if wanted.flags.contains(VmFlags::NO_GUARD) { 0 } else { PAGE_SIZE };
        let size = wanted.size.checked_add(guard).ok_or(VmError::TooLarge { size: wanted.size })?;
        if size > self.end - self.start {
            return Err(VmError::TooLarge { size: wanted.size });
        }
        // The area in the middle of a free one leaves two.
        self.reserve(mem, 2)?;
        let nodes = Nodes { mem, frames: &self.directory };
        let (id, first) = nodes
            .lowest(self.free, size, wanted.align, self.start, self.end)
            .ok_or(VmError::NoSpace { size })?;
        let (start, end) = (nodes.start(id), nodes.end(id));
        self.free = nodes.remove(self.free, start);
        nodes.set_range(id, first, first + size);
        nodes.set_state(id, VmState::Busy, wanted.flags);
        nodes.set_caller(id, wanted.cache as u32, wanted.caller.file(), wanted.caller.line());
        nodes.write(id, offset_of!(VmArea, nr_pages), 0);
        nodes.write(id, offset_of!(VmArea, phys), wanted.phys);
        self.busy = nodes.insert(self.busy, id);
        self.nr_busy += 1;
        if start < first {
            self.add_free(mem, start, first);
        }
        if first + size < end {
            self.add_free(mem, first + size, end);
        }
        Ok(area(&self.nodes(mem), id))
    }

    /// Records that `nr_pages` of the area are mapped.
    pub(crate) fn set_pages<M: PhysMem>(&mut self, mem: &M, area: &Area, nr_pages: u64) {
        self.nodes(mem).write(area.id, offset_of!(VmArea, nr_pages), nr_pages);
    }

    /// Nothing of the area is mapped any more, but CPUs may still cache translations.
    pub(crate) fn release<M: PhysMem>(&mut self, mem: &M, area: &Area) {
        let nodes = Nodes { mem, frames: &self.directory };
        self.busy = nodes.remove(self.busy, area.start.as_u64());
        nodes.set_state(area.id, VmState::Lazy, VmFlags::empty());
        nodes.write(area.id, offset_of!(VmArea, nr_pages), 0);
        nodes.set_children(area.id, NONE, NONE);
        nodes.set_priority_next(area.id, nodes.priority(area.id), self.lazy);
        self.lazy = area.id;
        self.lazy_pages += area.len / PAGE_SIZE;
        self.nr_busy -= 1;
    }

    /// Begins a purge: the range `(start, end)` that every CPU must flush before [`Areas::end_purge`]. `None` if nothing is
    /// lazy or another CPU purges.
    pub(crate) fn begin_purge<M: PhysMem>(&mut self, mem: &M) -> Option<(u64, u64)> {
        if self.lazy == NONE || self.purging != NONE {
            return None;
        }
        (self.purging, self.lazy) = (self.lazy, NONE);
        (self.purging_pages, self.lazy_pages) = (self.lazy_pages, 0);
        let nodes = self.nodes(mem);
        let (mut low, mut high, mut id) = (u64::MAX, 0, self.purging);
        while id != NONE {
            low = low.min(nodes.start(id));
            high = high.max(nodes.end(id));
            id = nodes.next(id);
        }
        Some((low, high))
    }

    /// The CPUs have flushed: what was lazy at [`Areas::begin_purge`] is free. Returns how many areas.
    pub(crate) fn end_purge<M: PhysMem>(&mut self, mem: &M) -> u64 {
        let mut areas = 0;
        while self.purging != NONE {
            let id = self.purging;
            let nodes = Nodes { mem, frames: &self.directory };
            self.purging = nodes.next(id);
            areas += 1;
            let (start, end) = (nodes.start(id), nodes.end(id));
            self.drop_node(mem, id);
            self.add_free(mem, start, end);
        }
        self.purging_pages = 0;
        self.purges += 1;
        areas
    }

    pub(crate) fn nodes<'a, M: PhysMem>(&'a self, mem: &'a M) -> Nodes<'a, M> {
        Nodes { mem, frames: &self.directory }
    }

    /// Adds a free range, joined with free neighbours (Linux: `merge_or_add_vmap_area`). A node is unused.
    fn add_free<M: PhysMem>(&mut self, mem: &M, mut start: u64, mut end: u64) {
        let nodes = self.nodes(mem);
        let below = start.checked_sub(1).and_then(|last| nodes.find(self.free, last));
        let above = nodes.find(self.free, end);
        for id in [below, above].into_iter().flatten() {
            let nodes = self.nodes(mem);
            let range = (nodes.start(id), nodes.end(id));
            self.free = nodes.remove(self.free, range.0);
            (start, end) = (start.min(range.0), end.max(range.1));
            self.drop_node(mem, id);
        }
        let id = self.unused;
        assert!(id != NONE, "an area descriptor was reserved");
        let nodes = self.nodes(mem);
        let next = nodes.next(id);
        nodes.set_range(id, start, end);
        nodes.set_state(id, VmState::Free, VmFlags::empty());
        nodes.set_children(id, NONE, NONE);
        self.free = nodes.insert(self.free, id);
        self.unused = next;
        self.nr_unused -= 1;
    }

    fn drop_node<M: PhysMem>(&mut self, mem: &M, id: Id) {
        let nodes = self.nodes(mem);
        nodes.set_range(id, 0, 0);
        nodes.set_state(id, VmState::Unused, VmFlags::empty());
        nodes.set_children(id, NONE, NONE);
        nodes.set_priority_next(id, nodes.priority(id), self.unused);
        self.unused = id;
        self.nr_unused += 1;
    }

    /// Makes sure that `count` descriptors are unused.
    fn reserve<M: PhysMem + PageAlloc>(&mut self, mem: &M, count: u32) -> Result<(), VmError> {
        while self.nr_unused < count {
            let slot = self.directory.get_mut(self.nr_frames).ok_or(VmError::NoMemory)?;
            let frame = mem.alloc_pages(Gfp::NOWAIT, Order::ZERO, None).ok_or(VmError::NoMemory)?;
            mem.zero_frame(frame);
            *slot = frame.as_u64();
            let first = self.nr_frames as u64 * VM_AREAS_PER_FRAME;
            self.nr_frames += 1;
            for id in (first..first + VM_AREAS_PER_FRAME).rev() {
                // DIRECTORY_FRAMES * 32 is far below 2^32.
                let id = u32::try_from(id).map_err(|_| VmError::NoMemory)?;
                let nodes = self.nodes(mem);
                nodes.set_children(id, NONE, NONE);
                nodes.set_priority_next(id, priority(id), self.unused);
                self.unused = id;
                self.nr_unused += 1;
            }
        }
        Ok(())
    }
}

impl Default for Areas {
    fn default() -> Self {
        Areas::new()
    }
}

impl fmt::Debug for Areas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Areas")
            .field("start", &self.start)
            .field("end", &self.end)
            .field("nr_busy", &self.nr_busy)
            .field("lazy_pages", &self.lazy_pages)
            .finish_non_exhaustive()
    }
}

fn area<M: PhysMem>(nodes: &Nodes<'_, M>, id: Id) -> Area {
    let start = nodes.start(id);
    Area {
        start: VirtAddr::new(start),
        len: nodes.end(id) - start,
        nr_pages: nodes.read(id, offset_of!(VmArea, nr_pages)),
        flags: nodes.flags(id),
        phys: nodes.read(id, offset_of!(VmArea, phys)),
        cache: nodes.cache(id),
        id,
    }
}

/// A fixed hash of the number (the finalizer of MurmurHash3), so that neighbours get unrelated priorities.
const fn priority(id: Id) -> u32 {
    let mut hash = id.wrapping_add(0x9e37_79b9);
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
