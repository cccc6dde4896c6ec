//! Sets of frames as sorted, disjoint, half-open ranges.

use std::fmt;

use memvisor_abi::PAGE_SHIFT;

/// Frames `start..end`; empty if `start >= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Frames {
    pub start: u64,
    pub end: u64,
}

impl Frames {
    pub const fn new(start: u64, end: u64) -> Frames {
        Frames { start, end }
    }

    /// `count` frames from `start`, cut at the end of the number range.
    pub const fn from_count(start: u64, count: u64) -> Frames {
        Frames { start, end: start.saturating_add(count) }
    }

    /// Whole frames inside the bytes `start..end`.
    pub const fn inside(start: u64, end: u64) -> Frames {
        Frames { start: start.div_ceil(1 << PAGE_SHIFT), end: end >> PAGE_SHIFT }
    }

    /// Frames that the bytes `start..end` touch.
    pub const fn touching(start: u64, end: u64) -> Frames {
        if start >= end {
            return Frames { start: start >> PAGE_SHIFT, end: start >> PAGE_SHIFT };
        }
        Frames { start: start >> PAGE_SHIFT, end: end.div_ceil(1 << PAGE_SHIFT) }
    }

    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub const fn contains(self, pfn: u64) -> bool {
        self.start <= pfn && pfn < self.end
    }

    /// The common part, possibly empty.
    pub fn and(self, other: Frames) -> Frames {
        Frames { start: self.start.max(other.start), end: self.end.min(other.end) }
    }
}

impl fmt::Display for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len() == 1 {
            write!(f, "frame {:#x}", self.start)
        } else {
            write!(f, "frames {:#x}..{:#x}", self.start, self.end)
        }
    }
}

/// Sorts, drops empty ranges and joins those that touch or overlap.
pub(crate) fn normalize(mut ranges: Vec<Frames>) -> Vec<Frames> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut joined: Vec<Frames> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The range of a normalized set that holds `pfn`.
pub(crate) fn find(set: &[Frames], pfn: u64) -> Option<Frames> {
    let next = set.partition_point(|range| range.start <= pfn);
    set.get(next.checked_sub(1)?).copied().filter(|range| range.contains(pfn))
}

/// The parts of `range` inside a normalized set.
pub(crate) fn clip(set: &[Frames], range: Frames) -> impl Iterator<Item = Frames> + '_ {
    let first = set.partition_point(|part| part.end <= range.start);
    set.iter()
        .skip(first)
        .take_while(move |part| part.start < range.end)
        .map(move |part| part.and(range))
        .filter(|part| !part.is_empty())
}

/// The parts of `range` outside a normalized set.
pub(crate) fn gaps(set: &[Frames], range: Frames) -> Vec<Frames> {
    let mut at = range.start;
    let mut gaps = Vec::new();
    for part in clip(set, range) {
        gaps.push(Frames::new(at, part.start));
        at = part.end;
    }
    gaps.push(Frames::new(at, range.end));
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

/// Frames of a normalized set.
pub(crate) fn count(set: &[Frames]) -> u64 {
    set.iter().map(|range| range.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn frames(set: &[Frames]) -> BTreeSet<u64> {
        set.iter().flat_map(|range| range.start..range.end).collect()
    }

    #[test]
    fn byte_ranges_round_inwards_for_ram_and_outwards_for_reservations() {
        assert_eq!(Frames::inside(0x800, 0x2800), Frames::new(1, 2));
        assert_eq!(Frames::touching(0x800, 0x2800), Frames::new(0, 3));
        assert!(Frames::touching(0x800, 0x800).is_empty());
        assert!(Frames::inside(0x800, 0xfff).is_empty());
    }

    proptest! {
        #[test]
        fn sets_agree_with_a_set_of_frames(
            raw in proptest::collection::vec((0_u64..60, 0_u64..12), 0..12),
            (start, len) in (0_u64..60, 0_u64..30),
        ) {
            let ranges: Vec<_> = raw.iter().map(|&(start, len)| Frames::from_count(start, len)).collect();
            let model = frames(&ranges);
            let set = normalize(ranges);
            prop_assert!(set.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(&frames(&set), &model);
            prop_assert_eq!(count(&set), model.len() as u64);
            let window = Frames::from_count(start, len);
            let inside: Vec<_> = clip(&set, window).collect();
            let wanted: BTreeSet<u64> = model.iter().copied().filter(|&pfn| window.contains(pfn)).collect();
            prop_assert_eq!(frames(&inside), wanted);
            let outside: BTreeSet<u64> =
                (window.start..window.end).filter(|pfn| !model.contains(pfn)).collect();
            prop_assert_eq!(frames(&gaps(&set, window)), outside);
            for pfn in 0..80 {
                prop_assert_eq!(find(&set, pfn).is_some(), model.contains(&pfn));
            }
        }
    }
}
