//! Every frame of RAM has exactly one owner.
//!
//! O1  `owner.single`: no frame is claimed by two owners. Owners are derived from the structures that
//!     use frames: the kernel image, the sections' memmaps, per-CPU areas, page tables reachable
//!     from a root, user mappings, free lists, allocated blocks, deferred
//!     sections. A memblock reservation owns what nothing more exact owns; a frame that is reserved
//!     and free at once breaks this rule.
//! O2  `owner.none`: no frame of E820 RAM is without an owner.
//! O3  `owner.sum`: owners and orphans together are E820 RAM, no owner reaches outside it, and all of
//!     it can be read.
//! O4  `owner.agrees`: where a descriptor is initialised, its kind is the owner derived here. Frames
//!     that break O1 or O2 are not counted twice.

use std::collections::{BTreeMap, BTreeSet};

use memvisor_abi::{NR_ORDERS, PAGE_SHIFT, PFN_NONE, Page, PageKind};
use memvisor_inspect::section_start_pfn;

use crate::buddy::block_frames;
use crate::claims::{Owner, OwnerMap};
use crate::context::{Context, section_frames};
use crate::frames::{Frames, clip, count, find, gaps, normalize};
use crate::ledger::{Ledger, finding};
use crate::paging::Paging;
use crate::{Rule, rmap, vmalloc};

pub(crate) const SINGLE: Rule = Rule {
    name: "owner.single",
    invariant: "no frame has two owners",
    reads: "all structures that use frames",
    seeded: &["double-owner", "pcp-in-buddy"],
    hint: "who freed the frame while it was in use, or allocated it twice",
};
pub(crate) const NONE: Rule = Rule {
    name: "owner.none",
    invariant: "no frame of RAM is without an owner",
    reads: "all structures that use frames; E820 map",
    seeded: &["leak"],
    hint: "an allocation whose owner forgot it, or a free that lost the block",
};
pub(crate) const SUM: Rule = Rule {
    name: "owner.sum",
    invariant: "owners lie in E820 RAM and sum to it",
    reads: "all structures that use frames; E820 map, the VMM's memory",
    seeded: &[],
    hint: "addresses outside RAM in the owner's structure",
};
pub(crate) const AGREES: Rule = Rule {
    name: "owner.agrees",
    invariant: "the descriptor's kind is the owner derived outside",
    reads: "descriptors; all structures that use frames",
    seeded: &["wrong-kind"],
    hint: "who sets Page.kind on this path",
};

/// The owner map, and how many frames each owner has.
#[derive(Debug)]
pub(crate) struct Owners {
    pub map: OwnerMap,
    /// Frames with two owners, normalized.
    pub disputed: Vec<Frames>,
}

/// Derives all owners and runs O1 to O4.
pub(crate) fn run(
    context: &Context<'_>,
    paging: &Paging,
    uncounted: &BTreeSet<u64>,
    ledger: &mut Ledger,
) -> Option<Owners> {
    if !context.needs_zones(ledger, &[&SINGLE, &NONE, &SUM, &AGREES]) {
        return None;
    }
    let mut deriver = Deriver {
        context,
        uncounted,
        ledger,
        map: OwnerMap::new(&context.machine.ram),
        disputed: Vec::new(),
    };
    deriver.claim_exact(paging);
    deriver.claim_allocated();
    deriver.claim_reserved();
    let owners = Owners { disputed: normalize(deriver.disputed), map: deriver.map };
    orphans(context, &owners, ledger);
    sum(context, &owners, ledger);
    agrees(context, &owners, ledger);
    Some(owners)
}

impl Owners {
    /// Frames by owner; orphans as `nobody` if there are any.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<_, _> = Owner::OWNERS.iter().map(|owner| (owner.name(), 0)).collect();
        for (frames, owner) in self.map.runs() {
            *counts.entry(owner.name()).or_default() += frames.len();
        }
        counts
    }
}

struct Deriver<'d, 'a> {
    context: &'d Context<'a>,
    uncounted: &'d BTreeSet<u64>,
    ledger: &'d mut Ledger,
    map: OwnerMap,
    disputed: Vec<Frames>,
}

impl Deriver<'_, '_> {
    fn claim_exact(&mut self, paging: &Paging) {
        let context = self.context;
        let root = &context.root;
        let image = Frames::touching(root.kernel_gpa, root.kernel_gpa.saturating_add(root.kernel_len));
        self.claim(image, Owner::Kernel);
        for section in &context.sections {
            // A deferred section may have its memmap reserved already.
            if section.memmap_pfn != PFN_NONE {
                self.claim(Frames::from_count(section.memmap_pfn, MEMMAP_FRAMES), Owner::Memmap);
            }
        }
        // Areas that overlap each other are the business of cpu.percpu.
        let areas = context.cpus.iter().filter(|cpu| cpu.percpu_len > 0);
        let areas =
            areas.map(|cpu| Frames::touching(cpu.percpu_gpa, cpu.percpu_gpa.saturating_add(cpu.percpu_len)));
        for area in normalize(areas.collect()) {
            self.claim(area, Owner::PerCpu);
        }
        // Tables and free blocks outside RAM are the business of pgtable.table-in-ram and buddy.in-ram.
        for table in &paging.tables {
            self.claim_in_ram(Frames::from_count(table.gpa >> PAGE_SHIFT, 1), Owner::Table);
        }
        self.claim_user(paging);
        for (frames, owner) in vmalloc::owned(context, paging) {
            self.claim_in_ram(frames, owner);
        }
        if let Some(zswap) = &context.zswap {
            let frames = zswap.frames.items.iter().map(|frame| frame.pfn);
            for pfn in frames.chain(zswap.leaves.iter().map(|leaf| leaf.pfn)) {
                self.claim_in_ram(Frames::from_count(pfn, 1), Owner::Zswap);
            }
        }
        for list in &context.free_lists {
            for &block in &list.blocks {
                self.claim_in_ram(block_frames(list, block), Owner::Buddy);
            }
        }
        for list in &context.pcp_lists {
            for &block in &list.blocks {
                self.claim_in_ram(Frames::from_count(block, 1 << list.order.min(NR_ORDERS)), Owner::Pcp);
            }
        }
    }

    /// What programs map, but for `uncounted` frames, which belong to others: the zero page, and what devices map.
    fn claim_user(&mut self, paging: &Paging) {
        let uncounted = self.uncounted;
        let present = paging.runs.iter().filter(|run| run.access.user && !run.upper).map(|run| run.frames);
        let absent = paging.absent_user.iter().map(|&pfn| Frames::from_count(pfn, 1));
        for frames in present.chain(absent) {
            let mut start = frames.start;
            // A device mapped for a program is no frame of RAM.
            for &pfn in uncounted.range(frames.start..frames.end.max(frames.start)) {
                self.claim_in_ram(Frames::new(start, pfn), Owner::User);
                start = pfn + 1;
            }
            self.claim_in_ram(Frames::new(start, frames.end), Owner::User);
        }
    }

    /// Blocks that descriptors call allocated, and pages that mappings hold. Their owner is not published, so the descriptor is
    /// all there is; it still must not collide with what is derived from structures.
    fn claim_allocated(&mut self) {
        let context = self.context;
        let mut blocks = Vec::new();
        for_each_ram_page(context, &mut |pfn, page| {
            let owner = match PageKind::from_raw(page.kind) {
                Some(PageKind::Allocated) => Owner::Allocated,
                Some(PageKind::Slab) => Owner::Slab,
                // A page of a mapping stays when nobody maps it.
                Some(PageKind::User) if rmap::is_cached(context, pfn, page) => Owner::User,
                _ => return,
            };
            if page.refcount > 0 {
                let order = usize::from(page.order).min(NR_ORDERS);
                blocks.push((Frames::from_count(pfn, 1 << order), owner));
            }
        });
        let mut end = 0;
        for (block, owner) in blocks {
            // The frames of a block may each carry a descriptor of the whole block.
            if block.start >= end {
                self.claim(block, owner);
                end = block.end;
            }
        }
        for range in context.deferred() {
            for part in clip(&context.machine.ram, range) {
                for free in gaps(&context.reserved, part) {
                    self.claim(free, Owner::Deferred);
                }
            }
        }
    }

    fn claim_reserved(&mut self) {
        let firmware = Frames::new(0, (1 << 20) >> PAGE_SHIFT);
        let rest = Frames::new(firmware.end, u64::MAX);
        let reserved = self.context.reserved.clone();
        for &range in &reserved {
            self.map.claim_rest(range.and(firmware), Owner::Firmware);
            self.map.claim_rest(range.and(rest), Owner::Reserved);
        }
        let free: Vec<Frames> = self
            .map
            .runs()
            .filter(|(_, owner)| *owner == Owner::Buddy)
            .flat_map(|(frames, _)| clip(&reserved, frames).collect::<Vec<_>>())
            .collect();
        for frames in normalize(free) {
            self.dispute(frames, Owner::Buddy, Owner::Reserved);
        }
    }

    /// Claims the frames of `frames` that are RAM.
    fn claim_in_ram(&mut self, frames: Frames, owner: Owner) {
        for part in clip(&self.context.machine.ram, frames) {
            self.claim(part, owner);
        }
    }

    fn claim(&mut self, frames: Frames, owner: Owner) {
        for clash in self.map.claim(frames, owner) {
            if clash.held_by == Owner::Hole {
                let claim = format!("{} is here", owner.name());
                let what = finding(&SUM, clash.frames, claim, "no RAM").frame(clash.frames.start);
                self.ledger.report(&SUM, what);
            } else {
                self.dispute(clash.frames, clash.held_by, owner);
            }
        }
    }

    fn dispute(&mut self, frames: Frames, one: Owner, other: Owner) {
        let outside = format!("{} and {} at once", one.name(), other.name());
        let claim = kind_text(self.context.page(frames.start).as_ref());
        self.ledger.report(&SINGLE, finding(&SINGLE, frames, claim, outside).frame(frames.start));
        self.disputed.push(frames);
    }
}

/// Frames that hold the descriptors of one section.
const MEMMAP_FRAMES: u64 =
    memvisor_abi::PAGES_PER_SECTION * size_of::<Page>() as u64 / memvisor_abi::PAGE_SIZE;

fn kind_text(page: Option<&Page>) -> String {
    match page {
        None => "nothing (no descriptor)".to_owned(),
        Some(page) => PageKind::from_raw(page.kind)
            .map_or_else(|| format!("undefined kind {}", page.kind), |kind| kind.name().to_owned()),
    }
}

/// Calls `visit` with every frame of RAM that has an initialised descriptor, ascending.
pub(crate) fn for_each_ram_page(context: &Context<'_>, visit: &mut dyn FnMut(u64, &Page)) {
    let mut pages = Vec::new();
    for section in &context.sections {
        if !matches!(context.guest.read_section(section, &mut pages), Ok(true)) {
            continue;
        }
        let first = section_start_pfn(section);
        for range in clip(&context.machine.ram, section_frames(section)) {
            for pfn in range.start..range.end {
                let page = usize::try_from(pfn - first).ok().and_then(|index| pages.get(index));
                if let Some(page) = page {
                    visit(pfn, page);
                }
            }
        }
    }
}

fn orphans(context: &Context<'_>, owners: &Owners, ledger: &mut Ledger) {
    let ram = count(&context.machine.ram);
    ledger.checked(&SINGLE, ram);
    ledger.checked(&NONE, ram);
    let orphans = owners.map.runs().filter(|(_, owner)| *owner == Owner::Nobody).map(|(frames, _)| frames);
    for frames in normalize(orphans.collect()) {
        let claim = kind_text(context.page(frames.start).as_ref());
        let what = finding(&NONE, frames, claim, "nobody uses it, and it is not free").frame(frames.start);
        ledger.report(&NONE, what);
    }
}

fn sum(context: &Context<'_>, owners: &Owners, ledger: &mut Ledger) {
    let ram = count(&context.machine.ram);
    ledger.expect_eq(&SUM, "frames of RAM", owners.counts().values().sum::<u64>(), ram);
    for range in owners.map.ram() {
        ledger.checked(&SUM, 1);
        let (gpa, len) = (range.start << PAGE_SHIFT, range.len() << PAGE_SHIFT);
        if !context.source.is_ram(gpa, len) {
            let what = finding(&SUM, range, "RAM", "the machine has no memory there").frame(range.start);
            ledger.report(&SUM, what);
        }
    }
}

/// Consecutive frames with the same contradiction are one finding.
fn agrees(context: &Context<'_>, owners: &Owners, ledger: &mut Ledger) {
    let mut open: Option<(Frames, Owner, u8)> = None;
    let mut wrong = Vec::new();
    let mut compared = 0;
    for_each_ram_page(context, &mut |pfn, page| {
        let owner = owners.map.owner(pfn);
        if owner == Owner::Nobody || find(&owners.disputed, pfn).is_some() {
            return;
        }
        compared += 1;
        if PageKind::from_raw(page.kind).is_some_and(|kind| owner.allows(kind)) {
            return;
        }
        match &mut open {
            Some((frames, o, kind)) if frames.end == pfn && (*o, *kind) == (owner, page.kind) => {
                frames.end += 1
            }
            _ => wrong.extend(open.replace((Frames::from_count(pfn, 1), owner, page.kind))),
        }
    });
    wrong.extend(open);
    ledger.checked(&AGREES, compared);
    for (frames, owner, _) in wrong {
        let claim = kind_text(context.page(frames.start).as_ref());
        ledger.report(&AGREES, finding(&AGREES, frames, claim, owner.name()).frame(frames.start));
    }
}
