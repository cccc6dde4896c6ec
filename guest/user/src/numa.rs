//! Memory policies and nodes, as calls tell of them.

use crate::memory::{BYTES, Pages};
use crate::pressure::vmstat::{lines, numbers};
use crate::sys::call;

pub const PREFERRED: u64 = 1;
pub const BIND: u64 = 2;
pub const INTERLEAVE: u64 = 3;
pub const LOCAL: u64 = 4;

pub const STRICT: u64 = 1;
pub const MOVE: u64 = 2;
pub const MOVE_ALL: u64 = 4;

/// Of get_mempolicy.
const F_NODE: u64 = 1;
const F_ADDR: u64 = 2;

pub fn set_policy(mode: u64, nodes: u64) -> u64 {
    call(238, [mode, &raw const nodes as u64, 65, 0, 0, 0])
}

/// Mode and nodes of this task.
pub fn policy() -> (u64, u64) {
    let (mut mode, mut nodes) = (0_u32, 0_u64);
    call(239, [&raw mut mode as u64, &raw mut nodes as u64, 64, 0, 0, 0]);
    (mode.into(), nodes)
}

/// Mode and nodes of the area at an address, or the error.
pub fn policy_at(addr: u64) -> Result<(u64, u64), u64> {
    let (mut mode, mut nodes) = (0_u32, 0_u64);
    match call(239, [&raw mut mode as u64, &raw mut nodes as u64, 64, addr, F_ADDR, 0]) {
        0 => Ok((mode.into(), nodes)),
        error => Err(error),
    }
}

/// mbind of so many bytes.
pub fn mbind(addr: u64, len: u64, mode: u64, nodes: u64, flags: u64) -> u64 {
    call(237, [addr, len, mode, &raw const nodes as u64, 65, flags])
}

/// mbind of pages.
pub fn bind(pages: &Pages, first: u64, count: u64, (mode, nodes): (u64, u64), flags: u64) -> u64 {
    mbind(pages.at(first), count * BYTES, mode, nodes, flags)
}

/// The node that a page of this process lies on; it is brought in if it is not there.
pub fn node_of(addr: u64) -> u64 {
    let mut node = u32::MAX;
    call(239, [&raw mut node as u64, 0, 0, addr, F_NODE | F_ADDR, 0]);
    node.into()
}

/// move_pages of one page of a process, 0 for this one, to a node, or nowhere: what the call returned, and the status.
pub fn move_page(pid: u64, addr: u64, node: Option<u64>, flags: u64) -> (u64, i32) {
    let mut status = i32::MIN;
    let to = u32::try_from(node.unwrap_or(0)).unwrap_or(u32::MAX);
    let nodes = if node.is_some() { &raw const to as u64 } else { 0 };
    let result = call(279, [pid, 1, &raw const addr as u64, nodes, &raw mut status as u64, flags]);
    (result, status)
}

/// migrate_pages of a process, 0 for this one.
pub fn migrate_pages(pid: u64, from: u64, to: u64) -> u64 {
    call(256, [pid, 65, &raw const from as u64, &raw const to as u64, 0, 0])
}

/// Nodes with memory, as bits, and the last of them.
pub fn nodes() -> (u64, u64) {
    let (mut bits, mut last, mut here) = (0_u64, 0, 0);
    lines(c"/proc/zoneinfo", |line| {
        if line.starts_with(b"Node ") {
            here = numbers(line).next().unwrap_or(0);
        } else if line.starts_with(b"        managed ") && numbers(line).next() > Some(0) {
            bits |= 1 << here;
            last = here;
        }
    });
    (bits, last)
}
