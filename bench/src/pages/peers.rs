//! The other allocators. What has no lock of its own gets the one that its authors recommend: a spin lock.

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use bitmap_allocator::{BitAlloc, BitAlloc16M};
use buddy_alloc::buddy_alloc::{BuddyAlloc, BuddyAllocParam};
use buddy_slab_allocator::BuddyAllocator;
use buddy_system_allocator::FrameAllocator;
use frame_alloc::{
    CpuId, DepotAllocator, PageSize, PhysRange, PhysicalAllocator, Provenance, RegionInit,
    SummaryBuddyAllocator,
};

use super::Frames;
use super::memory::Reserved;

const PAGE: usize = 4096;

/// A spin lock.
struct Spin<T> {
    taken: AtomicBool,
    data: UnsafeCell<T>,
}

// SAFETY: the flag gives one thread at a time access; the allocators' raw pointers lead into mappings they own.
unsafe impl<T> Sync for Spin<T> {}

impl<T> Spin<T> {
    fn new(data: T) -> Spin<T> {
        Spin { taken: AtomicBool::new(false), data: UnsafeCell::new(data) }
    }

    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        while self.taken.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        // SAFETY: the flag is held.
        let result = f(unsafe { &mut *self.data.get() });
        self.taken.store(false, Ordering::Release);
        result
    }
}

fn bytes(order: u8) -> usize {
    PAGE << order
}

fn layout(order: u8) -> Layout {
    // Blocks are aligned to their size, as a kernel needs them.
    Layout::from_size_align(bytes(order), bytes(order)).expect("a power of two")
}

/// Physical addresses are the host's.
pub struct Identity;

// SAFETY: addresses come from one mapping whose provenance was exposed.
unsafe impl Provenance for Identity {
    unsafe fn create(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("not null")
    }

    unsafe fn destroy<T>(pointer: NonNull<T>) -> usize {
        pointer.addr().get()
    }
}

const BASE: PageSize = PageSize::from_log2(12);
/// frame-alloc's buddy.
pub type Summary = SummaryBuddyAllocator<11, Identity>;

/// frame-alloc, with or without its cache for each CPU.
pub struct FrameAlloc<A> {
    allocator: Box<A>,
    memory: Reserved,
}

/// The CPU is the thread's slot.
pub struct Slot;

impl CpuId for Slot {
    fn current_cpu() -> usize {
        super::host::current()
    }
}

impl<A: PhysicalAllocator + RegionInit + Fresh + Sync + Send> Frames for FrameAlloc<A> {
    fn start(frames: u64) -> FrameAlloc<A> {
        let len = frames as usize * PAGE;
        let memory = Reserved::for_tables(len);
        let base = memory.address().expose_provenance();
        let allocator = Box::new(A::fresh());
        // SAFETY: the mapping is ours, aligned to the largest block, and nobody allocates yet.
        unsafe { allocator.init(base, len, &[PhysRange { base, len }]) };
        FrameAlloc { allocator, memory }
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        let address = self.allocator.allocate_physical(BASE, NonZeroUsize::new(1 << order)?).ok()?;
        Some((address - self.memory.address().addr()) / PAGE)
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        let address = self.memory.address().addr() + frame * PAGE;
        let count = NonZeroUsize::new(1 << order).expect("at least one");
        // SAFETY: allocated with the same count.
        unsafe { self.allocator.deallocate_physical(BASE, count, address) };
    }
}

/// The same behind its per-CPU cache.
pub type Depot = DepotAllocator<Summary, Slot, 2>;

/// An allocator before its first region.
pub trait Fresh {
    /// Without memory.
    fn fresh() -> Self;
}

impl Fresh for Summary {
    fn fresh() -> Summary {
        Summary::new(BASE)
    }
}

impl Fresh for Depot {
    fn fresh() -> Depot {
        Depot::new(BASE, Summary::new(BASE))
    }
}

/// buddy-slab-allocator's page level.
pub struct BuddySlab {
    allocator: Spin<BuddyAllocator>,
    memory: Reserved,
}

impl Frames for BuddySlab {
    fn start(frames: u64) -> BuddySlab {
        let heap = frames as usize * PAGE;
        // It keeps its descriptors in the region.
        let len = heap + (heap / PAGE * 16).next_multiple_of(PAGE) + (64 << 10);
        let memory = Reserved::for_tables(len);
        let mut allocator = BuddyAllocator::new();
        // SAFETY: the mapping is ours and lives as long as the allocator.
        let region = unsafe { std::slice::from_raw_parts_mut(memory.address(), len) };
        // SAFETY: as above.
        unsafe { allocator.init(region) }.expect("a region large enough");
        BuddySlab { allocator: Spin::new(allocator), memory }
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        let address = self.allocator.with(|buddy| buddy.alloc_pages(1 << order, bytes(order))).ok()?;
        Some((address - self.memory.address().addr()) / PAGE)
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        let address = self.memory.address().addr() + frame * PAGE;
        self.allocator.with(|buddy| buddy.dealloc_pages(address, 1 << order));
    }
}

/// buddy-alloc, which keeps its lists in the frames.
pub struct Buddy {
    allocator: Spin<BuddyAlloc>,
    memory: Reserved,
}

impl Frames for Buddy {
    fn start(frames: u64) -> Buddy {
        // Its bitmaps come out of the same memory; twice the leaves is more than they need.
        let len = frames as usize * PAGE + (frames as usize).next_multiple_of(PAGE);
        let memory = Reserved::new(len);
        let param = BuddyAllocParam::new_with_zero_filled(memory.address(), len, PAGE);
        // SAFETY: the mapping is ours, fresh and zero.
        let allocator = unsafe { BuddyAlloc::new(param) };
        Buddy { allocator: Spin::new(allocator), memory }
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        let pointer = self.allocator.with(|buddy| buddy.malloc(bytes(order)));
        // Not aligned to its size where the region is not; frames are counted all the same.
        (!pointer.is_null()).then(|| (pointer.addr() - self.memory.address().addr()) / PAGE)
    }

    #[inline]
    fn free(&self, frame: usize, _: u8) {
        let pointer = self.memory.address().wrapping_add(frame * PAGE);
        self.allocator.with(|buddy| buddy.free(pointer));
    }
}

/// buddy_system_allocator's frame allocator.
pub struct BuddySystem(Spin<FrameAllocator<11>>);

impl Frames for BuddySystem {
    fn start(frames: u64) -> BuddySystem {
        let mut allocator = FrameAllocator::new();
        allocator.add_frame(0, frames as usize);
        BuddySystem(Spin::new(allocator))
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        self.0.with(|buddy| buddy.alloc(1 << order))
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        self.0.with(|buddy| buddy.dealloc(frame, 1 << order));
    }
}

/// bitmap-allocator.
pub struct Bitmap(Box<Spin<BitAlloc16M>>);

impl Frames for Bitmap {
    fn start(frames: u64) -> Bitmap {
        let mut allocator = Box::new(Spin::new(BitAlloc16M::DEFAULT));
        allocator.data.get_mut().insert(0..frames as usize);
        Bitmap(allocator)
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        self.0.with(|bits| {
            if order == 0 { bits.alloc() } else { bits.alloc_contiguous(None, 1 << order, order.into()) }
        })
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        let freed = self.0.with(|bits| {
            if order == 0 { bits.dealloc(frame) } else { bits.dealloc_contiguous(frame, 1 << order) }
        });
        assert!(freed, "the bits were allocated");
    }
}

type TalcCell = talc::TalcCell<talc::source::Manual>;

/// talc, a heap.
pub struct Talc {
    allocator: Spin<TalcCell>,
    memory: Reserved,
}

impl Frames for Talc {
    fn start(frames: u64) -> Talc {
        let len = frames as usize * PAGE;
        let memory = Reserved::new(len);
        let cell = TalcCell::new(talc::source::Manual);
        // SAFETY: the mapping is ours.
        unsafe { cell.claim(memory.address(), len) }.expect("room for its own data");
        Talc { allocator: Spin::new(cell), memory }
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        // SAFETY: the layout has a size.
        let pointer = self.allocator.with(|talc| unsafe { talc.get_mut().allocate(layout(order)) })?;
        Some((pointer.addr().get() - self.memory.address().addr()) / PAGE)
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        let pointer = self.memory.address().wrapping_add(frame * PAGE);
        // SAFETY: allocated with the same layout.
        self.allocator.with(|talc| unsafe { talc.get_mut().deallocate(pointer, layout(order)) });
    }
}

type Tlsf = rlsf::Tlsf<'static, u32, u32, 32, 32>;

/// rlsf, a two-level segregated fit heap.
pub struct Rlsf {
    allocator: Spin<Tlsf>,
    memory: Reserved,
}

impl Frames for Rlsf {
    fn start(frames: u64) -> Rlsf {
        let len = frames as usize * PAGE;
        let memory = Reserved::new(len);
        let mut tlsf = Tlsf::new();
        let start = NonNull::new(memory.address()).expect("not null");
        // SAFETY: the mapping is ours.
        unsafe { tlsf.insert_free_block_ptr(NonNull::slice_from_raw_parts(start, len)) };
        Rlsf { allocator: Spin::new(tlsf), memory }
    }

    #[inline]
    fn alloc(&self, order: u8) -> Option<usize> {
        let pointer = self.allocator.with(|tlsf| tlsf.allocate(layout(order)))?;
        Some((pointer.addr().get() - self.memory.address().addr()) / PAGE)
    }

    #[inline]
    fn free(&self, frame: usize, order: u8) {
        let pointer = self.memory.address().wrapping_add(frame * PAGE);
        let pointer = NonNull::new(pointer).expect("not null");
        // SAFETY: allocated with the same alignment.
        self.allocator.with(|tlsf| unsafe { tlsf.deallocate(pointer, bytes(order)) });
    }
}
