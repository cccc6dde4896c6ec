//! The areas' own audit: V1 to V3, and the trees' shape.

use memvisor_abi::VmState;
use mm_core::{PAGE_SIZE, PhysMem};

use crate::Areas;
use crate::node::{Id, NONE, Nodes};

/// A broken invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// V1: addresses from here on are in no area, or in two.
    Tiling {
        /// Where the next area should start.
        expected: u64,
    },
    /// V2: an area in a tree has the wrong state or place.
    Tree {
        /// Start of the area.
        start: u64,
    },
    /// V2: the longest length below a node is wrong.
    Max {
        /// Start of the area.
        start: u64,
    },
    /// V3: this free area touches the one below.
    Unmerged {
        /// Start of the area.
        start: u64,
    },
    /// The counts of lazy pages or busy areas are wrong.
    Count,
}

impl Areas {
    /// Checks V1 to V3. For tests and checkpoints: it takes time in the square of the number of lazy areas.
    pub fn audit<M: PhysMem>(&self, mem: &M) -> Result<(), Broken> {
        let nodes = self.nodes(mem);
        let mut at = self.start;
        let mut free_before = false;
        let (mut busy, mut lazy) = (0, 0);
        while at < self.end {
            let free = nodes.find(self.free, at);
            let id = free
                .or_else(|| nodes.find(self.busy, at))
                .or_else(|| on_list(&nodes, self.lazy, at))
                .or_else(|| on_list(&nodes, self.purging, at))
                .filter(|&id| nodes.start(id) == at && nodes.end(id) > at)
                .ok_or(Broken::Tiling { expected: at })?;
            if free.is_some() && free_before {
                return Err(Broken::Unmerged { start: at });
            }
            free_before = free.is_some();
            busy += u32::from(nodes.state(id) == VmState::Busy as u32);
            if nodes.state(id) == VmState::Lazy as u32 {
                lazy += (nodes.end(id) - nodes.start(id)) / PAGE_SIZE;
            }
            at = nodes.end(id);
        }
        if at != self.end {
            return Err(Broken::Tiling { expected: self.end });
        }
        check_tree(&nodes, self.free, VmState::Free, self.start, self.end)?;
        check_tree(&nodes, self.busy, VmState::Busy, self.start, self.end)?;
        if busy != self.nr_busy() || lazy != self.lazy_pages + self.purging_pages {
            return Err(Broken::Count);
        }
        Ok(())
    }
}

fn on_list<M: PhysMem>(nodes: &Nodes<'_, M>, mut id: Id, va: u64) -> Option<Id> {
    while id != NONE {
        if nodes.start(id) == va {
            return Some(id);
        }
        id = nodes.next(id);
    }
    None
}

fn check_tree<M: PhysMem>(
    nodes: &Nodes<'_, M>,
    root: Id,
    state: VmState,
    low: u64,
    high: u64,
) -> Result<(), Broken> {
    if root == NONE {
        return Ok(());
    }
    let (start, end) = (nodes.start(root), nodes.end(root));
    let (left, right) = nodes.children(root);
    let above = |child: Id| child == NONE || nodes.priority(child) <= nodes.priority(root);
    let placed = low <= start && start < end && end <= high && above(left) && above(right);
    if !placed || nodes.state(root) != state as u32 {
        return Err(Broken::Tree { start });
    }
    if nodes.max(root) != (end - start).max(nodes.max(left)).max(nodes.max(right)) {
        return Err(Broken::Max { start });
    }
    check_tree(nodes, left, state, low, start)?;
    check_tree(nodes, right, state, end, high)
}
