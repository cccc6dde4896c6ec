//! Memory policies: on which nodes an allocation looks, and where it begins (Linux 6.1: mm/mempolicy.c).

use memvisor_abi::MAX_NUMNODES;
use mm_core::{Gfp, ZoneKind};

use crate::gfp::highest_zone;

/// A set of nodes (Linux: `nodemask_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeMask(u64);

impl NodeMask {
    /// Every node.
    pub const ALL: NodeMask = NodeMask(u64::MAX);
    /// No node.
    pub const EMPTY: NodeMask = NodeMask(0);

    /// The set of these nodes; those past the largest are left out.
    pub fn of(nodes: impl IntoIterator<Item = u32>) -> NodeMask {
        NodeMask(nodes.into_iter().filter(|node| *node < u64::BITS).fold(0, |set, node| set | 1 << node))
    }

    /// Whether the node is in the set.
    #[inline]
    pub const fn contains(self, node: u32) -> bool {
        node < u64::BITS && self.0 >> node & 1 != 0
    }

    /// Whether no node is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Nodes in the set.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Nodes in both sets.
    #[must_use]
    pub const fn and(self, other: NodeMask) -> NodeMask {
        NodeMask(self.0 & other.0)
    }

    /// The node after `node`, from the first again after the last; `None` if the set is empty (Linux:
    /// `next_node_in`).
    /// ```
    /// use mm_page_alloc::NodeMask;
    /// let nodes = NodeMask::of([1, 5]);
    /// assert_eq!((nodes.next_in(1), nodes.next_in(5)), (Some(5), Some(1)));
    /// ```
    pub const fn next_in(self, node: u32) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let above = if node < u64::BITS - 1 { self.0 & (u64::MAX << (node + 1)) } else { 0 };
        Some(if above != 0 { above.trailing_zeros() } else { self.0.trailing_zeros() })
    }
}
const _: () = assert!(MAX_NUMNODES == u64::BITS as usize);

/// Where a task's memory is to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The node of the CPU that asks, then the nearest (Linux: `MPOL_LOCAL`, the default).
    #[default]
    Local,
    /// These nodes only, the nearest first (Linux: `MPOL_BIND`).
    Bind(NodeMask),
    /// This node first, then as from there (Linux: `MPOL_PREFERRED`).
    Preferred(u32),
    /// These nodes in turn, page by page (Linux: `MPOL_INTERLEAVE`).
    Interleave(NodeMask),
}

/// A policy that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// None of the nodes has memory (Linux: `EINVAL` of `set_mempolicy`).
    NoMemory {
        /// The nodes asked for.
        nodes: NodeMask,
    },
}

impl core::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let PolicyError::NoMemory { nodes } = self;
        write!(f, "memory policy: none of the nodes {:#x} has memory", nodes.0)
    }
}

/// A task's policy with its place in the round of interleaving (Linux: `task->mempolicy`, `task->il_prev`).
#[derive(Clone, Copy, Debug)]
pub struct TaskPolicy {
    policy: Policy,
    previous: u32,
}

/// What a policy makes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Node to begin at.
    pub node: u32,
    /// Nodes that are allowed.
    pub nodes: NodeMask,
    /// The node was chosen by interleaving, so that a hit is counted as such.
    pub interleaved: bool,
}

impl Default for TaskPolicy {
    fn default() -> TaskPolicy {
        // Linux: `il_prev = MAX_NUMNODES - 1`, so the first page comes from the first node of the set.
        TaskPolicy { policy: Policy::Local, previous: u64::BITS - 1 }
    }
}

impl TaskPolicy {
    /// Takes over a policy; nodes without memory are left out of its set (Linux: `mpol_set_nodemask`).
    ///
    /// # Errors
    /// [`PolicyError`] if none is left.
    pub fn set(&mut self, policy: Policy, with_memory: NodeMask) -> Result<(), PolicyError> {
        let some = |nodes: NodeMask| {
            let left = nodes.and(with_memory);
            if left.is_empty() { Err(PolicyError::NoMemory { nodes }) } else { Ok(left) }
        };
        self.policy = match policy {
            Policy::Local => Policy::Local,
            Policy::Bind(nodes) => Policy::Bind(some(nodes)?),
            Policy::Preferred(node) => some(NodeMask::of([node])).map(|_| Policy::Preferred(node))?,
            Policy::Interleave(nodes) => Policy::Interleave(some(nodes)?),
        };
        self.previous = u64::BITS - 1;
        Ok(())
    }

    /// The policy that holds.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Where a request of a task on `local` goes (Linux: `policy_node`, `policy_nodemask`,
    /// `interleave_nodes`). `policy_zone` is the highest zone that every node has: a request that cannot use it is
    /// not bound, because its memory may lie on other nodes only (Linux: `apply_policy_zone`).
    pub fn place(&mut self, gfp: Gfp, local: u32, policy_zone: ZoneKind) -> Placement {
        let anywhere = Placement { node: local, nodes: NodeMask::ALL, interleaved: false };
        match self.policy {
            Policy::Local => anywhere,
            Policy::Preferred(node) => Placement { node, ..anywhere },
            Policy::Bind(_) if highest_zone(gfp) < policy_zone => anywhere,
            Policy::Bind(nodes) => Placement { nodes, ..anywhere },
            Policy::Interleave(nodes) => match nodes.next_in(self.previous) {
                Some(node) => {
                    self.previous = node;
                    Placement { node, interleaved: true, ..anywhere }
                }
                None => anywhere,
            },
        }
    }
}
