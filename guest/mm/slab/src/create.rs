//! Creating and destroying caches (Linux: mm/slab_common.c).

use memvisor_abi as abi;
use memvisor_abi::SlabKind;
use mm_core::PAGE_SIZE;

use crate::cache::Name;
use crate::{Cache, CacheId, CreateError, DestroyError, Kmem, Machine, SlabFlags, shape};

/// What a cache shall be (Linux: the arguments of `kmem_cache_create`).
#[derive(Clone, Copy, Debug)]
pub struct CacheArgs<'a> {
    /// 1 to 31 printable ASCII characters, without spaces.
    pub name: &'a str,
    /// Bytes of an object.
    pub size: u32,
    /// A power of two, or 0 for the machine's word.
    pub align: u32,
    /// Flags; debugging comes from the command line.
    pub flags: SlabFlags,
    /// Number of the constructor that every object sees once, when its slab is made.
    pub ctor: Option<u32>,
}

impl<'a> CacheArgs<'a> {
    /// A cache without wishes.
    pub const fn new(name: &'a str, size: u32) -> CacheArgs<'a> {
        CacheArgs { name, size, align: 0, flags: SlabFlags::empty(), ctor: None }
    }
}

impl<M: Machine> Kmem<M> {
    /// Creates a cache, or gives an existing one of the same shape one more user (Linux: `kmem_cache_create`). The
    /// caches of the kmalloc family come first: [`Kmem::init`].
    ///
    /// # Errors
    /// [`CreateError`]; nothing was changed.
    pub fn create(&self, args: &CacheArgs<'_>) -> Result<CacheId, CreateError> {
        let cache = self.plan(args)?;
        self.machine.with_caches(|| {
            if let Some(id) = self.find(&cache.name) {
                return Err(CreateError::Exists { cache: id });
            }
            if let Some(id) = self.find_mergeable(&cache) {
                let other = self.cache(id);
                other.add_user();
                // The longer object decides what is cleared and what a user may use.
                let object_size = other.object_size().max(cache.object_size);
                other.set_object_size(object_size, other.inuse().max(cache.inuse));
                return Ok(id);
            }
            let id = self.unused_slot().ok_or(CreateError::Full)?;
            self.cache(id).store(&cache);
            Ok(id)
        })
    }

    /// Takes one user from a cache; the last one's cache gives its slabs back and is no more (Linux:
    /// `kmem_cache_destroy`).
    ///
    /// # Errors
    /// [`DestroyError::Busy`] while objects are in use: the cache stays as it is, and the console says which.
    pub fn destroy(&self, id: CacheId) -> Result<(), DestroyError> {
        let cache = self.cache(id);
        if cache.is_used() && cache.slab_flags().contains(SlabFlags::KMALLOC) {
            return Err(DestroyError::Kmalloc);
        }
        self.machine.with_caches(|| {
            if !cache.is_used() {
                return Err(DestroyError::Unused { cache: id });
            }
            if cache.refcount() > 1 {
                cache.drop_user();
                return Ok(());
            }
            match self.release(id) {
                0 => {
                    cache.store(&abi::Cache::default());
                    Ok(())
                }
                objects => {
                    let name = cache.load().name;
                    self.machine.report(format_args!(
                        "kmem_cache_destroy {}: Slab cache still has {objects} objects",
                        Name::from_raw(name).as_str()
                    ));
                    Err(DestroyError::Busy { objects })
                }
            }
        })
    }

    /// Writes a cache of the kmalloc family into its own slot.
    pub(crate) fn create_at(&self, id: CacheId, args: &CacheArgs<'_>) -> Result<(), CreateError> {
        let cache = self.plan(args)?;
        self.machine.with_caches(|| self.cache(id).store(&cache));
        Ok(())
    }

    /// The record that `args` ask for.
    fn plan(&self, args: &CacheArgs<'_>) -> Result<abi::Cache, CreateError> {
        let name = Name::new(args.name).ok_or(CreateError::Name)?;
        let align = args.align.max(1);
        if !align.is_power_of_two() || u64::from(align) > PAGE_SIZE {
            return Err(CreateError::Align { align: args.align });
        }
        let options = self.machine.options();
        let flags = (args.flags - SlabFlags::DEBUG) | options.debug_of(args.name);
        let mut cache = abi::Cache {
            name: name.as_raw(),
            refcount: 1,
            allocator: options.kind as u32,
            flags: flags.bits(),
            object_size: args.size,
            align: shape::alignment(flags, align, args.size),
            ctor: args.ctor.unwrap_or(0),
            ..abi::Cache::default()
        };
        shape::calculate(&mut cache, options.kind, self.machine.nr_cpus())?;
        Ok(cache)
    }

    fn find(&self, name: &[u8]) -> Option<CacheId> {
        CacheId::all().find(|id| self.cache(*id).is_used() && self.cache(*id).load().name == *name)
    }

    /// The first slot behind those of the kmalloc family that nobody uses.
    fn unused_slot(&self) -> Option<CacheId> {
        CacheId::all().skip(crate::kmalloc::NR_SLOTS).find(|id| !self.cache(*id).is_used())
    }

    /// A cache whose slabs serve as well (Linux: `find_mergeable`).
    fn find_mergeable(&self, cache: &abi::Cache) -> Option<CacheId> {
        let flags = SlabFlags::from_bits_retain(cache.flags);
        let never = SlabFlags::DEBUG | SlabFlags::NO_MERGE;
        let options = self.machine.options();
        if !options.merge || options.kind == SlabKind::Slob || flags.intersects(never) || cache.ctor != 0 {
            return None;
        }
        let fits = |other: &Cache| {
            let same = |flags: SlabFlags| flags & SlabFlags::MERGE_SAME;
            other.is_used()
                && !other.slab_flags().intersects(never)
                && other.ctor() == 0
                && same(other.slab_flags()) == same(flags)
                && cache.size <= other.size()
                && other.size().is_multiple_of(cache.align)
                && other.size() - cache.size < 8
        };
        CacheId::all().find(|id| fits(self.cache(*id)))
    }
}
