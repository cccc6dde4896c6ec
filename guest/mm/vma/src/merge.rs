//! Merging: the least number of VMAs that say the same (Linux: mm/vma.c, `vma_merge_new_range`,
//! `vma_merge_existing_range`, `vma_modify`).
//!
//! Two neighbours merge if they have the same flags, mapping and memory policy, continue each other's page offsets, are not
//! special, and their `AnonVma`s let them: at most one of the two has one, and that VMA is linked to no other; or both have the
//! same. A VMA that a fork made is linked to several, and never merges with one that has none, because the merged VMA would be
//! on lists that its parent's pages are looked for on, for no use.

use mm_core::Policy;

use crate::id::Id;
use crate::{AnonVma, Errno, Kernel, Mapping, Space, VmFlags, Vma, anon};

/// A range that may merge with what is beside it (Linux: `struct vma_merge_struct`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge {
    pub start: u64,
    pub end: u64,
    pub pgoff: u64,
    pub flags: VmFlags,
    pub mapping: Option<Id<Mapping>>,
    pub policy: Policy,
    pub anon_vma: Option<Id<AnonVma>>,
    pub prev: Option<Id<Vma>>,
    pub next: Option<Id<Vma>>,
    /// The VMA that holds the range, if the range is mapped already.
    pub middle: Option<Id<Vma>>,
    /// The VMA that the range is a copy of.
    pub copied_from: Option<Id<Vma>>,
    /// Only the VMA below may grow.
    pub just_expand: bool,
}

impl<K: Kernel> Space<'_, K> {
    /// A merge for a range of an existing VMA, with its neighbours and, so far, its flags.
    pub(crate) fn merge_of(&self, id: Id<Vma>, start: u64, end: u64) -> Merge {
        let vma = self.vma(id);
        Merge {
            start,
            end,
            pgoff: vma.index_of(start),
            flags: vma.flags(),
            mapping: vma.mapping(),
            policy: vma.policy(),
            anon_vma: vma.anon_vma(),
            prev: if start == vma.start() { vma.prev() } else { None },
            next: if end == vma.end() { vma.next() } else { None },
            middle: Some(id),
            copied_from: None,
            just_expand: false,
        }
    }

    fn is_fork_child(&self, id: Option<Id<Vma>>) -> bool {
        id.map(|id| self.vma(id)).is_some_and(|vma| vma.anon_vma().is_some() && !anon::is_singular(vma))
    }

    /// Linux: `is_mergeable_vma`, `is_mergeable_anon_vma`.
    fn is_mergeable(&self, merge: &Merge, with: Id<Vma>) -> bool {
        let vma = self.vma(with);
        if vma.flags() != merge.flags || vma.mapping() != merge.mapping || vma.policy() != merge.policy {
            return false;
        }
        match (vma.anon_vma(), merge.anon_vma) {
            (None, Some(_)) => !self.is_fork_child(merge.middle) && !self.is_fork_child(merge.copied_from),
            (Some(_), None) => !self.is_fork_child(Some(with)),
            (theirs, ours) => theirs == ours,
        }
    }

    /// Linux: `can_vma_merge_left`.
    fn left(&self, merge: &Merge) -> Option<Id<Vma>> {
        merge.prev.filter(|&id| {
            let prev = self.vma(id);
            prev.end() == merge.start
                && self.is_mergeable(merge, id)
                && prev.index_of(merge.start) == merge.pgoff
        })
    }

    /// Linux: `can_vma_merge_right`.
    fn right(&self, merge: &Merge, left: Option<Id<Vma>>) -> Option<Id<Vma>> {
        let pages = (merge.end - merge.start) >> mm_core::PAGE_SHIFT;
        merge.next.filter(|&id| {
            let next = self.vma(id);
            let fits = next.start() == merge.end
                && self.is_mergeable(merge, id)
                && next.pgoff() == merge.pgoff.wrapping_add(pages);
            let below = left.and_then(|left| self.vma(left).anon_vma());
            // Both may suit the range and not each other.
            fits && (below.is_none() || next.anon_vma().is_none() || below == next.anon_vma())
        })
    }

    /// Gives `to` the `AnonVma`s of `from` if it has none (Linux: `dup_anon_vma`).
    fn dup_anon(&self, to: Id<Vma>, from: Id<Vma>) -> Result<(), Errno> {
        let (dst, src) = (self.vma(to), self.vma(from));
        if dst.anon_vma().is_some() || src.anon_vma().is_none() {
            return Ok(());
        }
        dst.start_write(self.k, self.mm);
        dst.anon_vma.store(src.anon_vma());
        anon::clone(self.k, to, from).inspect_err(|_| dst.anon_vma.store(None))
    }

    /// Merges a range that is not mapped yet; the VMA that holds it then, or `None` (Linux: `vma_merge_new_range`).
    pub(crate) fn merge_new(&self, merge: &Merge) -> Option<Id<Vma>> {
        if merge.flags.intersects(VmFlags::SPECIAL)
            || merge.flags.contains(VmFlags::COUNTED) && !merge.just_expand
        {
            return None;
        }
        let left = self.left(merge);
        let right = if merge.just_expand { None } else { self.right(merge, left) };
        let target = left.or(right)?;
        if let Some(next) = right {
            self.dup_anon(target, next).ok()?;
        }
        if let Some(from) = merge.copied_from {
            self.dup_anon(target, from).ok()?;
        }
        let end = right.map_or(merge.end, |next| self.vma(next).end());
        match (left, right) {
            (Some(prev), next) => {
                if let Some(next) = next {
                    self.remove(next);
                    self.free(next);
                }
                let prev_vma = self.vma(prev);
                self.resize(prev, prev_vma.start(), end, prev_vma.pgoff());
            }
            (None, _) => self.resize(target, merge.start, end, merge.pgoff),
        }
        Some(target)
    }

    /// Merges a range of `merge.middle`, which gets `merge.flags`, with its neighbours (Linux:
    /// `vma_merge_existing_range`). `Ok(None)` if nothing merges.
    ///
    /// # Errors
    /// `ENOMEM`; nothing changed.
    fn merge_existing(&self, merge: &Merge) -> Result<Option<Id<Vma>>, Errno> {
        let Some(middle) = merge.middle else { return Ok(None) };
        let (start, end) = (self.vma(middle).start(), self.vma(middle).end());
        if merge.flags.intersects(VmFlags::SPECIAL | VmFlags::COUNTED)
            || merge.start != start && merge.end != end
        {
            return Ok(None);
        }
        let left = if merge.start == start { self.left(merge) } else { None };
        let right = if merge.end == end { self.right(merge, left) } else { None };
        let whole = merge.start == start && merge.end == end;
        match (left, right) {
            (None, None) => return Ok(None),
            (Some(prev), Some(next)) => {
                let from = if self.vma(next).anon_vma().is_some() { next } else { middle };
                self.dup_anon(prev, from)?;
                let end = self.vma(next).end();
                for gone in [middle, next] {
                    self.remove(gone);
                    self.free(gone);
                }
                self.resize(prev, self.vma(prev).start(), end, self.vma(prev).pgoff());
            }
            (Some(prev), None) => {
                self.dup_anon(prev, middle)?;
                self.take(middle, whole, (merge.end, end));
                self.resize(prev, self.vma(prev).start(), merge.end, self.vma(prev).pgoff());
            }
            (None, Some(next)) => {
                self.dup_anon(next, middle)?;
                self.take(middle, whole, (start, merge.start));
                self.resize(next, merge.start, self.vma(next).end(), merge.pgoff);
            }
        }
        Ok(left.or(right))
    }

    /// Shrinks a VMA to `keep`, or frees it if it is wholly taken.
    fn take(&self, id: Id<Vma>, whole: bool, keep: (u64, u64)) {
        if whole {
            self.remove(id);
            self.free(id);
        } else {
            self.resize(id, keep.0, keep.1, self.vma(id).index_of(keep.0));
        }
    }

    /// Makes a VMA of exactly the range, unless it merges with a neighbour that has `merge.flags` and `merge.policy` already; the VMA
    /// that holds the range then. Neither is set here (Linux: `vma_modify`).
    ///
    /// # Errors
    /// `ENOMEM`; parts may be split off.
    pub(crate) fn modify(&self, merge: &Merge) -> Result<Id<Vma>, Errno> {
        if let Some(merged) = self.merge_existing(merge)? {
            return Ok(merged);
        }
        let mut id = merge.middle.ok_or(Errno::Einval)?;
        if self.vma(id).start() < merge.start {
            id = self.split(id, merge.start)?;
        }
        if self.vma(id).end() > merge.end {
            self.split(id, merge.end)?;
        }
        Ok(id)
    }

    /// [`Space::modify`] for new flags, which the VMA has afterwards.
    pub(crate) fn modify_flags(
        &self,
        id: Id<Vma>,
        start: u64,
        end: u64,
        flags: VmFlags,
    ) -> Result<Id<Vma>, Errno> {
        let merge = Merge { flags, ..self.merge_of(id, start, end) };
        let id = self.modify(&merge)?;
        if self.vma(id).flags() != flags {
            self.set_flags(id, flags);
        }
        Ok(id)
    }

    /// [`Space::modify`] for another memory policy, which the VMA has afterwards (Linux: `vma_modify_policy`).
    pub(crate) fn modify_policy(
        &self,
        id: Id<Vma>,
        start: u64,
        end: u64,
        policy: Policy,
    ) -> Result<Id<Vma>, Errno> {
        let id = self.modify(&Merge { policy, ..self.merge_of(id, start, end) })?;
        if self.vma(id).policy() != policy {
            self.set_policy(id, policy);
        }
        Ok(id)
    }
}
