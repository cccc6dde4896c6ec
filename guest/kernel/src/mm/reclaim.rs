//! What the page allocator's slow path can ask for: registered shrinkers, and a clean failure behind them.

use memvisor_abi::MAX_NR_ZONES;
use mm_core::MaySleep;
use mm_page_alloc::{AllocFlags, CompactPriority, CompactResult, OomOutcome, Reclaim, Request};

use crate::mm::kcompactd;
use crate::mm::page_alloc::PAGES;
use crate::println;
use crate::sync::Lock;

/// A cache that can give pages back (Linux: `struct shrinker`).
#[derive(Clone, Copy)]
pub struct Shrinker {
    /// Name, for messages.
    pub name: &'static str,
    /// Pages that it could free.
    pub count: fn() -> u64,
    /// Frees up to that many pages; how many it freed.
    pub scan: fn(u64) -> u64,
}

const SHRINKERS_MAX: usize = 8;
static SHRINKERS: Lock<[Option<Shrinker>; SHRINKERS_MAX]> = Lock::new([None; SHRINKERS_MAX]);

/// Pages asked of each shrinker in one reclaim (Linux: `SWAP_CLUSTER_MAX`).
const BATCH: u64 = 32;

/// Registers a shrinker; `false` if there is no room (Linux: `register_shrinker`).
pub fn register_shrinker(shrinker: Shrinker) -> bool {
    let mut all = SHRINKERS.lock();
    let slot = all.iter_mut().find(|slot| slot.is_none());
    slot.map(|slot| *slot = Some(shrinker)).is_some()
}

/// Removes the shrinker of that name (Linux: `unregister_shrinker`).
pub fn unregister_shrinker(name: &str) {
    for slot in SHRINKERS.lock().iter_mut() {
        if slot.is_some_and(|shrinker| shrinker.name == name) {
            *slot = None;
        }
    }
}

/// Calls `f` for each shrinker, with the table unlocked: shrinkers free pages.
fn for_each_shrinker(mut f: impl FnMut(Shrinker)) {
    for index in 0..SHRINKERS_MAX {
        let shrinker = SHRINKERS.lock()[index];
        if let Some(shrinker) = shrinker {
            f(shrinker);
        }
    }
}

/// Reclaim of this kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelReclaim;

impl Reclaim for KernelReclaim {
    fn wake_kswapd(&self, zone: usize, request: &Request) {
        if let Ok(node) = u32::try_from(zone / MAX_NR_ZONES) {
            kcompactd::wake(node, request.order, request.highest);
        }
    }

    fn direct_reclaim(&self, _: &MaySleep<'_>, request: &Request) -> u64 {
        let mut freed = 0;
        let wanted = request.order.pages().max(BATCH);
        for_each_shrinker(|shrinker| {
            if freed < wanted {
                freed += (shrinker.scan)(wanted - freed);
            }
        });
        freed
    }

    fn reclaimable_pages(&self, _: usize) -> u64 {
        let mut pages = 0;
        for_each_shrinker(|shrinker| pages += (shrinker.count)());
        pages
    }

    fn compact(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
    ) -> CompactResult {
        PAGES.try_to_compact_pages(token, request, flags, priority)
    }

    fn is_compaction_suitable(&self, request: &Request, flags: AllocFlags) -> bool {
        PAGES.is_compaction_zonelist_suitable(request, flags, |zone| self.reclaimable_pages(zone))
    }

    fn out_of_memory(&self, _: &MaySleep<'_>, request: &Request) -> OomOutcome {
        println!(
            "out of memory: order {}, mode {:#x}: there is nobody to kill",
            request.order.as_u8(),
            request.gfp.bits()
        );
        OomOutcome::NoVictim
    }

    fn throttle(&self, _: &MaySleep<'_>, _: &Request) {
        core::hint::spin_loop();
    }
}
