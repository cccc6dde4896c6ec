//! Compaction and movable pages.
//!
//! C1  `compaction.position`: where scanners go on is 0 (never run) or in the zone's span, as the machine has it, at most
//!     at its end.
//! C2  `compaction.deferral`: at most 2^6 requests are turned away, as many as were counted, and the order that failed
//!     is at most one above the largest.
//! C3  `movable.owner`: a frame that is said to be movable is allocated and names an owner that exists, and an owner has
//!     as many as it counts.
//! C4  `movable.isolated`: a frame that is isolated is movable or a page of programs, and an owner has as many isolated ones as it counts.
//!     At a checkpoint no page of programs is isolated.

use memvisor_abi::{MovableOwner, NR_ORDERS, Page, PageFlags, PageKind};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::owner::for_each_ram_page;
use crate::zones::{zone_kind, zone_name, zone_node};

pub(crate) const POSITION: Rule = Rule {
    name: "compaction.position",
    invariant: "scanner positions are inside their zone",
    reads: "zones; E820 map",
    seeded: &["compact-position"],
    hint: "update_cached_migrate, update_pageblock_skip, __reset_isolation_suitable",
};
pub(crate) const DEFERRAL: Rule = Rule {
    name: "compaction.deferral",
    invariant: "defer_shift <= 6, considered <= 2^defer_shift, order_failed <= 11",
    reads: "zones",
    seeded: &["compact-deferral"],
    hint: "defer_compaction, compaction_deferred",
};
pub(crate) const OWNER: Rule = Rule {
    name: "movable.owner",
    invariant: "a movable frame is allocated, and its owner exists and counts it",
    reads: "descriptors, movable_owners",
    seeded: &["movable-owner", "movable-free"],
    hint: "__ClearPageMovable before the owner frees; what a migration hands on",
};
pub(crate) const ISOLATED: Rule = Rule {
    name: "movable.isolated",
    invariant: "an isolated frame is movable, and its owner counts it as isolated",
    reads: "descriptors, movable_owners",
    seeded: &["movable-isolated"],
    hint: "isolate_movable_page, putback_movable_page, the end of a migration",
};

/// log2 of the most requests that are turned away (Linux: `COMPACT_MAX_DEFER_SHIFT`).
const MAX_DEFER_SHIFT: u32 = 6;

/// Runs C1 to C4.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    if !context.needs_zones(ledger, &[&POSITION, &DEFERRAL, &OWNER, &ISOLATED]) {
        return;
    }
    zones(context, ledger);
    movable(context, ledger);
}

fn zones(context: &Context<'_>, ledger: &mut Ledger) {
    for (index, zone) in context.zones.iter().enumerate() {
        let extent = context.machine.zone(zone_node(index), zone_kind(index));
        let end = extent.start.saturating_add(extent.spanned);
        let [asynchronous, synchronous] = zone.compact_cached_migrate_pfn;
        let positions = [
            ("asynchronous migration scanner", asynchronous),
            ("synchronous migration scanner", synchronous),
            ("free scanner", zone.compact_cached_free_pfn),
            ("first source", zone.compact_init_migrate_pfn),
            ("first target", zone.compact_init_free_pfn),
        ];
        for (what, pfn) in positions {
            ledger.checked(&POSITION, 1);
            if pfn != 0 && !(extent.start..=end).contains(&pfn) {
                let what = format!("{}: {what}", zone_name(index));
                let outside = format!("the zone is {:#x}..{end:#x}", extent.start);
                ledger.report(&POSITION, finding(&POSITION, what, format!("{pfn:#x}"), outside));
            }
        }
        ledger.checked(&DEFERRAL, 1);
        let (shift, considered) = (zone.compact_defer_shift, zone.compact_considered);
        let most = 1_u32 << shift.min(MAX_DEFER_SHIFT);
        if shift > MAX_DEFER_SHIFT
            || considered > most
            || u64::from(zone.compact_order_failed) > NR_ORDERS as u64
        {
            let claim = format!("shift {shift} considered {considered} order {}", zone.compact_order_failed);
            let outside = format!("at most {MAX_DEFER_SHIFT}, {most} and {NR_ORDERS}");
            ledger.report(&DEFERRAL, finding(&DEFERRAL, zone_name(index), claim, outside));
        }
    }
}

/// What the descriptors say of an owner.
#[derive(Clone, Copy, Default)]
struct Seen {
    pages: u64,
    isolated: u64,
}

fn movable(context: &Context<'_>, ledger: &mut Ledger) {
    let owners = &context.movable_owners;
    let mut seen = vec![Seen::default(); owners.len()];
    let (mut pages, mut wrong) = (0, Vec::new());
    for_each_ram_page(context, &mut |pfn, page| {
        pages += 1;
        let flags = page.page_flags();
        if !flags.intersects(PageFlags::MOVABLE | PageFlags::ISOLATED) {
            return;
        }
        if !flags.contains(PageFlags::MOVABLE) {
            wrong.push((&ISOLATED, pfn, "isolated".to_owned(), "it is not movable".to_owned()));
            return;
        }
        match owner_of(page, owners) {
            Ok(index) => {
                if let Some(seen) = seen.get_mut(index) {
                    seen.pages += 1;
                    seen.isolated += u64::from(flags.contains(PageFlags::ISOLATED));
                }
            }
            Err(reason) => wrong.push((&OWNER, pfn, "movable".to_owned(), reason)),
        }
    });
    ledger.checked(&OWNER, pages);
    ledger.checked(&ISOLATED, pages);
    for (rule, pfn, claim, outside) in wrong {
        ledger.report(rule, finding(rule, format_args!("frame {pfn:#x}"), claim, outside).frame(pfn));
    }
    for (owner, seen) in owners.iter().zip(seen) {
        let name = owner.name().to_owned();
        ledger.expect_eq(&OWNER, format_args!("movable blocks of {name:?}"), owner.pages, seen.pages);
        ledger.expect_eq(
            &ISOLATED,
            format_args!("isolated blocks of {name:?}"),
            owner.isolated,
            seen.isolated,
        );
    }
}

/// The place of a movable frame's owner, or what is wrong with the frame.
fn owner_of(page: &Page, owners: &[MovableOwner]) -> Result<usize, String> {
    if page.kind != PageKind::Allocated as u8 || page.refcount < 1 {
        let kind = PageKind::from_raw(page.kind).map_or("of undefined kind", PageKind::name);
        return Err(format!("it is {kind} with {} references", page.refcount));
    }
    let index = usize::try_from(page.mapping.wrapping_sub(1)).unwrap_or(usize::MAX);
    match owners.get(index) {
        Some(owner) if owner.name != [0; 16] => Ok(index),
        _ => Err(format!("there is no owner {}", page.mapping)),
    }
}
