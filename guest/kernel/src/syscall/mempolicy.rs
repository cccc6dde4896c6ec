//! Where a task's memory comes from: set_mempolicy and get_mempolicy (Linux: mm/mempolicy.c). What a policy means is `mm_page_alloc`'s.
//!
//! Differs from Linux: there is no mbind, and so no policy of an area: the task that faults decides. MPOL_F_STATIC_NODES and
//! MPOL_F_RELATIVE_NODES are refused: there are no cpusets that could take nodes away.

use memvisor_abi::MAX_NUMNODES;
use mm_core::{MemMap, PAGE_SIZE};
use mm_page_alloc::{NodeMask, Policy};
use mm_vma::Errno;

use super::{arguments, int};
use crate::arch::trap::TrapFrame;
use crate::mm::memmap::Vmemmap;
use crate::mm::{page_alloc, pcp, space};
use crate::{task, uaccess};

const DEFAULT: u32 = 0;
const PREFERRED: u32 = 1;
const BIND: u32 = 2;
const INTERLEAVE: u32 = 3;
const LOCAL: u32 = 4;

/// Flags of get_mempolicy.
const F_NODE: u64 = 1;
const F_ADDR: u64 = 2;
const F_MEMS_ALLOWED: u64 = 4;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, e, _] = arguments(frame);
    Some(match number {
        238 => set_mempolicy(int(a), b, c),
        239 => get_mempolicy(a, b, (c, d, e)),
        _ => return None,
    })
}

/// Nodes that have memory.
fn with_memory() -> NodeMask {
    NodeMask::of(pcp::zonelists().iter().filter(|list| list.nofallback_count > 0).map(|list| list.node))
}

/// A program's mask of nodes, of which `maxnode` less one bits count (Linux: `get_nodes`).
fn read_nodes(mask: u64, maxnode: u64) -> Result<NodeMask, Errno> {
    let bits = maxnode.wrapping_sub(1);
    if bits == 0 || mask == 0 {
        return Ok(NodeMask::EMPTY);
    }
    if bits > PAGE_SIZE * 8 {
        return Err(Errno::Einval);
    }
    let mut nodes = 0;
    for word in 0..bits.div_ceil(64) {
        let left = bits - word * 64;
        let value: u64 = uaccess::get_user(mask.checked_add(word * 8).ok_or(Errno::Efault)?)?;
        let value = if left < 64 { value & ((1 << left) - 1) } else { value };
        if word == 0 {
            nodes = value;
        } else if value != 0 {
            return Err(Errno::Einval);
        }
    }
    Ok(NodeMask::of((0..u64::BITS).filter(|node| nodes >> node & 1 != 0)))
}

fn set_mempolicy(mode: u32, mask: u64, maxnode: u64) -> Result<u64, Errno> {
    if mode > LOCAL {
        return Err(Errno::Einval);
    }
    let nodes = read_nodes(mask, maxnode)?;
    let policy = match mode {
        DEFAULT | LOCAL if !nodes.is_empty() => return Err(Errno::Einval),
        DEFAULT | LOCAL => Policy::Local,
        PREFERRED => {
            (0..u64::BITS).find(|node| nodes.contains(*node)).map_or(Policy::Local, Policy::Preferred)
        }
        BIND => Policy::Bind(nodes),
        _ => Policy::Interleave(nodes),
    };
    let task = task::current().ok_or(Errno::Einval)?;
    let mut changed = *task.mempolicy.lock();
    changed.set(policy, with_memory()).map_err(|_| Errno::Einval)?;
    *task.mempolicy.lock() = changed;
    if policy != Policy::Local {
        page_alloc::use_policies();
    }
    Ok(0)
}

/// The node of the page at a program's address, which is brought in if it is not there (Linux: `lookup_node`).
fn node_at(addr: u64) -> Result<u32, Errno> {
    let _: u8 = uaccess::get_user(addr)?;
    let mm = task::current().and_then(|task| task.mm()).ok_or(Errno::Efault)?;
    let phys = space::translate(space::mm_of(mm), addr, false).ok_or(Errno::Efault)?;
    Vmemmap.page(phys.pfn()).map(mm_core::Page::node).ok_or(Errno::Efault)
}

fn get_mempolicy(mode: u64, mask: u64, (maxnode, addr, flags): (u64, u64, u64)) -> Result<u64, Errno> {
    if flags & !(F_NODE | F_ADDR | F_MEMS_ALLOWED) != 0 || (mask != 0 && maxnode < MAX_NUMNODES as u64) {
        return Err(Errno::Einval);
    }
    let task = task::current().ok_or(Errno::Einval)?;
    let policy = task.mempolicy.lock().policy();
    let (number, nodes) = match policy {
        Policy::Local => (DEFAULT, NodeMask::EMPTY),
        Policy::Preferred(node) => (PREFERRED, NodeMask::of([node])),
        Policy::Bind(nodes) => (BIND, nodes),
        Policy::Interleave(nodes) => (INTERLEAVE, nodes),
    };
    let (number, nodes) = match flags {
        F_MEMS_ALLOWED => (0, with_memory()),
        // Where the next page of interleaving comes from is not told.
        F_NODE => return Err(Errno::Einval),
        _ if flags & F_MEMS_ALLOWED != 0 => return Err(Errno::Einval),
        _ if flags == F_NODE | F_ADDR => (node_at(addr)?, nodes),
        // Areas have no policy of their own.
        F_ADDR => (number, nodes),
        _ if addr != 0 => return Err(Errno::Einval),
        _ => (number, nodes),
    };
    if mode != 0 {
        uaccess::put_user(mode, number)?;
    }
    if mask != 0 {
        let bits =
            (0..u64::BITS).filter(|node| nodes.contains(*node)).fold(0, |bits, node| bits | 1_u64 << node);
        uaccess::put_user(mask, bits)?;
        // What the program has room for beyond that is zero (Linux: `copy_nodes_to_user`).
        for word in 1..maxnode.min(PAGE_SIZE * 8).div_ceil(64) {
            uaccess::put_user(mask + word * 8, 0_u64)?;
        }
    }
    Ok(0)
}
