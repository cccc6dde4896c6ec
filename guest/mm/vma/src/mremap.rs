//! mremap (Linux 6.18: mm/mremap.c; mm/vma.c, `copy_vma`).

use bitflags::bitflags;
use mm_core::{PAGE_SHIFT, PAGE_SIZE};
use mm_pgtable::{Entry, TableMem};

use crate::gather::Gather;
use crate::id::Id;
use crate::merge::Merge;
use crate::pte;
use crate::space::{Populate, is_page_aligned, page_align};
use crate::{Errno, Kernel, MapFlags, Space, VmFlags, Vma};

bitflags! {
    /// `MREMAP_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MremapFlags: u64 {
        /// It may go elsewhere.
        const MAYMOVE = 1;
        /// It goes to the given address.
        const FIXED = 2;
        /// The old range stays mapped, without its pages.
        const DONTUNMAP = 4;
        const _ = !0;
    }
}

/// A call on its way (Linux: `struct vma_remap_struct`).
#[derive(Clone, Copy, Debug)]
struct Remap {
    addr: u64,
    old_len: u64,
    new_len: u64,
    new_addr: u64,
    flags: MremapFlags,
}

impl Remap {
    fn implies_new_addr(&self) -> bool {
        self.flags.intersects(MremapFlags::FIXED | MremapFlags::DONTUNMAP)
    }
}

impl<K: Kernel> Space<'_, K> {
    /// Resizes or moves a mapping; where it is then, and what to bring in.
    ///
    /// # Errors
    /// Linux's for mremap.
    pub fn mremap(
        &self,
        addr: u64,
        old_len: u64,
        new_len: u64,
        flags: MremapFlags,
        new_addr: u64,
    ) -> Result<(u64, Populate), Errno> {
        let call =
            Remap { addr, old_len: page_align(old_len), new_len: page_align(new_len), new_addr, flags };
        self.check_parameters(&call)?;
        if flags.contains(MremapFlags::FIXED) && call.old_len == call.new_len {
            return self.move_many(&call).map(|addr| (addr, Populate::NOTHING));
        }
        let vma = self.lookup(addr).ok_or(Errno::Efault)?;
        self.check_vma(&call, vma)?;
        let locked = self.vma(vma).flags().contains(VmFlags::LOCKED);
        let at = if call.implies_new_addr() { self.mremap_to(&call)? } else { self.mremap_at(&call, vma)? };
        // Only what is new of a locked mapping has to be brought in.
        let grown = call.new_len.saturating_sub(call.old_len);
        let populate = if locked && grown > 0 {
            Populate { start: at + call.old_len, len: grown }
        } else {
            Populate::NOTHING
        };
        Ok((at, populate))
    }

    /// Linux: `check_mremap_params`.
    fn check_parameters(&self, call: &Remap) -> Result<(), Errno> {
        let known = MremapFlags::MAYMOVE | MremapFlags::FIXED | MremapFlags::DONTUNMAP;
        let task_size = self.mm.task_size();
        if call.flags.bits() & !known.bits() != 0
            || !is_page_aligned(call.addr)
            || call.new_len == 0
            || call.new_len > task_size
        {
            return Err(Errno::Einval);
        }
        if !call.implies_new_addr() {
            return Ok(());
        }
        let overlaps = || {
            let old_end = call.addr.wrapping_add(call.old_len);
            let new_end = call.new_addr.wrapping_add(call.new_len);
            old_end > call.new_addr && new_end > call.addr
        };
        if call.new_addr > task_size - call.new_len
            || !is_page_aligned(call.new_addr)
            || !call.flags.contains(MremapFlags::MAYMOVE)
            || call.flags.contains(MremapFlags::DONTUNMAP) && call.old_len != call.new_len
            || overlaps()
        {
            return Err(Errno::Einval);
        }
        if self.mm.map_count() + 2 >= self.limits.max_map_count.saturating_sub(3) {
            return Err(Errno::Enomem);
        }
        Ok(())
    }

    /// Linux: `check_prep_vma`.
    fn check_vma(&self, call: &Remap, id: Id<Vma>) -> Result<(), Errno> {
        if call.new_len <= call.old_len && !call.implies_new_addr() {
            return Ok(());
        }
        let vma = self.vma(id);
        let flags = vma.flags();
        let fixed_size = flags.intersects(VmFlags::DONTEXPAND | VmFlags::PFNMAP);
        if call.old_len == 0 && !flags.intersects(VmFlags::SHARED | VmFlags::MAYSHARE)
            || call.flags.contains(MremapFlags::DONTUNMAP) && fixed_size
        {
            return Err(Errno::Einval);
        }
        // What a smaller size cuts off may reach past the VMA.
        if call.old_len.min(call.new_len) > vma.end() - call.addr {
            return Err(Errno::Efault);
        }
        if call.new_len <= call.old_len {
            return Ok(());
        }
        if vma.index_of(call.addr).checked_add(call.new_len >> PAGE_SHIFT).is_none() {
            return Err(Errno::Einval);
        }
        if fixed_size {
            return Err(Errno::Efault);
        }
        let delta = call.new_len - call.old_len;
        if !self.limits.mlock_future_ok(self.mm, flags, delta) {
            return Err(Errno::Eagain);
        }
        if !self.limits.may_expand(self.mm, flags, delta >> PAGE_SHIFT) {
            return Err(Errno::Enomem);
        }
        Ok(())
    }

    /// Moves all VMAs of a range, and the gaps between them, to a fixed address (Linux: `remap_move`).
    fn move_many(&self, call: &Remap) -> Result<u64, Errno> {
        let (start, end) = (call.addr, call.addr.wrapping_add(call.old_len));
        let mut result = Err(Errno::Efault);
        let (mut at, mut target) = (start, call.new_addr);
        while at < end
            && let Some(id) = self.intersection(at, end)
        {
            let vma = self.vma(id);
            let from = vma.start().max(at);
            if result.is_err() && from > start {
                return Err(Errno::Efault);
            }
            let len = vma.end().min(end) - from;
            let one =
                Remap { addr: from, old_len: len, new_len: len, new_addr: target + (from - at), ..*call };
            self.check_vma(&one, id)?;
            let to = self.mremap_to(&one)?;
            if result.is_err() {
                result = Ok(to);
            }
            target = to + len;
            at = from + len;
        }
        result
    }

    /// Linux: `mremap_to`.
    fn mremap_to(&self, call: &Remap) -> Result<u64, Errno> {
        let mut call = *call;
        if call.flags.contains(MremapFlags::FIXED) {
            self.munmap(call.new_addr, call.new_len)?;
            // The old range may have gone with it.
            self.lookup(call.addr).ok_or(Errno::Efault)?;
        }
        if call.new_len < call.old_len {
            self.munmap(call.addr + call.new_len, call.old_len - call.new_len)?;
            call.old_len = call.new_len;
        }
        let id = self.lookup(call.addr).ok_or(Errno::Efault)?;
        if call.flags.contains(MremapFlags::DONTUNMAP) {
            let flags = self.vma(id).flags();
            if !self.limits.may_expand(self.mm, flags, call.old_len >> PAGE_SHIFT) {
                return Err(Errno::Enomem);
            }
        }
        call.new_addr = self.new_address(&call, id)?;
        self.move_vma(&call, id)
    }

    fn new_address(&self, call: &Remap, id: Id<Vma>) -> Result<u64, Errno> {
        let fixed = call.flags.contains(MremapFlags::FIXED);
        let flags = if fixed { MapFlags::FIXED } else { MapFlags::empty() };
        let hint = if call.implies_new_addr() { call.new_addr } else { 0 };
        debug_assert!(self.vma(id).start() <= call.addr);
        self.unmapped_area(hint, call.new_len, flags)
    }

    /// Linux: `mremap_at`.
    fn mremap_at(&self, call: &Remap, id: Id<Vma>) -> Result<u64, Errno> {
        if call.new_len == call.old_len {
            return Ok(call.addr);
        }
        if call.new_len < call.old_len {
            self.munmap(call.addr + call.new_len, call.old_len - call.new_len)?;
            return Ok(call.addr);
        }
        let vma = self.vma(id);
        let delta = call.new_len - call.old_len;
        if call.old_len == vma.end() - call.addr && self.is_expandable(vma, delta) {
            self.expand(id, delta)?;
            return Ok(call.addr);
        }
        if !call.flags.contains(MremapFlags::MAYMOVE) {
            return Err(Errno::Enomem);
        }
        let call = Remap { new_addr: self.new_address(call, id)?, ..*call };
        self.move_vma(&call, id)
    }

    /// Linux: `vma_expandable`.
    fn is_expandable(&self, vma: &Vma, delta: u64) -> bool {
        let Some(end) = vma.end().checked_add(delta) else { return false };
        self.intersection(vma.end(), end).is_none()
            && self.unmapped_area(vma.start(), end - vma.start(), MapFlags::FIXED).is_ok()
    }

    /// Grows a VMA upwards in place (Linux: `expand_vma_in_place`).
    fn expand(&self, id: Id<Vma>, delta: u64) -> Result<(), Errno> {
        let vma = self.vma(id);
        let flags = vma.flags();
        let merge = Merge {
            start: vma.end(),
            end: vma.end() + delta,
            pgoff: vma.index_of(vma.end()),
            prev: Some(id),
            next: vma.next(),
            middle: None,
            ..self.merge_of(id, vma.start(), vma.end())
        };
        let charged = self.charge(flags, delta >> PAGE_SHIFT)?;
        if self.merge_new(&merge).is_none() {
            self.k.vm_unacct_memory(charged);
            return Err(Errno::Enomem);
        }
        self.grown(flags, delta >> PAGE_SHIFT);
        Ok(())
    }

    fn grown(&self, flags: VmFlags, pages: u64) {
        self.mm.account(flags, pages.cast_signed());
        if flags.contains(VmFlags::LOCKED) {
            self.mm.set_locked_vm(self.mm.locked_vm() + pages);
        }
    }

    /// Linux: `move_vma`.
    fn move_vma(&self, call: &Remap, id: Id<Vma>) -> Result<u64, Errno> {
        if self.mm.map_count() >= self.limits.max_map_count.saturating_sub(3) {
            return Err(Errno::Enomem);
        }
        let flags = self.vma(id).flags();
        // What goes with the old range is promised already; from here on it counts twice, until that range is unmapped.
        let new_pages = call.new_len >> PAGE_SHIFT;
        let stays = call.flags.contains(MremapFlags::DONTUNMAP);
        let moved = if stays { 0 } else { (call.old_len >> PAGE_SHIFT).min(new_pages) };
        let charged = self.charge(flags, new_pages - moved)?;
        let (new, source) = self.copy_vma(id, call).inspect_err(|_| self.k.vm_unacct_memory(charged))?;
        if flags.contains(VmFlags::ACCOUNT) {
            self.k.vm_acct_memory(moved);
        }
        while let Err(error) = self.move_page_tables(call) {
            // What went goes back; the old tables are still there.
            let back = Remap { addr: call.new_addr, new_addr: call.addr, old_len: call.old_len, ..*call };
            let returned = self.move_page_tables(&back);
            debug_assert!(returned.is_ok(), "pages cannot go back to tables that exist");
            if self.k.wait_for_memory() {
                continue;
            }
            self.grown(flags, call.new_len >> PAGE_SHIFT);
            self.unmap_range(call.new_addr, call.new_addr + call.new_len)?;
            return Err(error);
        }
        self.grown(flags, call.new_len >> PAGE_SHIFT);
        if call.flags.contains(MremapFlags::DONTUNMAP) {
            self.leave_source(call, source, new);
        } else if call.old_len != 0 {
            // The pages are at their new place. Without memory to split it, the old VMA stays, empty, as in Linux.
            let _ = self.unmap_range(call.addr, call.addr + call.old_len);
        }
        Ok(call.new_addr)
    }

    /// The VMA of the new range, and the one of the old range, which may have merged with it (Linux: `copy_vma`).
    fn copy_vma(&self, id: Id<Vma>, call: &Remap) -> Result<(Id<Vma>, Id<Vma>), Errno> {
        let vma = self.vma(id);
        let (start, end) = (call.new_addr, call.new_addr + call.new_len);
        // Without pages yet, nothing ties it to where it was.
        let fresh = vma.is_anonymous() && vma.anon_vma().is_none();
        let pgoff = if fresh { start >> PAGE_SHIFT } else { vma.index_of(call.addr) };
        let merge = Merge {
            start,
            end,
            pgoff,
            prev: self.before(start),
            next: self.find(end),
            middle: None,
            copied_from: Some(id),
            ..self.merge_of(id, vma.start(), vma.end())
        };
        let source_start = vma.start();
        if let Some(merged) = self.merge_new(&merge) {
            let at = self.vma(merged);
            let source = if at.start() <= source_start && source_start < at.end() { merged } else { id };
            return Ok((merged, source));
        }
        self.mm.tree.reserve(self.k, 1)?;
        let new = self.duplicate(id, start, end, pgoff)?;
        self.insert(new);
        Ok((new, id))
    }

    /// The old range stays, empty and unlocked (Linux: `dontunmap_complete`).
    fn leave_source(&self, call: &Remap, source: Id<Vma>, new: Id<Vma>) {
        let vma = self.vma(source);
        let locked = vma.flags().contains(VmFlags::LOCKED);
        if locked {
            // All of the VMA loses the flag, as in Linux; its pages are counted as locked no more.
            self.mm.set_locked_vm(self.mm.locked_vm().saturating_sub(vma.pages()));
        }
        self.set_flags(source, vma.flags() - VmFlags::LOCKED_MASK);
        if new != source && vma.start() == call.addr && vma.end() == call.addr + call.old_len {
            crate::anon::unlink(self.k, source);
        }
    }

    /// Moves the entries of the old range to the new one (Linux: `move_page_tables`).
    fn move_page_tables(&self, call: &Remap) -> Result<(), Errno> {
        let pt = self.mm.page_table();
        let mut gather = Gather::new(self.mm);
        let mut result = Ok(());
        let len = call.old_len.min(call.new_len);
        // Whoever looks for the pages sees them in one place or the other.
        self.k.rmap_lock(|| {
            self.k.tables(self.mm, |tables| {
                let mut va = call.addr;
                while let Some(run) = pte::next_run(tables, pt, va, call.addr + len) {
                    for (index, old_va) in run.entries() {
                        if tables.read(run.table, index) == 0 {
                            continue;
                        }
                        let new_va = old_va - call.addr + call.new_addr;
                        let Some((table, slot)) = pte::make(tables, self.mm, new_va) else {
                            result = Err(Errno::Enomem);
                            return;
                        };
                        let entry = pte::update(tables, run.table, index, |_| Entry::EMPTY);
                        if entry.is_present() {
                            gather.translation(old_va);
                        }
                        tables.write(table, slot, entry.as_u64());
                    }
                    va = run.va + run.count as u64 * PAGE_SIZE;
                }
            });
        });
        // The tables go with the old VMA, or stay with it.
        gather.finish(self.k, self.mm);
        result
    }
}
