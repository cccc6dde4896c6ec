//! How much is read ahead (Linux: mm/readahead.c `ondemand_readahead`, mm/filemap.c `do_sync_mmap_readahead`).
//!
//! A window of pages is read at once. When a reader comes to the page in it that is marked, the next one, twice as long, begins to be
//! read, so that a reader who goes on never waits. `PG_readahead` is RECLAIM, as in Linux: a page that is being written has the
//! one meaning, any other page the other.

use core::sync::atomic::Ordering::Relaxed;

use memvisor_abi::PageFlags;
use mm_core::Page;
use mm_vma::{Errno, Id, Mapping};

use super::read::{MOST, Wanted, fill, tell_window};
use crate::mm::space::backing::{self, RaState};
use crate::mm::space::cache;

/// Pages of the largest window: 128 KiB (Linux: `VM_READAHEAD_PAGES`).
const MAX: u32 = 32;
const _: () = assert!(MAX as usize <= MOST);

/// Pages to be read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first.
    pub start: u64,
    /// How many.
    pub size: u32,
    /// The page at which the next window begins to be read.
    pub marker: Option<u64>,
}

impl Window {
    /// One page.
    pub const fn one(index: u64) -> Window {
        Window { start: index, size: 1, marker: None }
    }
}

/// Linux: `get_init_ra_size`.
const fn first_size(wanted: u32) -> u32 {
    let size = wanted.next_power_of_two();
    if size <= MAX / 32 {
        size * 4
    } else if size <= MAX / 4 {
        size * 2
    } else {
        MAX
    }
}

/// Linux: `get_next_ra_size`.
const fn next_size(size: u32) -> u32 {
    if size < MAX / 16 {
        size * 4
    } else if size <= MAX / 2 {
        size * 2
    } else {
        MAX
    }
}

/// Remembers a window, and gives it with its marker.
fn begin(ra: &RaState, start: u64, size: u32, async_size: u32) -> Window {
    let async_size = async_size.min(size);
    ra.start.store(start, Relaxed);
    ra.size.store(size, Relaxed);
    ra.async_size.store(async_size, Relaxed);
    Window { start, size, marker: (async_size > 0).then(|| start + u64::from(size - async_size)) }
}

/// The window for a page that is not there.
pub fn missed(id: Id<Mapping>, index: u64, wanted: Wanted) -> Window {
    let ra = &backing::of(id).ra;
    let mode = ra.mode.load(Relaxed);
    let window = match wanted {
        Wanted::Alone => return Window::one(index),
        _ if mode == RaState::RANDOM => Window::one(index),
        Wanted::Fault if mode != RaState::SEQUENTIAL => {
            // Around it: programs run to and fro.
            begin(ra, index.saturating_sub(u64::from(MAX / 2)), MAX, MAX / 4)
        }
        Wanted::Fault => sequential(ra, index, MAX),
        Wanted::Read(pages) => sequential(ra, index, u32::try_from(pages).unwrap_or(MAX).min(MAX)),
    };
    ra.prev_index.store(index, Relaxed);
    // The page itself comes first in any case.
    let inside = window.start <= index && index < window.start + u64::from(window.size);
    if inside { window } else { Window::one(index) }
}

/// Linux: `ondemand_readahead` without a marked page.
fn sequential(ra: &RaState, index: u64, wanted: u32) -> Window {
    let (start, size) = (ra.start.load(Relaxed), ra.size.load(Relaxed));
    let prev = ra.prev_index.load(Relaxed);
    let ahead = |first: u32| if first > wanted { first - wanted } else { first };
    if index == 0 {
        let first = first_size(wanted.max(1));
        return begin(ra, 0, first, ahead(first));
    }
    let async_size = ra.async_size.load(Relaxed);
    if size > 0 && (index == start + u64::from(size - async_size) || index == start + u64::from(size)) {
        let next = next_size(size);
        return begin(ra, start + u64::from(size), next, next);
    }
    // Larger than a window, or right behind the last page: a reader who goes on.
    if wanted >= MAX || index.wrapping_sub(prev) <= 1 {
        let first = first_size(wanted.max(1));
        return begin(ra, index, first, ahead(first));
    }
    // A random one: what is asked for and no more.
    Window { start: index, size: wanted.max(1), marker: None }
}

/// A page was found. If it is the marked one, the next window begins to be read (Linux: `page_cache_async_ra`).
pub fn met(id: Id<Mapping>, index: u64, page: &Page, wanted: Wanted) {
    let ra = &backing::of(id).ra;
    if wanted == Wanted::Alone {
        return;
    }
    ra.prev_index.store(index, Relaxed);
    if page.has(PageFlags::WRITEBACK) || !page.take(PageFlags::RECLAIM) {
        return;
    }
    if ra.mode.load(Relaxed) == RaState::RANDOM {
        return;
    }
    let (start, size) = (ra.start.load(Relaxed), ra.size.load(Relaxed));
    let expected = size > 0 && index == start + u64::from(size - ra.async_size.load(Relaxed).min(size));
    let from = if expected { start + u64::from(size) } else { first_hole(id, index + 1) };
    let next = next_size(size.max(2));
    // Nobody waits for it: what cannot be read now is read when it is needed.
    let window = begin(ra, from, next, next);
    tell_window(index, &window);
    let _ = fill(id, &window);
}

/// Linux: `page_cache_next_miss`.
fn first_hole(id: Id<Mapping>, from: u64) -> u64 {
    (from..from + u64::from(MAX)).find(|at| !mm_filemap::has_page(&super::Spaces, id, *at)).unwrap_or(from)
}

/// POSIX_FADV_NORMAL, RANDOM, SEQUENTIAL.
pub fn set_mode(id: Id<Mapping>, mode: u32) {
    backing::of(id).ra.mode.store(mode, Relaxed);
}

/// POSIX_FADV_WILLNEED, readahead(2): begins to read these pages.
///
/// # Errors
/// `ENOMEM`, `EIO`.
pub fn force(id: Id<Mapping>, pages: core::ops::Range<u64>) -> Result<(), Errno> {
    let end = pages.end.min(cache::size(id).div_ceil(mm_core::PAGE_SIZE));
    let mut at = pages.start;
    while at < end {
        let size = u32::try_from(end - at).unwrap_or(MAX).min(MAX);
        if (at..at + u64::from(size)).any(|index| !mm_filemap::has_page(&super::Spaces, id, index)) {
            fill(id, &Window { start: at, size, marker: None })?;
        }
        at += u64::from(size);
    }
    Ok(())
}
