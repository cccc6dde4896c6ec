//! From a page to where it may be mapped, by the guest's own lists (Linux: `rmap_walk`).

use std::collections::HashMap;

use memvisor_abi::{PAGE_SHIFT, Page, Vma};

use super::{Guest, Linked, MmSpace};
use crate::MemorySource;

/// A place where a page may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RmapPlace {
    /// Position of the address space among those that the index was made of.
    pub space: usize,
    /// Address.
    pub va: u64,
}

/// VMAs by their address, and lists that were followed already.
#[derive(Debug, Default)]
pub struct RmapIndex {
    vmas: HashMap<u64, (usize, Vma)>,
    lists: HashMap<u64, Linked<u64>>,
}

impl RmapIndex {
    /// Knows the VMAs of these address spaces.
    pub fn new(spaces: &[MmSpace]) -> RmapIndex {
        let all = spaces.iter().enumerate();
        let vmas = all
            .flat_map(|(index, space)| space.vmas.items.iter().map(move |at| (at.gpa, (index, at.vma))))
            .collect();
        RmapIndex { vmas, lists: HashMap::new() }
    }

    /// The VMA at this address and the position of its address space, if it is on the list of one.
    pub fn vma(&self, gpa: u64) -> Option<(usize, &Vma)> {
        self.vmas.get(&gpa).map(|(space, vma)| (*space, vma))
    }

    /// The VMAs that [`Page::mapping`] leads to.
    pub fn list<S: MemorySource + ?Sized>(&mut self, guest: &Guest<'_, S>, mapping: u64) -> &Linked<u64> {
        self.lists.entry(mapping).or_insert_with(|| {
            if mapping & Page::MAPPING_ANON != 0 {
                guest.anon_vma_vmas(mapping & !Page::MAPPING_ANON)
            } else {
                guest.mapping_vmas(mapping)
            }
        })
    }

    /// Where the page may be mapped: its place in each VMA that its owner leads to.
    pub fn places<S: MemorySource + ?Sized>(&mut self, guest: &Guest<'_, S>, page: &Page) -> Vec<RmapPlace> {
        if page.mapping == 0 {
            return Vec::new();
        }
        let vmas = self.list(guest, page.mapping).items.clone();
        let found = vmas.iter().filter_map(|gpa| {
            let (space, vma) = self.vma(*gpa)?;
            Some(RmapPlace { space, va: address_of(vma, page.index)? })
        });
        found.collect()
    }
}

/// Where a VMA has the page with this index, if it lies in it (Linux: `vma_address`).
pub fn address_of(vma: &Vma, index: u64) -> Option<u64> {
    let offset = index.checked_sub(vma.pgoff)?.checked_mul(1 << PAGE_SHIFT)?;
    vma.start.checked_add(offset).filter(|&va| va < vma.end)
}
