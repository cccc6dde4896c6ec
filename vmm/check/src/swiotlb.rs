//! Bounce buffers.
//!
//! W1  `swiotlb.slots`: every slot in use belongs to one mapping, which has consecutive slots of one segment that name their first one and go
//!     on where the one before ends, in the pool and at the original; a free slot counts the free ones from it on; areas count the slots in
//!     use, and as many mappings as were made and not undone.
//! W2  `swiotlb.pool`: a pool is RAM that its devices reach, its frames are reserved or allocated, and what slots stand for is RAM outside
//!     all pools that somebody has.
//! W3  `swiotlb.leak`: no slot is in use when the guest chooses to be looked at, at power-off above all: a streaming mapping lives as long as
//!     one transfer.

use memvisor_abi::{
    INVALID_PHYS_ADDR, IO_TLB_SEGSIZE, IO_TLB_SIZE, MAX_SWIOTLB_AREAS, PAGE_SHIFT, PAGE_SIZE, PageKind,
    SwiotlbArea, SwiotlbPool, SwiotlbSlot,
};

use crate::context::Context;
use crate::frames::{Frames, clip, find};
use crate::ledger::{Ledger, finding};
use crate::{Moment, Rule};

pub(crate) const SLOTS: Rule = Rule {
    name: "swiotlb.slots",
    invariant: "every slot in use belongs to one mapping, and free ones are counted",
    reads: "swiotlb, its areas and slots",
    seeded: &["swiotlb-list", "swiotlb-used"],
    hint: "swiotlb_do_find_slots and swiotlb_release_slots",
};
pub(crate) const POOL: Rule = Rule {
    name: "swiotlb.pool",
    invariant: "pools are RAM below 4 GiB that nobody else has, and slots stand for RAM that is in use",
    reads: "swiotlb, its slots, descriptors, memblock; E820 map",
    seeded: &["swiotlb-orig"],
    hint: "who reserves the pool; who unmaps too late, after the buffer was freed",
};
pub(crate) const LEAK: Rule = Rule {
    name: "swiotlb.leak",
    invariant: "no slot is in use while nothing is transferred",
    reads: "swiotlb, its slots",
    seeded: &["swiotlb-leak"],
    hint: "a dma_map_single without its dma_unmap_single",
};

/// First address that a device of 32 bits does not reach.
const LIMIT: u64 = 1 << 32;

/// Runs W1 to W3.
pub(crate) fn run(context: &Context<'_>, moment: Moment, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&SLOTS, &POOL, &LEAK]) {
        return;
    }
    // A machine whose devices reach all of its memory has no pools.
    for rule in [&SLOTS, &POOL, &LEAK] {
        ledger.checked(rule, 1);
    }
    let pools = match context.guest.swiotlb_pools() {
        Ok(pools) => pools,
        Err(error) => {
            let what = finding(&POOL, "pools of bounce slots", "they are published", error.to_string());
            ledger.report(&POOL, what);
            return;
        }
    };
    for (number, pool) in pools.iter().enumerate().filter(|(_, pool)| pool.nslabs > 0) {
        if !pool_is_sound(context, number, pool, ledger) {
            continue;
        }
        let (slots, areas) = match (context.guest.swiotlb_slots(pool), context.guest.swiotlb_areas(pool)) {
            (Ok(slots), Ok(areas)) => (slots, areas),
            (Err(error), _) | (_, Err(error)) => {
                let what =
                    finding(&SLOTS, name(number), "its slots and areas are published", error.to_string());
                ledger.report(&SLOTS, what);
                continue;
            }
        };
        let view = View { number, pool, slots: &slots, areas: &areas };
        let mappings = view.slots(ledger);
        view.counts(&mappings, ledger);
        view.originals(context, &pools, &mappings, ledger);
        if moment == Moment::Chosen {
            view.leaks(&mappings, ledger);
        }
    }
}

fn name(number: usize) -> String {
    format!("pool {number} of bounce slots")
}

fn frames_of(pool: &SwiotlbPool) -> Frames {
    let bytes = u64::from(pool.nslabs) * IO_TLB_SIZE;
    Frames::touching(pool.start, pool.start.saturating_add(bytes))
}

/// Geometry and frames of a pool.
fn pool_is_sound(context: &Context<'_>, number: usize, pool: &SwiotlbPool, ledger: &mut Ledger) -> bool {
    let frames = frames_of(pool);
    let whole = pool.start.is_multiple_of(PAGE_SIZE)
        && pool.nareas.is_power_of_two()
        && pool.nareas <= MAX_SWIOTLB_AREAS
        && pool.nslabs.is_multiple_of(pool.nareas.saturating_mul(IO_TLB_SEGSIZE).max(1));
    let ram = clip(&context.machine.ram, frames).map(Frames::len).sum::<u64>();
    let below = pool.start.saturating_add(u64::from(pool.nslabs) * IO_TLB_SIZE) <= LIMIT;
    if !whole || ram != frames.len() || !below {
        let outside =
            format!("{ram} frames of RAM there; whole segments in areas, below 4 GiB, are asked for");
        let claim = format!("{} slots in {} areas at {:#x}", pool.nslabs, pool.nareas, pool.start);
        ledger.report(&POOL, finding(&POOL, name(number), claim, outside).frame(frames.start));
        return false;
    }
    if pool.reserved != 0 {
        let reserved = clip(&context.reserved, frames).map(Frames::len).sum::<u64>();
        if reserved != frames.len() {
            let outside = format!("memblock reserved {reserved} of its {} frames", frames.len());
            let what = finding(&POOL, name(number), "reserved at boot", outside);
            ledger.report(&POOL, what.frame(frames.start));
        }
        return true;
    }
    // The first frame of a block speaks for it.
    let page = context.page(frames.start);
    let is_block = page.as_ref().is_some_and(|page| {
        page.kind == PageKind::Allocated as u8
            && page.refcount > 0
            && 1_u64 << page.order.min(63) >= frames.len()
    });
    if !is_block {
        let what = finding(&POOL, name(number), "a block that it allocated", "no allocated block as large");
        ledger.report(&POOL, what.frame(frames.start));
    }
    true
}

/// Slots of a mapping that is whole.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    first: usize,
    slots: usize,
    original: u64,
    bytes: u64,
}

struct View<'v> {
    number: usize,
    pool: &'v SwiotlbPool,
    slots: &'v [SwiotlbSlot],
    areas: &'v [SwiotlbArea],
}

/// Index of the first slot behind the segment of slot `index`.
fn segment_end(index: usize) -> usize {
    let size = IO_TLB_SEGSIZE as usize;
    index / size * size + size
}

impl View<'_> {
    fn address(&self, index: usize) -> u64 {
        self.pool.start.saturating_add(index as u64 * IO_TLB_SIZE)
    }

    fn report(&self, ledger: &mut Ledger, index: usize, claim: String, outside: String) {
        let what = format!("slot {index} of pool {}", self.number);
        let finding = finding(&SLOTS, what, claim, outside);
        ledger.report(&SLOTS, finding.frame(self.address(index) >> PAGE_SHIFT));
    }

    /// W1 without the counts: walks mapping by mapping.
    fn slots(&self, ledger: &mut Ledger) -> Vec<Mapped> {
        let mut mappings = Vec::new();
        let mut index = 0;
        while let Some(slot) = self.slots.get(index) {
            ledger.checked(&SLOTS, 1);
            if slot.orig_addr == INVALID_PHYS_ADDR {
                self.free_slot(ledger, index, slot);
                index += 1;
                continue;
            }
            match self.mapping_at(index, slot) {
                Ok(mapping) => {
                    index += mapping.slots;
                    mappings.push(mapping);
                }
                Err((at, outside)) => {
                    let claim = format!("in use for {:#x}", slot.orig_addr);
                    self.report(ledger, at, claim, outside);
                    index += 1;
                }
            }
        }
        mappings
    }

    fn free_slot(&self, ledger: &mut Ledger, index: usize, slot: &SwiotlbSlot) {
        let end = segment_end(index).min(self.slots.len());
        let rest = self.slots.get(index..end).unwrap_or(&[]);
        let run = rest.iter().take_while(|slot| slot.orig_addr == INVALID_PHYS_ADDR).count();
        if usize::try_from(slot.list) != Ok(run) {
            let claim = format!("{} free slots from here on", slot.list);
            self.report(ledger, index, claim, format!("there are {run}"));
        } else if slot.alloc_size != 0 || slot.head != SwiotlbSlot::NO_HEAD {
            let claim = format!("free, with {} bytes of mapping {:#x}", slot.alloc_size, slot.head);
            self.report(ledger, index, claim, "a free slot has no mapping".to_owned());
        }
    }

    fn mapping_at(&self, first: usize, slot: &SwiotlbSlot) -> Result<Mapped, (usize, String)> {
        let head = u32::try_from(first).unwrap_or(SwiotlbSlot::NO_HEAD);
        let offset = u64::from(slot.offset);
        let bytes = u64::from(slot.alloc_size);
        if slot.head != head {
            return Err((first, format!("no mapping begins here; it names slot {:#x}", slot.head)));
        }
        if offset >= IO_TLB_SIZE || bytes == 0 {
            return Err((first, format!("a mapping of {bytes} bytes, {offset} bytes into its first slot")));
        }
        let slots = usize::try_from((offset + bytes).div_ceil(IO_TLB_SIZE)).unwrap_or(usize::MAX);
        if first.checked_add(slots).is_none_or(|end| end > segment_end(first).min(self.slots.len())) {
            return Err((first, format!("a mapping of {slots} slots leaves its segment")));
        }
        for at in 0..slots {
            let Some(slot) = self.slots.get(first + at) else { break };
            // Bytes of the mapping before this slot.
            let before = (at as u64 * IO_TLB_SIZE).saturating_sub(offset);
            let expected = SwiotlbSlot {
                orig_addr: self.slots.get(first).map_or(0, |first| first.orig_addr).saturating_add(before),
                alloc_size: u32::try_from(bytes - before).unwrap_or(u32::MAX),
                list: 0,
                head,
                offset: if at == 0 { slot.offset } else { 0 },
            };
            if *slot != expected {
                return Err((first + at, format!("as part of a mapping it should be {expected:x?}")));
            }
        }
        Ok(Mapped { first, slots, original: slot.orig_addr, bytes })
    }

    fn counts(&self, mappings: &[Mapped], ledger: &mut Ledger) {
        let per_area = self.slots.len() / self.areas.len().max(1);
        for (number, area) in self.areas.iter().enumerate() {
            let of_area = number * per_area..(number + 1) * per_area;
            let used = self.slots.get(of_area.clone()).unwrap_or(&[]);
            let used = used.iter().filter(|slot| slot.orig_addr != INVALID_PHYS_ADDR).count() as u64;
            let what = |what| format!("area {number} of pool {}: {what}", self.number);
            ledger.expect_eq(&SLOTS, what("slots in use"), u64::from(area.used), used);
            let whole = mappings.iter().filter(|mapping| of_area.contains(&mapping.first)).count() as u64;
            let alive = area.mapped.wrapping_sub(area.unmapped);
            ledger.expect_eq(&SLOTS, what("mappings made and not undone"), alive, whole);
        }
    }

    /// W2 of what slots stand for.
    fn originals(
        &self,
        context: &Context<'_>,
        pools: &[SwiotlbPool],
        mappings: &[Mapped],
        ledger: &mut Ledger,
    ) {
        for mapping in mappings {
            ledger.checked(&POOL, 1);
            let end = mapping.original.saturating_add(mapping.bytes);
            let frames = Frames::touching(mapping.original, end);
            let outside = if clip(&context.machine.ram, frames).map(Frames::len).sum::<u64>() != frames.len()
            {
                Some("not RAM")
            } else if pools.iter().any(|pool| !frames_of(pool).and(frames).is_empty()) {
                Some("a pool's own memory")
            } else if (frames.start..frames.end).any(|pfn| is_free(context, pfn)) {
                Some("a frame of it is free")
            } else {
                None
            };
            if let Some(outside) = outside {
                let what = format!("slot {} of pool {}", mapping.first, self.number);
                let claim = format!("{} bytes at {:#x}", mapping.bytes, mapping.original);
                ledger.report(&POOL, finding(&POOL, what, claim, outside).frame(frames.start));
            }
        }
    }

    fn leaks(&self, mappings: &[Mapped], ledger: &mut Ledger) {
        for mapping in mappings {
            let what =
                format!("slots {}..{} of pool {}", mapping.first, mapping.first + mapping.slots, self.number);
            let claim = format!("a mapping of {} bytes at {:#x}", mapping.bytes, mapping.original);
            let found = finding(&LEAK, what, claim, "nothing is being transferred");
            ledger.report(&LEAK, found.frame(self.address(mapping.first) >> PAGE_SHIFT));
        }
    }
}

/// Whether a frame is on a free list, as its descriptor says.
fn is_free(context: &Context<'_>, pfn: u64) -> bool {
    let deferred = find(&context.deferred(), pfn).is_some();
    let kind = context.page(pfn).and_then(|page| PageKind::from_raw(page.kind));
    !deferred && matches!(kind, Some(PageKind::Buddy | PageKind::Pcp))
}
