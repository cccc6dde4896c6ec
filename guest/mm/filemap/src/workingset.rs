//! Nodes that hold nothing but shadows (Linux: mm/workingset.c, `workingset_update_node`, `count_shadow_nodes`, `scan_shadow_nodes`).
//!
//! A shadow takes no memory of its own, but the node does that it lies in. Where pages were far apart, a node stays behind for each of them:
//! these are on a list, the oldest first, and reclaim takes from there.
//!
//! W1  a node at the bottom of a file's tree is on the list if and only if all that it holds are shadows; it names its mapping exactly as long as it
//!     is there. Both change under the mapping's lock, the list itself under its own, which is taken inside.

use memvisor_abi::NodeStat;
use mm_core::{Arena, Id, Link};

use crate::{Cache, Entry, Mapping, Missing, Node, Spare};

/// The list. All zero is an empty one.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ShadowNodes {
    head: Link<Node>,
    tail: Link<Node>,
    count: u64,
}

const _: () = assert!(size_of::<ShadowNodes>() == size_of::<memvisor_abi::ShadowNodes>());

impl ShadowNodes {
    /// An empty one.
    pub const fn new() -> ShadowNodes {
        ShadowNodes { head: Link::NONE, tail: Link::NONE, count: 0 }
    }

    /// Nodes on it.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The node that came last.
    pub fn last(&self) -> Option<Id<Node>> {
        self.tail.load()
    }

    fn add<K: Arena<Node>>(&mut self, k: &K, id: Id<Node>) {
        let node: &Node = k.at(id);
        let last = self.tail.load();
        node.list_prev.store(last);
        node.list_next.store(None);
        match last {
            Some(last) => Arena::<Node>::at(k, last).list_next.store(Some(id)),
            None => self.head.store(Some(id)),
        }
        self.tail.store(Some(id));
        self.count += 1;
    }

    fn remove<K: Arena<Node>>(&mut self, k: &K, id: Id<Node>) {
        let node: &Node = k.at(id);
        let (prev, next) = (node.list_prev.load(), node.list_next.load());
        match prev {
            Some(prev) => Arena::<Node>::at(k, prev).list_next.store(next),
            None => self.head.store(next),
        }
        match next {
            Some(next) => Arena::<Node>::at(k, next).list_prev.store(prev),
            None => self.tail.store(prev),
        }
        self.count -= 1;
    }
}

/// Nodes on the list beyond what so many pages of memory may have: half the shadows that could matter, an eighth of the pages (Linux:
/// `count_shadow_nodes`).
pub fn count_shadow_nodes<K: Cache>(k: &K, present_pages: u64) -> u64 {
    k.shadow_nodes(|list| list.count()).saturating_sub(present_pages >> 3)
}

/// Frees up to `nr` nodes of the list, the oldest first, with the shadows in them; how many (Linux: `scan_shadow_nodes`).
pub fn scan_shadow_nodes<K: Cache>(k: &K, nr: u64) -> u64 {
    (0..nr).map_while(|_| free_oldest(k)).map(u64::from).sum()
}

/// Whether the oldest node went, or was in use again by then; `None` if there is none.
fn free_oldest<K: Cache>(k: &K) -> Option<bool> {
    // The node may leave the list and its tree at any time, and its mapping may go: both keep their types in here.
    k.rcu_read(|| {
        let (node_id, id) = k.shadow_nodes(|list| {
            let oldest = list.head.load()?;
            Some((oldest, Arena::<Node>::at(k, oldest).mapping.load()?))
        })?;
        Some(k.pages_lock(id, || {
            let node: &Node = k.at(node_id);
            // Only with this lock does it begin or cease to name this mapping (W1).
            if node.mapping.load() != Some(id) {
                return false;
            }
            let tree = Arena::<Mapping>::at(k, id).i_pages();
            let (first, mut left) = (first_index(k, node), node.present());
            k.mod_kmem_state(node_id, NodeStat::NodeReclaim, 1);
            leaves(k, id, first).for_each(|leaf| unlist(k, leaf));
            while left != 0 {
                tree.erase(k, first | u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
            update_nodes(k, id, first);
            true
        }))
    })
}

/// The index of the first slot of a node at the bottom.
fn first_index<'k, K: Arena<Node>>(k: &'k K, mut node: &'k Node) -> u64 {
    let mut first = 0;
    while let Some(above) = node.parent.load() {
        let offset = node.offset() as u64;
        node = k.at(above);
        first |= offset << node.shift();
    }
    first
}

/// [`crate::Tree::store`] in the tree of a mapping, whose lock is held.
pub(crate) fn store_entry<K: Cache>(
    k: &K,
    id: Id<Mapping>,
    index: u64,
    entry: Entry,
    spare: &mut Spare,
) -> Result<Entry, Missing> {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    let stored = tree.store(k, index, entry, spare)?;
    update_nodes(k, id, index);
    Ok(stored)
}

/// [`crate::Tree::erase`] in the tree of a mapping, whose lock is held.
pub(crate) fn erase_entry<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> Entry {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    // They may be freed.
    leaves(k, id, index).for_each(|leaf| unlist(k, leaf));
    let erased = tree.erase(k, index);
    update_nodes(k, id, index);
    erased
}

/// The nodes at the bottom that a change at `index` may fill, empty, make or free: the one of `index`, and that of index 0, whose only entry
/// may move to the root or come from there.
fn leaves<K: Cache>(k: &K, id: Id<Mapping>, index: u64) -> impl Iterator<Item = Id<Node>> {
    let tree = Arena::<Mapping>::at(k, id).i_pages();
    let (own, first) = (tree.leaf(k, index), tree.leaf(k, 0));
    own.into_iter().chain(first.filter(|_| first != own))
}

/// Linux: `workingset_update_node`.
fn update_nodes<K: Cache>(k: &K, id: Id<Mapping>, index: u64) {
    // What lies in the place of pages of shared memory cannot be forgotten.
    if k.is_shmem(id) {
        return;
    }
    for leaf in leaves(k, id, index) {
        let node: &Node = k.at(leaf);
        match (node.has_only_values(), node.mapping.load().is_some()) {
            (true, false) => {
                node.mapping.store(Some(id));
                k.shadow_nodes(|list| list.add(k, leaf));
                k.mod_kmem_state(leaf, NodeStat::WorkingsetNodes, 1);
            }
            (false, true) => unlist(k, leaf),
            _ => {}
        }
    }
}

/// Takes a node off the list if it is there.
fn unlist<K: Cache>(k: &K, id: Id<Node>) {
    let node: &Node = k.at(id);
    if node.mapping.load().is_some() {
        node.mapping.store(None);
        k.shadow_nodes(|list| list.remove(k, id));
        k.mod_kmem_state(id, NodeStat::WorkingsetNodes, -1);
    }
}
