//! Memory for user processes: any zone will do, the highest first.

use mm_core::{Gfp, Order};
use mm_page_alloc::Context;

use super::pages::place;
use super::{Taken, part};
use crate::mm::{kmap, page_alloc, phys};
use crate::sched;

/// `GFP_HIGHUSER` with all zones full of memory, a look into the frame by kmap_local, and again when the first zone of the
/// list is at its watermark.
pub fn highuser() -> Result<(), &'static str> {
    let token = sched::task_context();
    let alloc = || page_alloc::alloc_gfp(Context::task(&token), Gfp::HIGHUSER, Order::ZERO, None);
    let first = part(c"before: alloc_pages(GFP_HIGHUSER, 0)", c"after: alloc_pages(GFP_HIGHUSER, 0)", alloc)
        .ok_or("nothing is free")?;
    let window = part(c"before: kmap_local_page", c"after: kmap_local_page", || kmap::kmap_local(first))
        .map_err(|_| "no window is free")?;
    phys::zero_mapped(window);
    part(c"before: kunmap_local", c"after: kunmap_local", || kmap::kunmap_local(window));
    let preferred = place(first);
    let mut taken = Taken::new();
    taken.take_all(Gfp::HIGHUSER, |pfn| place(pfn) == preferred);
    let second = part(
        c"before: alloc_pages(GFP_HIGHUSER, 0), first zone low",
        c"after: alloc_pages(GFP_HIGHUSER, 0), first zone low",
        alloc,
    );
    taken.give_back();
    page_alloc::free_pages(first, Order::ZERO);
    let second = second.ok_or("its zonelist has one zone with memory to spare")?;
    let fell_through = place(second) != preferred;
    page_alloc::free_pages(second, Order::ZERO);
    if fell_through { Ok(()) } else { Err("its zonelist has one zone with memory to spare") }
}
