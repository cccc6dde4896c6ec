//! The kmalloc family: caches by size, then pages (Linux: mm/slab_common.c, `kmalloc_large`).

use memvisor_abi::{EventId, LARGE_MAPPING, SlabKind};
use mm_core::{
    Event, Gfp, MemMap, Order, PAGE_SIZE, Page, PageAlloc, PageKind, Pfn, PhysAddr, PhysMem, Trace,
};

use crate::{CacheArgs, CacheId, CreateError, FreeError, Kmem, Machine, Object, SlabFlags};

/// Bytes of the size classes.
pub const SIZES: [u32; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
/// Longest object of a cache; longer ones are pages (Linux: `KMALLOC_MAX_CACHE_SIZE`).
pub const KMALLOC_MAX_CACHE_SIZE: u64 = 8192;
/// Longest allocation (Linux: `KMALLOC_MAX_SIZE`).
pub const KMALLOC_MAX_SIZE: u64 = PAGE_SIZE << Order::MAX.as_u8();

/// Slots of the table of caches that the family has.
pub(crate) const NR_SLOTS: usize = SIZES.len() * KmallocType::ALL.len();

/// Which memory a kmalloc cache has (Linux: `enum kmalloc_cache_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum KmallocType {
    /// Any that the kernel can address.
    Normal = 0,
    /// That of ZONE_DMA.
    Dma = 1,
    /// Memory that a shrinker can free.
    Reclaim = 2,
}

impl KmallocType {
    /// All types.
    pub const ALL: [KmallocType; 3] = [KmallocType::Normal, KmallocType::Dma, KmallocType::Reclaim];

    /// The type for an allocation's flags (Linux: `kmalloc_type`); DMA wins.
    pub const fn of(gfp: Gfp) -> KmallocType {
        if gfp.contains(Gfp::DMA_ZONE) {
            KmallocType::Dma
        } else if gfp.contains(Gfp::RECLAIMABLE) {
            KmallocType::Reclaim
        } else {
            KmallocType::Normal
        }
    }

    const fn names(self) -> [&'static str; SIZES.len()] {
        macro_rules! names {
            ($prefix:literal) => {
                [
                    concat!($prefix, "8"),
                    concat!($prefix, "16"),
                    concat!($prefix, "32"),
                    concat!($prefix, "64"),
                    concat!($prefix, "96"),
                    concat!($prefix, "128"),
                    concat!($prefix, "192"),
                    concat!($prefix, "256"),
                    concat!($prefix, "512"),
                    concat!($prefix, "1k"),
                    concat!($prefix, "2k"),
                    concat!($prefix, "4k"),
                    concat!($prefix, "8k"),
                ]
            };
        }
        match self {
            KmallocType::Normal => names!("kmalloc-"),
            KmallocType::Dma => names!("dma-kmalloc-"),
            KmallocType::Reclaim => names!("kmalloc-rcl-"),
        }
    }

    const fn flags(self) -> SlabFlags {
        match self {
            KmallocType::Normal => SlabFlags::KMALLOC,
            KmallocType::Dma => SlabFlags::KMALLOC.union(SlabFlags::CACHE_DMA),
            KmallocType::Reclaim => SlabFlags::KMALLOC.union(SlabFlags::RECLAIM_ACCOUNT),
        }
    }
}

impl<M: Machine> Kmem<M> {
    /// Creates the caches of the family, once (Linux: `create_kmalloc_caches`).
    ///
    /// # Errors
    /// [`CreateError`]; the kernel cannot go on.
    pub fn init(&self) -> Result<(), CreateError> {
        for kind in KmallocType::ALL {
            for (class, (name, size)) in kind.names().into_iter().zip(SIZES).enumerate() {
                // Powers of two are aligned to themselves, up to a page.
                let align = if size.is_power_of_two() { size.min(4096) } else { 0 };
                let args = CacheArgs { name, size, align, flags: kind.flags(), ctor: None };
                let id = slot(kind, class).ok_or(CreateError::Full)?;
                self.create_at(id, &args)?;
            }
        }
        Ok(())
    }

    /// The cache that serves allocations of `size` bytes; `None` for none or too many bytes (Linux: `kmalloc_slab`).
    #[inline]
    pub fn kmalloc_cache(&self, size: u64, gfp: Gfp) -> Option<CacheId> {
        slot(KmallocType::of(gfp), class(size)?)
    }

    /// Allocates `size` bytes, aligned to 8, powers of two to themselves (Linux: `kmalloc`). No bytes give
    /// [`Object::ZERO_SIZE`]. `None` above [`KMALLOC_MAX_SIZE`], which is reported, or without memory.
    #[inline]
    pub fn kmalloc(&self, size: u64, gfp: Gfp) -> Option<Object> {
        let object = if self.cache(CacheId::ALL_KMALLOC).kind() == SlabKind::Slob {
            self.slob_kmalloc(size, gfp)
        } else {
            match self.kmalloc_cache(size, gfp) {
                Some(id) => self.alloc(id, gfp),
                None => self.kmalloc_large(size, gfp, None),
            }
        };
        if self.machine.map().wants(EventId::Kmalloc) {
            self.trace_kmalloc(size, gfp, object);
        }
        object
    }

    #[cold]
    #[inline(never)]
    fn trace_kmalloc(&self, size: u64, gfp_flags: Gfp, object: Option<Object>) {
        let cache = self.kmalloc_cache(size, gfp_flags).map(CacheId::as_u16);
        let bytes_alloc = object.and_then(|object| self.ksize(object)).unwrap_or(0);
        self.emit(Event::KmallocSlab { bytes_req: size, bytes_alloc, cache });
        let ptr = object.map_or(0, |object| object.0);
        self.emit(Event::Kmalloc { ptr, bytes_req: size, bytes_alloc, gfp_flags, node: None, cache });
    }

    /// [`Kmem::kmalloc`] near `node`, with [`Gfp::THISNODE`] nowhere else (Linux: `kmalloc_node`). SLOB knows no nodes below a page, as in
    /// Linux without `CONFIG_NUMA`.
    pub fn kmalloc_node(&self, size: u64, gfp: Gfp, node: u32) -> Option<Object> {
        if node >= self.machine.nr_nodes() {
            return None;
        }
        let slob = self.cache(CacheId::ALL_KMALLOC).kind() == SlabKind::Slob;
        match self.kmalloc_cache(size, gfp) {
            Some(id) if !slob => self.alloc_node(id, gfp, node),
            Some(_) => self.kmalloc(size, gfp),
            None => self.kmalloc_large(size, gfp, Some(node)),
        }
    }

    /// [`Kmem::kmalloc`] of zeroes.
    pub fn kzalloc(&self, size: u64, gfp: Gfp) -> Option<Object> {
        self.kmalloc(size, gfp | Gfp::ZERO)
    }

    /// An array of `n` times `size` zero bytes; `None` also if that overflows (Linux: `kcalloc`).
    pub fn kcalloc(&self, n: u64, size: u64, gfp: Gfp) -> Option<Object> {
        self.kzalloc(n.checked_mul(size)?, gfp)
    }

    /// Moves an allocation to one of `size` bytes if it does not fit (Linux: `krealloc`). Without `object` it allocates; no bytes free it
    /// and give [`Object::ZERO_SIZE`]. `None` leaves the old one as it is.
    pub fn krealloc(&self, object: Option<Object>, size: u64, gfp: Gfp) -> Option<Object> {
        let Some(old) = object.filter(|object| *object != Object::ZERO_SIZE) else {
            return self.kmalloc(size, gfp);
        };
        if size == 0 {
            return self.kfree(old).is_ok().then_some(Object::ZERO_SIZE);
        }
        let have = self.ksize(old)?;
        if have >= size {
            return Some(old);
        }
        let new = self.kmalloc(size, gfp)?;
        for word in 0..have / 8 {
            let value = self.machine.mem().read_u64(PhysAddr::new(old.0 + 8 * word));
            self.machine.mem().write_u64(PhysAddr::new(new.0 + 8 * word), value);
        }
        // It was one of ours a moment ago: `ksize` found it.
        let _ = self.kfree(old);
        Some(new)
    }

    /// Frees what a function of the family gave (Linux: `kfree`).
    ///
    /// # Errors
    /// [`FreeError`]: nothing was changed, and the console says what is wrong.
    pub fn kfree(&self, object: Object) -> Result<(), FreeError> {
        self.emit(Event::Kfree { ptr: object.0 });
        if object == Object::ZERO_SIZE {
            return Ok(());
        }
        if let Some((pfn, page)) = self.slab_of(object) {
            return match self.free_found(pfn, page, object) {
                Some(freed) => freed,
                None => self.slob_kfree(object),
            };
        }
        let Some((pfn, page)) = self.large_of(object) else {
            let error = FreeError::NotSlab { object };
            self.machine.report(format_args!("BUG kfree: {error}"));
            return Err(error);
        };
        page.set_mapping(0);
        self.machine.pages().free_pages(pfn, page.order());
        Ok(())
    }

    /// Bytes that the owner of `object` may use (Linux: `ksize`); `None` for what is no allocation.
    pub fn ksize(&self, object: Object) -> Option<u64> {
        if object == Object::ZERO_SIZE {
            return Some(0);
        }
        if let Some((_, page)) = self.slab_of(object) {
            return match CacheId::new(page.mapping()) {
                Some(id) => Some(self.usable(id)),
                None => self.slob_ksize(object),
            };
        }
        self.large_of(object).map(|(_, page)| PAGE_SIZE << page.order().as_u8())
    }

    /// Linux: `slab_ksize`.
    fn usable(&self, id: CacheId) -> u64 {
        let cache = self.cache(id);
        let flags = cache.slab_flags();
        let exact =
            cache.kind() == SlabKind::Slab || flags.intersects(SlabFlags::RED_ZONE | SlabFlags::POISON);
        u64::from(if exact {
            cache.object_size()
        } else if flags.contains(SlabFlags::STORE_USER) || cache.ctor() != 0 {
            cache.inuse()
        } else {
            cache.size()
        })
    }

    /// Whole pages (Linux: `kmalloc_large`).
    pub(crate) fn kmalloc_large(&self, size: u64, gfp: Gfp, node: Option<u32>) -> Option<Object> {
        if size == 0 {
            return Some(Object::ZERO_SIZE);
        }
        let Some(order) = Order::covering(size.div_ceil(PAGE_SIZE)) else {
            if !gfp.contains(Gfp::NOWARN) {
                self.machine.report(format_args!("kmalloc: {size} bytes are more than {KMALLOC_MAX_SIZE}"));
            }
            return None;
        };
        self.emit(Event::KmallocLarge { bytes_req: size, order, gfp, node });
        let comp = if order == Order::ZERO { Gfp::empty() } else { Gfp::COMP };
        let pfn = self.machine.pages().alloc_pages((gfp - Gfp::ZERO) | comp, order, node);
        self.emit(Event::KmallocLargeRet { ptr: pfn.map_or(0, |pfn| pfn.phys().as_u64()) });
        let pfn = pfn?;
        self.machine.map().page(pfn)?.set_mapping(LARGE_MAPPING);
        if gfp.contains(Gfp::ZERO) {
            (0..order.pages()).for_each(|page| self.machine.mem().zero_frame(pfn.offset(page)));
        }
        Some(Object(pfn.phys().as_u64()))
    }

    /// The first frame of a large allocation that starts at `object`.
    fn large_of(&self, object: Object) -> Option<(Pfn, &Page)> {
        let pfn = object.addr().pfn();
        let page = self.machine.map().page(pfn)?;
        let large = page.kind() == PageKind::Allocated && page.mapping() == LARGE_MAPPING;
        (large && object.addr().page_offset() == 0).then_some((pfn, page))
    }
}

impl CacheId {
    /// A cache that always exists and tells who manages all.
    const ALL_KMALLOC: CacheId = match CacheId::new(0) {
        Some(id) => id,
        None => panic!("the table has no slot"),
    };
}

/// The slot of a cache of the family.
#[inline]
fn slot(kind: KmallocType, class: usize) -> Option<CacheId> {
    CacheId::new((kind as usize * SIZES.len() + class) as u64)
}

/// The size class of `size` bytes.
#[inline]
fn class(size: u64) -> Option<usize> {
    /// By words, up to 192 bytes (Linux: `size_index`).
    const SMALL: [u8; 25] = [0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6];
    match size {
        0 => None,
        1..=192 => usize::try_from(size.div_ceil(8))
            .ok()
            .and_then(|words| SMALL.get(words))
            .map(|class| usize::from(*class)),
        // 256 is class 7.
        193..=KMALLOC_MAX_CACHE_SIZE => Some((u64::BITS - (size - 1).leading_zeros()) as usize - 1),
        _ => None,
    }
}
