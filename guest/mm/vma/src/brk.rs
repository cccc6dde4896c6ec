//! brk: the heap (Linux: mm/mmap.c, `brk`; mm/vma.c, `do_brk_flags`).

use mm_core::{Event, PAGE_SHIFT, PAGE_SIZE, Policy};

use crate::merge::Merge;
use crate::mm::STACK_GUARD_GAP;
use crate::space::{Populate, page_align};
use crate::{Errno, Kernel, MapFlags, Space, VmFlags};

impl<K: Kernel> Space<'_, K> {
    /// Moves the end of the heap to `brk`, if that is possible, and returns where it is. brk tells no errors.
    pub fn set_brk(&self, brk: u64) -> (u64, Populate) {
        let old = self.mm.brk();
        match self.try_brk(brk) {
            Ok(populate) => (brk, populate),
            Err(_) => (old, Populate::NOTHING),
        }
    }

    fn try_brk(&self, brk: u64) -> Result<Populate, Errno> {
        let mm = self.mm;
        if brk < mm.start_brk() {
            return Err(Errno::Einval);
        }
        // Linux: check_data_rlimit.
        let data = (brk - mm.start_brk()).saturating_add(mm.end_data() - mm.start_data());
        if data > self.limits.data {
            return Err(Errno::Enomem);
        }
        let (new, old) = (page_align(brk), page_align(mm.brk()));
        if new == old {
            mm.set_brk(brk);
            return Ok(Populate::NOTHING);
        }
        if brk <= mm.brk() {
            let heap = self.find(new).filter(|&id| self.vma(id).start() < old);
            heap.ok_or(Errno::Einval)?;
            self.unmap_range(new, old)?;
            mm.set_brk(brk);
            return Ok(Populate::NOTHING);
        }
        let len = new.checked_sub(old).ok_or(Errno::Enomem)?;
        self.unmapped_area(old, len, MapFlags::FIXED)?;
        if !self.limits.mlock_future_ok(mm, mm.def_flags(), len) {
            return Err(Errno::Eagain);
        }
        if let Some(next) = self.find(old)
            && new + PAGE_SIZE > self.vma(next).start_gap(STACK_GUARD_GAP)
        {
            return Err(Errno::Enomem);
        }
        self.k.emit(Event::MmapRegion { address: old, len, write: true, exec: false });
        let before = mm.map_count();
        let grown = self.brk_region(old, len);
        self.k.emit(Event::MmapRegionRet { ok: grown.is_ok(), merged: mm.map_count() <= before });
        grown?;
        mm.set_brk(brk);
        let populate = mm.def_flags().contains(VmFlags::LOCKED);
        Ok(Populate { start: old, len: if populate { len } else { 0 } })
    }

    /// Linux: `do_brk_flags`.
    fn brk_region(&self, addr: u64, len: u64) -> Result<(), Errno> {
        let flags =
            VmFlags::READ | VmFlags::WRITE | VmFlags::MAY_ALL | VmFlags::ACCOUNT | self.mm.def_flags();
        let pages = len >> PAGE_SHIFT;
        if !self.limits.may_expand(self.mm, flags, pages) || self.mm.map_count() > self.limits.max_map_count {
            return Err(Errno::Enomem);
        }
        let merge = Merge {
            start: addr,
            end: addr + len,
            pgoff: addr >> PAGE_SHIFT,
            flags,
            mapping: None,
            policy: Policy::Default,
            anon_vma: None,
            // What ends where the heap begins is not the heap.
            prev: self.before(addr).filter(|&id| self.vma(id).end() > self.mm.start_brk()),
            next: None,
            middle: None,
            copied_from: None,
            just_expand: true,
        };
        let charged = self.charge(flags, pages)?;
        if self.merge_new(&merge).is_none() {
            let made = self
                .mm
                .tree
                .reserve(self.k, 1)
                .and_then(|()| self.new_vma((addr, addr + len), addr >> PAGE_SHIFT, flags, None));
            self.insert(made.inspect_err(|_| self.k.vm_unacct_memory(charged))?);
        }
        self.mm.account(flags, pages.cast_signed());
        if flags.contains(VmFlags::LOCKED) {
            self.mm.set_locked_vm(self.mm.locked_vm() + pages);
        }
        Ok(())
    }
}
