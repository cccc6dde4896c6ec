//! Where memory comes from: set_mempolicy, get_mempolicy, mbind (Linux 6.1: mm/mempolicy.c). What a policy means is `mm_core`'s and
//! `mm_page_alloc`'s; what mbind does to an address space is `mm_vma`'s.
//!
//! Differs from Linux: modes have no flags (MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES: there are no cpusets that could take nodes away;
//! MPOL_F_NUMA_BALANCING), and set_mempolicy_home_node is not there.

use memvisor_abi::mpol;
use mm_core::PAGE_SIZE;
use mm_page_alloc::{NodeMask, Policy};
use mm_vma::{Arena, Errno, Limits, Mbind, MbindFlags, Space, Vma, page_node};

use super::{arguments, int};
use crate::arch::trap::TrapFrame;
use crate::mm::page_alloc::nr_nodes;
use crate::mm::space::Spaces;
use crate::mm::{page_alloc, pcp};
use crate::{task, uaccess};

/// Flags of get_mempolicy.
const F_NODE: u64 = 1;
const F_ADDR: u64 = 2;
const F_MEMS_ALLOWED: u64 = 4;

/// The calls of this file.
pub fn call(number: u64, frame: &TrapFrame) -> Option<Result<u64, Errno>> {
    let [a, b, c, d, e, f] = arguments(frame);
    Some(match number {
        237 => mbind((a, b), int(c), (d, e), f),
        238 => set_mempolicy(int(a), b, c),
        239 => get_mempolicy(a, b, (c, d, e)),
        _ => return None,
    })
}

/// Nodes that have memory.
pub fn with_memory() -> NodeMask {
    NodeMask::of(pcp::zonelists().iter().filter(|list| list.nofallback_count > 0).map(|list| list.node))
}

/// A program's mask of nodes, of which `maxnode` less one bits count (Linux: `get_nodes`).
pub fn read_nodes(mask: u64, maxnode: u64) -> Result<NodeMask, Errno> {
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
    Ok(NodeMask::from_bits(nodes))
}

/// A mode that there is (Linux: `sanitize_mpol_flags`).
fn known(mode: u32) -> Result<u32, Errno> {
    if mode <= mpol::PREFERRED_MANY { Ok(mode) } else { Err(Errno::Einval) }
}

fn policy_of(mode: u32, nodes: NodeMask) -> Result<Policy, Errno> {
    Policy::new(mode, nodes, with_memory()).map_err(|_| Errno::Einval)
}

fn set_mempolicy(mode: u32, mask: u64, maxnode: u64) -> Result<u64, Errno> {
    let mode = known(mode)?;
    let policy = policy_of(mode, read_nodes(mask, maxnode)?)?;
    let task = task::current().ok_or(Errno::Einval)?;
    let mut changed = *task.mempolicy.lock();
    changed.set(policy, with_memory()).map_err(|_| Errno::Einval)?;
    *task.mempolicy.lock() = changed;
    if !matches!(policy, Policy::Default | Policy::Local) {
        page_alloc::use_policies();
    }
    Ok(0)
}

/// Everybody is root, who may move what others map, too.
fn mbind(range: (u64, u64), mode: u32, mask: (u64, u64), flags: u64) -> Result<u64, Errno> {
    let mode = known(mode)?;
    let nodes = read_nodes(mask.0, mask.1)?;
    let task = task::current().ok_or(Errno::Einval)?;
    let mm = task.mm().ok_or(Errno::Einval)?;
    Space::lock(&Spaces, mm, task.limits()).mbind(&Mbind {
        start: range.0,
        len: range.1,
        policy: policy_of(mode, nodes),
        nodes,
        flags: MbindFlags::from_bits_retain(flags),
    })?;
    Ok(0)
}

/// The policy of the area at an address, and of none but the area.
fn policy_at(addr: u64) -> Result<Policy, Errno> {
    let mm = task::current().and_then(|task| task.mm()).ok_or(Errno::Efault)?;
    let space = Space::lock(&Spaces, mm, Limits::default());
    let vma: &Vma = Spaces.at(space.vma_at(addr)?);
    Ok(vma.policy())
}

/// The node of the page at a program's address, which is brought in if it is not there (Linux: `lookup_node`).
fn node_at(addr: u64) -> Result<u32, Errno> {
    /// Looks before it must have been taken out again each time.
    const TRIES: u32 = 16;
    let mm = task::current().and_then(|task| task.mm()).ok_or(Errno::Efault)?;
    for _ in 0..TRIES {
        let _: u8 = uaccess::get_user(addr)?;
        match page_node(&Spaces, mm, addr) {
            Err(Errno::Enoent) => {}
            found => return found,
        }
    }
    Err(Errno::Efault)
}

fn get_mempolicy(mode: u64, mask: u64, (maxnode, addr, flags): (u64, u64, u64)) -> Result<u64, Errno> {
    if flags & !(F_NODE | F_ADDR | F_MEMS_ALLOWED) != 0 || (mask != 0 && maxnode < nr_nodes() as u64) {
        return Err(Errno::Einval);
    }
    let own = *task::current().ok_or(Errno::Einval)?.mempolicy.lock();
    let (number, nodes) = match flags {
        F_MEMS_ALLOWED => (0, with_memory()),
        _ if flags & F_MEMS_ALLOWED != 0 => return Err(Errno::Einval),
        _ if flags & F_ADDR != 0 => {
            let policy = policy_at(addr)?;
            (if flags & F_NODE != 0 { node_at(addr)? } else { policy.mode() }, policy.nodes())
        }
        _ if addr != 0 => return Err(Errno::Einval),
        F_NODE => (own.next_node().ok_or(Errno::Einval)?, own.policy().nodes()),
        _ => (own.policy().mode(), own.policy().nodes()),
    };
    if mode != 0 {
        uaccess::put_user(mode, number)?;
    }
    if mask != 0 {
        write_nodes(mask, maxnode, nodes)?;
    }
    Ok(0)
}

/// Whole words, as many as hold one bit less than `maxnode`; what is beyond the nodes that can be is zero (Linux: `copy_nodes_to_user`).
fn write_nodes(mask: u64, maxnode: u64, nodes: NodeMask) -> Result<(), Errno> {
    let words = maxnode.wrapping_sub(1).div_ceil(64);
    if words > PAGE_SIZE / 8 {
        return Err(Errno::Einval);
    }
    (0..words).try_for_each(|word| {
        let value = if word == 0 { nodes.bits() } else { 0 };
        uaccess::put_user(mask.checked_add(word * 8).ok_or(Errno::Efault)?, value)
    })
}
