//! Entries of processes' page tables against the VMAs that they lie in.
//!
//! E1  `pte.vma`: every entry that is not empty lies in a VMA, and is a mapped page, present or marked PTE_PROTNONE, or waits for a
//!     page that is being moved, or names a slot of a swap area (what that is, is swap.entry's).
//! E2  `pte.write`: an entry that allows writes lies in a VMA that does (VM_WRITE), present or not.
//! E3  `pte.exec`: a present entry that allows fetches lies in a VMA that does (VM_EXEC).
//! E4  `pte.access`: a present entry is ring 3's and lies in a VMA that allows any access; a page without access lies in one that
//!     allows none.
//! E5  `pte.migration`: an entry waits for its page only while somebody moves the page, who has it locked.

use memvisor_abi::{Page, PageFlags, vm_flags};
use memvisor_inspect::{Entry, EntryKind, UserEntry};

use crate::Rule;
use crate::context::Context;
use crate::ledger::{Ledger, finding};
use crate::processes::Process;

pub(crate) const VMA: Rule = Rule {
    name: "pte.vma",
    invariant: "every entry of user space lies in a VMA and means something",
    reads: "page tables, Vma lists",
    seeded: &["pte-outside-vma", "pte-meaningless"],
    hint: "zap_page_range before the VMA goes; mremap; who writes entries by hand",
};
pub(crate) const WRITE: Rule = Rule {
    name: "pte.write",
    invariant: "only entries in VM_WRITE VMAs allow writes",
    reads: "page tables, Vma lists",
    seeded: &["pte-writable"],
    hint: "change_protection, Vma::page_prot",
};
pub(crate) const EXEC: Rule = Rule {
    name: "pte.exec",
    invariant: "only entries in VM_EXEC VMAs allow fetches",
    reads: "page tables, Vma lists",
    seeded: &["pte-executable"],
    hint: "change_protection, Vma::page_prot",
};
pub(crate) const ACCESS: Rule = Rule {
    name: "pte.access",
    invariant: "present: VMA with access; PTE_PROTNONE: VMA without",
    reads: "page tables, Vma lists",
    seeded: &["pte-no-access"],
    hint: "change_protection to and from PROT_NONE",
};

pub(crate) const MIGRATION: Rule = Rule {
    name: "pte.migration",
    invariant: "an entry waits only for a page that is being moved",
    reads: "page tables, descriptors",
    seeded: &["migration-left"],
    hint: "migrate_page: what remove_migration_ptes did not find; fork, mremap and munmap beside it",
};

/// Runs E1 to E5 for one address space.
pub(crate) fn run(context: &Context<'_>, process: &Process, ledger: &mut Ledger) {
    const ANY: u64 = vm_flags::READ | vm_flags::WRITE | vm_flags::EXEC;
    for rule in [&VMA, &WRITE, &EXEC, &ACCESS, &MIGRATION] {
        ledger.checked(rule, process.entries.entries.len() as u64);
    }
    let mut report = |rule: &'static Rule, entry: &UserEntry, claim: String, outside: String| {
        let what = format!("pid {} {:#x}", process.pid(), entry.va);
        let found = finding(rule, what, claim, outside).address(entry.va);
        ledger.report(rule, if entry.frames > 0 { found.frame(entry.pfn) } else { found });
    };
    for (entry, vma) in process.with_vmas() {
        if entry.kind == EntryKind::Unknown {
            let outside = "neither present nor marked: it means nothing".to_owned();
            report(&VMA, entry, format!("entry {:#x}", entry.entry.as_u64()), outside);
            continue;
        }
        let is_locked = |page: Page| page.page_flags().contains(PageFlags::LOCKED);
        if entry.kind == EntryKind::Migration && !context.page(entry.pfn).is_some_and(is_locked) {
            let claim = format!("it waits for pfn {:#x} to be moved", entry.pfn);
            report(&MIGRATION, entry, claim, "nobody moves the page: it is not locked".to_owned());
        }
        let Some(at) = vma else {
            let claim = format!("entry {:#x}, {}", entry.entry.as_u64(), entry.kind.name());
            report(&VMA, entry, claim, "no VMA is here".to_owned());
            continue;
        };
        if entry.kind == EntryKind::Swap {
            continue;
        }
        let flags = at.vma.flags;
        let range = format!("VMA {:#x}-{:#x}", at.vma.start, at.vma.end);
        if entry.entry.has(Entry::WRITE) && flags & vm_flags::WRITE == 0 {
            report(&WRITE, entry, "the entry allows writes".to_owned(), format!("{range} does not"));
        }
        let present = entry.kind == EntryKind::Present;
        if present && entry.access.execute && flags & vm_flags::EXEC == 0 {
            report(&EXEC, entry, "the entry allows fetches".to_owned(), format!("{range} does not"));
        }
        if present && (flags & ANY == 0 || !entry.access.user) {
            let outside =
                if entry.access.user { "allows no access" } else { "is ring 3's, the entry is not" };
            report(&ACCESS, entry, "the page is present".to_owned(), format!("{range} {outside}"));
        }
        if entry.kind == EntryKind::ProtNone && flags & ANY != 0 {
            report(&ACCESS, entry, "the page is without access".to_owned(), format!("{range} allows some"));
        }
    }
}
