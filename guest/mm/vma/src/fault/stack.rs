//! A stack that grows (Linux: mm/mmap.c, `expand_downwards`).

use mm_core::{Event, PAGE_SIZE};

use crate::{Errno, Kernel, Space, VmFlags, anon};

impl<K: Kernel> Space<'_, K> {
    /// Grows the stack above `addr` down to it (Linux: `expand_downwards`).
    ///
    /// # Errors
    /// `EFAULT` without a stack, `EPERM` below `mmap_min_addr`, `ENOMEM` where limits or another mapping are in the way,
    /// `EAGAIN` for RLIMIT_MEMLOCK.
    pub fn expand_stack(&self, addr: u64) -> Result<(), Errno> {
        let start = self.find(addr).map_or(0, |id| self.vma(id).start());
        let result = self.expand_downwards(addr);
        self.k.emit(Event::ExpandStack { start, address: addr, ok: result.is_ok() });
        result
    }

    fn expand_downwards(&self, addr: u64) -> Result<(), Errno> {
        let addr = addr & !(PAGE_SIZE - 1);
        let id = self.find(addr).ok_or(Errno::Efault)?;
        let vma = self.vma(id);
        if vma.start() <= addr {
            return Ok(());
        }
        if !vma.flags().contains(VmFlags::GROWSDOWN) {
            return Err(Errno::Efault);
        }
        if addr < self.limits.mmap_min_addr {
            return Err(Errno::Eperm);
        }
        if let Some(below) = vma.prev().map(|prev| self.vma(prev)) {
            let flags = below.flags();
            if !flags.contains(VmFlags::GROWSDOWN)
                && flags.is_accessible()
                && addr - below.end() < crate::STACK_GUARD_GAP
            {
                return Err(Errno::Enomem);
            }
        }
        anon::prepare(self.k, id)?;
        let grow = (vma.start() - addr) >> mm_core::PAGE_SHIFT;
        let Some(pgoff) = vma.pgoff().checked_sub(grow) else { return Err(Errno::Enomem) };
        let flags = vma.flags();
        if !self.limits.may_expand(self.mm, flags, grow) || vma.end() - addr > self.limits.stack {
            return Err(Errno::Enomem);
        }
        if !self.limits.mlock_future_ok(self.mm, flags, grow << mm_core::PAGE_SHIFT) {
            return Err(Errno::Enomem);
        }
        // Differs from Linux: growth of what was not promised is not promised; Linux counts it and never ends that.
        self.charge(flags, grow)?;
        self.resize(id, addr, vma.end(), pgoff);
        if flags.contains(VmFlags::LOCKED) {
            self.mm.set_locked_vm(self.mm.locked_vm() + grow);
        }
        self.mm.account(flags, grow.cast_signed());
        Ok(())
    }
}
