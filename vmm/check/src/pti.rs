//! Page-table isolation: what ring 3's tables have of the kernel (Linux: arch/x86/mm/pti.c).
//!
//! I1  `pti.entry-area`: the kernel's half of every table for ring 3 has the entries of one tree, and that maps only, and never for ring 3:
//!     code for entry (at most 16 KiB of the kernel's text, executable, read-only), the pages of the interrupt table (read-only),
//!     and of each CPU's area the page with its descriptors and entry stack and the pages of its IST stacks. None is global.
//!     Without isolation no address space has such a table.
//! I2  `pti.user-half`: the user's half has the entries of the kernel's table of the same address space.
//!
//! In a per-CPU area, frame 1 has descriptors and entry stack, and frames 6 to 13 the four IST stacks (guest/kernel, percpu.rs).

use std::mem::offset_of;

use memvisor_abi::{Mm, PAGE_SHIFT, PAGE_SIZE, PFN_NONE};
use memvisor_inspect::ptdump::{Leaf, Span, Visitor, walk_tree};
use memvisor_inspect::{AddressSpace, Entry, Walker};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::paging::differing_slots;

pub(crate) const ENTRY_AREA: Rule = Rule {
    name: "pti.entry-area",
    invariant: "ring 3's tables have of the kernel the entry area only",
    reads: "Root.entry_*, page tables, Mm, CpuInfo",
    seeded: &["pti-direct-map", "pti-secret"],
    hint: "mm/pti.rs: what init maps; a top-level entry that was copied",
};
pub(crate) const USER_HALF: Rule = Rule {
    name: "pti.user-half",
    invariant: "both top-level tables have the same user half",
    reads: "page tables, Mm",
    seeded: &["pti-user-half"],
    hint: "a write of a top-level entry past Tables::write",
};
pub(crate) const RULES: [&Rule; 2] = [&ENTRY_AREA, &USER_HALF];

/// Most bytes that code for entry may have.
const MOST_TEXT: u64 = 16 << 10;

/// The top-level table that ring 3 runs on, of an address space that has two.
pub(crate) fn user_pgd(context: &Context<'_>, space: &AddressSpace) -> Option<u64> {
    if context.root.entry_pgd_pfn == PFN_NONE { None } else { second_pgd(context, space) }
}

fn second_pgd(context: &Context<'_>, space: &AddressSpace) -> Option<u64> {
    let field = space.mm.checked_add(offset_of!(Mm, user_pgd_pfn) as u64)?;
    context.source.read_u64(field).ok().filter(|pfn| *pfn != 0 && *pfn != PFN_NONE)
}

/// Runs I1 and I2.
pub(crate) fn run(context: &Context<'_>, ledger: &mut Ledger) {
    let template = context.root.entry_pgd_pfn;
    if template == PFN_NONE {
        return off(context, ledger);
    }
    area(context, template, ledger);
    let read = |pfn: u64, slot: u64| {
        context.source.read_u64((pfn << PAGE_SHIFT) + slot * 8).map_or(0, |raw| raw & !Entry::ACCESSED)
    };
    for space in &context.spaces {
        let Some(user) = user_pgd(context, space) else { continue };
        ledger.checked(&ENTRY_AREA, 256);
        for slot in differing_slots(context.source, template, user) {
            let what = format!("pid {} top-level entry {slot} for ring 3", space.pid);
            let (claim, outside) =
                (format!("{:#x}", read(user, slot)), format!("{:#x}", read(template, slot)));
            let outside = format!("the entry area has {outside}");
            ledger.report(&ENTRY_AREA, finding(&ENTRY_AREA, what, claim, outside).frame(user));
        }
        ledger.checked(&USER_HALF, 256);
        for slot in (0..256).filter(|&slot| read(user, slot) != read(space.pgd_pfn, slot)) {
            let what = format!("pid {} top-level entry {slot}", space.pid);
            let claim = format!("{:#x} for ring 3", read(user, slot));
            let outside = format!("{:#x} in the kernel's table", read(space.pgd_pfn, slot));
            ledger.report(&USER_HALF, finding(&USER_HALF, what, claim, outside).frame(user));
        }
    }
}

/// Without isolation ring 3 runs on the kernel's tables, and nobody has others.
fn off(context: &Context<'_>, ledger: &mut Ledger) {
    for rule in RULES {
        ledger.checked(rule, context.spaces.len() as u64);
    }
    for space in &context.spaces {
        if let Some(user) = second_pgd(context, space) {
            let what = format!("pid {} has a table for ring 3", space.pid);
            let outside = "there is no entry area that it could have";
            let what = finding(&ENTRY_AREA, what, format!("frame {user:#x}"), outside);
            ledger.report(&ENTRY_AREA, what.frame(user));
        }
    }
}

/// What the tree maps.
fn area(context: &Context<'_>, template: u64, ledger: &mut Ledger) {
    let levels = context.guest.levels();
    let walker = Walker::new(template << PAGE_SHIFT, levels).with_phys_bits(context.root.phys_bits);
    let bits = levels.va_bits();
    let upper = Span { start: 1 << (bits - 1), last: (1 << bits) - 1 };
    let mut leaves = Leaves::default();
    walk_tree(&walker, context.source, upper, &mut leaves);
    let [start, end] = context.root.entry_text;
    ledger.checked(&ENTRY_AREA, leaves.0.len() as u64 + 1);
    if end.wrapping_sub(start) > MOST_TEXT {
        let outside = format!("no more than {MOST_TEXT} bytes may be");
        let claim = format!("code for entry is {start:#x}..{end:#x}");
        ledger.report(&ENTRY_AREA, finding(&ENTRY_AREA, "Root.entry_text", claim, outside));
    }
    for leaf in &leaves.0 {
        if let Some(outside) = refused(context, leaf) {
            let what = format!("{:#x} for ring 3's tables", leaf.va);
            let what = finding(&ENTRY_AREA, what, "a part of the entry area", outside);
            ledger.report(&ENTRY_AREA, what.frame(leaf.gpa >> PAGE_SHIFT).address(leaf.va));
        }
    }
}

#[derive(Default)]
struct Leaves(Vec<Leaf>);

impl Visitor for Leaves {
    fn leaf(&mut self, leaf: &Leaf) {
        self.0.push(*leaf);
    }
}

/// Why a page may not be mapped.
fn refused(context: &Context<'_>, leaf: &Leaf) -> Option<String> {
    let root = &context.root;
    let inside = |[start, end]: [u64; 2]| (start..end).contains(&leaf.va);
    if leaf.access.user {
        return Some("ring 3 may use it".to_owned());
    }
    if leaf.size.bytes() != PAGE_SIZE || leaf.entry.has(Entry::GLOBAL) {
        return Some("it is global, or larger than a page".to_owned());
    }
    // The same bytes as in the kernel's own tables.
    let of_image = leaf.gpa.wrapping_sub(root.kernel_gpa) == leaf.va.wrapping_sub(root.kernel_va);
    if inside(root.entry_text) {
        let text = leaf.gpa.wrapping_sub(root.kernel_gpa) < root.text_len;
        let right = of_image && text && !leaf.access.write;
        return (!right).then(|| "it is not the kernel's text, or writable".to_owned());
    }
    if leaf.access.execute {
        return Some("it is executable".to_owned());
    }
    if inside(root.entry_idt) {
        return (!of_image || leaf.access.write).then(|| "it is not the image's, or writable".to_owned());
    }
    let frame = |cpu: &memvisor_abi::CpuInfo| {
        let offset = leaf.gpa.checked_sub(cpu.percpu_gpa)?;
        (offset < cpu.percpu_len).then_some(offset >> PAGE_SHIFT)
    };
    match context.cpus.iter().find_map(frame) {
        Some(1 | 6..=13) => None,
        Some(frame) => Some(format!("frame {frame} of a CPU's area is the kernel's own")),
        None => Some("it is no part of the entry area".to_owned()),
    }
}
