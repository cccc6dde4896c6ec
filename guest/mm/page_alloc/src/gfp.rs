//! What gfp flags mean to the page allocator: which combinations are refused, which zone and type they name, and
//! which rights the first and the later attempts have (Linux 6.1: include/linux/gfp.h, mm/page_alloc.c).

use core::fmt;

use bitflags::bitflags;
use mm_core::{Gfp, MaySleep, Migratetype, Order, ZoneKind};

use crate::AllocFlags;

bitflags! {
    /// State of a task that changes what its allocations may do (Linux: `current->flags`, `tsk_is_oom_victim`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct TaskFlags: u32 {
        /// It reclaims: its allocations use the reserve and never reclaim (Linux: `PF_MEMALLOC`).
        const MEMALLOC = 0x1;
        /// Inside `memalloc_noio_save`: no I/O, no file system.
        const MEMALLOC_NOIO = 0x2;
        /// Inside `memalloc_nofs_save`: no file system.
        const MEMALLOC_NOFS = 0x4;
        /// The OOM killer chose it (Linux: `tsk_is_oom_victim`).
        const OOM_VICTIM = 0x8;
        /// A real-time task (Linux: `rt_task`).
        const REALTIME = 0x10;
        /// The reclaimer of a node (Linux: `PF_KSWAPD`).
        const KSWAPD = 0x20;
    }
}

/// Who allocates.
#[derive(Clone, Copy, Debug)]
pub struct Context<'t> {
    /// The right to sleep, in task context.
    pub may_sleep: Option<&'t MaySleep<'t>>,
    /// State of the task; empty in interrupts.
    pub task: TaskFlags,
}

impl<'t> Context<'t> {
    /// Interrupts, locks held, CPU-local sections: nothing may sleep.
    pub const ATOMIC: Context<'static> = Context { may_sleep: None, task: TaskFlags::empty() };

    /// An ordinary task.
    pub const fn task(may_sleep: &'t MaySleep<'t>) -> Context<'t> {
        Context { may_sleep: Some(may_sleep), task: TaskFlags::empty() }
    }

    /// The flags that hold in the task's scopes (Linux: `current_gfp_context`).
    #[inline]
    pub fn scoped(self, gfp: Gfp) -> Gfp {
        if self.task.is_empty() {
            gfp
        } else if self.task.contains(TaskFlags::MEMALLOC_NOIO) {
            gfp - (Gfp::IO | Gfp::FS)
        } else if self.task.contains(TaskFlags::MEMALLOC_NOFS) {
            gfp - Gfp::FS
        } else {
            gfp
        }
    }
}

/// A request that is refused before any zone is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GfpError {
    /// Bits that are no flag (Linux warns in slab: `GFP_SLAB_BUG_MASK`).
    Unknown {
        /// Those bits.
        bits: u32,
    },
    /// More than one of DMA, DMA32 and HIGHMEM (Linux: `GFP_ZONE_BAD`).
    Zones {
        /// All flags.
        gfp: Gfp,
    },
    /// Both MOVABLE and RECLAIMABLE, which name two types (Linux: `VM_WARN_ON` in `gfp_migratetype`).
    Mobility {
        /// All flags.
        gfp: Gfp,
    },
    /// DIRECT_RECLAIM where nothing may sleep (Linux: `might_sleep_if`, a bug report).
    /// Differs from Linux: the request fails, because a sleep there would end the machine.
    MustNotSleep {
        /// All flags.
        gfp: Gfp,
    },
}

impl fmt::Display for GfpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GfpError::Unknown { bits } => write!(f, "gfp mask has undefined bits {bits:#x}"),
            GfpError::Zones { gfp } => {
                write!(f, "gfp mask {:#x} names more than one of DMA, DMA32 and HIGHMEM", gfp.bits())
            }
            GfpError::Mobility { gfp } => {
                write!(f, "gfp mask {:#x} is both movable and reclaimable", gfp.bits())
            }
            GfpError::MustNotSleep { gfp } => {
                write!(f, "gfp mask {:#x} may sleep, its caller must not", gfp.bits())
            }
        }
    }
}

const ZONES: u32 = Gfp::DMA_ZONE.bits() | Gfp::HIGHMEM.bits() | Gfp::DMA32_ZONE.bits();
const MOBILITY: Gfp = Gfp::MOVABLE.union(Gfp::RECLAIMABLE);

/// Refuses what Linux forbids.
///
/// ```
/// use mm_core::Gfp;
/// use mm_page_alloc::{Context, GfpError, check_gfp};
/// assert!(check_gfp(Context::ATOMIC, Gfp::ATOMIC).is_ok());
/// assert!(matches!(check_gfp(Context::ATOMIC, Gfp::KERNEL), Err(GfpError::MustNotSleep { .. })));
/// ```
///
/// # Errors
/// [`GfpError`].
#[inline]
pub fn check_gfp(context: Context<'_>, gfp: Gfp) -> Result<(), GfpError> {
    let zones = gfp.bits() & ZONES;
    // A power of two or nothing.
    let wrong = (zones & zones.wrapping_sub(1) != 0)
        | (gfp.bits() & !Gfp::all().bits() != 0)
        | gfp.contains(MOBILITY)
        | (gfp.may_sleep() && context.may_sleep.is_none());
    if wrong { Err(why(context, gfp)) } else { Ok(()) }
}

#[cold]
fn why(context: Context<'_>, gfp: Gfp) -> GfpError {
    let bits = gfp.bits() & !Gfp::all().bits();
    if bits != 0 {
        GfpError::Unknown { bits }
    } else if gfp.highest_zone().is_none() {
        GfpError::Zones { gfp }
    } else if gfp.contains(MOBILITY) {
        GfpError::Mobility { gfp }
    } else {
        debug_assert!(context.may_sleep.is_none(), "nothing is wrong with {gfp:?}");
        GfpError::MustNotSleep { gfp }
    }
}

/// The highest zone of flags that [`check_gfp`] accepted (Linux: `gfp_zone`). A table, as in Linux: one load.
#[inline]
pub(crate) fn highest_zone(gfp: Gfp) -> ZoneKind {
    const TABLE: [ZoneKind; 16] = {
        let mut table = [ZoneKind::Normal; 16];
        let mut bits = 0;
        while bits < 16 {
            if let Some(kind) = Gfp::from_bits_retain(bits).highest_zone() {
                table[bits as usize] = kind;
            }
            bits += 1;
        }
        table
    };
    TABLE[(gfp.bits() & 0xf) as usize]
}

/// Highest zone and type of a request that [`check_gfp`] accepts and that needs nothing but a block, zeroed or not: no
/// compound page, any node. A table again, over the flags that name zones and types.
#[inline]
pub(crate) fn plain(context: Context<'_>, gfp: Gfp) -> Option<(ZoneKind, Migratetype)> {
    const MASK: u32 = ZONES | MOBILITY.bits();
    const PLAIN: Gfp = Gfp::all().difference(Gfp::COMP).difference(Gfp::THISNODE);
    const TABLE: [Option<(ZoneKind, Migratetype)>; MASK as usize + 1] = {
        let mut table = [None; MASK as usize + 1];
        let mut bits = 0;
        while bits <= MASK {
            let gfp = Gfp::from_bits_retain(bits);
            let zones = bits & ZONES;
            if zones & zones.wrapping_sub(1) == 0
                && !gfp.contains(MOBILITY)
                && let Some(highest) = gfp.highest_zone()
            {
                table[bits as usize] = Some((highest, migratetype(gfp)));
            }
            bits += 1;
        }
        table
    };
    if gfp.bits() & !PLAIN.bits() != 0 || gfp.may_sleep() && context.may_sleep.is_none() {
        return None;
    }
    TABLE[(gfp.bits() & MASK) as usize]
}

/// The type of block asked for (Linux: `gfp_migratetype`).
#[inline]
pub(crate) const fn migratetype(gfp: Gfp) -> Migratetype {
    if gfp.contains(Gfp::MOVABLE) {
        Migratetype::Movable
    } else if gfp.contains(Gfp::RECLAIMABLE) {
        Migratetype::Reclaimable
    } else {
        Migratetype::Unmovable
    }
}

/// Movable requests may use contiguous areas (Linux: `gfp_to_alloc_flags_cma`).
#[inline]
pub(crate) fn cma(gfp: Gfp) -> AllocFlags {
    if gfp.contains(Gfp::MOVABLE) { AllocFlags::CMA } else { AllocFlags::empty() }
}

/// Rights of the first attempt of the slow path (Linux: `gfp_to_alloc_flags`).
pub fn gfp_to_alloc_flags(context: Context<'_>, gfp: Gfp) -> AllocFlags {
    let mut flags = AllocFlags::WMARK_MIN | AllocFlags::CPUSET | cma(gfp);
    flags.set(AllocFlags::HIGH, gfp.contains(Gfp::HIGH));
    flags.set(AllocFlags::KSWAPD, gfp.contains(Gfp::KSWAPD_RECLAIM));
    if gfp.contains(Gfp::ATOMIC_CONTEXT) {
        // Not worth trying harder for what the reserve is closed to, if it can also fail.
        flags.set(AllocFlags::HARDER, !gfp.contains(Gfp::NOMEMALLOC));
        flags.remove(AllocFlags::CPUSET);
    } else if context.may_sleep.is_some() && context.task.contains(TaskFlags::REALTIME) {
        flags.insert(AllocFlags::HARDER);
    }
    flags
}

/// How much of the reserve is open (Linux: `__gfp_pfmemalloc_flags`): all, a part, or nothing.
pub fn reserve_flags(context: Context<'_>, gfp: Gfp) -> AllocFlags {
    if gfp.contains(Gfp::NOMEMALLOC) {
        AllocFlags::empty()
    } else if gfp.contains(Gfp::MEMALLOC) || context.task.contains(TaskFlags::MEMALLOC) {
        AllocFlags::NO_WATERMARKS
    } else if context.task.contains(TaskFlags::OOM_VICTIM) {
        AllocFlags::OOM
    } else {
        AllocFlags::empty()
    }
}

/// Orders above this are costly: retried less, and no reason to kill (Linux: `PAGE_ALLOC_COSTLY_ORDER`).
pub const COSTLY_ORDER: u8 = 3;

/// Whether `order` is costly.
#[inline]
pub const fn is_costly(order: Order) -> bool {
    order.as_u8() > COSTLY_ORDER
}

/// Names of the flags as Linux prints them (`%pGg`).
#[derive(Clone, Copy, Debug)]
pub struct GfpNames(pub Gfp);

impl fmt::Display for GfpNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Whole names first, so that what they cover is not named again (Linux: `gfpflag_names`).
        const NAMES: [(Gfp, &str); 28] = [
            (Gfp::HIGHUSER_MOVABLE, "GFP_HIGHUSER_MOVABLE"),
            (Gfp::HIGHUSER, "GFP_HIGHUSER"),
            (Gfp::USER, "GFP_USER"),
            (Gfp::KERNEL_ACCOUNT, "GFP_KERNEL_ACCOUNT"),
            (Gfp::KERNEL, "GFP_KERNEL"),
            (Gfp::NOFS, "GFP_NOFS"),
            (Gfp::ATOMIC, "GFP_ATOMIC"),
            (Gfp::NOIO, "GFP_NOIO"),
            (Gfp::NOWAIT, "GFP_NOWAIT"),
            (Gfp::DMA, "GFP_DMA"),
            (Gfp::HIGHMEM, "__GFP_HIGHMEM"),
            (Gfp::DMA32, "GFP_DMA32"),
            (Gfp::HIGH, "__GFP_HIGH"),
            (Gfp::ATOMIC_CONTEXT, "__GFP_ATOMIC"),
            (Gfp::IO, "__GFP_IO"),
            (Gfp::FS, "__GFP_FS"),
            (Gfp::NOWARN, "__GFP_NOWARN"),
            (Gfp::RETRY_MAYFAIL, "__GFP_RETRY_MAYFAIL"),
            (Gfp::NOFAIL, "__GFP_NOFAIL"),
            (Gfp::NORETRY, "__GFP_NORETRY"),
            (Gfp::COMP, "__GFP_COMP"),
            (Gfp::ZERO, "__GFP_ZERO"),
            (Gfp::NOMEMALLOC, "__GFP_NOMEMALLOC"),
            (Gfp::MEMALLOC, "__GFP_MEMALLOC"),
            (Gfp::HARDWALL, "__GFP_HARDWALL"),
            (Gfp::THISNODE, "__GFP_THISNODE"),
            (Gfp::RECLAIMABLE, "__GFP_RECLAIMABLE"),
            (Gfp::MOVABLE, "__GFP_MOVABLE"),
        ];
        let mut rest = self.0;
        let mut bar = "";
        for (flags, name) in NAMES {
            if rest.contains(flags) {
                write!(f, "{bar}{name}")?;
                rest -= flags;
                bar = "|";
            }
        }
        if !rest.is_empty() || bar.is_empty() {
            write!(f, "{bar}{:#x}", rest.bits())?;
        }
        Ok(())
    }
}
