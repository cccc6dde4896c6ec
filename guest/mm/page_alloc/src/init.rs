//! First contents of descriptors.

use mm_core::{MemMap, Page, PageKind, Pfn, ZoneKind};

/// Initialises the descriptors of `start..end`, which are all zero (a fresh memmap), for one node
/// and zone (Linux: `memmap_init_range`). Frames without descriptor are skipped. Returns how many
/// were initialised.
///
/// [`PageKind::Tail`] is for frames that [`crate::Zone::free_range`] will hand over; every
/// other owner makes the frame reserved, with one reference.
pub fn init_range<M: MemMap + ?Sized>(
    map: &M,
    start: Pfn,
    end: Pfn,
    node: u32,
    zone: ZoneKind,
    kind: PageKind,
) -> u64 {
    let mut done = 0;
    let mut pfn = start.as_u64();
    while let Some(left) = end.as_u64().checked_sub(pfn).filter(|left| *left != 0) {
        let run = map.pages(Pfn::new(pfn));
        let count = usize::try_from(left).map_or(run.len(), |left| left.min(run.len()));
        Page::init_all(run.get(..count).unwrap_or(&[]), node, zone, kind);
        done += count as u64;
        pfn += (count as u64).max(1);
    }
    done
}
