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

use super::freelist::{Block, node_of};
use super::{CompactPriority, CompactResult, Machine, OomOutcome, PageAllocator, Reclaim, Request, zone_id};
use crate::AllocFlags;
use crate::gfp::{Context, TaskFlags, cma, gfp_to_alloc_flags, is_costly, reserve_flags};

/// Linux: `MAX_RECLAIM_RETRIES`.
const MAX_RECLAIM_RETRIES: u32 = 16;
/// Linux: `MAX_COMPACT_RETRIES`.
const MAX_COMPACT_RETRIES: u32 = 16;

/// What the retries of one request know.
struct Progress {
    /// Passes through the loop.
    rounds: u32,
    no_progress_loops: u32,
    compaction_retries: u32,
    priority: CompactPriority,
    compacted: CompactResult,
    reclaimed: u64,
}

/// What comes after a failed round.
enum Next {
    Retry(RetryReason),
    GiveUp,
}

/// Why another round is made, as the event `alloc_pages_retry` has it.
#[derive(Clone, Copy)]
enum RetryReason {
    Reclaim = 1,
    Compaction = 2,
    OomKill = 3,
    NoFail = 4,
}

impl<M: Machine> PageAllocator<M> {
    #[cold]
    #[inline(never)]
    pub(super) fn slow_path(&self, context: Context<'_>, request: &Request) -> Option<Block> {
        self.count(VmEvent::AllocSlowpath, 1);
        let map = self.machine.map();
        map.emit(Event::AllocPagesSlowpath { gfp: request.gfp, order: request.order });
        let mut progress = Progress {
            rounds: 0,
            no_progress_loops: 0,
            compaction_retries: 0,
            priority: CompactPriority::SyncLight,
            compacted: CompactResult::Skipped,
            reclaimed: 0,
        };
        let block = self.try_harder(context, request, &mut progress);
        map.emit(Event::AllocPagesSlowpathRet {
            pfn: block.as_ref().map(|block| block.pfn),
            rounds: progress.rounds.into(),
        });
        block
    }

    fn try_harder(
        &self,
        mut context: Context<'_>,
        request: &Request,
        progress: &mut Progress,
    ) -> Option<Block> {
        let map = self.machine.map();
        let mut request = *request;
        // Linux warns once: who can wait is not atomic.
        if request.gfp.contains(Gfp::ATOMIC_CONTEXT | Gfp::DIRECT_RECLAIM) {
            request.gfp -= Gfp::ATOMIC_CONTEXT;
        }
        let token = context.may_sleep.filter(|_| request.gfp.may_sleep());
        let mut flags = gfp_to_alloc_flags(context, request.gfp);
        map.emit(Event::GfpToAllocFlags { gfp: request.gfp, alloc_flags: flags.bits() });
        self.wake_kswapds(&request, flags);
        if let Some(block) = self.get_page_from_freelist(&request, flags) {
            return Some(block);
        }
        if let Some(token) = token.filter(|_| is_worth_compacting_first(context, &request)) {
            let early = self.direct_compact(token, &request, flags, CompactPriority::Async, progress);
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
            progress.rounds += 1;
            // Whoever waits here may be chosen to die meanwhile.
            if token.is_some() && self.machine.reclaim().is_oom_victim() {
                context.task.insert(TaskFlags::OOM_VICTIM);
            }
            // kswapd may have gone back to sleep.
            self.wake_kswapds(&request, flags);
            let reserve = reserve_flags(context, request.gfp);
            if !reserve.is_empty() {
                flags = reserve | cma(request.gfp) | flags & AllocFlags::KSWAPD;
                map.emit(Event::GfpToAllocFlags { gfp: request.gfp, alloc_flags: flags.bits() });
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
                    self.tell_retry(progress, RetryReason::NoFail);
                    continue;
                }
                break;
            }
            if let Some(block) = self.direct_reclaim(token, &request, flags, progress) {
                return Some(block);
            }
            let priority = progress.priority;
            if let Some(block) = self.direct_compact(token, &request, flags, priority, progress) {
                return Some(block);
            }
            match self.next_round(context, token, &request, flags, progress) {
                Ok(block) => return Some(block),
                Err(Next::Retry(reason)) => self.tell_retry(progress, reason),
                Err(Next::GiveUp) if request.gfp.contains(Gfp::NOFAIL) => {
                    if let Some(block) = self.last_resort(&request, AllocFlags::HARDER) {
                        return Some(block);
                    }
                    self.tell_retry(progress, RetryReason::NoFail);
                    self.machine.reclaim().throttle(token, &request);
                }
                Err(Next::GiveUp) => break,
            }
        }
        self.fail(&request)
    }

    fn tell_retry(&self, progress: &Progress, reason: RetryReason) {
        self.machine.map().emit(Event::AllocPagesRetry {
            round: progress.rounds.into(),
            reason: reason as u8,
            no_progress_loops: signed(progress.no_progress_loops),
            reclaimed: progress.reclaimed,
        });
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
            return Err(Next::Retry(RetryReason::Reclaim));
        }
        if progress.reclaimed > 0 && self.should_compact_retry(request, flags, progress) {
            return Err(Next::Retry(RetryReason::Compaction));
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
            return Err(Next::Retry(RetryReason::OomKill));
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
                self.machine.map().emit(Event::MmVmscanWakeupKswapd {
                    nid: Some(node_of(zone)),
                    zid: request.highest,
                    order: request.order,
                    gfp_flags: request.gfp,
                });
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
        let map = self.machine.map();
        let &Request { gfp, order, .. } = request;
        map.emit(Event::DirectReclaim { gfp, order });
        let block = self.reclaim_and_take(token, request, flags, progress);
        map.emit(Event::DirectReclaimRet {
            pfn: block.as_ref().map(|block| block.pfn),
            progress: progress.reclaimed,
        });
        block
    }

    fn reclaim_and_take(
        &self,
        token: &MaySleep<'_>,
        request: &Request,
        flags: AllocFlags,
        progress: &mut Progress,
    ) -> Option<Block> {
        let map = self.machine.map();
        self.count(allocstall(request.highest), 1);
        map.emit(Event::MmVmscanDirectReclaimBegin { order: request.order, gfp_flags: request.gfp });
        progress.reclaimed = self.machine.reclaim().direct_reclaim(token, request);
        map.emit(Event::MmVmscanDirectReclaimEnd { nr_reclaimed: progress.reclaimed });
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
            pfn: block.as_ref().map(|block| block.pfn),
            result: progress.compacted.status(),
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
            let Some(glance) = self.machine.glances().get(zone) else { return false };
            let available = glance.free_pages().saturating_add(reclaimable);
            let min_wmark = glance.mark(mark);
            let ok = glance.watermark_ok(request.order, min_wmark, request.highest, flags, available);
            self.machine.map().emit(Event::ReclaimRetryZone {
                zone: zone_id(zone),
                order: request.order,
                wmark_check: ok,
                no_progress_loops: signed(progress.no_progress_loops),
                reclaimable,
                available,
                min_wmark,
            });
            ok
        });
        self.machine.reclaim().throttle(token, request);
        enough
    }

    /// Linux: `should_compact_retry`.
    fn should_compact_retry(&self, request: &Request, flags: AllocFlags, progress: &mut Progress) -> bool {
        if request.order == Order::ZERO {
            return false;
        }
        let (priority, max_retries) = (progress.priority, max_compact_retries(request));
        let ret = self.compaction_may_help(request, flags, progress);
        self.machine.map().emit(Event::CompactRetry {
            order: request.order,
            priority: priority as u8,
            result: progress.compacted.status(),
            ret,
            retries: signed(progress.compaction_retries),
            max_retries: signed(max_retries),
        });
        ret
    }

    fn compaction_may_help(&self, request: &Request, flags: AllocFlags, progress: &mut Progress) -> bool {
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
        let retries = max_compact_retries(request);
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
        let map = self.machine.map();
        map.emit(Event::OutOfMemory { gfp: request.gfp, order: request.order });
        let outcome = self.machine.reclaim().out_of_memory(token, request);
        map.emit(Event::OutOfMemoryRet { progress: outcome != OomOutcome::NoVictim });
        match outcome {
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

/// Rounds of compaction that seem to help before it has to try harder.
const fn max_compact_retries(request: &Request) -> u32 {
    if is_costly(request.order) { MAX_COMPACT_RETRIES / 4 } else { MAX_COMPACT_RETRIES }
}

/// A count as Linux's tracepoints have it.
fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
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
