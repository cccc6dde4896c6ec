//! Pageblocks and the types of free blocks.
//!
//! T1  `pageblock.type`: every pageblock of RAM has a type that exists.
//! T2  `pageblock.isolated`: a free block is on a list of type Isolate, or CMA, exactly if its pageblock has that
//!     type: what is isolated is not allocated, and a contiguous area is lent to those who can leave it only.
//! T3  `buddy.type`: the head of a free block names the type of the list that it is on.
//! T4  `buddy.nonempty`: the bit of an order and type says whether that list has blocks.
//! T5  `zone.cma`: free pages of contiguous areas are the sum of the CMA lists.
//! T6  `zone.highatomic`: the highatomic reserve is counted by its pageblocks.
//! T7  `zone.isolated`: isolated pageblocks are counted.
//! T8  `zone.boost`: the boost is at most the boost factor's share of the high watermark, or one pageblock.
//! T9  `buddy.known-zero`: a free block that is said to be zero is zero, byte by byte.

use memvisor_abi::{
    Migratetype, NR_ORDERS, PAGE_SHIFT, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES, PAGEBLOCK_TYPE_MASK,
    PAGES_PER_SECTION, PFN_NONE, Page, Section, VmSysctl,
};
use memvisor_inspect::section_start_pfn;

use crate::Rule;
use crate::buddy::breaks_the_walk;
use crate::context::Context;
use crate::frames::{Frames, clip};
use crate::ledger::{Ledger, finding};
use crate::machine::zone_index;
use crate::zones::zone_name;

pub(crate) const TYPE: Rule = Rule {
    name: "pageblock.type",
    invariant: "every pageblock of RAM has a type that exists",
    reads: "sections; E820 map",
    seeded: &["pageblock-type"],
    hint: "set_pageblock_migratetype; a write to the section table",
};
pub(crate) const ISOLATED: Rule = Rule {
    name: "pageblock.isolated",
    invariant: "blocks are on Isolate and CMA lists exactly in such pageblocks",
    reads: "sections, free lists",
    seeded: &["pageblock-isolated"],
    hint: "move_freepages_block; the type that a free passes to __free_one_page",
};
pub(crate) const BLOCK: Rule = Rule {
    name: "buddy.type",
    invariant: "a free block's head names the type of its list",
    reads: "free lists, descriptors",
    seeded: &["buddy-block-type"],
    hint: "move_to_free_list",
};
pub(crate) const NONEMPTY: Rule = Rule {
    name: "buddy.nonempty",
    invariant: "a list's bit is set exactly if it has blocks",
    reads: "zones",
    seeded: &["buddy-nonempty"],
    hint: "list insertion and removal: the first and the last block",
};
pub(crate) const CMA: Rule = Rule {
    name: "zone.cma",
    invariant: "nr_free_cma = sum of the zone's CMA lists",
    reads: "zones, free lists",
    seeded: &["zone-free-cma"],
    hint: "__mod_zone_freepage_state with the wrong type",
};
pub(crate) const HIGHATOMIC: Rule = Rule {
    name: "zone.highatomic",
    invariant: "nr_reserved_highatomic = frames of HighAtomic pageblocks",
    reads: "zones, sections",
    seeded: &["zone-highatomic"],
    hint: "reserve_highatomic_pageblock, unreserve_highatomic_pageblock",
};
pub(crate) const NR_ISOLATED: Rule = Rule {
    name: "zone.isolated",
    invariant: "nr_isolate_pageblock = Isolate pageblocks",
    reads: "zones, sections",
    seeded: &["zone-isolated"],
    hint: "set_migratetype_isolate, unset_migratetype_isolate",
};
pub(crate) const BOOST: Rule = Rule {
    name: "zone.boost",
    invariant: "watermark_boost is within the boost factor's limit",
    reads: "zones",
    seeded: &["zone-boost"],
    hint: "boost_watermark",
};

pub(crate) const KNOWN_ZERO: Rule = Rule {
    name: "buddy.known-zero",
    invariant: "a free block that is known to be zero is zero",
    reads: "free lists, descriptors, the frames themselves",
    seeded: &["known-zero"],
    hint: "merges of clean and used blocks; memory that is handed over after it was used",
};

/// All of this file, in the order of reports.
const RULES: [&Rule; 9] =
    [&TYPE, &ISOLATED, &BLOCK, &NONEMPTY, &KNOWN_ZERO, &CMA, &HIGHATOMIC, &NR_ISOLATED, &BOOST];

/// Runs T1 to T9.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &RULES) {
        return;
    }
    pageblocks(context, ledger);
    blocks(context, ledger);
    known_zero(context, ledger);
    marks(context, ledger);
    boost(context, ledger);
}

/// The raw type of the pageblock that holds a frame; `None` where there is no section.
pub(crate) fn raw_type(context: &Context<'_>, pfn: u64) -> Option<u8> {
    let number = pfn / PAGES_PER_SECTION;
    let index = context.sections.binary_search_by_key(&number, |section| section.number).ok()?;
    let block = usize::try_from((pfn % PAGES_PER_SECTION) >> PAGEBLOCK_ORDER).ok()?;
    let byte = context.sections.get(index)?.pageblocks.get(block)?;
    Some(byte & PAGEBLOCK_TYPE_MASK)
}

fn type_name(raw: u8) -> String {
    Migratetype::from_raw(raw).map_or_else(|| format!("undefined type {raw}"), |kind| kind.name().to_owned())
}

/// The pageblocks of a section that hold RAM, with their frames of RAM.
fn with_ram<'c>(context: &'c Context<'_>, section: &'c Section) -> impl Iterator<Item = (Frames, u8)> + 'c {
    let first = section_start_pfn(section);
    (0..).zip(section.pageblocks).filter_map(move |(index, byte)| {
        let frames = Frames::from_count(first + index * PAGEBLOCK_PAGES, PAGEBLOCK_PAGES);
        let ram = clip(&context.machine.ram, frames).next()?;
        Some((ram, byte & PAGEBLOCK_TYPE_MASK))
    })
}

fn pageblocks(context: &Context<'_>, ledger: &mut Ledger) {
    let zones = context.zones.len();
    let (mut highatomic, mut isolated) = (vec![0_u64; zones], vec![0_u64; zones]);
    for section in &context.sections {
        for (ram, raw) in with_ram(context, section) {
            ledger.checked(&TYPE, 1);
            let counts = match Migratetype::from_raw(raw) {
                None => {
                    let what = finding(&TYPE, ram, type_name(raw), "types 0 to 5 exist").frame(ram.start);
                    ledger.report(&TYPE, what);
                    continue;
                }
                Some(Migratetype::HighAtomic) => &mut highatomic,
                Some(Migratetype::Isolate) => &mut isolated,
                Some(_) => continue,
            };
            // A pageblock across a border counts for the zone of its first frame of RAM.
            let part = context.machine.parts.iter().find(|part| part.frames.contains(ram.start));
            if let Some(count) = part.and_then(|part| counts.get_mut(zone_index(part.node, part.zone))) {
                *count += 1;
            }
        }
    }
    for (index, (zone, (highatomic, isolated))) in
        context.zones.iter().zip(highatomic.into_iter().zip(isolated)).enumerate()
    {
        let name = zone_name(index);
        let reserved = highatomic * PAGEBLOCK_PAGES;
        let what = format_args!("{name}: highatomic pages");
        ledger.expect_eq(&HIGHATOMIC, what, zone.nr_reserved_highatomic, reserved);
        let what = format_args!("{name}: isolated pageblocks");
        ledger.expect_eq(&NR_ISOLATED, what, zone.nr_isolate_pageblock, isolated);
    }
}

fn blocks(context: &Context<'_>, ledger: &mut Ledger) {
    let mut cma = vec![Some(0_u64); context.zones.len()];
    for list in &context.free_lists {
        ledger.checked(&BLOCK, list.blocks.len() as u64);
        ledger.checked(&ISOLATED, list.blocks.len() as u64);
        let name = format!("{} order {}", zone_name(list.zone_index), list.order);
        let wanted = list.migratetype.name();
        for &pfn in &list.blocks {
            if let Some(page) = context.page(pfn).filter(|page| page.migratetype != list.migratetype as u8) {
                let claim = type_name(page.migratetype);
                let what = finding(&BLOCK, &name, claim, format!("it is on the list of {wanted}"));
                ledger.report(&BLOCK, what.frame(pfn));
            }
            let Some(raw) = raw_type(context, pfn) else { continue };
            let apart = |kind: Migratetype| (raw == kind as u8) != (list.migratetype == kind);
            if apart(Migratetype::Isolate) || apart(Migratetype::Cma) {
                let outside = format!("its pageblock is {}", type_name(raw));
                let what = finding(&ISOLATED, &name, format!("free as {wanted}"), outside);
                ledger.report(&ISOLATED, what.frame(pfn));
            }
        }
        if list.migratetype == Migratetype::Cma
            && let Some(sum) = cma.get_mut(list.zone_index)
        {
            let pages = (list.blocks.len() as u64) << list.order.min(NR_ORDERS);
            // A list that cannot be walked to its end has no sum.
            *sum = sum.filter(|_| !breaks_the_walk(list)).map(|sum| sum.saturating_add(pages));
        }
    }
    for (index, (zone, sum)) in context.zones.iter().zip(cma).enumerate() {
        if let Some(sum) = sum {
            let what = format_args!("{}: free pages of contiguous areas", zone_name(index));
            ledger.expect_eq(&CMA, what, zone.nr_free_cma, sum);
        }
    }
}

/// Bytes compared at once.
const CHUNK: u64 = 1 << 16;

fn known_zero(context: &Context<'_>, ledger: &mut Ledger) {
    let mut bytes = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    for list in &context.free_lists {
        for &pfn in &list.blocks {
            if context.page(pfn).is_none_or(|page| page.bits & Page::KNOWN_ZERO == 0) {
                continue;
            }
            ledger.checked(&KNOWN_ZERO, 1);
            let frames = crate::buddy::block_frames(list, pfn);
            if let Some(gpa) = first_nonzero(context, frames, &mut bytes) {
                let claim = format!("{frames} are zero");
                let what = finding(&KNOWN_ZERO, frames, claim, format!("{gpa:#x} is not"));
                ledger.report(&KNOWN_ZERO, what.frame(gpa >> PAGE_SHIFT));
            }
        }
    }
}

/// Where the first byte other than 0 is. Memory that the host never made is not looked at: it reads as zero.
fn first_nonzero(context: &Context<'_>, frames: Frames, bytes: &mut [u8]) -> Option<u64> {
    let end = frames.end.checked_shl(PAGE_SHIFT)?;
    let mut at = frames.start.checked_shl(PAGE_SHIFT)?;
    loop {
        at = context.source.next_data(at).filter(|&data| data < end)?.max(at);
        let len = usize::try_from(CHUNK.min(end - at)).ok()?;
        let chunk = bytes.get_mut(..len)?;
        // What cannot be read is the business of buddy.in-ram.
        context.source.read(at, chunk).ok()?;
        if let Some(offset) = chunk.iter().position(|byte| *byte != 0) {
            return Some(at + offset as u64);
        }
        at += len as u64;
    }
}

fn marks(context: &Context<'_>, ledger: &mut Ledger) {
    for (index, zone) in context.zones.iter().enumerate() {
        for kind in Migratetype::ALL {
            let bit = |(order, area): (usize, &memvisor_abi::FreeArea)| {
                let filled = area.lists.get(kind as usize).is_some_and(|list| list.head != PFN_NONE);
                u16::from(filled) << order
            };
            let wanted: u16 = zone.free_area.iter().enumerate().map(bit).sum();
            let marked = zone.nonempty.get(kind as usize).copied().unwrap_or(0);
            ledger.checked(&NONEMPTY, 1);
            if marked != wanted {
                let name = format!("{} {}", zone_name(index), kind.name());
                let (claim, outside) = (format!("orders {marked:#b}"), format!("orders {wanted:#b}"));
                ledger.report(&NONEMPTY, finding(&NONEMPTY, name, claim, outside));
            }
        }
    }
}

fn boost(context: &Context<'_>, ledger: &mut Ledger) {
    for (index, zone) in context.zones.iter().enumerate() {
        ledger.checked(&BOOST, 1);
        // A boost outlives the factor that made it.
        let changed = context.vm_sysctl.is_some_and(|sysctl| sysctl.changes > 0);
        let earlier = if changed { u128::from(VmSysctl::DEFAULT.watermark_boost_factor) } else { 0 };
        let factor = u128::from(zone.watermark_boost_factor).max(earlier);
        let [_, _, high] = zone.watermark.map(u128::from);
        let most = if factor == 0 { 0 } else { (high * factor / 10_000).max(PAGEBLOCK_PAGES.into()) };
        if u128::from(zone.watermark_boost) > most {
            let claim = format!("boost {}", zone.watermark_boost);
            ledger.report(&BOOST, finding(&BOOST, zone_name(index), claim, format!("at most {most}")));
        }
    }
}
