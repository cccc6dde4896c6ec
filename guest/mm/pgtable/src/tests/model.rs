//! What is mapped, as a sorted list of segments. Everything is in pages, so that the end of the
//! address space is a number.

use core::ops::Range;
use std::collections::BTreeMap;

use crate::Prot;

/// Pages from a start (the key of the map), mapped to frames that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub pages: u64,
    pub frame: u64,
    pub prot: Prot,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    segments: BTreeMap<u64, Segment>,
}

impl Model {
    /// The frame and protection of `page`, and the first page past the run that continues them.
    pub(super) fn find(&self, page: u64) -> Option<(u64, Prot, u64)> {
        let (start, segment) = self.segments.range(..=page).next_back()?;
        let offset = page - start;
        (offset < segment.pages).then(|| (segment.frame + offset, segment.prot, start + segment.pages))
    }

    pub(super) fn total(&self) -> u64 {
        self.segments.values().map(|segment| segment.pages).sum()
    }

    pub(super) fn edges(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().flat_map(|(start, segment)| {
            [start.saturating_sub(1), *start, start + segment.pages - 1, start + segment.pages]
        })
    }

    pub(super) fn first_taken(&self, range: &Range<u64>) -> Option<u64> {
        if self.find(range.start).is_some() {
            return Some(range.start);
        }
        self.segments.range(range.clone()).next().map(|(start, _)| *start)
    }

    pub(super) fn insert(&mut self, range: Range<u64>, frame: u64, prot: Prot) {
        if !range.is_empty() {
            self.segments.insert(range.start, Segment { pages: range.end - range.start, frame, prot });
            self.join();
        }
    }

    pub(super) fn remove(&mut self, range: Range<u64>) -> u64 {
        self.cut(&range).values().map(|segment| segment.pages).sum()
    }

    pub(super) fn protect(&mut self, range: Range<u64>, prot: Prot) -> u64 {
        let mut inside = self.cut(&range);
        for segment in inside.values_mut() {
            segment.prot = prot;
        }
        let pages = inside.values().map(|segment| segment.pages).sum();
        self.segments.append(&mut inside);
        self.join();
        pages
    }

    /// Takes the parts inside `range` out.
    fn cut(&mut self, range: &Range<u64>) -> BTreeMap<u64, Segment> {
        if range.is_empty() {
            return BTreeMap::new();
        }
        for at in [range.start, range.end] {
            let Some((_, _, end)) = self.find(at) else { continue };
            let (&start, segment) = self.segments.range_mut(..=at).next_back().unwrap();
            if start < at {
                let tail = Segment { pages: end - at, frame: segment.frame + (at - start), ..*segment };
                segment.pages = at - start;
                self.segments.insert(at, tail);
            }
        }
        let mut inside = self.segments.split_off(&range.start);
        let mut above = inside.split_off(&range.end);
        self.segments.append(&mut above);
        inside
    }

    fn join(&mut self) {
        let mut joined: BTreeMap<u64, Segment> = BTreeMap::new();
        for (&start, &segment) in &self.segments {
            if let Some(mut last) = joined.last_entry() {
                let at = *last.key();
                let last = last.get_mut();
                if at + last.pages == start
                    && last.frame + last.pages == segment.frame
                    && last.prot == segment.prot
                {
                    last.pages += segment.pages;
                    continue;
                }
            }
            joined.insert(start, segment);
        }
        self.segments = joined;
    }
}
