//! Allocators of objects: ours, and those that they are compared with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;

use mm_core::Gfp;
use mm_slab::{CacheArgs, CacheId, Kmem, Object};

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

fn arena() -> &'static mut [u8] {
    Box::leak(vec![0_u8; 64 << 20].into_boxed_slice())
}

/// buddy-alloc with its fast lists, which serve up to 64 bytes.
pub fn buddy_alloc(size: usize) -> Locked<buddy_alloc::NonThreadsafeAlloc> {
    use buddy_alloc::{BuddyAllocParam, FastAllocParam, NonThreadsafeAlloc};
    let (fast, rest) = arena().split_at_mut(16 << 20);
    let fast = FastAllocParam::new(fast.as_ptr(), fast.len());
    let rest = BuddyAllocParam::new(rest.as_ptr(), rest.len(), 64);
    Locked::new(NonThreadsafeAlloc::new(fast, rest), size)
}
