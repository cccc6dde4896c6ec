//! Allocators of objects: ours, and those that they are compared with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::Mutex;

use mm_core::Gfp;
use mm_slab::{CacheArgs, CacheId, Kmem, Object};
use slabmalloc::{ObjectPage, SCAllocator};

use super::machine::{Host, boot};

/// An allocator of objects of one size. Two threads use it at once, each as the CPU that it became.
pub trait Objects: Sync {
    /// An object's address.
    fn alloc(&self) -> usize;
    /// Takes it back.
    fn free(&self, object: usize);
}

/// A `kmem_cache`.
pub struct Ours {
    kmem: Kmem<Host>,
    id: CacheId,
}

impl Ours {
    /// A cache of objects of `size` bytes under `slab`.
    pub fn new(slab: &str, size: usize) -> Ours {
        let kmem = boot(slab, 64 << 20);
        let size = u32::try_from(size).expect("small objects");
        let id = kmem.create(&CacheArgs::new("bench", size)).expect("a cache");
        Ours { kmem, id }
    }

    /// Bytes of frames in use.
    pub fn used_bytes(&self) -> usize {
        self.kmem.machine().used_frames() * 4096
    }
}

impl Objects for Ours {
    #[inline]
    fn alloc(&self) -> usize {
        self.kmem.alloc(self.id, Gfp::KERNEL).expect("memory").addr().as_u64() as usize
    }

    #[inline]
    fn free(&self, object: usize) {
        let object = Object::new(mm_core::PhysAddr::new(object as u64));
        self.kmem.free(self.id, object).expect("a live object");
    }
}

/// kmalloc and kfree of one size.
pub struct Kmalloc {
    kmem: Kmem<Host>,
    size: u64,
}

impl Kmalloc {
    pub fn new(size: usize) -> Kmalloc {
        Kmalloc { kmem: boot("slub", 64 << 20), size: size as u64 }
    }
}

impl Objects for Kmalloc {
    #[inline]
    fn alloc(&self) -> usize {
        self.kmem.kmalloc(self.size, Gfp::KERNEL).expect("memory").addr().as_u64() as usize
    }

    #[inline]
    fn free(&self, object: usize) {
        self.kmem.kfree(Object::new(mm_core::PhysAddr::new(object as u64))).expect("a live object");
    }
}

/// An allocator with Rust's interface that threads may share.
pub struct Global<A> {
    heap: A,
    layout: Layout,
}

impl<A> Global<A> {
    pub fn new(heap: A, size: usize) -> Global<A> {
        Global { heap, layout: Layout::from_size_align(size, 8).expect("a small size") }
    }
}

impl<A: GlobalAlloc + Sync> Objects for Global<A> {
    #[inline]
    fn alloc(&self) -> usize {
        // SAFETY: the size is not 0.
        let object = unsafe { self.heap.alloc(self.layout) };
        assert!(!object.is_null(), "no memory");
        object as usize
    }

    #[inline]
    fn free(&self, object: usize) {
        // SAFETY: the benchmarks free what `alloc` gave, once.
        unsafe { self.heap.dealloc(object as *mut u8, self.layout) };
    }
}

/// An allocator for one thread, behind a lock.
pub struct Locked<A> {
    heap: Mutex<A>,
    layout: Layout,
}

// SAFETY: the lock lets one thread at the heap at a time.
unsafe impl<A> Sync for Locked<A> {}

impl<A> Locked<A> {
    pub fn new(heap: A, size: usize) -> Locked<A> {
        Locked { heap: Mutex::new(heap), layout: Layout::from_size_align(size, 8).expect("a small size") }
    }
}

impl<A: GlobalAlloc> Objects for Locked<A> {
    #[inline]
    fn alloc(&self) -> usize {
        // SAFETY: the size is not 0.
        let object = unsafe { self.heap.lock().expect("nobody panics").alloc(self.layout) };
        assert!(!object.is_null(), "no memory");
        object as usize
    }

    #[inline]
    fn free(&self, object: usize) {
        // SAFETY: the benchmarks free what `alloc` gave, once.
        unsafe { self.heap.lock().expect("nobody panics").dealloc(object as *mut u8, self.layout) };
    }
}

/// glibc's malloc.
pub fn glibc(size: usize) -> Global<System> {
    Global::new(System, size)
}

/// mimalloc.
pub fn mimalloc(size: usize) -> Global<mimalloc::MiMalloc> {
    Global::new(mimalloc::MiMalloc, size)
}

/// Bytes for allocators that are given theirs.
const ARENA: usize = 64 << 20;

/// Zeroes that stay: few of them are touched.
fn arena() -> &'static mut [u8] {
    Box::leak(vec![0_u8; ARENA].into_boxed_slice())
}

/// buddy-alloc with its fast lists, which serve up to 64 bytes.
pub fn buddy_alloc(size: usize) -> Locked<buddy_alloc::NonThreadsafeAlloc> {
    use buddy_alloc::{BuddyAllocParam, FastAllocParam, NonThreadsafeAlloc};
    let (fast, rest) = arena().split_at_mut(16 << 20);
    let fast = FastAllocParam::new(fast.as_ptr(), fast.len());
    let rest = BuddyAllocParam::new(rest.as_ptr(), rest.len(), 64);
    Locked::new(NonThreadsafeAlloc::new(fast, rest), size)
}

/// talc over an arena.
pub struct Talc(UnsafeCell<talc::TalcCell<talc::source::Manual>>);

// SAFETY: the calls go to talc as they are, under the lock of `Locked`.
unsafe impl GlobalAlloc for Talc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread at a time is here, and the borrow ends with the call.
        let talc = unsafe { &mut *self.0.get() };
        // SAFETY: the caller's layout has a size.
        unsafe { talc.get_mut().allocate(layout) }.map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: as above.
        let talc = unsafe { &mut *self.0.get() };
        // SAFETY: the caller got the object here.
        unsafe { talc.get_mut().deallocate(object, layout) };
    }
}

/// talc.
pub fn talc(size: usize) -> Locked<Talc> {
    let cell = talc::TalcCell::new(talc::source::Manual);
    let arena = arena();
    // SAFETY: the arena is nobody else's.
    unsafe { cell.claim(arena.as_mut_ptr(), arena.len()) }.expect("room for its own data");
    Locked::new(Talc(UnsafeCell::new(cell)), size)
}

/// slabmalloc's allocator for one size, with the pages that it asks for.
pub struct SlabMalloc {
    slabs: UnsafeCell<SCAllocator<'static, ObjectPage<'static>>>,
    pages: Cell<*mut u8>,
    end: *mut u8,
}

impl SlabMalloc {
    const PAGE: usize = 4096;
}

// SAFETY: both calls go to slabmalloc, under the lock of `Locked`.
unsafe impl GlobalAlloc for SlabMalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread at a time is here, and the borrow ends with the call.
        let slabs = unsafe { &mut *self.slabs.get() };
        loop {
            if let Ok(object) = slabs.allocate(layout) {
                return object.as_ptr();
            }
            let page = self.pages.get();
            if page >= self.end {
                return std::ptr::null_mut();
            }
            self.pages.set(page.wrapping_add(Self::PAGE));
            // SAFETY: a page of zeroes, which is an empty `ObjectPage`, handed out once.
            let page = unsafe { &mut *page.cast::<ObjectPage<'static>>() };
            // SAFETY: the page is zero and aligned.
            unsafe { slabs.refill(page) };
        }
    }

    #[inline]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        let slabs = unsafe { &*self.slabs.get() };
        let object = NonNull::new(object).expect("an object");
        slabs.deallocate(object, layout).expect("it was allocated here");
    }
}

/// slabmalloc.
pub fn slabmalloc(size: usize) -> Locked<SlabMalloc> {
    let arena = arena();
    let skip = arena.as_ptr().align_offset(SlabMalloc::PAGE);
    let (_, pages) = arena.split_at_mut(skip);
    let pages = pages.as_mut_ptr_range();
    let end = pages.start.wrapping_add((ARENA - skip) / SlabMalloc::PAGE * SlabMalloc::PAGE);
    let slabs = UnsafeCell::new(SCAllocator::new(size));
    Locked::new(SlabMalloc { slabs, pages: Cell::new(pages.start), end }, size)
}
