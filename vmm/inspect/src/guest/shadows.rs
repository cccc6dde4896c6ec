//! Nodes of files' trees that hold nothing but what reclaim remembers of pages.

use std::collections::HashSet;

use memvisor_abi::{Mapping, MappingNode, PAGE_SIZE, ShadowNodes};

use super::tables::Absent;
use super::{Guest, GuestError, LinkProblem, Linked, TableName};
use crate::MemorySource;

const OBJECT: &str = "xa_node";

/// A node of a tree, and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAt {
    /// Where it is.
    pub gpa: u64,
    /// What it says.
    pub node: MappingNode,
}

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// The list of nodes with nothing but shadows, and those on it, the oldest first; `None` if the guest publishes none.
    ///
    /// # Errors
    /// [`GuestError`] if the list cannot be read at all.
    pub fn shadow_nodes(&self) -> Result<Option<(ShadowNodes, Linked<NodeAt>)>, GuestError> {
        let place = self.root().shadow_nodes;
        let list: Vec<ShadowNodes> = self.table(TableName::ShadowNodes, place, 1, Absent::IsEmpty)?;
        let Some(&list) = list.first() else { return Ok(None) };
        let (mut items, mut seen) = (Vec::new(), HashSet::new());
        let (mut at, mut from) = (list.head, 0);
        let problem = loop {
            if at == 0 {
                break None;
            }
            if !seen.insert(at) {
                break Some(LinkProblem::Cycle { object: OBJECT, gpa: at });
            }
            let node: MappingNode = match self.object(OBJECT, at) {
                Ok(node) => node,
                Err(problem) => break Some(problem),
            };
            if node.list_prev != from {
                break Some(LinkProblem::BackLink { object: OBJECT, gpa: at, says: node.list_prev, from });
            }
            items.push(NodeAt { gpa: at, node });
            (from, at) = (at, node.list_next);
        };
        Ok(Some((list, Linked { items, problem })))
    }

    /// Whether the tree of the mapping that a node names has the node, by the links upwards and the slots down again.
    pub fn is_in_its_tree(&self, at: &NodeAt) -> bool {
        let Ok(mapping) = self.mapping(at.node.mapping) else { return false };
        let (mut gpa, mut node) = (at.gpa, at.node);
        while node.parent != 0 {
            let Ok(above) = self.object::<MappingNode>(OBJECT, node.parent) else { return false };
            let slot = usize::try_from(node.offset).ok().and_then(|offset| above.slots.get(offset));
            // Each resolves 6 bits more than the one below, so the way up ends.
            if slot != Some(&(gpa | 2)) || node.shift.checked_add(6) != Some(above.shift) {
                return false;
            }
            (gpa, node) = (node.parent, above);
        }
        mapping.root == gpa | 2
    }

    /// The nodes at the bottom of a mapping's tree. Ends where the tree makes no sense.
    pub fn leaves(&self, mapping: &Mapping) -> Vec<NodeAt> {
        let mut found = Vec::new();
        let mut todo = vec![(mapping.root, u64::BITS)];
        // As many nodes as RAM could hold.
        let mut left = self.source().ram_bytes() / PAGE_SIZE * 8;
        while let Some((entry, bits)) = todo.pop().filter(|_| left > 0) {
            if entry & 3 != 2 {
                continue;
            }
            left -= 1;
            let gpa = entry & !3;
            let Ok(node) = self.object::<MappingNode>(OBJECT, gpa) else { continue };
            match node.shift {
                0 => found.push(NodeAt { gpa, node }),
                shift if shift < bits => todo.extend(node.slots.iter().map(|&below| (below, shift))),
                _ => {}
            }
        }
        found
    }
}
