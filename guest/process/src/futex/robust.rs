//! Locks that a thread held when it ended (Linux: `exit_robust_list`, `handle_futex_death`).

/// Owner of a lock, by the ABI between kernel and C library.
pub const TID_MASK: u32 = 0x3fff_ffff;
/// Its owner ended.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// Somebody waits for it.
pub const WAITERS: u32 = 0x8000_0000;
/// A list longer than that is followed no further (Linux: `ROBUST_LIST_LIMIT`).
pub const LIMIT: usize = 2048;
/// Size of the list's head, the only one that `set_robust_list` takes.
pub const HEAD_LEN: u64 = 24;

/// A lock on a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Address of its word.
    pub word: u64,
    /// It is one with priority inheritance.
    pub inherits: bool,
    /// The thread was about to take or release it.
    pub pending: bool,
}

/// What is to be done with the word of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Nothing: it is another's.
    Nothing,
    /// Wake one: the thread released it and had no time left to do so.
    Wake,
    /// Write this, if it still is what it was, and wake one if somebody waits.
    Write {
        /// What.
        word: u32,
        /// Whether somebody waits.
        wake: bool,
    },
}

/// What the end of thread `tid` means to the lock `entry`, whose word is `word`.
pub const fn death(word: u32, tid: u32, entry: &Entry) -> Death {
    if entry.pending && !entry.inherits && word == 0 {
        return Death::Wake;
    }
    if word & TID_MASK != tid & TID_MASK {
        return Death::Nothing;
    }
    Death::Write { word: word & WAITERS | OWNER_DIED, wake: !entry.inherits && word & WAITERS != 0 }
}

/// Visits the locks on the list at `head`; `read` gives a word of the program's memory. What cannot be read ends the walk. The
/// lock that the thread was about to take comes last, and once.
pub fn walk(head: u64, mut read: impl FnMut(u64) -> Option<u64>, mut visit: impl FnMut(Entry)) {
    let Some((first, offset, about)) = read_head(head, &mut read) else { return };
    let entry = |node: u64, pending: bool| Entry {
        word: (node & !1).wrapping_add(offset),
        inherits: node & 1 != 0,
        pending,
    };
    let mut node = first;
    for _ in 0..LIMIT {
        if node & !1 == head {
            break;
        }
        // First the next, since the lock may be gone once its word is written.
        let next = read(node & !1);
        if node & !1 != about & !1 {
            visit(entry(node, false));
        }
        match next {
            Some(next) => node = next,
            None => return,
        }
    }
    if about & !1 != 0 {
        visit(entry(about, true));
    }
}

/// First node, distance from a node to its word, node that the thread was about to change.
fn read_head(head: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Option<(u64, u64, u64)> {
    Some((read(head)?, read(head.checked_add(8)?)?, read(head.checked_add(16)?)?))
}
