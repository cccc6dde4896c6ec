//! mbind: where the pages of a range are to come from, and to lie (Linux 6.1: mm/mempolicy.c, `do_mbind`).
//!
//! A VMA has its policy as a value, which says where pages come from that are not there yet. Pages that are there may lie on other nodes, and
//! stay there unless they are to be moved: they came before the policy, or when it could not be followed.
//!
//! Differs from Linux: a policy of shared memory is that of the VMA, and of no other that maps the same.
//!
//! Differs from Linux: pages are moved a batch at a time after the VMAs have their policy, where Linux takes all of them off their lists
//! before; who watches sees the same.

use bitflags::bitflags;
use mm_core::{MemMap, NodeMask, Policy};
use mm_pgtable::{Entry, TableMem};

use crate::held::hold;
use crate::id::Id;
use crate::pte::{self, Pte};
use crate::space::{is_page_aligned, page_align};
use crate::{Errno, Kernel, Space, VmFlags, Vma};

bitflags! {
    /// `MPOL_MF_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MbindFlags: u64 {
        /// It fails if pages lie elsewhere, or, with the others, could not be moved.
        const STRICT = 1;
        /// Moves pages that nobody else maps.
        const MOVE = 2;
        /// Moves pages that others map, too.
        const MOVE_ALL = 4;
        const _ = !0;
    }
}

impl MbindFlags {
    /// Pages are to be moved.
    pub(crate) const fn moves(self) -> bool {
        self.intersects(MbindFlags::MOVE.union(MbindFlags::MOVE_ALL))
    }
}

/// Arguments of mbind.
#[derive(Clone, Copy, Debug)]
pub struct Mbind {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The policy that mode and nodes make, or why they make none: what is wrong with the range is told first.
    pub policy: Result<Policy, Errno>,
    /// The nodes as the caller named them: pages that lie on others are misplaced.
    pub nodes: NodeMask,
    /// What to do with pages that are there.
    pub flags: MbindFlags,
}

/// Where pages are to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveTo {
    /// Where a policy says, each by its page offset (Linux: `new_page` of mbind).
    Policy(Policy),
    /// To this node and no other (Linux: `alloc_migration_target`).
    Node(u32),
}

/// Whether pages of the VMA may be moved (Linux: `vma_migratable`).
pub(crate) fn is_migratable(vma: &Vma) -> bool {
    !vma.flags().intersects(VmFlags::IO | VmFlags::PFNMAP)
}

impl<K: Kernel> Space<'_, K> {
    /// Gives a range a memory policy; [`Policy::Default`] takes it away, and passes over holes.
    ///
    /// # Errors
    /// `EINVAL` for a bad address, flags or policy, `EFAULT` for holes, `EIO` with STRICT for pages that lie elsewhere and stay there,
    /// `ENOMEM` without memory for a split. Without MOVE a range with misplaced pages keeps the policy that it had.
    pub fn mbind(&self, call: &Mbind) -> Result<(), Errno> {
        let known = MbindFlags::STRICT | MbindFlags::MOVE | MbindFlags::MOVE_ALL;
        if call.flags.bits() & !known.bits() != 0 || !is_page_aligned(call.start) {
            return Err(Errno::Einval);
        }
        let end = call.start.wrapping_add(page_align(call.len));
        if end < call.start {
            return Err(Errno::Einval);
        }
        if end == call.start {
            return Ok(());
        }
        let policy = call.policy?;
        let strict = call.flags.contains(MbindFlags::STRICT) && policy != Policy::Default;
        self.check_bound(call, end, policy, strict && !call.flags.moves())?;
        self.mbind_range(call.start, end, policy)?;
        if call.flags.moves() {
            let stayed = self.move_misplaced(call, end, policy);
            if strict && stayed > 0 {
                return Err(Errno::Eio);
            }
        }
        Ok(())
    }

    /// Looks for holes, and for pages that lie elsewhere if those are not to be (Linux: `queue_pages_range`).
    fn check_bound(&self, call: &Mbind, end: u64, policy: Policy, pages: bool) -> Result<(), Errno> {
        let holes = policy == Policy::Default;
        let first = self.intersection(call.start, end).ok_or(Errno::Efault)?;
        if !holes && self.vma(first).start() > call.start {
            return Err(Errno::Efault);
        }
        let mut next = Some(first);
        while let Some(vma) = next.map(|id| self.vma(id)).filter(|vma| vma.start() < end) {
            next = vma.next();
            let hole = next.is_none_or(|above| self.vma(above).start() > vma.end());
            if !holes && hole && vma.end() < end {
                return Err(Errno::Efault);
            }
            let (from, to) = (call.start.max(vma.start()), end.min(vma.end()));
            if pages && self.has_misplaced(from, to, call.nodes) {
                return Err(Errno::Eio);
            }
        }
        Ok(())
    }

    /// Whether a page of the range lies on another node.
    fn has_misplaced(&self, mut va: u64, end: u64, nodes: NodeMask) -> bool {
        while va < end {
            // A table at a time, so that interrupts are not off for long.
            let found = self.k.tables(self.mm, |tables| {
                let run = pte::next_run(tables, self.mm.page_table(), va, end)?;
                va = run.va + run.count as u64 * mm_core::PAGE_SIZE;
                Some(run.entries().any(|(index, _)| {
                    let entry = Entry::new(tables.read(run.table, index));
                    let Pte::Page(pfn) = pte::decode(entry) else { return false };
                    let page = MemMap::page(self.k, pfn).filter(|_| !self.k.is_zero_page(pfn));
                    page.is_some_and(|page| !nodes.contains(page.node()))
                }))
            });
            match found {
                Some(false) => {}
                found => return found.unwrap_or(false),
            }
        }
        false
    }

    /// Linux: the same name.
    fn mbind_range(&self, start: u64, end: u64, policy: Policy) -> Result<(), Errno> {
        let mut at = start;
        while at < end
            && let Some(id) = self.intersection(at, end)
        {
            let vma = self.vma(id);
            let stop = vma.end().min(end);
            if vma.policy() != policy {
                self.modify_policy(id, vma.start().max(start), stop, policy)?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Moves the pages of a range that lie elsewhere to where the policy says; how many stayed.
    fn move_misplaced(&self, call: &Mbind, end: u64, policy: Policy) -> u64 {
        let all = call.flags.contains(MbindFlags::MOVE_ALL);
        let (mut va, mut stayed) = (call.start, 0);
        while va < end
            && let Some(id) = self.intersection(va, end)
        {
            let vma = self.vma(id);
            let (from, to) = (va.max(vma.start()), end.min(vma.end()));
            va = to;
            if is_migratable(vma) {
                // Who shares a page may want it where it is (Linux: `migrate_page_add`).
                let held = hold(self.k, self.mm, from..to, |_, _, page| {
                    !call.nodes.contains(page.node()) && (all || page.mapcount() == 0)
                });
                va = held.next;
                stayed += self.k.migrate_pages(held.pages(), MoveTo::Policy(policy));
            }
        }
        stayed
    }

    /// The VMA at an address (Linux: `vma_lookup`, as get_mempolicy asks for it).
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped.
    pub fn vma_at(&self, addr: u64) -> Result<Id<Vma>, Errno> {
        self.lookup(addr).ok_or(Errno::Efault)
    }
}
