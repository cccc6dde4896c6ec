//! Queues in which the least goes first: timers by time, ready tasks by turn (Linux: lib/timerqueue.c, lib/rbtree.c).
//!
//! A pairing heap whose members bring their links, so that nobody allocates: what is in a queue is a number, and its [`Node`] is where
//! the caller's [`Nodes`] say. To enter costs a few words, to leave a logarithm of the length on average.
//!
//! Invariants, verified by [`Queue::audit`]:
//! Q1  no member has a key less than its parent's;
//! Q2  `prev` of a first child is its parent, of any other its sibling before it;
//! Q3  the queue's length is the number of members that are found from its first.
//!
//! Whoever holds the queue's lock has its nodes; they are atomics only so that safe code may share them.
//!
//! Differs from Linux: a heap, not a balanced tree: nobody asks for the second.

#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// No member.
const NONE: u32 = u32::MAX;

/// What a member is ordered by, the first word before the second.
pub type Key = [u64; 2];

/// What a member brings.
#[derive(Debug)]
pub struct Node {
    key: [AtomicU64; 2],
    child: AtomicU32,
    next: AtomicU32,
    prev: AtomicU32,
}

impl Node {
    /// In no queue.
    pub const fn new() -> Node {
        Node {
            key: [const { AtomicU64::new(0) }; 2],
            child: AtomicU32::new(NONE),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
        }
    }

    fn key(&self) -> Key {
        self.key.each_ref().map(|word| word.load(Ordering::Relaxed))
    }
}

impl Default for Node {
    fn default() -> Node {
        Node::new()
    }
}

/// Where the nodes are.
pub trait Nodes {
    /// The node of a number that somebody entered.
    fn node(&self, number: u32) -> &Node;
}

impl Nodes for [Node] {
    fn node(&self, number: u32) -> &Node {
        // A number that was never entered is a broken queue.
        &self[number as usize]
    }
}

/// Members in order of their keys; equal ones in no order.
#[derive(Debug)]
pub struct Queue {
    first: u32,
    len: usize,
}

impl Queue {
    /// Nobody is in it.
    pub const fn new() -> Queue {
        Queue { first: NONE, len: 0 }
    }

    /// Members.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// The member that goes first, and its key.
    pub fn first(&self, nodes: &(impl Nodes + ?Sized)) -> Option<(u32, Key)> {
        (self.first != NONE).then(|| (self.first, nodes.node(self.first).key()))
    }

    /// Enters a number that is in no queue.
    pub fn insert(&mut self, nodes: &(impl Nodes + ?Sized), number: u32, key: Key) {
        let node = nodes.node(number);
        node.key.iter().zip(key).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
        for link in [&node.child, &node.next, &node.prev] {
            link.store(NONE, Ordering::Relaxed);
        }
        self.first = join(nodes, self.first, number);
        self.len += 1;
    }

    /// Takes out a number that is in this queue.
    pub fn remove(&mut self, nodes: &(impl Nodes + ?Sized), number: u32) {
        let node = nodes.node(number);
        let below = join_all(nodes, node.child.load(Ordering::Relaxed));
        if self.first == number {
            self.first = below;
        } else {
            cut(nodes, number);
            self.first = join(nodes, self.first, below);
        }
        self.len -= 1;
    }

    /// Takes out the first.
    pub fn pop(&mut self, nodes: &(impl Nodes + ?Sized)) -> Option<(u32, Key)> {
        let first = self.first(nodes)?;
        self.remove(nodes, first.0);
        Some(first)
    }

    /// The first number, in no order, for which `f` is true.
    pub fn find(&self, nodes: &(impl Nodes + ?Sized), mut f: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = self.first;
        while at != NONE {
            if f(at) {
                return Some(at);
            }
            at = following(nodes, at);
        }
        None
    }

    /// Q1 to Q3.
    ///
    /// # Errors
    /// What is wrong.
    pub fn audit(&self, nodes: &(impl Nodes + ?Sized)) -> Result<(), &'static str> {
        let (mut at, mut found) = (self.first, 0);
        while at != NONE {
            found += 1;
            if found > self.len {
                return Err("Q3: more members than entered");
            }
            let node = nodes.node(at);
            let mut before = at;
            let mut child = node.child.load(Ordering::Relaxed);
            while child != NONE {
                let below = nodes.node(child);
                if below.prev.load(Ordering::Relaxed) != before {
                    return Err("Q2: a link back leads elsewhere");
                }
                if below.key() < node.key() {
                    return Err("Q1: a child goes before its parent");
                }
                before = child;
                child = below.next.load(Ordering::Relaxed);
            }
            at = following(nodes, at);
        }
        if found == self.len { Ok(()) } else { Err("Q3: fewer members than entered") }
    }
}

impl Default for Queue {
    fn default() -> Queue {
        Queue::new()
    }
}

/// Makes one heap of two whose roots have no siblings.
fn join(nodes: &(impl Nodes + ?Sized), a: u32, b: u32) -> u32 {
    if a == NONE {
        return b;
    }
    if b == NONE {
        return a;
    }
    let (above, below) = if nodes.node(b).key() < nodes.node(a).key() { (b, a) } else { (a, b) };
    let (parent, child) = (nodes.node(above), nodes.node(below));
    let old = parent.child.load(Ordering::Relaxed);
    child.next.store(old, Ordering::Relaxed);
    child.prev.store(above, Ordering::Relaxed);
    if old != NONE {
        nodes.node(old).prev.store(below, Ordering::Relaxed);
    }
    parent.child.store(below, Ordering::Relaxed);
    above
}

/// Makes one heap of siblings: pairs first, then all of them from the last to the first.
fn join_all(nodes: &(impl Nodes + ?Sized), first: u32) -> u32 {
    let mut pairs = NONE;
    let mut at = first;
    while at != NONE {
        let other = alone(nodes, at);
        let rest = if other == NONE { NONE } else { alone(nodes, other) };
        let pair = join(nodes, at, other);
        nodes.node(pair).next.store(pairs, Ordering::Relaxed);
        pairs = pair;
        at = rest;
    }
    let mut all = NONE;
    while pairs != NONE {
        let next = alone(nodes, pairs);
        all = join(nodes, all, pairs);
        pairs = next;
    }
    all
}

/// Makes a member one without siblings; returns the one after it.
fn alone(nodes: &(impl Nodes + ?Sized), number: u32) -> u32 {
    let node = nodes.node(number);
    node.prev.store(NONE, Ordering::Relaxed);
    let next = node.next.load(Ordering::Relaxed);
    node.next.store(NONE, Ordering::Relaxed);
    next
}

/// Takes a member that is not the first from among its siblings.
fn cut(nodes: &(impl Nodes + ?Sized), number: u32) {
    let prev = nodes.node(number).prev.load(Ordering::Relaxed);
    let next = alone(nodes, number);
    if next != NONE {
        nodes.node(next).prev.store(prev, Ordering::Relaxed);
    }
    let before = nodes.node(prev);
    let link = if before.child.load(Ordering::Relaxed) == number { &before.child } else { &before.next };
    link.store(next, Ordering::Relaxed);
}

/// Who comes after a member when parents come before their children.
fn following(nodes: &(impl Nodes + ?Sized), number: u32) -> u32 {
    let child = nodes.node(number).child.load(Ordering::Relaxed);
    if child != NONE {
        return child;
    }
    let mut at = number;
    loop {
        let node = nodes.node(at);
        let next = node.next.load(Ordering::Relaxed);
        if next != NONE {
            return next;
        }
        // Back over the siblings to the first, and up to the parent.
        loop {
            let prev = nodes.node(at).prev.load(Ordering::Relaxed);
            if prev == NONE {
                return NONE;
            }
            let is_parent = nodes.node(prev).child.load(Ordering::Relaxed) == at;
            at = prev;
            if is_parent {
                break;
            }
        }
    }
}
