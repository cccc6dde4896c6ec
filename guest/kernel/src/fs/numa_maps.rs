//! What /proc/PID/numa_maps is printed from.

use core::fmt;

use guest_fs::proc::{NumaMap, NumaPlace};
use mm_page_alloc::Policy;
use mm_vma::{Arena, Id, Mm, NumaPages, Space, Vma};

use super::mapped;
use super::source::path_of_exe;
use crate::mm::space::{self, Spaces};
use crate::task::Task;

/// Calls `f` for each mapping, without mmap_lock: what comes and goes meanwhile may be there or not.
pub fn show(task: &Task, id: Id<Mm>, f: &mut dyn FnMut(&NumaMap<'_>) -> fmt::Result) -> fmt::Result {
    let mm = space::mm_of(id);
    let stack = space::start_stack(mm);
    let own = task.mempolicy.lock().policy();
    let exe = path_of_exe(task);
    let mut from = 0;
    loop {
        let mut pages = NumaPages::default();
        let (start, end, mapping, policy) = {
            let space = Space::lock(&Spaces, id, task.limits());
            let Some(vma) = mm.find(&Spaces, from).map(|id| Arena::<Vma>::at(&Spaces, id)) else {
                return Ok(());
            };
            space.numa_pages(vma, &mut pages);
            (vma.start(), vma.end(), vma.mapping(), vma.policy())
        };
        from = end;
        let policy = if policy == Policy::Default { own } else { policy };
        let shown = mapping.and_then(mapped::show);
        let place = match mapping {
            Some(_) => NumaPlace::File(shown.as_ref().map_or(&exe, |shown| &shown.path)),
            None if start <= mm.brk() && end >= mm.start_brk() => NumaPlace::Heap,
            None if (start..=end).contains(&stack) => NumaPlace::Stack,
            None => NumaPlace::Anonymous,
        };
        f(&NumaMap {
            start,
            mode: policy.mode(),
            policy_nodes: policy.nodes().bits(),
            place,
            pages: pages.pages,
            anon: pages.anon,
            dirty: pages.dirty,
            mapcount_max: pages.mapcount_max,
            swapcache: pages.swapcache,
            active: pages.active,
            writeback: pages.writeback,
            nodes: &pages.nodes,
        })?;
    }
}
