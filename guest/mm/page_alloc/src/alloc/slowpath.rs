//! When no zone has enough: Linux's order of attempts (`__alloc_pages_slowpath`).
//!
//! ```text
//! wake kswapd, min watermark
//! costly or unmovable high order: compact without waiting
//! retry: wake kswapd, reserves if the caller may; stop here unless the caller may sleep
//!        direct reclaim; compaction; stop for NORETRY, and for costly orders without RETRY_MAYFAIL
//!        again while reclaim or compaction gets somewhere
//!        OOM, unless RETRY_MAYFAIL, THISNODE, a costly order or low memory
//! NOFAIL: the reserve, and again for ever
//! ```

use memvisor_abi::{MAX_NR_ZONES, VmEvent};
use mm_core::{Event, Gfp, MaySleep, Migratetype, Order, Pfn, Trace, ZoneKind};

use super::freelist::Block;
use super::{CompactPriority, CompactResult, Machine, OomOutcome, PageAllocator, Reclaim, Request};
use crate::AllocFlags;
use crate::gfp::{Context, TaskFlags, cma, gfp_to_alloc_flags, is_costly, reserve_flags};

/// Linux: `MAX_RECLAIM_RETRIES`.
const MAX_RECLAIM_RETRIES: u32 = 16;
/// Linux: `MAX_COMPACT_RETRIES`.
const MAX_COMPACT_RETRIES: u32 = 16;

/// What the retries of one request know.
struct Progress {
    no_progress_loops: u32,
    compaction_retries: u32,
    priority: CompactPriority,
    compacted: CompactResult,
    reclaimed: u64,
}

/// What comes after a failed round.
enum Next {
    Retry,
    GiveUp,
}

impl<M: Machine> PageAllocator<M> {
    #[cold]
    #[inline(never)]
    pub(super) fn slow_path(&self, context: Context<'_>, request: &Request) -> Option<Block> {
        self.count(VmEvent::AllocSlowpath, 1);
        let mut request = *request;
        // Linux warns once: who can wait is not atomic.
        if request.gfp.contains(Gfp::ATOMIC_CONTEXT | Gfp::DIRECT_RECLAIM) {
            request.gfp -= Gfp::ATOMIC_CONTEXT;
        }
        let token = context.may_sleep.filter(|_| request.gfp.may_sleep());
        let mut flags = gfp_to_alloc_flags(context, request.gfp);
        self.wake_kswapds(&request, flags);
        if let Some(block) = self.get_page_from_freelist(&request, flags) {
            return Some(block);
        }
        let mut progress = Progress {
            no_progress_loops: 0,
            compaction_retries: 0,
            priority: CompactPriority::SyncLight,
            compacted: CompactResult::Skipped,
            reclaimed: 0,
        };
        if let Some(token) = token.filter(|_| is_worth_compacting_first(context, &request)) {
            let early = self.direct_compact(token, &request, flags, CompactPriority::Async, &mut progress);
            if early.is_some() {
                return early;
            }
            // A huge page is nice to have: not worth reclaim, and no more than a quick compaction.
            if is_costly(request.order) && request.gfp.contains(Gfp::NORETRY) {
                if matches!(progress.compacted, CompactResult::Skipped | CompactResult::Deferred) {
                    return self.fail(&request);
                }
                progress.priority = CompactPriority::Async;
            }
        }
        loop {
            // kswapd may have gone back to sleep.
            self.wake_kswapds(&request, flags);
            let reserve = reserve_flags(context, request.gfp);
            if !reserve.is_empty() {
                flags = reserve | cma(request.gfp) | flags & AllocFlags::KSWAPD;
            }
            // Who may use the reserve, or is atomic, may also use other nodes than its policy's.
            let everywhere = !flags.contains(AllocFlags::CPUSET) || !reserve.is_empty();
            let attempt = if everywhere { request.unbound(&self.machine) } else { request };
            if let Some(block) = self.get_page_from_freelist(&attempt, flags) {
                return Some(block);
            }
            let Some(token) = token else { break };
            // The reclaimer itself must not reclaim.
            if context.task.contains(TaskFlags::MEMALLOC) {
                if self.may_loop_for_ever(token, &request)
                    && let Some(block) = self.last_resort(&request, AllocFlags::HARDER)
                {
                    return Some(block);
                }
                if request.gfp.contains(Gfp::NOFAIL) {
                    continue;
                }
                break;
            }
            if let Some(block) = self.direct_reclaim(token, &request, flags, &mut progress) {
                return Some(block);
            }
            let priority = progress.priority;
            if let Some(block) = self.direct_compact(token, &request, flags, priority, &mut progress) {
                return Some(block);
            }
            match self.next_round(context, token, &request, flags, &mut progress) {
                Ok(block) => return Some(block),
                Err(Next::Retry) => {}
                Err(Next::GiveUp) if request.gfp.contains(Gfp::NOFAIL) => {
                    if let Some(block) = self.last_resort(&request, AllocFlags::HARDER) {
                        return Some(block);
                    }
                    self.machine.reclaim().throttle(token, &request);
                }
                Err(Next::GiveUp) => break,
            }
        }
        self.fail(&request)
    }

    fn fail(&self, request: &Request) -> Option<Block> {
        self.warn_alloc(request);
        None
    }

    /// Whether another round makes sense, or the OOM killer helped.
    fn next_round(
        &self,
        context: Context<'_>,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        progress: &mut Progress,
    ) -> Result<Block, Next> {
        let costly = is_costly(request.order);
        if request.gfp.contains(Gfp::NORETRY) || costly && !request.gfp.contains(Gfp::RETRY_MAYFAIL) {
            return Err(Next::GiveUp);
        }
        if self.should_reclaim_retry(token, request, flags, progress) {
            return Err(Next::Retry);
        }
        if progress.reclaimed > 0 && self.should_compact_retry(request, flags, progress) {
            return Err(Next::Retry);
        }
        let (block, progressed) = self.alloc_pages_may_oom(token, request);
        if let Some(block) = block {
            return Ok(block);
        }
        // A victim that used the reserve up, or may not use it, stops here so that it can die.
        if context.task.contains(TaskFlags::OOM_VICTIM)
            && (flags.contains(AllocFlags::OOM) || request.gfp.contains(Gfp::NOMEMALLOC))
        {
            return Err(Next::GiveUp);
        }
        if progressed {
            progress.no_progress_loops = 0;
            return Err(Next::Retry);
        }
        Err(Next::GiveUp)
    }

    /// Linux: `wake_all_kswapds`: once a node.
    fn wake_kswapds(&self, request: &Request, flags: AllocFlags) {
        if !flags.contains(AllocFlags::KSWAPD) {
            return;
        }
        let mut last = None;
        let mut woken = 0;
        for zone in request.zones(&self.machine) {
            let node = zone / MAX_NR_ZONES;
            let managed = self.machine.glances().get(zone).is_some_and(|glance| glance.managed_pages() > 0);
            if managed && last != Some(node) {
                self.machine.reclaim().wake_kswapd(zone, request);
                last = Some(node);
                woken += 1;
            }
        }
        self.count(VmEvent::KswapdWake, woken);
    }

    /// Linux: `__alloc_pages_direct_reclaim`.
    fn direct_reclaim(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        progress: &mut Progress,
    ) -> Option<Block> {
        self.count(allocstall(request.highest), 1);
        progress.reclaimed = self.machine.reclaim().direct_reclaim(token, request);
        if progress.reclaimed == 0 {
            return None;
        }
        if let Some(block) = self.get_page_from_freelist(request, flags) {
            return Some(block);
        }
        // What was freed may sit on CPUs' lists, or in the highatomic reserve.
        self.unreserve_highatomic(request, false);
        self.drain_all_pages();
        self.get_page_from_freelist(request, flags)
    }

    /// Linux: `__alloc_pages_direct_compact`.
    fn direct_compact(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
        progress: &mut Progress,
    ) -> Option<Block> {
        if request.order == Order::ZERO {
            return None;
        }
        let map = self.machine.map();
        let &Request { gfp, order, .. } = request;
        map.emit(Event::DirectCompact { gfp, order, priority: priority as u8 });
        let block = self.compact_and_take(token, request, flags, priority, progress);
        map.emit(Event::DirectCompactRet {
            pfn: block.map(|block| block.pfn),
            result: progress.compacted.number(),
        });
        block
    }

    fn compact_and_take(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        priority: CompactPriority,
        progress: &mut Progress,
    ) -> Option<Block> {
        progress.compacted = self.machine.reclaim().compact(token, request, flags, priority);
        if progress.compacted == CompactResult::Skipped {
            return None;
        }
        self.count(VmEvent::CompactStall, 1);
        let block = self.get_page_from_freelist(request, flags);
        if let Some(block) = block {
            self.note_compaction_success(block.pfn, request.order);
        }
        self.count(if block.is_some() { VmEvent::CompactSuccess } else { VmEvent::CompactFail }, 1);
        block
    }

    /// Whether reclaim can still make enough free (Linux: `should_reclaim_retry`).
    fn should_reclaim_retry(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        progress: &mut Progress,
    ) -> bool {
        if progress.reclaimed > 0 && !is_costly(request.order) {
            progress.no_progress_loops = 0;
        } else {
            progress.no_progress_loops += 1;
        }
        if progress.no_progress_loops > MAX_RECLAIM_RETRIES {
            return self.unreserve_highatomic(request, true);
        }
        let mark = (flags - (AllocFlags::WMARK_LOW | AllocFlags::WMARK_HIGH)) | AllocFlags::WMARK_MIN;
        let enough = request.zones(&self.machine).any(|zone| {
            let reclaimable = self.machine.reclaim().reclaimable_pages(zone);
            self.machine.glances().get(zone).is_some_and(|glance| {
                let free = glance.free_pages().saturating_add(reclaimable);
                glance.watermark_ok(request.order, glance.mark(mark), request.highest, flags, free)
            })
        });
        self.machine.reclaim().throttle(token, request);
        enough
    }

    /// Linux: `should_compact_retry`.
    fn should_compact_retry(&self, request: &Request, flags: AllocFlags, progress: &mut Progress) -> bool {
        if request.order == Order::ZERO {
            return false;
        }
        let costly = is_costly(request.order);
        match progress.compacted {
            CompactResult::Success => progress.compaction_retries += 1,
            // Too little free memory to move pages into: reclaim makes some.
            CompactResult::Skipped => {
                return self.machine.reclaim().is_compaction_suitable(request, flags);
            }
            _ => {}
        }
        let may_repeat =
            progress.compacted == CompactResult::Success || progress.compacted == CompactResult::Contended;
        let retries = if costly { MAX_COMPACT_RETRIES / 4 } else { MAX_COMPACT_RETRIES };
        if may_repeat && progress.compaction_retries <= retries && progress.compaction_retries > 0 {
            return true;
        }
        let hardest = if costly { CompactPriority::SyncLight } else { CompactPriority::SyncFull };
        if progress.priority <= hardest {
            return false;
        }
        progress.priority = match progress.priority {
            CompactPriority::Async => CompactPriority::SyncLight,
            _ => CompactPriority::SyncFull,
        };
        progress.compaction_retries = 0;
        true
    }

    /// Linux: `__alloc_pages_may_oom`. The flag says whether another round makes sense.
    fn alloc_pages_may_oom(&self, token: &MaySleep<'_>, request: &Request) -> (Option<Block>, bool) {
        // A parallel kill may have freed much: only the high mark shows that.
        let mut quick = *request;
        quick.gfp = (quick.gfp | Gfp::HARDWALL) - Gfp::DIRECT_RECLAIM;
        let block = self.get_page_from_freelist(&quick, AllocFlags::WMARK_HIGH | AllocFlags::CPUSET);
        if block.is_some() {
            return (block, true);
        }
        let nofail = request.gfp.contains(Gfp::NOFAIL);
        let pointless = is_costly(request.order)
            || request.gfp.intersects(Gfp::RETRY_MAYFAIL | Gfp::THISNODE)
            || request.highest < ZoneKind::Normal;
        if pointless {
            return (None, false);
        }
        self.count(VmEvent::OomKill, 1);
        match self.machine.reclaim().out_of_memory(token, request) {
            OomOutcome::Busy => {
                self.machine.reclaim().throttle(token, request);
                (None, true)
            }
            OomOutcome::NoVictim if !nofail => (None, false),
            OomOutcome::Progress | OomOutcome::NoVictim => {
                let block = if nofail { self.last_resort(request, AllocFlags::NO_WATERMARKS) } else { None };
                (block, true)
            }
        }
    }

    /// Linux: `__alloc_pages_cpuset_fallback`.
    fn last_resort(&self, request: &Request, flags: AllocFlags) -> Option<Block> {
        let bound = self.get_page_from_freelist(request, flags | AllocFlags::CPUSET);
        bound.or_else(|| self.get_page_from_freelist(&request.unbound(&self.machine), flags))
    }

    fn may_loop_for_ever(&self, token: &MaySleep<'_>, request: &Request) -> bool {
        let nofail = request.gfp.contains(Gfp::NOFAIL);
        if nofail {
            self.machine.reclaim().throttle(token, request);
        }
        nofail
    }

    /// After a high-order atomic request was served from what ordinary ones may use, keeps that pageblock for the
    /// next one (Linux: `reserve_highatomic_pageblock`).
    pub(super) fn reserve_highatomic(&self, request: &Request, zone: usize, flags: AllocFlags, pfn: Pfn) {
        if request.order > Order::ZERO && flags.contains(AllocFlags::HARDER) {
            let map = self.machine.map();
            self.with_zone(zone, |zone| zone.reserve_highatomic_pageblock(map, pfn));
        }
    }

    /// Gives pageblocks of the highatomic reserve back, all but one a zone unless `force` (Linux:
    /// `unreserve_highatomic_pageblock`). Whether there was one.
    fn unreserve_highatomic(&self, request: &Request, force: bool) -> bool {
        let map = self.machine.map();
        request.zones(&self.machine).any(|zone| {
            let to = request.migratetype;
            self.with_zone(zone, |zone| zone.unreserve_highatomic_pageblock(map, to, force))
        })
    }
}

/// Whether compaction comes before reclaim (Linux: `costly_order || (order > 0 && migratetype != MOVABLE)`): a
/// costly block is rarely won by reclaim alone, and other types should not spoil more pageblocks.
fn is_worth_compacting_first(context: Context<'_>, request: &Request) -> bool {
    let wanted = is_costly(request.order)
        || request.order > Order::ZERO && request.migratetype != Migratetype::Movable;
    wanted && reserve_flags(context, request.gfp).is_empty()
}

/// Linux: `ALLOCSTALL_*` of the highest zone.
const fn allocstall(highest: ZoneKind) -> VmEvent {
    match highest {
        ZoneKind::Dma => VmEvent::AllocstallDma,
        ZoneKind::Dma32 => VmEvent::AllocstallDma32,
        ZoneKind::Normal => VmEvent::AllocstallNormal,
        ZoneKind::HighMem => VmEvent::AllocstallHigh,
        ZoneKind::Movable => VmEvent::AllocstallMovable,
    }
}
