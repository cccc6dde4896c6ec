//! Corruptions of swap: words of slots, entries that name them, the swap cache. They need a disk, which becomes a swap area.

use core::mem::offset_of;

use alloc::vec::Vec;

use memvisor_abi as abi;
use memvisor_abi::{PTE_SWAP, SwapArea, swap_slot};
use mm_core::{Gfp, Order, PAGE_SIZE, PageFlags};
use mm_pgtable::PteFlags;
use mm_swap::SwapEntry;
use mm_vma::{Limits, MapFlags, MmapRequest, Populate, ProtFlags, dup_mmap, madvise_pageout};
use mm_vmscan::{folio_isolate_lru, folio_putback_lru};

use super::victim::{Outcome, PAGES, Victim, add, page, read, victim, write};
use crate::drivers::block::{self, Disk, Segment};
use crate::mm::space::{self, Spaces};
use crate::mm::{kmap, page_alloc, swap};
use crate::{sched, uaccess};

/// Slots of the area.
pub const SLOTS: u64 = 200;

/// Writes the header of a swap area to a disk.
fn mkswap(disk: Disk) -> Outcome {
    let frame = page_alloc::alloc_here(Gfp::KERNEL | Gfp::ZERO, Order::ZERO, None).ok_or("no memory")?;
    let mut words = Vec::new();
    words.extend_from_slice(&1_u32.to_le_bytes());
    let last = u32::try_from(SLOTS - 1).map_err(|_| "too many slots")?;
    words.extend_from_slice(&last.to_le_bytes());
    kmap::copy_to_page(frame, offset_of!(abi::SwapHeader, version) as u64, &words);
    kmap::copy_to_page(frame, offset_of!(abi::SwapHeader, magic) as u64, &abi::SWAP_MAGIC);
    let written = disk.write(0, &[Segment::frame(frame)], &sched::task_context());
    page_alloc::free_pages(frame, Order::ZERO);
    written.map_err(|_| "the header cannot be written")
}

/// Has a disk used for swap.
fn area() -> Outcome {
    let mut disks = block::all().filter(|disk| !disk.geometry.read_only);
    let disk = block::by_serial("swap").or_else(|| disks.next()).ok_or("there is no disk")?;
    mkswap(disk)?;
    swap::swapon_disk(disk, 0).map_err(|_| "swapon failed")
}

/// Pages of the living process that are in swap.
fn swapped() -> Outcome<(Victim, u64)> {
    area()?;
    let victim = victim()?;
    let va = victim.touched()?;
    pageout(victim, va, PAGES)?;
    Ok((victim, va))
}

fn pageout(victim: Victim, va: u64, pages: u64) -> Outcome {
    madvise_pageout(&Spaces, victim.id, Populate { start: va, len: pages * PAGE_SIZE });
    let out = slot(victim, va).is_ok();
    if out { Ok(()) } else { Err("the page stayed in memory") }
}

/// The slot that the entry at `va` names.
fn slot(victim: Victim, va: u64) -> Outcome<SwapEntry> {
    SwapEntry::of_pte(victim.entry(va)?).ok_or("the entry names no slot")
}

/// The slot of a page of the living process that is in swap.
pub fn swapped_slot() -> Outcome<SwapEntry> {
    let (victim, va) = swapped()?;
    slot(victim, va)
}

/// Where the word of a slot is.
fn word(slot: SwapEntry) -> u64 {
    let published = swap::table();
    let area = published.gpa + u64::from(slot.area()) * u64::from(published.stride);
    read(area, offset_of!(SwapArea, words)) + slot.offset() * 8
}

/// Adds to the word of the slot that a swapped page of the living process has.
fn change_word(change: impl FnOnce(u64) -> u64) -> Outcome {
    let (victim, va) = swapped()?;
    let word = word(slot(victim, va)?);
    write(word, 0, change(read(word, 0)));
    Ok(())
}

/// An address space that counts an entry too few.
pub fn swapents() -> Outcome {
    let (victim, _) = swapped()?;
    add(victim.mm(), offset_of!(abi::Mm, swapents), -1);
    Ok(())
}

/// An area that counts a slot too many.
pub fn inuse() -> Outcome {
    swapped()?;
    add(swap::table().gpa, offset_of!(SwapArea, inuse), 1);
    Ok(())
}

/// A slot that was let go by its last user and not given back.
pub fn freeing() -> Outcome {
    let (victim, va) = swapped()?;
    let lost = slot(victim, va)?;
    victim.edit(va, |_| 0)?;
    add(victim.mm(), offset_of!(abi::Mm, swapents), -1);
    write(word(lost), 0, swap_slot::FREEING);
    Ok(())
}

/// An entry that names a slot that nobody uses.
pub fn pte_free() -> Outcome {
    let (victim, va) = swapped()?;
    let unused = SwapEntry::new(slot(victim, va)?.area(), SLOTS - 1).ok_or("no such slot")?;
    let (kept, gone) = (slot(victim, va)?, unused);
    // What the entry named is named by nobody now: it goes back as it should.
    mm_swap::swap_free(&Spaces, kept).map_err(|_| "the slot cannot be freed")?;
    victim.edit(va, |entry| gone.to_pte(false) | entry & PTE_SWAP)
}

/// A slot that counts a user too few: it is given to somebody else while it is needed.
pub fn count_lost() -> Outcome {
    let (victim, va) = swapped()?;
    let child = another(victim)?;
    // Two name it now.
    slot(child, va)?;
    add(word(slot(victim, va)?), 0, -1);
    Ok(())
}

/// A slot that counts a user too many: it never comes back.
pub fn count_extra() -> Outcome {
    change_word(|word| word + 1)
}

/// A process more, with the same memory.
fn another(parent: Victim) -> Outcome<Victim> {
    let id = space::mm_alloc(space::shape_of(parent.id)).map_err(|_| "no memory")?;
    let child = Victim { id };
    dup_mmap(&parent.lock(), &child.lock()).map_err(|_| "no memory for a copy")?;
    Ok(child)
}

/// A slot of shared memory that counts a user too many.
pub fn shmem_lost() -> Outcome {
    area()?;
    let victim = victim()?;
    let request = MmapRequest {
        addr: 0,
        len: PAGE_SIZE,
        prot: ProtFlags::READ | ProtFlags::WRITE,
        flags: MapFlags::SHARED | MapFlags::ANONYMOUS,
        file: None,
        offset: 0,
    };
    let (va, _populate) = victim.lock().mmap(&request).map_err(|_| "mmap failed")?;
    uaccess::copy_to_user(victim.id, &Limits::default(), va, &[1]).ok_or("a write was refused")?;
    madvise_pageout(&Spaces, victim.id, Populate { start: va, len: PAGE_SIZE });
    // The first slot of the area.
    let first = SwapEntry::new(0, 1).ok_or("no such slot")?;
    let count = read(word(first), 0) & swap_slot::COUNT;
    if count != 1 {
        return Err("the page stayed in memory");
    }
    add(word(first), 0, 1);
    Ok(())
}

/// A page of the living process that is in memory and in swap.
fn cached() -> Outcome<(Victim, u64)> {
    let (victim, va) = swapped()?;
    let mut byte = [0];
    // A read leaves it its slot.
    uaccess::copy_from_user(victim.id, &Limits::default(), va, &mut byte).ok_or("a read was refused")?;
    let page = page(victim.frame(va)?)?;
    if page.has(PageFlags::SWAPCACHE) { Ok((victim, va)) } else { Err("the page gave its slot up") }
}

/// A slot whose word has another frame than its page is in.
pub fn cache_frame() -> Outcome {
    let (victim, va) = cached()?;
    let slot = SwapEntry::of_value(page(victim.frame(va)?)?.private()).ok_or("the page names no slot")?;
    add(word(slot), 0, 1 << swap_slot::VALUE_SHIFT);
    Ok(())
}

/// A page that forgot that it is in the swap cache.
pub fn cache_flag() -> Outcome {
    let (victim, va) = cached()?;
    page(victim.frame(va)?)?.remove(PageFlags::SWAPCACHE);
    Ok(())
}

/// A page that has a slot is on the list of those that were given away: reclaim would drop it, and not its slot.
pub fn lazyfree() -> Outcome {
    let (victim, va) = cached()?;
    let pfn = victim.frame(va)?;
    let page = page(pfn)?;
    if !folio_isolate_lru(&Spaces, page) {
        return Err("the page is on no list");
    }
    page.remove(PageFlags::SWAPBACKED);
    folio_putback_lru(&Spaces, pfn, page);
    Ok(())
}

/// A page that a process may write while another's entry names its slot.
pub fn writable() -> Outcome {
    let (victim, va) = swapped()?;
    let child = another(victim)?;
    slot(child, va)?;
    let mut byte = [0];
    uaccess::copy_from_user(victim.id, &Limits::default(), va, &mut byte).ok_or("a read was refused")?;
    victim.edit(va, |entry| entry | PteFlags::WRITE.bits())
}
