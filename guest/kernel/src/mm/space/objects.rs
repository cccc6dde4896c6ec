//! Objects of address spaces: slab caches behind mm-vma's arenas. The number of an object is its physical address.
//!
//! Invariants:
//! B1  an object consists of atomics and is all zero when its slab is made (`CTOR_ZERO`); the allocator's link lies behind it, so
//!     that a free object keeps what its last user left;
//! B2  what mm-vma knows of an object comes first in it, so that both have one address;
//! B3  a number reaches [`Arena::at`] only if it came from [`Arena::alloc`]: numbers are kept in objects, in `Page::mapping`, and in
//!     the kernel's own variables.
//!
//! Readers without locks keep interrupts off (`Rcu::rcu_read`), and slabs go back to the page allocator once every CPU has answered an
//! interrupt (`SLAB_TYPESAFE_BY_RCU`).

use core::mem::offset_of;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use memvisor_abi as abi;
use mm_core::{Gfp, PhysAddr};
use mm_filemap::{Sealed, Seals};
use mm_pgtable::layout;
use mm_slab::{CacheArgs, CacheId, Object, SlabFlags};
use mm_vma::{AnonVma, AnonVmaChain, Arena, Id, Mapping, Mm, Node, Vma};

use super::Spaces;
use super::backing::Backing;
use super::cache::Source;
use crate::mm::layout::levels;
use crate::mm::phys;
use crate::mm::slab::{CTOR_ZERO, KMEM};
use crate::sched;
use crate::sync::Lock;

/// Words of a mask of CPUs.
const CPU_WORDS: usize = abi::MM_CPU_WORDS;
const _: () = assert!(guest_firmware::acpi::MAX_CPUS <= CPU_WORDS * 64);

/// An address space, with what the kernel adds to it (Linux: `struct mm_struct`).
#[derive(Debug)]
#[repr(C)]
pub struct MmObject {
    mm: Mm,
    /// Readers of mmap_lock; -1 for a writer.
    pub(super) mmap_lock: AtomicI32,
    /// Tasks that use it, and others that need it to stay (Linux: `mm_users`).
    pub(super) users: AtomicU32,
    /// CPUs that may hold translations of it (Linux: `mm_cpumask`).
    pub(super) cpus: [AtomicU64; CPU_WORDS],
    /// Neighbours in the list of all address spaces, under its lock.
    pub(super) next: AtomicU64,
    /// See [`MmObject::next`].
    pub(super) prev: AtomicU64,
    /// Process that it was made for.
    pub(super) owner: AtomicU32,
    reserved: AtomicU32,
    /// Linux: `page_table_lock`.
    pub(super) page_table_lock: Lock<()>,
    /// Flushes so far (Linux: `mm->context.tlb_gen`).
    pub(super) tlb_generation: AtomicU64,
    /// The last of them that was put off, until it is known to be done; 0 for none (Linux: `tlb_flush_batched`).
    pub(super) tlb_deferred: AtomicU64,
    /// The first address of the program's stack that it was given (Linux: `mm->start_stack`).
    pub(super) start_stack: AtomicU64,
    /// Those who need the object, whether or not it has users, who count as one (Linux: `mm_count`).
    pub(super) pins: AtomicU32,
}

// What mm-vma has of it, it checks itself.
const _: () = assert!(
    offset_of!(MmObject, mmap_lock) == offset_of!(abi::Mm, mmap_lock)
        && offset_of!(MmObject, cpus) == offset_of!(abi::Mm, cpus)
        && offset_of!(MmObject, next) == offset_of!(abi::Mm, next)
        && offset_of!(MmObject, prev) == offset_of!(abi::Mm, prev)
        && offset_of!(MmObject, owner) == offset_of!(abi::Mm, owner)
        && size_of::<MmObject>() >= size_of::<abi::Mm>()
);

/// Words of a mapping's name.
const NAME_WORDS: usize = abi::MAPPING_NAME_LEN / 8;

/// A mapping, with what the kernel adds to it (Linux: `struct address_space`).
#[derive(Debug)]
#[repr(C)]
pub struct MappingObject {
    mapping: Mapping,
    /// VMAs and programs that use it.
    pub(super) references: AtomicU32,
    /// See [`abi::Mapping`].
    flags: AtomicU32,
    /// See [`abi::Mapping`].
    pub(super) swap_next: AtomicU64,
    /// See [`abi::Mapping`].
    pub(super) swap_prev: AtomicU64,
    /// See [`abi::Mapping`].
    dev: AtomicU64,
    /// See [`abi::Mapping`].
    ino: AtomicU64,
    /// See [`abi::Mapping`].
    name: [AtomicU64; NAME_WORDS],
    source: AtomicU32,
    /// 1 while somebody writes or changes the size (Linux: `inode->i_rwsem`).
    pub(super) inode_lock: AtomicU32,
    /// Seals of a file in memory.
    pub(super) sealed: Sealed,
    /// Of a System V segment: the process that attached or detached it last, and when (Linux: `shm_lprid`, `shm_atim`, `shm_dtim`).
    pub(super) lpid: AtomicU32,
    pub(super) atime: AtomicU64,
    pub(super) dtime: AtomicU64,
    /// Linux: `xa_lock` of `i_pages`.
    pub(super) pages_lock: Lock<()>,
    /// Of what is on a disk.
    pub(super) backing: Backing,
}

impl MappingObject {
    /// A mapping with one reference.
    pub(super) fn init(&self, source: Source) {
        self.references.store(1, Ordering::Relaxed);
        let flags = match source {
            Source::Shmem | Source::Program | Source::Anonymous => abi::Mapping::HOLDS_PAGES,
            Source::SysV => abi::Mapping::HOLDS_PAGES | abi::Mapping::SYSV,
            Source::Device => abi::Mapping::DEVICE,
            Source::Disk | Source::Bdev => abi::Mapping::HOLDS_PAGES | abi::Mapping::WRITTEN_BACK,
            Source::Gone => abi::Mapping::HOLDS_PAGES,
        };
        self.backing.init();
        self.flags.store(flags, Ordering::Relaxed);
        self.source.store(source as u32, Ordering::Relaxed);
        self.inode_lock.store(0, Ordering::Relaxed);
        self.sealed.init(Seals::SEAL);
        self.lpid.store(0, Ordering::Relaxed);
        self.swap_next.store(0, Ordering::Relaxed);
        self.swap_prev.store(0, Ordering::Relaxed);
        self.set_name(0, 0, &[]);
        self.atime.store(0, Ordering::Relaxed);
        self.dtime.store(0, Ordering::Relaxed);
    }

    /// Whether [`MappingObject::set_name`] gave it one.
    pub(super) fn has_name(&self) -> bool {
        self.ino.load(Ordering::Relaxed) != 0
    }

    /// Says which file it is of, for readers from outside.
    pub(super) fn set_name(&self, dev: u64, ino: u64, path: &[u8]) {
        let end = path.len().saturating_sub(abi::MAPPING_NAME_LEN);
        let mut bytes = path.get(end..).unwrap_or_default().chunks(8);
        for word in &self.name {
            let mut value = [0; 8];
            for (to, from) in value.iter_mut().zip(bytes.next().unwrap_or_default()) {
                *to = *from;
            }
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        self.dev.store(dev, Ordering::Relaxed);
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// All of its size is promised.
    pub(super) fn set_accounted(&self) {
        self.flags.fetch_or(abi::Mapping::ACCOUNTED, Ordering::Relaxed);
    }

    /// See [`MappingObject::set_accounted`].
    pub(super) fn is_accounted(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & abi::Mapping::ACCOUNTED != 0
    }

    /// What was on a disk is nowhere from now on.
    pub(super) fn set_gone(&self) {
        self.flags.store(abi::Mapping::HOLDS_PAGES, Ordering::Relaxed);
        self.source.store(Source::Gone as u32, Ordering::Release);
    }

    /// Where its contents come from.
    pub(super) fn source(&self) -> Source {
        match self.source.load(Ordering::Relaxed) {
            1 => Source::Program,
            2 => Source::Anonymous,
            3 => Source::SysV,
            4 => Source::Device,
            5 => Source::Disk,
            6 => Source::Bdev,
            7 => Source::Gone,
            _ => Source::Shmem,
        }
    }
}

const _: () = assert!(
    size_of::<MappingObject>() >= size_of::<abi::Mapping>()
        && offset_of!(MappingObject, references) == offset_of!(abi::Mapping, references)
        && offset_of!(MappingObject, flags) == offset_of!(abi::Mapping, flags)
        && offset_of!(MappingObject, swap_next) == offset_of!(abi::Mapping, swap_next)
        && offset_of!(MappingObject, swap_prev) == offset_of!(abi::Mapping, swap_prev)
        && offset_of!(MappingObject, dev) == offset_of!(abi::Mapping, dev)
        && offset_of!(MappingObject, name) == offset_of!(abi::Mapping, name)
);

/// The object at a number.
fn object<T>(raw: u64) -> &'static T {
    let object = phys::object_at::<T>(PhysAddr::new(raw));
    assert!(object.is_aligned(), "no object is at {raw:#x}");
    // SAFETY: B3 and B1: the cache of `T` made it, of atomics only, which any word is; slabs are in the direct map, which stays.
    unsafe { &*object }
}

/// The object around an address space.
pub(super) fn of_mm(mm: &Mm) -> &'static MmObject {
    // Through the address: a reference to the part reaches no further than the part.
    object((&raw const *mm as u64).wrapping_sub(layout::page_offset(levels()).as_u64()))
}

/// The number of an address space.
pub(super) fn id_of(mm: &Mm) -> Id<Mm> {
    let raw = (&raw const *mm as u64).wrapping_sub(layout::page_offset(levels()).as_u64());
    Id::new(raw).expect("no object is at address 0")
}

/// The object around a mapping.
pub(super) fn of_mapping(mapping: Id<Mapping>) -> &'static MappingObject {
    object(mapping.as_u64())
}

/// A cache, once [`init`] made it: its number + 1.
struct Slot(AtomicU64);

impl Slot {
    const fn new() -> Slot {
        Slot(AtomicU64::new(0))
    }

    fn create<T>(&self, name: &str, flags: SlabFlags) {
        let args = CacheArgs {
            name,
            size: u32::try_from(size_of::<T>()).unwrap_or(u32::MAX),
            align: u32::try_from(align_of::<T>()).unwrap_or(u32::MAX),
            flags: SlabFlags::TYPESAFE_BY_RCU | SlabFlags::NO_MERGE | SlabFlags::PANIC | flags,
            ctor: Some(CTOR_ZERO),
        };
        match KMEM.create(&args) {
            Ok(id) => self.0.store(id.as_u64() + 1, Ordering::Release),
            Err(error) => panic!("cache {name}: {error}"),
        }
    }

    fn id(&self) -> CacheId {
        let id = self.0.load(Ordering::Acquire).checked_sub(1).and_then(CacheId::new);
        id.expect("the caches of address spaces exist since boot")
    }

    /// With a lock held, who asks tries again without it: that is no news.
    fn alloc<T>(&self) -> Option<Id<T>> {
        let gfp = if sched::might_sleep().is_some() { Gfp::KERNEL } else { Gfp::NOWAIT | Gfp::NOWARN };
        KMEM.alloc(self.id(), gfp).and_then(|object| Id::new(object.addr().as_u64()))
    }

    fn free<T>(&self, id: Id<T>) {
        let freed = KMEM.free(self.id(), Object::new(PhysAddr::new(id.as_u64())));
        // The console has it already.
        debug_assert!(freed.is_ok(), "{id:?} was freed wrongly");
    }
}

macro_rules! arenas {
    ($($ty:ty, $object:ty, $slot:ident, $name:literal $(, $flag:ident)?;)*) => {
        $(
            static $slot: Slot = Slot::new();

            impl Arena<$ty> for Spaces {
                fn at(&self, id: Id<$ty>) -> &$ty {
                    object(id.as_u64())
                }

                fn alloc(&self) -> Option<Id<$ty>> {
                    $slot.alloc()
                }

                fn free(&self, id: Id<$ty>) {
                    $slot.free(id);
                }
            }
        )*

        /// Makes the caches (Linux: `proc_caches_init`, `anon_vma_init`).
        pub(super) fn init() {
            $($slot.create::<$object>($name, SlabFlags::empty() $(| SlabFlags::$flag)?);)*
        }
    };
}

arenas! {
    Mm, MmObject, MMS, "mm_struct";
    Vma, Vma, VMAS, "vm_area_struct";
    Node, Node, NODES, "maple_node";
    AnonVma, AnonVma, ANON_VMAS, "anon_vma";
    AnonVmaChain, AnonVmaChain, ANON_VMA_CHAINS, "anon_vma_chain";
    Mapping, MappingObject, MAPPINGS, "address_space";
    mm_filemap::Node, mm_filemap::Node, CACHE_NODES, "radix_tree_node", RECLAIM_ACCOUNT;
}
