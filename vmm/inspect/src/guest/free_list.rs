//! Free lists of the buddy allocator, as the guest links them: one an order and type.

use std::collections::HashSet;

use memvisor_abi::{Migratetype, NR_ORDERS, PAGE_SIZE, PFN_NONE, Zone};
use serde::Serialize;
use thiserror::Error;

use super::{Guest, GuestError};
use crate::MemorySource;

/// The free blocks of one order and type of one zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FreeList {
    /// Index in the zone table.
    pub zone_index: usize,
    /// Order.
    pub order: usize,
    /// Linux's name of the type.
    #[serde(rename = "migratetype", serialize_with = "name")]
    pub migratetype: Migratetype,
    /// Blocks that the zone claims.
    pub nr_free: u64,
    /// First frames of the blocks in list order, up to the problem if there is one that ends the
    /// walk.
    pub blocks: Vec<u64>,
    /// The first thing wrong with the links, if any. On a running guest this may be a torn read:
    /// read again, or pause the guest.
    pub problem: Option<ListProblem>,
}

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum ListProblem {
    /// A link leads to a frame that has no descriptor (outside RAM, or in a deferred section).
    #[error("the link from {from:#x} leads to frame {pfn:#x}, which has no descriptor")]
    NoDescriptor {
        /// The frame before, or [`PFN_NONE`] for the list's head.
        from: u64,
        /// Where the link leads.
        pfn: u64,
    },
    /// The list comes back to a frame.
    #[error("the list comes back to frame {pfn:#x} after {after} blocks")]
    Cycle {
        /// The frame.
        pfn: u64,
        /// Blocks walked.
        after: usize,
    },
    /// A frame's back link is not the frame before it.
    #[error("frame {pfn:#x} links back to {prev:#x}, but the frame before it is {expected:#x}")]
    BackLink {
        /// The frame.
        pfn: u64,
        /// Its back link.
        prev: u64,
        /// The frame that led to it.
        expected: u64,
    },
    /// The list does not end where the zone says.
    #[error("the list ends at frame {last:#x}, the zone says {tail:#x}")]
    Tail {
        /// The last frame of the walk.
        last: u64,
        /// What the zone says.
        tail: u64,
    },
    /// The list is not as long as the zone says.
    #[error("the list holds {walked} blocks, the zone says {nr_free}")]
    Count {
        /// Blocks walked.
        walked: u64,
        /// What the zone says.
        nr_free: u64,
    },
    /// More blocks than the machine has.
    #[error("the list is longer than the machine's {max} blocks of this order")]
    TooLong {
        /// Blocks of the order that RAM can hold.
        max: u64,
    },
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// Walks one free list. What is wrong with it is part of the answer.
    ///
    /// # Errors
    /// [`GuestError`] if there is no such list, or the tables that lead to it cannot be read.
    pub fn free_list(
        &self,
        zone_index: usize,
        order: usize,
        migratetype: Migratetype,
    ) -> Result<FreeList, GuestError> {
        let zone = self.zone(zone_index)?;
        self.free_list_of(&zone, zone_index, order, migratetype)
    }

    /// As [`Guest::free_list`], with a copy of the zone that the caller already has.
    ///
    /// # Errors
    /// As [`Guest::free_list`].
    pub fn free_list_of(
        &self,
        zone: &Zone,
        zone_index: usize,
        order: usize,
        migratetype: Migratetype,
    ) -> Result<FreeList, GuestError> {
        let area = zone.free_area.get(order).ok_or(GuestError::NoSuchOrder { order })?;
        let area = area.lists.get(migratetype as usize).ok_or(GuestError::NoSuchOrder { order })?;
        let nr_free = area.nr_free;
        let mut list =
            FreeList { zone_index, order, migratetype, nr_free, blocks: Vec::new(), problem: None };
        let max = (self.source.ram_bytes() / PAGE_SIZE) >> order.min(NR_ORDERS);
        let (blocks, problem) = walk(self, area.head, area.tail, max)?;
        (list.blocks, list.problem) = (blocks, problem);
        if ends_early(list.problem.as_ref()) {
            return Ok(list);
        }
        let walked = list.blocks.len() as u64;
        if walked != area.nr_free {
            list.blame(ListProblem::Count { walked, nr_free: area.nr_free });
        }
        Ok(list)
    }
}

impl FreeList {
    /// The first problem is the cause, what follows from it is not kept.
    fn blame(&mut self, problem: ListProblem) {
        self.problem.get_or_insert(problem);
    }
}

/// Whether the walk stopped at the problem, so that the length says nothing.
fn ends_early(problem: Option<&ListProblem>) -> bool {
    matches!(
        problem,
        Some(ListProblem::TooLong { .. } | ListProblem::NoDescriptor { .. } | ListProblem::Cycle { .. })
    )
}

/// Walks a list of blocks from `head`: at most `max` of them and one more. What is wrong with it is part of the
/// answer; the first problem is the cause.
pub(super) fn walk<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    head: u64,
    tail: u64,
    max: u64,
) -> Result<(Vec<u64>, Option<ListProblem>), GuestError> {
    let mut blocks = Vec::new();
    let mut problem = None;
    let mut seen = HashSet::new();
    let (mut from, mut pfn) = (PFN_NONE, head);
    while pfn != PFN_NONE {
        if blocks.len() as u64 > max {
            return Ok((blocks, Some(problem.unwrap_or(ListProblem::TooLong { max }))));
        }
        let Some(page) = guest.page(pfn)? else {
            return Ok((blocks, Some(problem.unwrap_or(ListProblem::NoDescriptor { from, pfn }))));
        };
        if !seen.insert(pfn) {
            let after = blocks.len();
            return Ok((blocks, Some(problem.unwrap_or(ListProblem::Cycle { pfn, after }))));
        }
        if page.prev != from {
            let bad = ListProblem::BackLink { pfn, prev: page.prev, expected: from };
            problem = Some(problem.unwrap_or(bad));
        }
        blocks.push(pfn);
        (from, pfn) = (pfn, page.next);
    }
    if from != tail {
        problem = Some(problem.unwrap_or(ListProblem::Tail { last: from, tail }));
    }
    Ok((blocks, problem))
}

fn name<S: serde::Serializer>(migratetype: &Migratetype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(migratetype.name())
}
