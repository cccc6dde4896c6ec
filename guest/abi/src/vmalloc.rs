//! Areas of the vmalloc range, and the windows through which single frames are mapped.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Ends every list and stands for an empty subtree among [`VmArea`]s.
pub const VM_AREA_NONE: u32 = u32::MAX;
/// [`VmArea`]s in a frame. The area with number `n` is element `n % 32` of frame `n / 32` of
/// [`crate::Root::vm_areas`], a table of frame numbers (`u64`).
pub const VM_AREAS_PER_FRAME: u64 = 32;
/// Bytes of a kernel thread's stack, and its alignment (Linux: `THREAD_SIZE`).
pub const THREAD_SIZE: u64 = 16384;

/// A range of the vmalloc space: free, in use, or unmapped and waiting for a TLB flush
/// (Linux: `struct vmap_area` with its `struct vm_struct`).
///
/// Every address of the space is in exactly one area that is not [`VmState::Unused`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmArea {
    /// First address.
    pub start: u64,
    /// One past the last address, the guard page included.
    pub end: u64,
    /// Free areas: the largest length in bytes in the subtree below this node (Linux: `subtree_max_size`).
    pub subtree_max: u64,
    /// Pages that are mapped, from `start` on, in a busy area.
    pub nr_pages: u64,
    /// Physical address that an ioremap area maps, else 0.
    pub phys: u64,
    /// Child with lower addresses, an area number or [`VM_AREA_NONE`].
    pub left: u32,
    /// Child with higher addresses, or [`VM_AREA_NONE`].
    pub right: u32,
    /// Priority of the node in its tree: no child has a higher one.
    pub priority: u32,
    /// Next area of the list of lazy or unused ones, or [`VM_AREA_NONE`].
    pub next: u32,
    /// See [`VmState`].
    pub state: u32,
    /// See [`VmFlags`].
    pub flags: u32,
    /// PAT index of the mapping's cache mode.
    pub cache: u32,
    /// Line of the caller.
    pub caller_line: u32,
    /// End of the path of the caller's source file, padded with NUL.
    pub caller_file: [u8; 32],
    /// Always 0.
    pub reserved: [u64; 3],
}
const _: () = assert!(
    size_of::<VmArea>() as u64 * VM_AREAS_PER_FRAME == crate::PAGE_SIZE
        && core::mem::offset_of!(VmArea, left) == 40
        && core::mem::offset_of!(VmArea, state) == 56
        && core::mem::offset_of!(VmArea, caller_file) == 72
);

/// Values of [`VmArea::state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum VmState {
    /// No area: the node waits for its next use.
    Unused = 0,
    /// Nothing is mapped, and no CPU caches a translation.
    Free = 1,
    /// In use.
    Busy = 2,
    /// Unmapped, but CPUs may still cache translations (Linux: on the purge list).
    Lazy = 3,
}

impl VmState {
    /// The state of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<VmState> {
        Some(match raw {
            0 => VmState::Unused,
            1 => VmState::Free,
            2 => VmState::Busy,
            3 => VmState::Lazy,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            VmState::Unused => "unused",
            VmState::Free => "free",
            VmState::Busy => "busy",
            VmState::Lazy => "lazy",
        }
    }
}

bitflags! {
    /// What a busy area is for (Linux: include/linux/vmalloc.h `VM_*`, same numbers; the last two are ours).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct VmFlags: u32 {
        /// `VM_IOREMAP`: device memory at `VmArea::phys`.
        const IOREMAP = 0x1;
        /// `VM_ALLOC`: the frames belong to the area.
        const ALLOC = 0x2;
        /// `VM_MAP`: somebody else's frames.
        const MAP = 0x4;
        /// `VM_USERMAP`: zeroed, fit to be mapped for ring 3.
        const USERMAP = 0x8;
        /// `VM_NO_GUARD`: no guard page at the end.
        const NO_GUARD = 0x40;
        /// A kernel stack; set together with `ALLOC`.
        const KERNEL_STACK = 0x1000_0000;
        /// The window of kmap, whose pages come and go.
        const PKMAP = 0x2000_0000;
    }
}

/// A window of slots, each of which maps one frame at a time (element of [`crate::Root::kmaps`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KmapWindow {
    /// Virtual address of slot 0; slot `n` is `n` pages above it.
    pub va: u64,
    /// Guest-physical address of the [`KmapSlot`]s.
    pub slots_gpa: u64,
    /// Slots.
    pub count: u32,
    /// CPU that the window belongs to, or `u32::MAX`.
    pub cpu: u32,
    /// See [`KmapKind`].
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<KmapWindow>() == 32);

/// Values of [`KmapWindow::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum KmapKind {
    /// The blocking window (Linux: `pkmap_page_table`).
    Pkmap = 1,
    /// A CPU's stack of short mappings (Linux: `FIX_KMAP_BEGIN`).
    Local = 2,
    /// Fixed addresses (Linux: `enum fixed_addresses`).
    Fixmap = 3,
}

impl KmapKind {
    /// The kind of a raw number, or `None`.
    pub const fn from_raw(raw: u32) -> Option<KmapKind> {
        Some(match raw {
            1 => KmapKind::Pkmap,
            2 => KmapKind::Local,
            3 => KmapKind::Fixmap,
            _ => return None,
        })
    }

    /// Name used by every view.
    pub const fn name(self) -> &'static str {
        match self {
            KmapKind::Pkmap => "pkmap",
            KmapKind::Local => "kmap_local",
            KmapKind::Fixmap => "fixmap",
        }
    }
}

/// A slot of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KmapSlot {
    /// Frame that the slot maps, or [`crate::PFN_NONE`].
    pub pfn: u64,
    /// 0: nothing is mapped. Pkmap: 1 mapped without user, waiting for a flush; `n` has `n - 1` users (Linux:
    /// `pkmap_count`). Other windows: 1 mapped.
    pub count: u32,
    /// Pkmap: next slot of the same bucket of the page-address hash, plus 1; 0 ends the chain.
    pub next: u32,
}
const _: () = assert!(size_of::<KmapSlot>() == 16);

/// Slots of the blocking window (Linux: `LAST_PKMAP` on 32-bit x86 with PAE).
pub const LAST_PKMAP: usize = 512;
/// Slots of a CPU's stack of short mappings (Linux: `KM_MAX_IDX`).
pub const KM_MAX_IDX: usize = 16;
