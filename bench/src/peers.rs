//! Page-table walkers of others, on the same image.

use memflow::mem::virt_translate::VirtualTranslation;
use memflow::prelude::v1::{Address, CTup2, MappedPhysicalMemory, MemoryMap, VirtualDma, VirtualTranslate};
use vmi_arch_amd64::Amd64;
use vmi_core::{Architecture, Gfn, Pa, Va, VmiCore, VmiDriver, VmiError, VmiInfo, VmiMappedPage, VmiRead};
use x86_64::{
    VirtAddr,
    structures::paging::{OffsetPageTable, PageTable, Translate},
};

use crate::image::Image;

/// The `x86_64` crate: an address is RAM's mapping plus an offset; nothing is checked.
pub struct Offset(OffsetPageTable<'static>);

impl Offset {
    /// For the 4-level tree at `root` of `image`, in a mapping of its own.
    ///
    /// # Errors
    /// If the image cannot be mapped.
    pub fn new(image: &Image, root: u64) -> anyhow::Result<Offset> {
        let map = image.map()?;
        // SAFETY: a table of the image is at `root`, and the mapping holds all of the image.
        let table = unsafe { map.add(usize::try_from(root)?) };
        // SAFETY: tables are page-aligned, the mapping lives for ever and nothing else refers to it.
        let table = unsafe { &mut *table.cast::<PageTable>() };
        // SAFETY: all of guest-physical memory is mapped from `map` on, and every table is in it.
        Ok(Offset(unsafe { OffsetPageTable::new(table, VirtAddr::from_ptr(map)) }))
    }

    /// Translates.
    #[inline]
    pub fn translate(&self, va: u64) -> Option<u64> {
        self.0.translate_addr(VirtAddr::new(va)).map(|address| address.as_u64())
    }
}

/// Its own connector for mapped memory.
type MemflowImage = MappedPhysicalMemory<&'static [u8], MemoryMap<&'static [u8]>>;

/// memflow, with its own connector for mapped memory and its x86-64 translator.
pub struct Memflow {
    memory: VirtualDma<
        MemflowImage,
        memflow::mem::virt_translate::DirectTranslate,
        memflow::architecture::x86::X86VirtualTranslate,
    >,
}

impl Memflow {
    /// For the 4-level tree at `root`.
    pub fn new(image: &'static [u8], root: u64) -> Memflow {
        let mut map = MemoryMap::new();
        map.push(Address::from(0u64), image);
        let memory = MappedPhysicalMemory::with_info(map);
        let translator = memflow::architecture::x86::x64::new_translator(Address::from(root));
        Memflow { memory: VirtualDma::new(memory, memflow::architecture::x86::x64::ARCH, translator) }
    }

    /// Translates.
    #[inline]
    pub fn translate(&mut self, va: u64) -> Option<u64> {
        self.memory.virt_to_phys(Address::from(va)).ok().map(|physical| physical.address().to_umem())
    }

    /// Translates many addresses in one call, which is how memflow is meant to be used.
    pub fn translate_batch(&mut self, addresses: &[u64]) -> u64 {
        let ranges: Vec<_> = addresses.iter().map(|va| CTup2(Address::from(*va), 1)).collect();
        let mut sum = 0u64;
        self.memory.virt_to_phys_list(
            &ranges,
            (&mut |found: VirtualTranslation| {
                sum = sum.wrapping_add(found.out_physical.address().to_umem());
                true
            })
                .into(),
            (&mut |_| true).into(),
        );
        sum
    }

    /// All pages of a range.
    pub fn enumerate(&mut self, start: u64, end: u64) -> (u64, u64) {
        let (mut pages, mut sum) = (0, 0u64);
        self.memory.virt_to_phys_range(
            Address::from(start),
            Address::from(end),
            (&mut |found: VirtualTranslation| {
                pages += found.size / 4096;
                sum = sum.wrapping_add(found.out_physical.address().to_umem());
                true
            })
                .into(),
        );
        (pages, sum)
    }
}

/// A driver for `vmi-core`: hands out pages of the mapping without copying.
struct MappedDriver(&'static [u8]);

impl VmiDriver for MappedDriver {
    type Architecture = Amd64;

    fn info(&self) -> Result<VmiInfo, VmiError> {
        Ok(VmiInfo { page_size: 4096, page_shift: 12, max_gfn: Gfn(self.0.len() as u64 >> 12), vcpus: 1 })
    }
}

impl VmiRead for MappedDriver {
    fn read_page(&self, gfn: Gfn) -> Result<VmiMappedPage, VmiError> {
        let at = usize::try_from(gfn.0 << 12).unwrap_or(usize::MAX);
        self.0.get(at..at.saturating_add(4096)).map(VmiMappedPage::new).ok_or(VmiError::OutOfBounds)
    }
}

/// vmi-core with its AMD64 architecture.
pub struct Vmi {
    core: VmiCore<MappedDriver>,
    root: Pa,
}

impl Vmi {
    /// For the 4-level tree at `root`, with the library's caches as they are by default, or without.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn new(image: &'static [u8], root: u64, caches: bool) -> anyhow::Result<Vmi> {
        let mut core = VmiCore::new(MappedDriver(image))?;
        if !caches {
            core.disable_gfn_cache();
            core.disable_v2p_cache();
        }
        Ok(Vmi { core, root: Pa(root) })
    }

    /// Translates: the walk itself, without the cache of whole translations, which answers without
    /// looking at the guest's tables.
    #[inline]
    pub fn translate(&self, va: u64) -> Option<u64> {
        Amd64::translate_address(&self.core, Va(va), self.root).ok().map(|address| address.0)
    }
}
