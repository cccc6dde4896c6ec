//! madvise (Linux: mm/madvise.c).

use mm_core::PAGE_SHIFT;
use mm_filemap::Cows;
use mm_pgtable::{Entry, PteFlags};

use crate::gather::Gather;
use crate::id::Id;
use crate::pte::{self, Pte};
use crate::space::{Populate, is_page_aligned, page_align};
use crate::{Errno, Kernel, Mapping, Mm, Space, VmFlags, Vma, lazyfree, zap};

/// `MADV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Linux's")]
pub enum Advice {
    Normal = 0,
    Random = 1,
    Sequential = 2,
    WillNeed = 3,
    DontNeed = 4,
    Free = 8,
    Remove = 9,
    DontFork = 10,
    DoFork = 11,
    Mergeable = 12,
    Unmergeable = 13,
    HugePage = 14,
    NoHugePage = 15,
    DontDump = 16,
    DoDump = 17,
    WipeOnFork = 18,
    KeepOnFork = 19,
    Cold = 20,
    PageOut = 21,
    PopulateRead = 22,
    PopulateWrite = 23,
    DontNeedLocked = 24,
}

impl Advice {
    /// The advice of a number.
    ///
    /// # Errors
    /// `EINVAL` for one that is not known: HWPOISON, COLLAPSE and guard regions are not.
    pub const fn from_raw(raw: u64) -> Result<Advice, Errno> {
        Ok(match raw {
            0 => Advice::Normal,
            1 => Advice::Random,
            2 => Advice::Sequential,
            3 => Advice::WillNeed,
            4 => Advice::DontNeed,
            8 => Advice::Free,
            9 => Advice::Remove,
            10 => Advice::DontFork,
            11 => Advice::DoFork,
            12 => Advice::Mergeable,
            13 => Advice::Unmergeable,
            14 => Advice::HugePage,
            15 => Advice::NoHugePage,
            16 => Advice::DontDump,
            17 => Advice::DoDump,
            18 => Advice::WipeOnFork,
            19 => Advice::KeepOnFork,
            20 => Advice::Cold,
            21 => Advice::PageOut,
            22 => Advice::PopulateRead,
            23 => Advice::PopulateWrite,
            24 => Advice::DontNeedLocked,
            _ => return Err(Errno::Einval),
        })
    }
}

/// What remains to be done after mmap_lock was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the rest happens without mmap_lock"]
pub enum Advised {
    /// Nothing.
    Done,
    /// Bring the range in, for reading or for writing, with [`crate::populate_exact`].
    Populate(Populate, crate::Access),
    /// Free what the range maps, with [`madvise_remove`].
    Remove(Populate),
    /// Reclaim what the range maps, with [`crate::madvise_pageout`].
    PageOut(Populate),
}

impl<K: Kernel> Space<'_, K> {
    /// Advises about a range.
    ///
    /// # Errors
    /// `EINVAL` for a bad range or advice that a VMA does not take, `ENOMEM` for holes, after everything else was
    /// advised; `EAGAIN` without memory for a split.
    pub fn madvise(&self, start: u64, len: u64, advice: u64) -> Result<Advised, Errno> {
        let advice = Advice::from_raw(advice)?;
        let aligned = page_align(len);
        let end = start.wrapping_add(aligned);
        if !is_page_aligned(start) || len != 0 && aligned == 0 || end < start {
            return Err(Errno::Einval);
        }
        if end == start {
            return Ok(Advised::Done);
        }
        let range = Populate { start, len: end - start };
        match advice {
            Advice::PopulateRead => return Ok(Advised::Populate(range, crate::Access::Read)),
            Advice::PopulateWrite => return Ok(Advised::Populate(range, crate::Access::Write)),
            Advice::Remove => return Ok(Advised::Remove(range)),
            _ => {}
        }
        let mut gather = Gather::new(self.mm);
        let result = self.walk_advised(start, end, advice, &mut gather);
        gather.finish(self.k, self.mm);
        // As far as there are no holes, it has happened already.
        match advice {
            Advice::PageOut if result.is_ok() => Ok(Advised::PageOut(range)),
            _ => result.map(|()| Advised::Done),
        }
    }

    /// Linux: `madvise_walk_vmas`.
    fn walk_advised(&self, start: u64, end: u64, advice: Advice, gather: &mut Gather) -> Result<(), Errno> {
        let mut holes = Ok(());
        let mut at = start;
        while at < end {
            let id = self.find(at).ok_or(Errno::Enomem)?;
            let vma = self.vma(id);
            if at < vma.start() {
                holes = Err(Errno::Enomem);
                at = vma.start();
                if at >= end {
                    break;
                }
            }
            let stop = vma.end().min(end);
            self.advise(id, at, stop, advice, gather)?;
            at = stop;
        }
        holes
    }

    /// Linux: `madvise_vma_behavior`.
    fn advise(
        &self,
        id: Id<Vma>,
        start: u64,
        end: u64,
        advice: Advice,
        gather: &mut Gather,
    ) -> Result<(), Errno> {
        let vma = self.vma(id);
        let old = vma.flags();
        let pinned = old.intersects(VmFlags::LOCKED | VmFlags::PFNMAP | VmFlags::HUGETLB);
        let hints = VmFlags::RAND_READ | VmFlags::SEQ_READ;
        let special = old.intersects(VmFlags::SPECIAL);
        let new = match advice {
            Advice::Normal => old - hints,
            Advice::Random => (old - hints) | VmFlags::RAND_READ,
            Advice::Sequential => (old - hints) | VmFlags::SEQ_READ,
            Advice::DontFork => old | VmFlags::DONTCOPY,
            Advice::DoFork if old.contains(VmFlags::IO) => return Err(Errno::Einval),
            Advice::DoFork => old - VmFlags::DONTCOPY,
            Advice::WipeOnFork if !vma.is_anonymous() || old.contains(VmFlags::SHARED) => {
                return Err(Errno::Einval);
            }
            Advice::WipeOnFork => old | VmFlags::WIPEONFORK,
            Advice::KeepOnFork => old - VmFlags::WIPEONFORK,
            Advice::DontDump => old | VmFlags::DONTDUMP,
            Advice::DoDump if special => return Err(Errno::Einval),
            Advice::DoDump => old - VmFlags::DONTDUMP,
            Advice::HugePage | Advice::NoHugePage if special => return Err(Errno::Einval),
            Advice::HugePage => (old - VmFlags::NOHUGEPAGE) | VmFlags::HUGEPAGE,
            Advice::NoHugePage => (old - VmFlags::HUGEPAGE) | VmFlags::NOHUGEPAGE,
            // KSM does not take what it cannot merge, and says nothing.
            Advice::Mergeable if special || old.intersects(VmFlags::SHARED | VmFlags::MAYSHARE) => old,
            Advice::Mergeable => old | VmFlags::MERGEABLE,
            Advice::Unmergeable => old - VmFlags::MERGEABLE,
            Advice::DontNeed | Advice::Cold | Advice::PageOut | Advice::Free if pinned => {
                return Err(Errno::Einval);
            }
            Advice::DontNeedLocked if old.contains(VmFlags::PFNMAP) => return Err(Errno::Einval),
            Advice::Free if !vma.is_anonymous() => return Err(Errno::Einval),
            Advice::DontNeed | Advice::DontNeedLocked => {
                zap::zap(self.k, self.mm, start..end, Cows::Unmap, gather);
                return Ok(());
            }
            Advice::Free => {
                lazyfree::give_away(self.k, self.mm, (start, end), gather);
                return Ok(());
            }
            Advice::Cold | Advice::PageOut => {
                self.make_old(start, end, gather);
                return Ok(());
            }
            // There is nothing to read ahead from.
            Advice::WillNeed => return Ok(()),
            Advice::PopulateRead | Advice::PopulateWrite | Advice::Remove => return Err(Errno::Einval),
        };
        if new == old {
            return Ok(());
        }
        // No memory for a split is a temporary condition here.
        let done = self.modify_flags(id, start, end, new);
        done.map(drop).map_err(|error| if error == Errno::Enomem { Errno::Eagain } else { error })
    }

    /// The pages were not used (Linux: `madvise_cold_or_pageout_pte_range`).
    fn make_old(&self, start: u64, end: u64, gather: &mut Gather) {
        self.k.tables(self.mm, |tables| {
            pte::for_each_run(tables, self.mm.page_table(), start, end, |tables, run| {
                for (index, va) in run.entries() {
                    let old = pte::update(tables, run.table, index, |old| match pte::decode(old) {
                        Pte::Page(_) => Entry::new(old.as_u64() & !PteFlags::ACCESSED.bits()),
                        _ => old,
                    });
                    if old.is_present() && old.has(PteFlags::ACCESSED) {
                        gather.translation(va);
                    }
                }
            });
        });
    }
}

/// Part of a mapping.
struct Hole {
    mapping: Id<Mapping>,
    offset: u64,
    len: u64,
    /// First address behind it.
    end: u64,
}

/// Frees the pages of files and shared memory that a range maps; without mmap_lock (Linux: `madvise_remove`). It is not held while a
/// mapping is changed, so that another call may change what lies behind.
///
/// # Errors
/// `EINVAL` for anonymous or locked memory, `EACCES` for what is not shared or may not be written, `ENOMEM` for holes after everything
/// else was done, or what the file system says.
pub fn madvise_remove<K: Kernel>(k: &K, mm: Id<Mm>, range: Populate) -> Result<(), Errno> {
    let at: &Mm = k.at(mm);
    let (mut next, end) = (range.start, range.start + range.len);
    let mut holes = Ok(());
    while next < end {
        k.mmap_read_lock(at);
        let found = next_hole(k, at, next, end, &mut holes);
        if let Ok(Some(hole)) = &found {
            k.mapping_get(hole.mapping);
        }
        k.mmap_read_unlock(at);
        let Some(hole) = found? else { break };
        let punched = k.mapping_punch_hole(hole.mapping, hole.offset, hole.len);
        k.mapping_put(hole.mapping);
        punched?;
        next = hole.end;
    }
    holes
}

/// What the first VMA in `start..end` maps there; mmap_lock is held.
fn next_hole<K: Kernel>(
    k: &K,
    mm: &Mm,
    start: u64,
    end: u64,
    holes: &mut Result<(), Errno>,
) -> Result<Option<Hole>, Errno> {
    let vma: &Vma = k.at(mm.find(k, start).ok_or(Errno::Enomem)?);
    if vma.start() > start {
        *holes = Err(Errno::Enomem);
    }
    let (start, end) = (start.max(vma.start()), end.min(vma.end()));
    if start >= end {
        return Ok(None);
    }
    let flags = vma.flags();
    if flags.contains(VmFlags::LOCKED) {
        return Err(Errno::Einval);
    }
    let mapping = vma.mapping().ok_or(Errno::Einval)?;
    if !flags.contains(VmFlags::SHARED | VmFlags::MAYWRITE) {
        return Err(Errno::Eacces);
    }
    Ok(Some(Hole { mapping, offset: vma.index_of(start) << PAGE_SHIFT, len: end - start, end }))
}
