//! Compaction: who owns movable pages, and what kcompactd was asked for. Scanner positions and deferral are in
//! [`crate::Zone`], skip hints in [`crate::Section::pageblocks`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Owners of movable pages that there can be.
pub const MAX_MOVABLE_OWNERS: usize = 8;

/// An owner of movable pages (Linux: `struct movable_operations`, behind `page->mapping`). The owner at index `n` of
/// [`crate::Root::movable_owners`] is number `n + 1`, and [`crate::Page::mapping`] of its pages, which have the flag
/// `MOVABLE`, says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MovableOwner {
    /// Name, ended by zeroes; all zero for an unused slot.
    pub name: [u8; 16],
    /// Its blocks that have the flag `MOVABLE`.
    pub pages: u64,
    /// Those of them that are isolated for a migration, flag `ISOLATED`.
    pub isolated: u64,
    /// Its blocks that have been moved so far.
    pub moved: u64,
}

impl MovableOwner {
    /// An unused slot.
    pub const UNUSED: MovableOwner = MovableOwner { name: [0; 16], pages: 0, isolated: 0, moved: 0 };

    /// The name as text.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        core::str::from_utf8(&self.name[..len]).unwrap_or("?")
    }
}

/// kcompactd of a node (Linux: `pg_data_t`'s `kcompactd`, `kcompactd_max_order`, `kcompactd_highest_zoneidx`), indexed by
/// node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kcompactd {
    /// 1 if the node has a thread.
    pub exists: u32,
    /// 1 while it compacts.
    pub running: u32,
    /// Largest order that was asked for since it last began, 0 for nothing.
    pub max_order: u32,
    /// Lowest of the highest zones that were asked for, a [`crate::ZoneKind`] number.
    pub highest: u32,
    /// How often it was woken.
    pub wakeups: u64,
}

impl Kcompactd {
    /// A node without thread.
    pub const NONE: Kcompactd = Kcompactd {
        exists: 0,
        running: 0,
        max_order: 0,
        highest: crate::ZoneKind::Movable as u32,
        wakeups: 0,
    };
}

const _: () = assert!(size_of::<MovableOwner>() == 40 && size_of::<Kcompactd>() == 24);
