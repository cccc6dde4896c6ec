//! Searches for gaps between VMAs.

use core::sync::atomic::Ordering::Relaxed;

use super::Tree;
use super::node::{FANOUT, Kind, Node};
use crate::Arena;
use crate::id::Id;

/// Bounds of a gap search.
#[derive(Clone, Copy, Debug)]
pub struct GapQuery {
    /// Bytes wanted, not 0.
    pub len: u64,
    /// Lowest first address.
    pub low: u64,
    /// The end is at most this.
    pub high: u64,
}

impl GapQuery {
    /// The part of `start..end` that counts, if it is long enough.
    #[inline]
    fn fit(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        // Most gaps are too short, wherever they are.
        if end.saturating_sub(start) < self.len {
            return None;
        }
        let (start, end) = (start.max(self.low), end.min(self.high));
        (end.saturating_sub(start) >= self.len).then_some((start, end))
    }

    /// Nothing in `start..end` is out of bounds.
    #[inline]
    fn holds(&self, start: u64, end: u64) -> bool {
        start >= self.low && end <= self.high
    }

    #[inline]
    fn highest(&self, start: u64, end: u64) -> Option<u64> {
        self.fit(start, end).map(|(_, end)| end - self.len)
    }

    #[inline]
    fn lowest(&self, start: u64, end: u64) -> Option<u64> {
        self.fit(start, end).map(|(start, _)| start)
    }
}

impl Tree {
    /// The highest gap that `query` fits, as the highest first address in it (Linux: `mas_empty_area_rev`).
    #[inline]
    pub fn highest_gap<K: Arena<Node>>(&self, k: &K, query: GapQuery) -> Option<u64> {
        let Some(root) = self.root.load() else { return query.highest(0, u64::MAX) };
        let (at, level) = (k.at(root), self.height.load(Relaxed));
        let above = at.end(0).max(query.low);
        if query.high.saturating_sub(above) >= query.len {
            return Some(query.high - query.len);
        }
        if at.end(0) <= query.high
            && let Some(end) = highest_told(k, root, level, query.len)
        {
            return end.checked_sub(query.len).filter(|&start| start >= query.low);
        }
        highest_below(k, root, level, &query).or_else(|| query.highest(0, at.bounds().0))
    }

    /// The lowest gap that `query` fits, as its first address (Linux: `mas_empty_area`).
    #[inline]
    pub fn lowest_gap<K: Arena<Node>>(&self, k: &K, query: GapQuery) -> Option<u64> {
        let Some(root) = self.root.load() else { return query.lowest(0, u64::MAX) };
        let (level, (start, end)) = (self.height.load(Relaxed), k.at(root).bounds());
        query
            .lowest(0, start)
            .or_else(|| lowest_below(k, root, level, &query))
            .or_else(|| query.lowest(end, u64::MAX))
    }
}

/// Space between entry `i` and the next, if there is one.
#[inline]
fn between(at: &Node, i: usize) -> u64 {
    match at.end(i + 1) {
        0 => 0,
        end => at.start(i).wrapping_sub(end),
    }
}

/// The end of the highest gap of `len` bytes below `node`, wherever it is; `None` if it is not where the entries tell.
#[inline]
fn highest_told<K: Arena<Node>>(k: &K, mut node: Id<Node>, level: u32, len: u64) -> Option<u64> {
    'down: for _ in 1..level {
        let at = k.at(node);
        for i in 0..FANOUT {
            if at.gap(i) >= len {
                node = at.child(i)?;
                continue 'down;
            }
            if between(at, i) >= len {
                return Some(at.start(i));
            }
        }
        return None;
    }
    let at = k.at(node);
    (0..FANOUT).find(|&i| between(at, i) >= len).map(|i| at.start(i))
}

/// An entry tells of a gap that is filled by now.
fn correct((above, i): (&Node, usize), below: &Node, kind: Kind) {
    above.set_gap(i, below.longest_gap(kind));
}

/// Searches between the entries below `node`, from the top.
fn highest_below<K: Arena<Node>>(k: &K, node: Id<Node>, level: u32, query: &GapQuery) -> Option<u64> {
    let at = k.at(node);
    for i in 0..at.len() {
        let start = at.start(i);
        if let Some(child) = worth(at, i, level, query) {
            if let Some(found) = highest_below(k, child, level - 1, query) {
                return Some(found);
            }
            if query.holds(start, at.end(i)) {
                correct((at, i), k.at(child), Kind::at(level as usize - 1));
            }
        }
        if start <= query.low || i + 1 >= at.len() {
            return None;
        }
        if let Some(found) = query.highest(at.end(i + 1), start) {
            return Some(found);
        }
    }
    None
}

/// Searches between the entries below `node`, from the bottom.
fn lowest_below<K: Arena<Node>>(k: &K, node: Id<Node>, level: u32, query: &GapQuery) -> Option<u64> {
    let at = k.at(node);
    // Nothing below the lowest entry that ends above `low` matters, but the gap under it does.
    for i in (0..at.len().min(at.after(query.low) + 1)).rev() {
        let end = at.end(i);
        if let Some(child) = worth(at, i, level, query) {
            if let Some(found) = lowest_below(k, child, level - 1, query) {
                return Some(found);
            }
            if query.holds(at.start(i), end) {
                correct((at, i), k.at(child), Kind::at(level as usize - 1));
            }
        }
        if end >= query.high || i == 0 {
            return None;
        }
        if let Some(found) = query.lowest(end, at.start(i - 1)) {
            return Some(found);
        }
    }
    None
}

/// What is below an entry, if there may be such a gap.
fn worth(at: &Node, i: usize, level: u32, query: &GapQuery) -> Option<Id<Node>> {
    let may = level > 1 && at.gap(i) >= query.len && query.fit(at.start(i), at.end(i)).is_some();
    may.then(|| at.child(i))?
}
