//! What the OOM reaper takes from an address space whose users are being killed (Linux: mm/oom_kill.c, `__oom_reap_task_mm`).

use memvisor_abi::mm_flags;
use mm_filemap::Cows;

use crate::gather::Gather;
use crate::{Kernel, Mm, VmFlags, zap};

/// Takes all pages that are mapped privately, while the users may still be on their way out; false if somebody changes the address
/// space now. From the first page on no fault brings one in any more: whoever is in the middle of a system call gets an error, and
/// not zeroes.
pub fn oom_reap<K: Kernel>(k: &K, mm: &Mm) -> bool {
    // Waiting could be for somebody who waits for memory.
    if !k.mmap_read_trylock(mm) {
        return false;
    }
    mm.set_oom(mm_flags::UNSTABLE);
    for (_, vma) in mm.vmas(k) {
        let flags = vma.flags();
        if flags.intersects(VmFlags::HUGETLB | VmFlags::PFNMAP) || flags.contains(VmFlags::SHARED) {
            continue;
        }
        let mut gather = Gather::new(mm);
        zap::zap(k, mm, vma.start()..vma.end(), Cows::Unmap, &mut gather);
        gather.finish(k, mm);
    }
    k.mmap_read_unlock(mm);
    true
}
