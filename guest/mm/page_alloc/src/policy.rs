//! What a memory policy makes of a request: on which nodes it looks, and where it begins (Linux 6.1: mm/mempolicy.c).

use mm_core::{Gfp, NodeMask, Policy, PolicyError, ZoneKind};

use crate::gfp::highest_zone;

/// Before the first node in the round of interleaving (Linux: `il_prev = MAX_NUMNODES - 1`).
const BEFORE_FIRST: u32 = u64::BITS - 1;

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
    /// With nothing free on them, any other does before anybody waits (Linux: `alloc_pages_preferred_many`).
    pub or_any: bool,
    /// The node was chosen by interleaving, so that a hit is counted as such.
    pub interleaved: bool,
}

impl Placement {
    /// Any node, from this one on.
    pub(crate) const fn from(node: u32) -> Placement {
        Placement { node, nodes: NodeMask::ALL, or_any: false, interleaved: false }
    }
}

impl Default for TaskPolicy {
    fn default() -> TaskPolicy {
        TaskPolicy { policy: Policy::Default, previous: BEFORE_FIRST }
    }
}

impl TaskPolicy {
    /// Takes over a policy; nodes without memory are left out of its set (Linux: `mpol_set_nodemask`).
    ///
    /// # Errors
    /// [`PolicyError`] if none is left.
    pub fn set(&mut self, policy: Policy, with_memory: NodeMask) -> Result<(), PolicyError> {
        self.policy = Policy::new(policy.mode(), policy.nodes(), with_memory)?;
        self.previous = BEFORE_FIRST;
        Ok(())
    }

    /// The policy that holds.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// The node of the next page, if its policy is to interleave (Linux: `MPOL_F_NODE` of get_mempolicy).
    pub const fn next_node(&self) -> Option<u32> {
        match self.policy {
            Policy::Interleave(nodes) => nodes.next_in(self.previous),
            _ => None,
        }
    }

    /// Where a request of a task on `local` goes (Linux: `policy_node`, `policy_nodemask`,
    /// `interleave_nodes`). `policy_zone` is the highest zone that every node has: a request that cannot use it is
    /// not bound, because its memory may lie on other nodes only (Linux: `apply_policy_zone`).
    pub fn place(&mut self, gfp: Gfp, local: u32, policy_zone: ZoneKind) -> Placement {
        let turn = self.next_node();
        self.previous = turn.unwrap_or(self.previous);
        place(self.policy, turn, gfp, (local, policy_zone))
    }
}

/// Where a request for a page of an area goes; `index` is its page offset there, which says whose turn it is, so that an area looks the same
/// in whatever order it is touched (Linux: `interleave_nid`, `offset_il_node`).
pub(crate) fn place_at(policy: Policy, index: u64, gfp: Gfp, local: u32, policy_zone: ZoneKind) -> Placement {
    let turn = match policy {
        Policy::Interleave(nodes) => nodes.nth_in(index),
        _ => None,
    };
    place(policy, turn, gfp, (local, policy_zone))
}

fn place(policy: Policy, turn: Option<u32>, gfp: Gfp, (local, policy_zone): (u32, ZoneKind)) -> Placement {
    let anywhere = Placement::from(local);
    match policy {
        Policy::Default | Policy::Local => anywhere,
        Policy::Preferred(node) => Placement { node, ..anywhere },
        Policy::Bind(_) if highest_zone(gfp) < policy_zone => anywhere,
        Policy::Bind(nodes) => Placement { nodes, ..anywhere },
        Policy::PreferredMany(nodes) => Placement { nodes, or_any: true, ..anywhere },
        Policy::Interleave(_) => {
            turn.map_or(anywhere, |node| Placement { node, interleaved: true, ..anywhere })
        }
    }
}
