//! Corruptions of a process's VMAs, and of the counters and locks of its address space.

use core::mem::offset_of;

use memvisor_abi as abi;
use memvisor_abi::{VMA_FANOUT, mpol, vm_flags};
use mm_core::PAGE_SIZE;
use mm_pgtable::{PteFlags, TABLE_ENTRIES, TableMem};
use mm_vma::{MremapFlags, ProtFlags};

use super::victim::{Outcome, PAGES, Victim, add, add_u32, read, victim, write};
use crate::mm::paging::Tables;
use crate::mm::space::{self, tlb};
use crate::{sched, task};

/// Two VMAs with different rights, one behind the other.
fn neighbours(victim: Victim) -> Outcome<(u64, u64)> {
    let va = victim.touched()?;
    let upper = va + PAGES / 2 * PAGE_SIZE;
    victim.protect(upper, PAGES / 2, ProtFlags::READ)?;
    Ok((victim.vma(va)?, victim.vma(upper)?))
}

/// A VMA that ends inside the next one.
pub fn overlap() -> Outcome {
    let (lower, _) = neighbours(victim()?)?;
    add(lower, offset_of!(abi::Vma, end), PAGE_SIZE.cast_signed());
    Ok(())
}

/// A VMA that the tree ends before the list does.
pub fn tree() -> Outcome {
    let victim = victim()?;
    let (lower, _) = neighbours(victim)?;
    let (node, place) = victim.leaf(lower)?;
    add(node, offset_of!(abi::VmaNode, end) + 8 * place, -PAGE_SIZE.cast_signed());
    Ok(())
}

/// Two VMAs side by side, of which the second came from elsewhere with its pages, are made one, which they must not be: their
/// offsets do not follow each other.
pub fn merged() -> Outcome {
    let victim = victim()?;
    let (lower, moved) = (victim.touched()?, victim.touched()?);
    let upper = lower + PAGES / 2 * PAGE_SIZE;
    let len = PAGES / 2 * PAGE_SIZE;
    victim.unmap(upper, PAGES / 2)?;
    let flags = MremapFlags::MAYMOVE | MremapFlags::FIXED;
    let (_, _populate) = victim.lock().mremap(moved, len, len, flags, upper).map_err(|_| "mremap failed")?;
    let (first, second) = (victim.vma(lower)?, victim.vma(upper)?);
    if first == second {
        return Err("the kernel merged them itself");
    }
    let ((node, at), (other, above)) = (victim.leaf(first)?, victim.leaf(second)?);
    if node != other || at != above + 1 {
        return Err("they are in two leaves of the tree");
    }
    // The tree loses the second entry, the first one grows.
    let end = read(second, offset_of!(abi::Vma, end));
    for field in
        [offset_of!(abi::VmaNode, start), offset_of!(abi::VmaNode, end), offset_of!(abi::VmaNode, slot)]
    {
        for i in above..VMA_FANOUT - 1 {
            write(node, field + 8 * i, read(node, field + 8 * (i + 1)));
        }
        write(node, field + 8 * (VMA_FANOUT - 1), 0);
    }
    write(node, offset_of!(abi::VmaNode, end) + 8 * above, end);
    add_u32(node, offset_of!(abi::VmaNode, len), -1);
    // So does the list.
    let next = read(second, offset_of!(abi::Vma, next));
    write(first, offset_of!(abi::Vma, end), end);
    write(first, offset_of!(abi::Vma, next), next);
    if next != 0 {
        write(next, offset_of!(abi::Vma, prev), first);
    }
    write(second, offset_of!(abi::Vma, mm), 0);
    add_u32(second, offset_of!(abi::Vma, refcount), -1);
    add_u32(victim.mm(), offset_of!(abi::Mm, map_count), -1);
    Ok(())
}

/// Changes what is kept of the policy of a VMA that has none.
fn damage_policy(mode: i32, nodes: u64) -> Outcome {
    let victim = victim()?;
    let vma = victim.vma(victim.touched()?)?;
    add_u32(vma, offset_of!(abi::Vma, policy), mode);
    write(vma, offset_of!(abi::Vma, policy_nodes), nodes);
    Ok(())
}

/// A VMA bound to the nodes with memory and to one that there is not.
pub fn policy_node() -> Outcome {
    damage_policy(mpol::BIND.cast_signed(), 1 << 63 | 1)
}

/// A VMA without a policy that has kept the nodes of one.
pub fn policy_mode() -> Outcome {
    damage_policy(mpol::DEFAULT.cast_signed(), 1)
}

/// A VMA too many is counted.
pub fn map_count() -> Outcome {
    add_u32(victim()?.mm(), offset_of!(abi::Mm, map_count), 1);
    Ok(())
}

/// A page of address space too few is counted.
pub fn total_vm() -> Outcome {
    add(victim()?.mm(), offset_of!(abi::Mm, total_vm), -1);
    Ok(())
}

/// A page counts as locked that is not.
pub fn locked_vm() -> Outcome {
    add(victim()?.mm(), offset_of!(abi::Mm, locked_vm), 1);
    Ok(())
}

/// A heap that ends below its start.
pub fn brk() -> Outcome {
    let mm = victim()?.mm();
    let start = read(mm, offset_of!(abi::Mm, start_brk));
    write(mm, offset_of!(abi::Mm, brk), start.checked_sub(PAGE_SIZE).ok_or("the process has no heap")?);
    Ok(())
}

/// Memory in the guard gap of a stack.
pub fn stack_gap() -> Outcome {
    let victim = victim()?;
    let mut vma = read(victim.mm(), offset_of!(abi::Mm, first));
    while vma != 0 && read(vma, offset_of!(abi::Vma, flags)) & vm_flags::GROWSDOWN == 0 {
        vma = read(vma, offset_of!(abi::Vma, next));
    }
    if vma == 0 {
        return Err("the process has no stack");
    }
    victim.map(read(vma, offset_of!(abi::Vma, start)) - 16 * PAGE_SIZE, 1).map(|_| ())
}

/// A resident anonymous page too many is counted.
pub fn rss_anon() -> Outcome {
    add(victim()?.mm(), offset_of!(abi::Mm, rss), 1);
    Ok(())
}

/// A resident page of a mapping too few is counted.
pub fn rss_file() -> Outcome {
    add(victim()?.mm(), offset_of!(abi::Mm, rss) + 8, -1);
    Ok(())
}

/// A page table too many is counted.
pub fn table_pages() -> Outcome {
    add(victim()?.mm(), offset_of!(abi::Mm, table_pages), 1);
    Ok(())
}

/// A top-level entry of the kernel's half that is not the kernel's.
pub fn kernel_half() -> Outcome {
    let root = space::mm_of(victim()?.id).page_table().root;
    let last = TABLE_ENTRIES - 1;
    Tables.write(root, last, Tables.read(root, last) | PteFlags::SOFT1.bits());
    Ok(())
}

/// A reader who never drops mmap_lock.
pub fn mmap_lock() -> Outcome {
    add_u32(victim()?.mm(), offset_of!(abi::Mm, mmap_lock), 1);
    Ok(())
}

/// An address space that outlives its last task.
pub fn users() -> Outcome {
    add_u32(victim()?.mm(), offset_of!(abi::Mm, users), 1);
    Ok(())
}

/// A task with an address space that is none.
pub fn task_mm() -> Outcome {
    let (number, mm) = task::living().ok_or("no process is alive")?;
    sched::set_mm(number, mm.as_u64() + 8);
    Ok(())
}

/// A list of address spaces whose first one leads back to itself.
pub fn mm_list() -> Outcome {
    let victim = victim()?;
    write(victim.mm(), offset_of!(abi::Mm, prev), victim.mm());
    Ok(())
}

/// A removal that was never flushed.
pub fn flush_pending() -> Outcome {
    add_u32(victim()?.mm(), offset_of!(abi::Mm, tlb_flush_pending), 1);
    Ok(())
}

/// A CPU uses the process's tables, and nobody would tell it of changes.
pub fn cpumask() -> Outcome {
    let victim = victim()?;
    tlb::use_mm(victim.id);
    for word in 0..abi::MM_CPU_WORDS {
        write(victim.mm(), offset_of!(abi::Mm, cpus) + 8 * word, 0);
    }
    Ok(())
}
