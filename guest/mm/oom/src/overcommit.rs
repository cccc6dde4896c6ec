//! What may be promised (Linux: `__vm_enough_memory`, `vm_commit_limit`). Quantities are pages unless the name says kbytes.

use core::sync::atomic::AtomicI64;
use core::sync::atomic::Ordering::Relaxed;

use mm_core::PAGE_SHIFT;

/// `vm.overcommit_memory`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OvercommitMemory {
    /// 0: anything but what could never be there (Linux: `OVERCOMMIT_GUESS`).
    #[default]
    Guess,
    /// 1: anything (Linux: `OVERCOMMIT_ALWAYS`).
    Always,
    /// 2: no more than the limit (Linux: `OVERCOMMIT_NEVER`).
    Never,
}

impl OvercommitMemory {
    /// What the number in /proc/sys/vm/overcommit_memory means.
    pub const fn from_raw(raw: u32) -> Option<OvercommitMemory> {
        Some(match raw {
            0 => OvercommitMemory::Guess,
            1 => OvercommitMemory::Always,
            2 => OvercommitMemory::Never,
            _ => return None,
        })
    }
}

/// Files of /proc/sys/vm, and what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overcommit {
    /// `overcommit_memory`.
    pub mode: OvercommitMemory,
    /// `overcommit_ratio`, in percent of memory; 50 by default.
    pub ratio: u32,
    /// `overcommit_kbytes`, in its place unless 0.
    pub kbytes: u64,
    /// `admin_reserve_kbytes`: kept from those without CAP_SYS_ADMIN.
    pub admin_reserve_kbytes: u64,
    /// `user_reserve_kbytes`: kept from a process that is large itself.
    pub user_reserve_kbytes: u64,
    /// Memory (Linux: `totalram_pages`).
    pub totalram_pages: u64,
    /// Slots of swap areas.
    pub total_swap_pages: u64,
}

/// Pages of all VMAs that are to be accounted (Linux: `vm_committed_as`).
#[derive(Debug, Default)]
pub struct Committed(AtomicI64);

/// Who asks for a promise.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// Pages.
    pub pages: u64,
    /// The process may use the administrator's reserve (Linux: `cap_sys_admin`).
    pub is_admin: bool,
    /// Pages of all VMAs of the process that asks, if one does.
    pub total_vm: Option<u64>,
}

impl Committed {
    /// Nothing is promised.
    pub const fn new() -> Committed {
        Committed(AtomicI64::new(0))
    }

    /// What is promised (`Committed_AS`).
    pub fn pages(&self) -> u64 {
        u64::try_from(self.0.load(Relaxed)).unwrap_or(0)
    }

    /// Counts what was promised without a question, as by fork's failure path (Linux: `vm_acct_memory`).
    pub fn acct(&self, pages: u64) {
        self.0.fetch_add(i64::try_from(pages).unwrap_or(i64::MAX), Relaxed);
    }

    /// Ends a promise (Linux: `vm_unacct_memory`).
    pub fn unacct(&self, pages: u64) {
        self.0.fetch_sub(i64::try_from(pages).unwrap_or(i64::MAX), Relaxed);
    }
}

/// What may be promised in mode 2, and `CommitLimit` in any.
/// ```
/// use mm_oom::{Overcommit, OvercommitMemory, vm_commit_limit};
/// let mut of = Overcommit { mode: OvercommitMemory::Never, ratio: 50, kbytes: 0, admin_reserve_kbytes: 0,
///     user_reserve_kbytes: 0, totalram_pages: 1001, total_swap_pages: 30 };
/// assert_eq!(vm_commit_limit(&of), 530);
/// of.kbytes = 80;
/// assert_eq!(vm_commit_limit(&of), 50);
/// ```
pub fn vm_commit_limit(of: &Overcommit) -> u64 {
    let allowed = match of.kbytes {
        0 => of.totalram_pages.saturating_mul(u64::from(of.ratio)) / 100,
        kbytes => kbytes >> (PAGE_SHIFT - 10),
    };
    allowed.saturating_add(of.total_swap_pages)
}

/// Promises pages, or not; then nothing is counted.
pub fn vm_enough_memory(of: &Overcommit, committed: &Committed, promise: Promise) -> bool {
    // Before the question: of two who ask at once not both may be right.
    committed.acct(promise.pages);
    let enough = match of.mode {
        OvercommitMemory::Always => true,
        OvercommitMemory::Guess => promise.pages <= of.totalram_pages.saturating_add(of.total_swap_pages),
        OvercommitMemory::Never => committed.pages() < allowed(of, promise),
    };
    if !enough {
        committed.unacct(promise.pages);
    }
    enough
}

fn allowed(of: &Overcommit, promise: Promise) -> u64 {
    let pages = |kbytes: u64| kbytes >> (PAGE_SHIFT - 10);
    let admins = if promise.is_admin { 0 } else { pages(of.admin_reserve_kbytes) };
    // Whoever fills the machine leaves room for a program that ends it.
    let users = promise.total_vm.map_or(0, |total| (total / 32).min(pages(of.user_reserve_kbytes)));
    vm_commit_limit(of).saturating_sub(admins).saturating_sub(users)
}

/// Whether a mapping counts: it is private and may be written, and nobody said that it need not (Linux: `accountable_mapping`).
pub const fn accountable_mapping(is_shared: bool, is_writable: bool, is_noreserve: bool) -> bool {
    is_writable && !is_shared && !is_noreserve
}

/// The default of `user_reserve_kbytes` with that much free at boot (Linux: `init_user_reserve`).
pub const fn user_reserve_kbytes(free_kbytes: u64) -> u64 {
    min(free_kbytes / 32, 1 << 17)
}

/// The default of `admin_reserve_kbytes` with that much free at boot (Linux: `init_admin_reserve`).
pub const fn admin_reserve_kbytes(free_kbytes: u64) -> u64 {
    min(free_kbytes / 32, 1 << 13)
}

const fn min(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}
