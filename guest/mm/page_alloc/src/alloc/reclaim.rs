//! What the slow path asks others for: kswapd, direct reclaim, compaction, the OOM killer.

use mm_core::MaySleep;

use super::Request;
use crate::AllocFlags;

/// How hard compaction tries (Linux: `enum compact_priority`). A lower number is harder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompactPriority {
    /// Wait for everything and skip nothing (Linux: `COMPACT_PRIO_SYNC_FULL`, `MIN_COMPACT_PRIORITY`).
    SyncFull = 0,
    /// Wait, but not for writes (Linux: `COMPACT_PRIO_SYNC_LIGHT`, `DEF_COMPACT_PRIORITY`).
    SyncLight = 1,
    /// Never wait (Linux: `COMPACT_PRIO_ASYNC`, `INIT_COMPACT_PRIORITY`).
    Async = 2,
}

/// How a compaction ended (Linux: `enum compact_result`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactResult {
    /// No zone was worth it: too few free pages to migrate into, or nothing fragmented.
    Skipped,
    /// Recent failures: not tried now.
    Deferred,
    /// The whole zone was scanned, in vain.
    Complete,
    /// A part was skipped, and the rest was in vain.
    PartialSkipped,
    /// Given up because of a lock or a signal.
    Contended,
    /// A block of the order should be free now.
    Success,
}

impl CompactResult {
    /// Linux's number (`enum compact_result`), as events have it.
    pub const fn status(self) -> u8 {
        match self {
            CompactResult::Skipped => 1,
            CompactResult::Deferred => 2,
            CompactResult::Complete => 5,
            CompactResult::PartialSkipped => 6,
            CompactResult::Contended => 7,
            CompactResult::Success => 8,
        }
    }

    /// Gave up before it was through, so that trying harder may help (Linux: `compaction_withdrawn`).
    pub const fn is_withdrawn(self) -> bool {
        matches!(self, CompactResult::Deferred | CompactResult::Contended | CompactResult::PartialSkipped)
    }
}

/// What the OOM killer did (Linux: `out_of_memory`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomOutcome {
    /// A victim was chosen or is dying: memory will come.
    Progress,
    /// Somebody else is at it: try again in a while (Linux: `mutex_trylock(&oom_lock)` failed).
    Busy,
    /// Nobody can be killed: the allocation fails.
    NoVictim,
}

/// Reclaims memory for the page allocator. Every method that may sleep takes the token. None is called with a lock
/// held or inside CPU-local data.
pub trait Reclaim {
    /// Wakes the reclaimer of a zone's node; returns at once (Linux: `wakeup_kswapd`).
    fn wake_kswapd(&self, zone: usize, request: &Request);

    /// Frees pages for the request; how many (Linux: `try_to_free_pages`).
    fn direct_reclaim(&self, token: &MaySleep<'_>, request: &Request) -> u64;

    /// Pages of a zone that reclaim could free (Linux: `zone_reclaimable_pages`).
    fn reclaimable_pages(&self, zone: usize) -> u64;

    /// Makes a block of the request's order free by moving pages (Linux: `try_to_compact_pages`).
    fn compact(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
    ) -> CompactResult;

    /// Whether compaction could succeed if there were more free pages (Linux:
    /// `compaction_zonelist_suitable`).
    fn is_compaction_suitable(&self, request: &Request, flags: AllocFlags) -> bool;

    /// Frees pages of one zone only, before remote nodes are used (Linux: `node_reclaim`); off by default.
    /// `true` if the zone is worth another look.
    fn node_reclaim(&self, _zone: usize, _request: &Request) -> bool {
        false
    }

    /// Last resort (Linux: `out_of_memory`).
    fn out_of_memory(&self, token: &MaySleep<'_>, request: &Request) -> OomOutcome;

    /// Whether the caller's process was chosen to die since it began to allocate (Linux: `tsk_is_oom_victim`).
    fn is_oom_victim(&self) -> bool {
        false
    }

    /// Lets others run before the next round (Linux: `cond_resched`, `schedule_timeout_uninterruptible`).
    fn throttle(&self, token: &MaySleep<'_>, request: &Request);
}

/// A machine where nothing can be reclaimed: requests fail when free memory ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReclaim;

impl Reclaim for NoReclaim {
    fn wake_kswapd(&self, _: usize, _: &Request) {}

    fn direct_reclaim(&self, _: &MaySleep<'_>, _: &Request) -> u64 {
        0
    }

    fn reclaimable_pages(&self, _: usize) -> u64 {
        0
    }

    fn compact(&self, _: &MaySleep<'_>, _: &Request, _: AllocFlags, _: CompactPriority) -> CompactResult {
        CompactResult::Skipped
    }

    fn is_compaction_suitable(&self, _: &Request, _: AllocFlags) -> bool {
        false
    }

    fn out_of_memory(&self, _: &MaySleep<'_>, _: &Request) -> OomOutcome {
        OomOutcome::NoVictim
    }

    fn throttle(&self, _: &MaySleep<'_>, _: &Request) {}
}
