//! Corruptions of the tables that ring 3 runs on with `pti=on`.

use mm_core::{PAGE_SIZE, PFN_NONE, Pfn, VirtAddr};
use mm_pgtable::{LeafSize, Prot, PteFlags, TABLE_ENTRIES, TableMem, layout};

use super::victim::{Outcome, Victim, victim};
use crate::mm::layout::{levels, percpu_area};
use crate::mm::paging::{self, Tables};
use crate::mm::{pti, space};

/// The table that ring 3 runs on.
fn user_table(victim: Victim) -> Outcome<Pfn> {
    let user = space::mm_of(victim.id).user_root();
    if user == PFN_NONE { Err("page-table isolation is off: pti=on") } else { Ok(Pfn::new(user)) }
}

/// Ring 3's tables have the direct map.
pub fn direct_map() -> Outcome {
    let user = user_table(victim()?)?;
    let mut top = None;
    paging::kernel().walk(&Tables, layout::page_offset(levels()), |level, _, index, entry| {
        if level == levels().count() {
            top = Some((index, entry));
        }
    });
    let (index, entry) = top.ok_or("there is no direct map")?;
    Tables.write(user, index, entry.as_u64());
    Ok(())
}

/// The entry area has a page more: that with a CPU's own data.
pub fn secret() -> Outcome {
    user_table(victim()?)?;
    let va: VirtAddr = percpu_area(0);
    let found = paging::kernel().translate(&Tables, va).ok_or("there is no area")?;
    let prot = Prot { global: false, ..Prot::KERNEL_RW };
    let mapped = pti::template().map(&mut Tables, va, found.phys, PAGE_SIZE, prot, LeafSize::Size4K);
    mapped.map_err(|_| "the page cannot be mapped")
}

/// The two tables differ in the user's half.
pub fn user_half() -> Outcome {
    let user = user_table(victim()?)?;
    let used =
        (0..TABLE_ENTRIES / 2).find(|&index| Tables.read(user, index) != 0).ok_or("nothing is mapped")?;
    Tables.write(user, used, Tables.read(user, used) | PteFlags::SOFT1.bits());
    Ok(())
}
