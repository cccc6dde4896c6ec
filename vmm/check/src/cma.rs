//! Contiguous areas.
//!
//! C1  `cma.area`: an area is RAM of one node and one zone, from a multiple of the largest block on, apart from all others; the
//!     pageblocks of type CMA are those of the areas, no more and no fewer (one that is isolated just now may be of either), and
//!     zones count the areas' frames.
//! C2  `cma.bitmap`: a frame is on no list of free ones, and no movable one, while its bit says that somebody asked for it.

use memvisor_abi::{CmaArea, Migratetype, NR_ORDERS, PAGEBLOCK_PAGES, Page, PageFlags, PageKind};

use crate::Rule;
use crate::context::Context;
use crate::frames::{Frames, find, normalize};
use crate::ledger::{Ledger, finding};
use crate::machine::zone_index;
use crate::pageblock::raw_type;
use crate::zones::zone_name;

pub(crate) const AREA: Rule = Rule {
    name: "cma.area",
    invariant: "areas are pageblocks of type CMA in one zone, and all of these",
    reads: "cma_areas, sections, zones; E820 map",
    seeded: &["cma-area"],
    hint: "cma_init_reserved_areas; who changes types of pageblocks",
};
pub(crate) const BITMAP: Rule = Rule {
    name: "cma.bitmap",
    invariant: "a frame with its bit set is neither free nor movable",
    reads: "cma_areas, their bitmaps, descriptors",
    seeded: &["cma-bitmap"],
    hint: "cma_alloc and cma_release: the bit is set before and cleared after",
};

/// Frames of the largest block.
const LARGEST: u64 = 1 << (NR_ORDERS - 1);

/// Runs C1 and C2.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&AREA, &BITMAP]) {
        return;
    }
    areas(context, ledger);
    for (number, area) in context.cma_areas.iter().enumerate() {
        bitmap(context, number, area, ledger);
    }
    ledger.checked(&BITMAP, 1);
}

/// "area 0 (reserved)".
fn name(number: usize, area: &CmaArea) -> String {
    let text: String =
        area.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
    format!("area {number} ({})", text.escape_default())
}

fn areas(context: &Context<'_>, ledger: &mut Ledger) {
    let mut pages = vec![0_u64; context.zones.len()];
    let mut taken: Vec<Frames> = Vec::new();
    for (number, area) in context.cma_areas.iter().enumerate() {
        ledger.checked(&AREA, 1);
        let frames = Frames::from_count(area.base_pfn, area.count);
        let mut report = |claim: &str, outside: String| {
            let what = finding(&AREA, name(number, area), format!("{claim} at {frames}"), outside);
            ledger.report(&AREA, what.frame(frames.start));
        };
        let whole = |frames: u64| frames.is_multiple_of(LARGEST);
        if frames.is_empty() || !whole(frames.start) || !whole(frames.len()) {
            report("whole blocks", format!("the largest block has {LARGEST} frames"));
        }
        let part = context.machine.parts.iter().find(|part| part.frames.contains(frames.start));
        match part.filter(|part| part.frames.and(frames) == frames) {
            Some(part) => {
                if let Some(pages) = pages.get_mut(zone_index(part.node, part.zone)) {
                    *pages += frames.len();
                }
            }
            None => report("frames of one zone", "not RAM of one node and zone throughout".to_owned()),
        }
        if taken.iter().any(|other| !other.and(frames).is_empty()) {
            report("an area of its own", "another area has some of it".to_owned());
        }
        taken.push(frames);
    }
    let taken = normalize(taken);
    for (index, (zone, pages)) in context.zones.iter().zip(pages).enumerate() {
        let what = format_args!("{}: frames of contiguous areas", zone_name(index));
        ledger.expect_eq(&AREA, what, zone.cma_pages, pages);
    }
    for section in &context.sections {
        let first = memvisor_inspect::section_start_pfn(section);
        for index in 0..section.pageblocks.len() as u64 {
            let pfn = first + index * PAGEBLOCK_PAGES;
            let Some(raw) = raw_type(context, pfn) else { continue };
            let (is, should) = (raw == Migratetype::Cma as u8, find(&taken, pfn).is_some());
            if is != should && raw != Migratetype::Isolate as u8 {
                let text = |cma| if cma { "of type CMA" } else { "of another type" };
                let outside = if should { "it is an area's" } else { "no area has it" };
                let frames = Frames::from_count(pfn, PAGEBLOCK_PAGES);
                ledger.report(&AREA, finding(&AREA, frames, text(is), outside).frame(pfn));
            }
        }
    }
}

/// Frames that a hostile count may make an audit look at.
const LOOK_AT: u64 = 1 << 26;

fn bitmap(context: &Context<'_>, number: usize, area: &CmaArea, ledger: &mut Ledger) {
    let words = match context.guest.cma_bitmap(area) {
        Ok(words) => words,
        Err(error) => {
            let what = finding(&BITMAP, name(number, area), "it has a bitmap", error.to_string());
            ledger.report(&BITMAP, what.address(area.bitmap_gpa));
            return;
        }
    };
    let per_bit = 1_u64.checked_shl(area.order_per_bit).unwrap_or(1).max(1);
    for offset in 0..area.count.min(LOOK_AT) {
        let bit = offset / per_bit;
        let word = usize::try_from(bit / 64).ok().and_then(|index| words.get(index)).copied().unwrap_or(0);
        if word >> (bit % 64) & 1 == 0 {
            continue;
        }
        ledger.checked(&BITMAP, 1);
        let pfn = area.base_pfn.saturating_add(offset);
        let state = context.page(pfn).map_or(Some("without descriptor"), |page| state(&page));
        if let Some(state) = state {
            let what = finding(&BITMAP, name(number, area), "somebody asked for the frame", state);
            ledger.report(&BITMAP, what.frame(pfn));
        }
    }
}

/// What a frame that was asked for cannot be.
fn state(page: &Page) -> Option<&'static str> {
    match PageKind::from_raw(page.kind) {
        Some(PageKind::Buddy | PageKind::Pcp | PageKind::Tail) => Some("it is free"),
        _ if page.refcount <= 0 => Some("it has no reference"),
        _ if page.page_flags().intersects(PageFlags::MOVABLE | PageFlags::LRU) => Some("it is movable"),
        _ => None,
    }
}
