//! The kernel's virtual address space (Linux: Documentation/arch/x86/x86_64/mm.rst).

use std::fmt;

use memvisor_abi::LayoutKind;
use serde::Serialize;

use crate::ptdump::human;
use crate::{Guest, GuestError, Levels, MemorySource};

/// `inspect layout`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayoutView {
    /// Depth of paging.
    pub levels: Levels,
    /// Ranges, ascending.
    pub ranges: Vec<LayoutRow>,
    /// Virtual address of the kernel image.
    #[serde(serialize_with = "crate::hex")]
    pub kernel_va: u64,
    /// Guest-physical address of the kernel image.
    #[serde(serialize_with = "crate::hex")]
    pub kernel_gpa: u64,
    /// Its length in bytes.
    pub kernel_len: u64,
    /// Bytes from its start to the end of executable code.
    pub text_len: u64,
    /// Bytes from its start to the end of read-only data.
    pub rodata_end: u64,
}

/// A range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayoutRow {
    /// First address.
    #[serde(serialize_with = "crate::hex")]
    pub start: u64,
    /// Last address.
    #[serde(serialize_with = "crate::hex")]
    pub last: u64,
    /// Purpose.
    pub name: &'static str,
}

impl LayoutView {
    /// Reads the layout.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<LayoutView, GuestError> {
        let root = guest.root();
        let ranges = guest
            .layout()?
            .iter()
            .map(|range| LayoutRow {
                start: range.start,
                last: range.last,
                name: LayoutKind::from_raw(range.kind).map_or("undefined", LayoutKind::name),
            })
            .collect();
        Ok(LayoutView {
            levels: guest.levels(),
            ranges,
            kernel_va: root.kernel_va,
            kernel_gpa: root.kernel_gpa,
            kernel_len: root.kernel_len,
            text_len: root.text_len,
            rodata_end: root.rodata_end,
        })
    }
}

impl fmt::Display for LayoutView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "virtual address space with {} levels", self.levels.count())?;
        for row in &self.ranges {
            let (amount, unit) = human(row.last.wrapping_sub(row.start).wrapping_add(1));
            writeln!(f, "  {:#018x}-{:#018x} {amount:>8} {unit}iB  {}", row.start, row.last, row.name)?;
        }
        writeln!(
            f,
            "kernel image at {:#x}, physical {:#x}: {} KiB code, {} KiB read-only, {} KiB data",
            self.kernel_va,
            self.kernel_gpa,
            self.text_len >> 10,
            self.rodata_end.saturating_sub(self.text_len) >> 10,
            self.kernel_len.saturating_sub(self.rodata_end) >> 10
        )
    }
}
