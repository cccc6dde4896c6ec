//! The living process, and raw words of what its memory is made of: faults write what no path of the kernel would.

use core::mem::offset_of;

use memvisor_abi as abi;
use mm_core::{MemMap, PAGE_SIZE, Page, Pfn, PhysAddr, PhysMem, VirtAddr};
use mm_pgtable::{Entry, TableMem};
use mm_vma::{Id, Limits, MapFlags, Mm, MmapRequest, ProtFlags, Space};

use crate::mm::memmap::Vmemmap;
use crate::mm::paging::Tables;
use crate::mm::phys::DirectMap;
use crate::mm::space::{self, Spaces};
use crate::{task, uaccess};

/// What a fault comes to; `Err` says why this machine cannot have it.
pub type Outcome<T = ()> = Result<T, &'static str>;

/// An address space that faults are made in.
#[derive(Clone, Copy)]
pub struct Victim {
    pub id: Id<Mm>,
}

/// Number of a page that [`Victim::touched`] made.
pub const PAGES: u64 = 4;

/// The living process.
pub fn victim() -> Outcome<Victim> {
    task::living_mm().map(|id| Victim { id }).ok_or("no process is alive")
}

/// Where a field of an object is.
fn field(object: u64, offset: usize) -> PhysAddr {
    PhysAddr::new(object + offset as u64)
}

/// A word of an object.
pub fn read(object: u64, offset: usize) -> u64 {
    DirectMap.read_u64(field(object, offset))
}

/// Writes a word of an object.
pub fn write(object: u64, offset: usize, value: u64) {
    DirectMap.write_u64(field(object, offset), value);
}

/// Adds to a word of an object.
pub fn add(object: u64, offset: usize, value: i64) {
    write(object, offset, read(object, offset).wrapping_add_signed(value));
}

/// Adds to half a word of an object.
pub fn add_u32(object: u64, offset: usize, value: i32) {
    let (word, shift) = (offset / 8 * 8, offset % 8 * 8);
    let old = read(object, word);
    #[expect(clippy::cast_possible_truncation, reason = "half a word")]
    let new = ((old >> shift) as u32).wrapping_add_signed(value);
    write(object, word, old & !(0xffff_ffff << shift) | u64::from(new) << shift);
}

/// The descriptor of a frame.
pub fn page(pfn: Pfn) -> Outcome<&'static Page> {
    static MAP: Vmemmap = Vmemmap;
    MAP.page(pfn).ok_or("the frame has no descriptor")
}

impl Victim {
    /// Guest-physical address of its `mm_struct`.
    pub fn mm(self) -> u64 {
        self.id.as_u64()
    }

    /// Locked for writing.
    pub fn lock(self) -> Space<'static, Spaces> {
        Space::lock(&Spaces, self.id, Limits::default())
    }

    /// Fresh anonymous memory of [`PAGES`] pages at `addr`, or anywhere for 0.
    pub fn map(self, addr: u64, pages: u64) -> Outcome<u64> {
        let fixed = if addr == 0 { MapFlags::empty() } else { MapFlags::FIXED };
        let request = MmapRequest {
            addr,
            len: pages * PAGE_SIZE,
            prot: ProtFlags::READ | ProtFlags::WRITE,
            flags: MapFlags::PRIVATE | MapFlags::ANONYMOUS | fixed,
            file: None,
            offset: 0,
        };
        self.lock().mmap(&request).map(|(va, _)| va).map_err(|_| "mmap failed")
    }

    /// [`PAGES`] pages with bytes in each, and nothing that could merge with them around.
    pub fn touched(self) -> Outcome<u64> {
        let va = self.map(0, PAGES + 2)?;
        for end in [va, va + (PAGES + 1) * PAGE_SIZE] {
            self.lock().munmap(end, PAGE_SIZE).map_err(|_| "munmap failed")?;
        }
        for page in 1..=PAGES {
            self.touch(va + page * PAGE_SIZE)?;
        }
        Ok(va + PAGE_SIZE)
    }

    /// Writes a byte, as the program would.
    pub fn touch(self, va: u64) -> Outcome {
        uaccess::copy_to_user(self.id, &Limits::default(), va, &[1]).ok_or("a write was refused")
    }

    /// Changes the rights of pages.
    pub fn protect(self, va: u64, pages: u64, prot: ProtFlags) -> Outcome {
        self.lock().mprotect(va, pages * PAGE_SIZE, prot).map_err(|_| "mprotect failed")
    }

    /// Removes pages.
    pub fn unmap(self, va: u64, pages: u64) -> Outcome {
        self.lock().munmap(va, pages * PAGE_SIZE).map_err(|_| "munmap failed")
    }

    /// The VMA that holds `va`, as an object.
    pub fn vma(self, va: u64) -> Outcome<u64> {
        let found = space::mm_of(self.id).find(&Spaces, va).map(Id::as_u64);
        found.filter(|vma| read(*vma, offset_of!(abi::Vma, start)) <= va).ok_or("no VMA is there")
    }

    /// Table and index of the entry of `va`, and the entry.
    fn slot(self, va: u64) -> Outcome<(Pfn, usize, Entry)> {
        let mut found = None;
        space::mm_of(self.id).page_table().walk(&Tables, VirtAddr::new(va), |level, table, index, entry| {
            if level == 1 {
                found = Some((table, index, entry));
            }
        });
        found.ok_or("the address has no page table")
    }

    /// The entry of `va`.
    pub fn entry(self, va: u64) -> Outcome<u64> {
        self.slot(va).map(|(_, _, entry)| entry.as_u64())
    }

    /// Changes the entry of `va`.
    pub fn edit(self, va: u64, edit: impl FnOnce(u64) -> u64) -> Outcome {
        let (table, index, entry) = self.slot(va)?;
        Tables.write(table, index, edit(entry.as_u64()));
        Ok(())
    }

    /// The frame at `va`.
    pub fn frame(self, va: u64) -> Outcome<Pfn> {
        self.slot(va).map(|(_, _, entry)| entry.table_pfn())
    }

    /// The leaf of the tree that has the VMA, and the entry's place in it.
    pub fn leaf(self, vma: u64) -> Outcome<(u64, usize)> {
        let start = read(vma, offset_of!(abi::Vma, start));
        let mut node = read(self.mm(), offset_of!(abi::Mm, tree_root));
        let heights = read(self.mm(), offset_of!(abi::Mm, tree_height)) & 0xffff_ffff;
        for height in (1..=heights).rev() {
            let end = |i: usize| read(node, offset_of!(abi::VmaNode, end) + 8 * i);
            let place = (0..abi::VMA_FANOUT).rfind(|&i| end(i) > start).ok_or("the tree has not the VMA")?;
            if height == 1 {
                return Ok((node, place));
            }
            node = read(node, offset_of!(abi::VmaNode, slot) + 8 * place) & !abi::VMA_SLOT_NODE;
        }
        Err("the tree is empty")
    }
}
