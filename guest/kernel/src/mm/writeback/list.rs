//! Mappings with dirty pages, the one that has been so longest first (Linux: `wb->b_dirty`).

use core::sync::atomic::Ordering::Relaxed;

use mm_filemap::Mark;
use mm_vma::{Arena, Id, Mapping};

use crate::mm::space::{Spaces, backing, cache};
use crate::sched::clock;
use crate::sync::Lock;

/// In `dirty_next` of the last one.
const END: u64 = 1;

struct Dirty {
    first: u64,
    last: u64,
}

static LIST: Lock<Dirty> = Lock::new(Dirty { first: 0, last: 0 });

/// A mapping has a dirty page. Nothing happens if it is in the list.
pub(super) fn add(id: Id<Mapping>) {
    let backing = backing::of(id);
    // Who takes it out looks for dirty pages after that.
    if backing.dirty_next.load(Relaxed) != 0 {
        return;
    }
    let mut list = LIST.lock();
    if backing.dirty_next.load(Relaxed) != 0 || !cache::source(id).is_written_back() {
        return;
    }
    backing.dirtied_when.store(clock::now(), Relaxed);
    backing.dirty_next.store(END, Relaxed);
    match Id::<Mapping>::new(list.last) {
        Some(last) => backing::of(last).dirty_next.store(id.as_u64(), Relaxed),
        None => list.first = id.as_u64(),
    }
    list.last = id.as_u64();
}

/// Takes the first one out if it became dirty before `before`, with a reference for the caller.
pub(super) fn take(before: u64) -> Option<Id<Mapping>> {
    let mut list = LIST.lock();
    loop {
        let id = Id::<Mapping>::new(list.first)?;
        if backing::of(id).dirtied_when.load(Relaxed) > before {
            return None;
        }
        unlink_first(&mut list, id);
        // One that is being freed has nothing to be written any more.
        if backing::try_get(id) {
            return Some(id);
        }
    }
}

fn unlink_first(list: &mut Dirty, id: Id<Mapping>) {
    match backing::of(id).dirty_next.swap(0, Relaxed) {
        END => (list.first, list.last) = (0, 0),
        next => list.first = next,
    }
}

/// Puts it back if it has dirty pages still.
pub(super) fn put_back(id: Id<Mapping>) {
    if Arena::<Mapping>::at(&Spaces, id).i_pages().is_marked(Mark::Dirty) {
        add(id);
    }
}

/// The mapping is being freed, or is not written any more.
pub fn forget(id: Id<Mapping>) {
    let mut list = LIST.lock();
    if backing::of(id).dirty_next.load(Relaxed) == 0 {
        return;
    }
    if list.first == id.as_u64() {
        return unlink_first(&mut list, id);
    }
    let mut at = list.first;
    while let Some(before) = Id::<Mapping>::new(at).filter(|_| at != END) {
        let next = backing::of(before).dirty_next.load(Relaxed);
        if next == id.as_u64() {
            let after = backing::of(id).dirty_next.swap(0, Relaxed);
            backing::of(before).dirty_next.store(after, Relaxed);
            if after == END {
                list.last = at;
            }
            return;
        }
        at = next;
    }
}

/// Calls `f` for each mapping that was dirty before now, with a reference meanwhile; they leave the list, and come back if they are dirty still.
pub fn for_each_dirty(mut f: impl FnMut(Id<Mapping>)) {
    let now = clock::now();
    while let Some(id) = take(now) {
        f(id);
        // Dirty again since then: younger than `now`.
        put_back(id);
        cache::release(id);
    }
}
