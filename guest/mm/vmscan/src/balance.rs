//! How many pages of each list to look at (Linux: `get_scan_count`, `inactive_is_low`). Pure arithmetic.

use memvisor_abi::{LruKind, NR_LRU_LISTS};
use mm_core::PAGE_SHIFT;

use crate::scan_control::Scan;

/// Active lists that may shrink (Linux: `DEACTIVATE_ANON`, `DEACTIVATE_FILE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deactivate {
    /// Of anonymous pages.
    pub anon: bool,
    /// Of files.
    pub file: bool,
}

impl Deactivate {
    /// Neither.
    pub const NONE: Deactivate = Deactivate { anon: false, file: false };

    /// Whether the list of that kind may.
    pub const fn allows(self, file: bool) -> bool {
        if file { self.file } else { self.anon }
    }
}

/// Whether the inactive list is too short for its active one: the larger both are, the smaller a part it may be (Linux: the same name).
/// ```
/// use mm_vmscan::inactive_is_low;
/// assert!(inactive_is_low(99, 100) && !inactive_is_low(100, 100));
/// // With 4 GiB six to one.
/// assert!(!inactive_is_low(150_000, 900_000) && inactive_is_low(149_000, 900_000));
/// ```
pub const fn inactive_is_low(inactive: u64, active: u64) -> bool {
    let gib = inactive.saturating_add(active) >> (30 - PAGE_SHIFT);
    let ratio = if gib == 0 { 1 } else { gib.saturating_mul(10).isqrt() };
    inactive.saturating_mul(ratio) < active
}

/// Which kind of pages bears the pressure (Linux: `enum scan_balance`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanBalance {
    /// Both alike.
    Equal,
    /// Each by swappiness and by what it cost.
    Fract,
    /// Anonymous pages only.
    Anon,
    /// Pages of files only.
    File,
}

/// What the number of pages follows from.
#[derive(Clone, Copy, Debug)]
pub struct ScanCount {
    /// How hard reclaim tries.
    pub priority: u8,
    /// 0 to 200.
    pub swappiness: u32,
    /// Anonymous pages have somewhere to go.
    pub can_swap: bool,
    /// What was found out before.
    pub scan: Scan,
    /// Pages of each list in zones that help.
    pub sizes: [u64; NR_LRU_LISTS],
}

impl ScanCount {
    /// Linux: the first half of `get_scan_count`.
    pub const fn balance(&self) -> ScanBalance {
        if !self.can_swap {
            ScanBalance::File
        } else if self.priority == 0 && self.swappiness > 0 {
            // Near the end nothing clever.
            ScanBalance::Equal
        } else if self.scan.file_is_tiny {
            ScanBalance::Anon
        } else if self.scan.cache_trim_mode {
            ScanBalance::File
        } else {
            ScanBalance::Fract
        }
    }

    /// Shares of anonymous pages and of files in the pressure: the cheaper a kind was, the more, weighed by swappiness.
    fn fraction(&self) -> [u128; 2] {
        let [anon, file] = self.scan.cost.map(u128::from);
        let total = anon + file;
        // Neither is ever more than two thirds of the cost.
        let (anon, file) = (total + anon, total + file);
        let swappiness = u128::from(self.swappiness.min(200));
        [swappiness * (anon + file + 1) / (anon + 1), (200 - swappiness) * (anon + file + 1) / (file + 1)]
    }
}

/// Pages to look at on each list, none on the unevictable one (Linux: `get_scan_count`).
pub fn scan_count(of: &ScanCount) -> [u64; NR_LRU_LISTS] {
    let (balance, fraction) = (of.balance(), of.fraction());
    let whole = (fraction[0] + fraction[1]).max(1);
    let mut counts = [0; NR_LRU_LISTS];
    for kind in LruKind::ALL.into_iter().filter(|kind| *kind != LruKind::Unevictable) {
        let scan = of.sizes[kind as usize] >> of.priority;
        counts[kind as usize] = match balance {
            ScanBalance::Equal => scan,
            ScanBalance::Fract => {
                let share = u128::from(scan) * fraction[usize::from(kind.is_file())] / whole;
                u64::try_from(share).unwrap_or(u64::MAX)
            }
            ScanBalance::Anon if kind.is_file() => 0,
            ScanBalance::File if !kind.is_file() => 0,
            ScanBalance::Anon | ScanBalance::File => scan,
        };
    }
    counts
}
