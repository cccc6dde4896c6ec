//! A healthy synthetic guest, and ways to damage it.
//!
//! Two nodes, two CPUs, 176 MiB in three pieces:
//!
//! ```text
//! node 0   0 .. 636K, 1M .. 96M          DMA, DMA32
//! node 1   96M .. 159.875M               DMA32; from 128M on deferred
//!          4G .. 4G + 16M                Normal
//! ```

use std::sync::OnceLock;

use memvisor_abi::*;
use memvisor_inspect::{CpuRegisters, Facts, Guest, MemorySource, SparseMemory};
use memvisor_report::{AuditReport, Finding};

use super::build::Builder;
use crate::{Evidence, audit};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const ROOT_GPA: u64 = 38 * MIB;
pub(super) const KERNEL_GPA: u64 = 16 * MIB;
pub(super) const KERNEL_VA: u64 = 0xffff_ffff_8100_0000;
pub(super) const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;
pub(super) const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
pub(super) const FIXMAP: u64 = 0xffff_ffff_ff5f_d000;
/// First of four frames mapped by the process, at [`USER_VA`]; the first is its text.
pub(super) const USER_PFN: u64 = 0x3100;
pub(super) const USER_VA: u64 = 0x40_0000;
/// Four frames that the kernel allocated as one block.
pub(super) const ALLOCATED_PFN: u64 = 0x3200;
pub(super) const PID: u32 = 7;
/// Zones by their index.
pub(super) const NODE0_DMA32: usize = 1;
pub(super) const NODE1_DMA32: usize = 6;
/// The type of all pageblocks, as an index.
pub(super) const MOVABLE: usize = Migratetype::Movable as usize;

#[derive(Clone)]
pub(super) struct TestGuest {
    pub memory: SparseMemory,
    pub facts: Facts,
    pub registers: Vec<CpuRegisters>,
    pub user_pgd: u64,
    pub kernel_pgd: u64,
}

/// The healthy guest with 4 levels.
pub(super) fn healthy() -> TestGuest {
    static GUEST: OnceLock<TestGuest> = OnceLock::new();
    GUEST.get_or_init(|| Builder::build(4)).clone()
}

/// The healthy guest with 5 levels.
pub(super) fn healthy_with_five_levels() -> TestGuest {
    Builder::build(5)
}

impl TestGuest {
    pub fn audit(&self) -> AuditReport {
        audit(&self.evidence())
    }

    pub fn evidence(&self) -> Evidence<'_> {
        Evidence {
            source: &self.memory,
            root_gpa: Some(ROOT_GPA),
            facts: Some(&self.facts),
            registers: &self.registers,
            moment: crate::Moment::Chosen,
        }
    }

    pub fn guest(&self) -> Guest<'_, SparseMemory> {
        Guest::attach(&self.memory, ROOT_GPA).unwrap()
    }

    pub fn page(&self, pfn: u64) -> Page {
        self.guest().page(pfn).unwrap().unwrap()
    }

    pub fn edit_page(&mut self, pfn: u64, edit: impl FnOnce(&mut Page)) {
        let gpa = self.guest().page_gpa(pfn).unwrap().unwrap();
        let mut page = self.page(pfn);
        edit(&mut page);
        self.memory.write_value(gpa, &page).unwrap();
    }

    pub fn zone(&self, index: usize) -> Zone {
        self.guest().zone(index).unwrap()
    }

    pub fn edit_zone(&mut self, index: usize, edit: impl FnOnce(&mut Zone)) {
        let mut zone = self.zone(index);
        edit(&mut zone);
        let gpa = self.guest().root().zones.gpa + (index * size_of::<Zone>()) as u64;
        self.memory.write_value(gpa, &zone).unwrap();
    }

    pub fn edit_section(&mut self, index: usize, edit: impl FnOnce(&mut Section)) {
        let guest = self.guest();
        let gpa = guest.root().sections.gpa + (index * size_of::<Section>()) as u64;
        let mut section = guest.sections().unwrap()[index];
        edit(&mut section);
        self.memory.write_value(gpa, &section).unwrap();
    }

    pub fn edit_root(&mut self, edit: impl FnOnce(&mut Root)) {
        let mut root = *self.guest().root();
        edit(&mut root);
        self.memory.write_value(ROOT_GPA, &root).unwrap();
    }

    pub fn edit_cpu(&mut self, index: usize, edit: impl FnOnce(&mut CpuInfo)) {
        let mut cpu = self.guest().cpus().unwrap()[index];
        edit(&mut cpu);
        let gpa = self.guest().root().cpus.gpa + (index * size_of::<CpuInfo>()) as u64;
        self.memory.write_value(gpa, &cpu).unwrap();
    }

    /// Guest-physical address of the entry at `level` for `va` in the tables of `pgd`.
    pub fn entry_gpa(&self, pgd: u64, va: u64, level: u32) -> u64 {
        let mut table = pgd << 12;
        for at in (level..=self.guest().root().levels).rev() {
            let gpa = table + ((va >> (3 + 9 * at)) & 511) * 8;
            if at == level {
                return gpa;
            }
            table = self.memory.read_u64(gpa).unwrap() & 0x000f_ffff_ffff_f000;
        }
        panic!("level {level} is past the root");
    }

    pub fn edit_entry(&mut self, pgd: u64, va: u64, level: u32, edit: impl FnOnce(u64) -> u64) {
        let gpa = self.entry_gpa(pgd, va, level);
        let entry = edit(self.memory.read_u64(gpa).unwrap());
        self.memory.write_u64(gpa, entry).unwrap();
    }

    /// Unlinks the first block of a free list, as an allocation does, and leaves its descriptors.
    pub fn take_block(&mut self, zone: usize, order: usize) -> u64 {
        let head = self.zone(zone).free_area[order].lists[MOVABLE].head;
        assert_ne!(head, PFN_NONE, "no free block of order {order} in zone {zone}");
        let next = self.page(head).next;
        if next != PFN_NONE {
            self.edit_page(next, |page| page.prev = PFN_NONE);
        }
        self.edit_zone(zone, |zone| {
            let area = &mut zone.free_area[order].lists[MOVABLE];
            area.head = next;
            if next == PFN_NONE {
                area.tail = PFN_NONE;
            }
            area.nr_free -= 1;
            if area.nr_free == 0 {
                zone.nonempty[MOVABLE] &= !(1 << order);
            }
            zone.free_pages -= 1 << order;
        });
        head
    }

    /// Links a block at the head of a free list, as a free without merging does.
    pub fn put_block(&mut self, zone: usize, order: usize, pfn: u64) {
        let head = self.zone(zone).free_area[order].lists[MOVABLE].head;
        if head != PFN_NONE {
            self.edit_page(head, |page| page.prev = pfn);
        }
        for tail in pfn..pfn + (1 << order) {
            self.edit_page(tail, |page| {
                (page.kind, page.refcount) = (PageKind::Tail as u8, 0);
            });
        }
        self.edit_page(pfn, |page| {
            page.kind = PageKind::Buddy as u8;
            (page.order, page.migratetype) = (u8::try_from(order).unwrap(), Migratetype::Movable as u8);
            (page.next, page.prev) = (head, PFN_NONE);
        });
        self.edit_zone(zone, |zone| {
            let area = &mut zone.free_area[order].lists[MOVABLE];
            area.head = pfn;
            if head == PFN_NONE {
                area.tail = pfn;
            }
            area.nr_free += 1;
            zone.nonempty[MOVABLE] |= 1 << order;
            zone.free_pages += 1 << order;
        });
    }
}

/// The only finding of the damaged guest.
#[track_caller]
pub(super) fn only(guest: &TestGuest, rule: &str) -> Finding {
    let report = guest.audit();
    let rules: Vec<_> = report.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [rule], "{report}");
    report.findings.into_iter().next().unwrap()
}
