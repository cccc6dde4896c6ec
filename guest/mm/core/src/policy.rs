//! Memory policies and sets of nodes: from where the pages of a task or of an area are to come (Linux 6.1: mm/mempolicy.c,
//! include/linux/nodemask.h). A policy is a value: whoever has one has a copy.

use memvisor_abi::{MAX_NUMNODES, mpol};

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

    /// The set whose bits these are.
    pub const fn from_bits(bits: u64) -> NodeMask {
        NodeMask(bits)
    }

    /// A bit for each node.
    pub const fn bits(self) -> u64 {
        self.0
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

    /// The set without a node.
    #[must_use]
    pub const fn without(self, node: u32) -> NodeMask {
        if node < u64::BITS { NodeMask(self.0 & !(1 << node)) } else { self }
    }

    /// Its nodes, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |node| self.contains(*node))
    }

    /// The lowest node (Linux: `first_node`).
    pub const fn first(self) -> Option<u32> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros()) }
    }

    /// The node after `node`, from the first again after the last; `None` if the set is empty (Linux:
    /// `next_node_in`).
    /// ```
    /// use mm_core::NodeMask;
    /// let nodes = NodeMask::of([1, 5]);
    /// assert_eq!((nodes.next_in(1), nodes.next_in(5)), (Some(5), Some(1)));
    /// ```
    pub const fn next_in(self, node: u32) -> Option<u32> {
        let above = if node < u64::BITS - 1 { self.0 & (u64::MAX << (node + 1)) } else { 0 };
        match NodeMask(above).first() {
            Some(next) => Some(next),
            None => self.first(),
        }
    }

    /// Its node number `n`, from the first again after the last; `None` if the set is empty.
    pub fn nth_in(self, n: u64) -> Option<u32> {
        let place = n.checked_rem(self.len().into())?;
        self.iter().nth(usize::try_from(place).ok()?)
    }

    /// Where a node of `from` comes to lie when the nodes of `from` become those of `to`, in their order; other nodes stay (Linux:
    /// `node_remap`).
    /// ```
    /// use mm_core::NodeMask;
    /// let (from, to) = (NodeMask::of([0, 1, 2]), NodeMask::of([4, 5]));
    /// assert_eq!([0, 1, 2, 3].map(|node| NodeMask::remap(node, from, to)), [4, 5, 4, 3]);
    /// ```
    pub fn remap(node: u32, from: NodeMask, to: NodeMask) -> u32 {
        if !from.contains(node) {
            return node;
        }
        let place = from.iter().take_while(|other| *other < node).count();
        to.nth_in(place as u64).unwrap_or(node)
    }
}
const _: () = assert!(MAX_NUMNODES == u64::BITS as usize);

/// Where memory is to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None of its own: an area's pages follow its task's, a task's come as with [`Policy::Local`] (Linux: `MPOL_DEFAULT`).
    #[default]
    Default,
    /// The node of the CPU that asks, then the nearest (Linux: `MPOL_LOCAL`).
    Local,
    /// These nodes only, the nearest first (Linux: `MPOL_BIND`).
    Bind(NodeMask),
    /// This node first, then as from there (Linux: `MPOL_PREFERRED`).
    Preferred(u32),
    /// These nodes in turn, page by page (Linux: `MPOL_INTERLEAVE`).
    Interleave(NodeMask),
    /// These nodes first, the nearest of them before the others, then any (Linux: `MPOL_PREFERRED_MANY`).
    PreferredMany(NodeMask),
}

/// A policy that cannot be had (Linux: `EINVAL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// None of the nodes has memory.
    NoMemory {
        /// The nodes asked for.
        nodes: NodeMask,
    },
    /// There is no such mode.
    UnknownMode {
        /// Its number.
        mode: u32,
    },
    /// The mode needs nodes and has none, or has some and needs none.
    Nodes {
        /// Its number.
        mode: u32,
        /// The nodes asked for.
        nodes: NodeMask,
    },
}

impl core::fmt::Display for PolicyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            PolicyError::NoMemory { nodes } => {
                write!(f, "memory policy: none of the nodes {:#x} has memory", nodes.0)
            }
            PolicyError::UnknownMode { mode } => write!(f, "memory policy: there is no mode {mode}"),
            PolicyError::Nodes { mode, nodes } => {
                write!(f, "memory policy: mode {mode} does not go with nodes {:#x}", nodes.0)
            }
        }
    }
}

impl Policy {
    /// The policy of a system call's mode and nodes, of which those without memory are left out (Linux: `mpol_new`,
    /// `mpol_set_nodemask`).
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn new(mode: u32, nodes: NodeMask, with_memory: NodeMask) -> Result<Policy, PolicyError> {
        let left = nodes.and(with_memory);
        match mode {
            mpol::DEFAULT | mpol::LOCAL if !nodes.is_empty() => Err(PolicyError::Nodes { mode, nodes }),
            mpol::DEFAULT => Ok(Policy::Default),
            mpol::LOCAL => Ok(Policy::Local),
            mpol::PREFERRED if nodes.is_empty() => Ok(Policy::Local),
            mpol::BIND | mpol::INTERLEAVE | mpol::PREFERRED_MANY if nodes.is_empty() => {
                Err(PolicyError::Nodes { mode, nodes })
            }
            mpol::PREFERRED => left.first().map(Policy::Preferred).ok_or(PolicyError::NoMemory { nodes }),
            mpol::BIND | mpol::INTERLEAVE | mpol::PREFERRED_MANY if left.is_empty() => {
                Err(PolicyError::NoMemory { nodes })
            }
            mpol::BIND => Ok(Policy::Bind(left)),
            mpol::INTERLEAVE => Ok(Policy::Interleave(left)),
            mpol::PREFERRED_MANY => Ok(Policy::PreferredMany(left)),
            _ => Err(PolicyError::UnknownMode { mode }),
        }
    }

    /// Linux's number of its mode.
    #[inline]
    pub const fn mode(self) -> u32 {
        match self {
            Policy::Default => mpol::DEFAULT,
            Policy::Local => mpol::LOCAL,
            Policy::Bind(_) => mpol::BIND,
            Policy::Preferred(_) => mpol::PREFERRED,
            Policy::Interleave(_) => mpol::INTERLEAVE,
            Policy::PreferredMany(_) => mpol::PREFERRED_MANY,
        }
    }

    /// Its nodes; none of those that have none.
    pub fn nodes(self) -> NodeMask {
        match self {
            Policy::Default | Policy::Local => NodeMask::EMPTY,
            Policy::Bind(nodes) | Policy::Interleave(nodes) | Policy::PreferredMany(nodes) => nodes,
            Policy::Preferred(node) => NodeMask::of([node]),
        }
    }

    /// What [`Policy::mode`] and [`Policy::nodes`] were of; [`Policy::Default`] of what they can be of no policy.
    pub fn from_parts(mode: u32, nodes: NodeMask) -> Policy {
        Policy::new(mode, nodes, NodeMask::ALL).unwrap_or_default()
    }
}

/// A policy at a place: the page offset says whose turn it is in interleaving (Linux: `vma_alloc_folio`'s area and address, as
/// `interleave_nid` looks at them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyAt {
    /// The policy; [`Policy::Default`] is the task's.
    pub policy: Policy,
    /// Page offset in what the policy is of.
    pub index: u64,
}

impl PolicyAt {
    /// The task's policy.
    pub const fn of_task(index: u64) -> PolicyAt {
        PolicyAt { policy: Policy::Default, index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: NodeMask = NodeMask::from_bits(0b1110);

    #[test]
    fn nodes_without_memory_are_left_out() {
        let nodes = NodeMask::of([0, 2, 9]);
        let left = NodeMask::of([2]);
        assert_eq!(Policy::new(mpol::BIND, nodes, MEMORY), Ok(Policy::Bind(left)));
        assert_eq!(Policy::new(mpol::INTERLEAVE, nodes, MEMORY), Ok(Policy::Interleave(left)));
        assert_eq!(Policy::new(mpol::PREFERRED, nodes, MEMORY), Ok(Policy::Preferred(2)));
        let none = NodeMask::of([0]);
        for mode in [mpol::BIND, mpol::INTERLEAVE, mpol::PREFERRED, mpol::PREFERRED_MANY] {
            assert_eq!(Policy::new(mode, none, MEMORY), Err(PolicyError::NoMemory { nodes: none }));
        }
    }

    #[test]
    fn modes_want_nodes_or_none() {
        let (none, some) = (NodeMask::EMPTY, NodeMask::of([1]));
        assert_eq!(Policy::new(mpol::DEFAULT, none, MEMORY), Ok(Policy::Default));
        assert_eq!(Policy::new(mpol::LOCAL, none, MEMORY), Ok(Policy::Local));
        assert_eq!(Policy::new(mpol::PREFERRED, none, MEMORY), Ok(Policy::Local));
        for (mode, nodes) in
            [(mpol::DEFAULT, some), (mpol::LOCAL, some), (mpol::BIND, none), (mpol::INTERLEAVE, none)]
        {
            assert_eq!(Policy::new(mode, nodes, MEMORY), Err(PolicyError::Nodes { mode, nodes }));
        }
        assert_eq!(Policy::new(9, some, MEMORY), Err(PolicyError::UnknownMode { mode: 9 }));
    }

    #[test]
    fn parts_make_the_policy_again() {
        let nodes = NodeMask::of([1, 3]);
        let all = [
            Policy::Default,
            Policy::Local,
            Policy::Bind(nodes),
            Policy::Preferred(3),
            Policy::Interleave(nodes),
            Policy::PreferredMany(nodes),
        ];
        for policy in all {
            assert_eq!(Policy::from_parts(policy.mode(), policy.nodes()), policy);
        }
        assert_eq!(Policy::from_parts(mpol::BIND, NodeMask::EMPTY), Policy::Default);
    }

    #[test]
    fn turns_go_round() {
        let nodes = NodeMask::of([1, 4, 6]);
        assert_eq!([0, 1, 2, 3, 7].map(|n| nodes.nth_in(n)), [1, 4, 6, 1, 4].map(Some));
        assert_eq!(NodeMask::EMPTY.nth_in(3), None);
    }
}
