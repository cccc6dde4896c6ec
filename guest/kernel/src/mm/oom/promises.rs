//! What was promised, and what may be (Linux: mm/util.c, `vm_committed_as`, `__vm_enough_memory`).
//!
//! What is promised is the sum over VMAs with VM_ACCOUNT, plus shared memory: all of a mapping that says so
//! (`memvisor_abi::Mapping::ACCOUNTED`), and the pages that any other one has.

use core::sync::atomic::{AtomicU64, Ordering};

use mm_core::PAGE_SIZE;
use mm_oom::{
    Committed, Overcommit, OvercommitMemory, Promise, admin_reserve_kbytes, user_reserve_kbytes,
    vm_commit_limit, vm_enough_memory,
};
use mm_vma::Mm;

use super::with_state;
use crate::mm::{page_alloc, phys, swap};

const KIB: u64 = PAGE_SIZE / 1024;

/// Pages promised.
static COMMITTED: Committed = Committed::new();
/// Those of them that are shared memory's.
static SHMEM: Committed = Committed::new();
/// Frames that the page allocator was given (Linux: `totalram_pages`), which stay as many.
static TOTALRAM: AtomicU64 = AtomicU64::new(0);

/// Reserves as Linux has them at boot, and where the counts are (Linux: `init_user_reserve`, `init_admin_reserve`).
pub fn init() {
    let (managed, free) = page_alloc::managed_and_free();
    TOTALRAM.store(managed, Ordering::Relaxed);
    let gpa = |count: &'static Committed| phys::of_image(&raw const *count as u64).as_u64();
    with_state(|state| {
        state.admin_reserve_kbytes = admin_reserve_kbytes(free * KIB);
        state.user_reserve_kbytes = user_reserve_kbytes(free * KIB);
        state.committed = gpa(&COMMITTED);
        state.committed_shmem = gpa(&SHMEM);
    });
}

/// All memory that the page allocator has, in bytes.
pub fn totalram() -> u64 {
    TOTALRAM.load(Ordering::Relaxed) * PAGE_SIZE
}

/// Memory and swap, in pages.
pub fn totalpages() -> u64 {
    TOTALRAM.load(Ordering::Relaxed) + swap::total_swap_pages()
}

fn settings() -> Overcommit {
    let total_swap_pages = swap::total_swap_pages();
    with_state(|state| Overcommit {
        mode: OvercommitMemory::from_raw(state.overcommit_memory).unwrap_or_default(),
        ratio: state.overcommit_ratio,
        kbytes: state.overcommit_kbytes,
        admin_reserve_kbytes: state.admin_reserve_kbytes,
        user_reserve_kbytes: state.user_reserve_kbytes,
        totalram_pages: TOTALRAM.load(Ordering::Relaxed),
        total_swap_pages,
    })
}

/// Promises pages to an address space, or with none to shared memory. Everybody is root, and so an administrator.
pub fn promise(mm: Option<&Mm>, pages: u64) -> bool {
    let promise = Promise { pages, is_admin: true, total_vm: mm.map(Mm::total_vm) };
    vm_enough_memory(&settings(), &COMMITTED, promise)
}

/// Promises pages to shared memory.
pub fn promise_shmem(pages: u64) -> bool {
    let may = promise(None, pages);
    if may {
        SHMEM.acct(pages);
    }
    may
}

/// Ends [`promise_shmem`].
pub fn unpromise_shmem(pages: u64) {
    SHMEM.unacct(pages);
    COMMITTED.unacct(pages);
}

/// Counts what was promised under another name.
pub fn acct(pages: u64) {
    COMMITTED.acct(pages);
}

/// Ends a promise.
pub fn unacct(pages: u64) {
    COMMITTED.unacct(pages);
}

/// For a seeded fault: the counts themselves.
pub fn counts() -> [&'static Committed; 2] {
    [&COMMITTED, &SHMEM]
}

/// Whether more may be promised than there is.
pub fn overcommits() -> bool {
    settings().mode != OvercommitMemory::Never
}

/// `CommitLimit` and `Committed_AS`, in pages.
pub fn limit_and_committed() -> (u64, u64) {
    (vm_commit_limit(&settings()), COMMITTED.pages())
}
