//! Memory before the buddy allocator: memblock, and a record of what it was used for.

use memvisor_abi::PageKind;
use mm_core::{PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr};
use mm_memblock::{AllocRange, Direction, Memblock};

use crate::mm::limits;
use crate::sync::Lock;

/// Regions of each list. Hostile E820 maps stay far below.
const REGIONS: usize = 512;
/// Runs of frames with one owner.
const OWNERS: usize = 512;

/// All RAM, and what of it is taken.
pub static MEMBLOCK: Lock<Memblock<REGIONS>> = Lock::new(Memblock::new());

/// Frames with an owner more exact than "reserved".
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// First frame.
    pub start: Pfn,
    /// One past the last frame.
    pub end: Pfn,
    /// Owner.
    pub kind: PageKind,
}

struct Owners {
    runs: [Owned; OWNERS],
    len: usize,
}

const NOBODY: Owned = Owned { start: Pfn::new(0), end: Pfn::new(0), kind: PageKind::None };
static OWNERS_OF: Lock<Owners> = Lock::new(Owners { runs: [NOBODY; OWNERS], len: 0 });

/// Records an owner, joining it with a neighbour of the same kind where there is one.
pub fn own(start: Pfn, pages: u64, kind: PageKind) {
    let end = start.offset(pages);
    let mut owners = OWNERS_OF.lock();
    let len = owners.len;
    for run in owners.runs[..len].iter_mut().rev().filter(|run| run.kind == kind) {
        if run.end == start {
            run.end = end;
            return;
        }
        if run.start == end {
            run.start = start;
            return;
        }
    }
    assert!(len < OWNERS, "more than {OWNERS} runs of early allocations");
    owners.runs[len] = Owned { start, end, kind };
    owners.len += 1;
}

/// Calls `f` with every record that overlaps `start..end`, cut to it.
pub fn for_each_owned(start: Pfn, end: Pfn, mut f: impl FnMut(Owned)) {
    let owners = OWNERS_OF.lock();
    for run in &owners.runs[..owners.len] {
        let cut = Owned { start: run.start.max(start), end: run.end.min(end), kind: run.kind };
        if cut.start < cut.end {
            f(cut);
        }
    }
}

/// Allocates `pages` frames for `kind`, near `node` if it has memory, from the top of what the
/// direct map reaches. The frames are not cleared.
pub fn alloc(pages: u64, align_pages: u64, node: Option<u32>, kind: PageKind) -> Option<Pfn> {
    // The first MiB stays with firmware and real mode (Linux: `memblock_reserve(0, SZ_1M)`).
    let range = AllocRange { min: PhysAddr::new(1 << 20), max: limits::early_end() };
    let bytes = pages << PAGE_SHIFT;
    let align = align_pages << PAGE_SHIFT;
    let mut memblock = MEMBLOCK.lock();
    let near = node.and_then(|_| memblock.alloc(bytes, align, range, node, Direction::TopDown));
    let addr = near.or_else(|| memblock.alloc(bytes, align, range, None, Direction::TopDown))?;
    drop(memblock);
    own(addr.pfn(), pages, kind);
    Some(addr.pfn())
}

/// Bytes rounded up to pages.
pub const fn pages_for(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}
