//! How many neighbours of a slot are read with it (Linux: `__swapin_nr_pages`, `swap_cluster_readahead`).

use core::ops::Range;

/// What is known of the reads before (Linux: statics of `swapin_nr_pages`, or `swap_readahead_info` of a VMA).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readahead {
    prev_offset: u64,
    prev_win: u32,
    hits: u32,
}

impl Readahead {
    /// Nothing was read yet.
    pub const fn new() -> Readahead {
        Readahead { prev_offset: 0, prev_win: 0, hits: 0 }
    }

    /// A page that was read ahead was used.
    pub const fn hit(&mut self) {
        self.hits = self.hits.saturating_add(1);
    }

    /// Pages to read around `offset`, a power of two or a half of the last window, `1 << page_cluster` at most.
    ///
    /// Without hits only the neighbour of the last read brings another page with it; hits open the window, and it closes by
    /// halves.
    /// ```
    /// use mm_swap::Readahead;
    /// let mut state = Readahead::default();
    /// assert_eq!(state.window(100, 3), 1);
    /// assert_eq!(state.window(101, 3), 2);
    /// (0..3).for_each(|_| state.hit());
    /// assert_eq!(state.window(500, 3), 8);
    /// assert_eq!([state.window(900, 3), state.window(1900, 3), state.window(2900, 3)], [4, 2, 1]);
    /// ```
    pub fn window(&mut self, offset: u64, page_cluster: u32) -> u32 {
        let max = 1u32.checked_shl(page_cluster).unwrap_or(1);
        let hits = core::mem::take(&mut self.hits);
        let wanted = match hits {
            0 if offset.abs_diff(self.prev_offset) != 1 => 1,
            0 => 2,
            hits => hits.saturating_add(2).checked_next_power_of_two().unwrap_or(max).max(4),
        };
        self.prev_offset = offset;
        self.prev_win = wanted.min(max).max(self.prev_win / 2);
        self.prev_win
    }
}

/// The slots to read with `offset`: the aligned run of `window` that it lies in, without the header and what lies past `max`.
/// ```
/// assert_eq!(mm_swap::cluster_window(5, 8, 100), 1..8);
/// assert_eq!(mm_swap::cluster_window(99, 8, 100), 96..100);
/// assert_eq!(mm_swap::cluster_window(42, 1, 100), 42..43);
/// ```
pub const fn cluster_window(offset: u64, window: u32, max: u64) -> Range<u64> {
    // As Linux's mask: a window that is no power of two is read as it comes out.
    let mask = (window.saturating_sub(1)) as u64;
    let (start, last) = (offset & !mask, offset | mask);
    let start = if start == 0 { 1 } else { start };
    let end = if last >= max { max } else { last + 1 };
    start..end
}
