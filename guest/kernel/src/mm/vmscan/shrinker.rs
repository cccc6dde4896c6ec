//! Caches of the kernel that can give pages back (Linux: mm/vmscan.c, `shrink_slab`, `do_shrink_slab`).

use core::sync::atomic::{AtomicU64, Ordering};

use memvisor_abi::VmEvent;
use mm_core::{Event, Gfp, Trace};
use mm_vmscan::Lru;

use crate::mm::space::Spaces;
use crate::sync::Lock;
use crate::trace::KernelTrace;

/// How much it costs to make an object again, in seeks of a disk (Linux: the same name).
pub const DEFAULT_SEEKS: u64 = 2;
/// Objects that are asked for at once (Linux: the same name).
const SHRINK_BATCH: u64 = 128;

/// A cache that can give pages back (Linux: `struct shrinker`). Its objects are counted for all nodes together.
#[derive(Clone, Copy)]
pub struct Shrinker {
    /// Name, for messages.
    pub name: &'static str,
    /// Objects that it could free (Linux: `count_objects`).
    pub count: fn() -> u64,
    /// Looks at up to that many objects; how many it freed (Linux: `scan_objects`).
    pub scan: fn(u64) -> u64,
    /// See [`DEFAULT_SEEKS`]; 0 if objects cost nothing to make, and half of them may go at once.
    pub seeks: u64,
    /// Pages that an object is, so that reclaim knows how many came back. 0 where nobody knows.
    pub pages: u64,
}

const SHRINKERS_MAX: usize = 8;
static SHRINKERS: Lock<[Option<Shrinker>; SHRINKERS_MAX]> = Lock::new([None; SHRINKERS_MAX]);
/// Objects that each was to be asked for and was not yet (Linux: `nr_deferred`).
static DEFERRED: [AtomicU64; SHRINKERS_MAX] = [const { AtomicU64::new(0) }; SHRINKERS_MAX];

/// Registers a shrinker; `false` if there is no room (Linux: the same name).
pub fn register_shrinker(shrinker: Shrinker) -> bool {
    let mut all = SHRINKERS.lock();
    let Some(index) = all.iter().position(Option::is_none) else { return false };
    DEFERRED[index].store(0, Ordering::Relaxed);
    all[index] = Some(shrinker);
    true
}

/// Removes the shrinker of that name (Linux: the same name).
pub fn unregister_shrinker(name: &str) {
    for slot in SHRINKERS.lock().iter_mut() {
        if slot.is_some_and(|shrinker| shrinker.name == name) {
            *slot = None;
        }
    }
}

/// Asks every shrinker for its share, a `1 << priority`th part; pages freed (Linux: the same name).
pub fn shrink_slab(node: u32, gfp: Gfp, priority: u8) -> u64 {
    shrink_all(node, gfp, priority).1
}

/// [`shrink_slab`]: objects and pages freed.
fn shrink_all(node: u32, gfp: Gfp, priority: u8) -> (u64, u64) {
    let (mut objects, mut pages) = (0, 0);
    for index in 0..SHRINKERS_MAX {
        // They free pages: the table is unlocked.
        let shrinker = SHRINKERS.lock()[index];
        if let Some(shrinker) = shrinker {
            let freed = do_shrink_slab(index, &shrinker, (node, gfp), priority);
            (objects, pages) = (objects + freed, pages + freed * shrinker.pages);
        }
    }
    (objects, pages)
}

/// Asks every shrinker for all that it has, as long as that gives much (Linux: the same name).
pub fn drop_slab() {
    let mut shift = 0;
    while shrink_all(0, Gfp::KERNEL, 0).0 >> shift > 1 {
        shift += 1;
    }
}

/// Objects to ask for, of so many that could be freed (Linux: the first half of `do_shrink_slab`).
fn scan_target(freeable: u64, deferred: u64, seeks: u64, priority: u8) -> u64 {
    let delta = match seeks {
        0 => freeable / 2,
        seeks => (freeable >> priority) * 4 / seeks,
    };
    // What was put off comes in slowly, and never twice over.
    ((deferred >> priority) + delta).min(freeable * 2)
}

fn do_shrink_slab(index: usize, shrinker: &Shrinker, (node, gfp): (u32, Gfp), priority: u8) -> u64 {
    let freeable = (shrinker.count)();
    if freeable == 0 {
        return 0;
    }
    let deferred = DEFERRED[index].swap(0, Ordering::Relaxed);
    let target = scan_target(freeable, deferred, shrinker.seeks, priority);
    let number = u8::try_from(index).unwrap_or(u8::MAX);
    KernelTrace.emit(Event::MmShrinkSlabStart {
        shrinker: number,
        nid: Some(node),
        nr_objects_to_shrink: target,
        gfp_flags: gfp,
        priority,
    });
    let (mut left, mut scanned, mut freed) = (target, 0, 0);
    // A small cache is asked for all of it, or never would be.
    while left >= SHRINK_BATCH || left >= freeable {
        let batch = left.min(SHRINK_BATCH);
        let count = (shrinker.scan)(batch);
        (left, scanned, freed) = (left - batch, scanned + batch, freed + count);
        if left == 0 || count == 0 {
            break;
        }
    }
    Spaces.count_vm_events(VmEvent::SlabsScanned, scanned);
    let put_off = (deferred + target.saturating_sub(deferred >> priority)).saturating_sub(scanned);
    DEFERRED[index].fetch_add(put_off.min(freeable * 2), Ordering::Relaxed);
    KernelTrace.emit(Event::MmShrinkSlabEnd { shrinker: number, nid: Some(node), freed });
    freed
}
