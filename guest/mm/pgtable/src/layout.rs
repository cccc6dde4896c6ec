//! The kernel's address-space layout (Linux: `Documentation/arch/x86/x86_64/mm.rst`).
//!
//! Invariants, tested for both depths:
//! A1  the ranges of [`layout`] ascend and cover all 2^64 addresses without gap or overlap;
//! A2  exactly the [`LayoutKind::NonCanonical`] range is not canonical;
//! A3  a guard lies between any two areas that grow: direct map, vmalloc, vmemmap, per-CPU areas,
//!     image with modules, fixmap;
//! A4  the vmemmap holds a descriptor for every frame that the direct map can hold.
//!
//! Differs from Linux: no LDT remap, KASAN shadow, espfix stacks, EFI mapping and vsyscall page;
//! their places are [`LayoutKind::Unused`]. No KASLR: all bases are the ones that mm.rst states.

use memvisor_abi::{LayoutKind, LayoutRange};
use mm_core::{PhysAddr, VirtAddr};

use crate::Levels;

/// First byte of the kernel image at its link address (Linux: `__START_KERNEL_map`).
pub const START_KERNEL_MAP: VirtAddr = VirtAddr::new(0xffff_ffff_8000_0000);
/// Most bytes of the kernel image (Linux: `KERNEL_IMAGE_SIZE` without KASLR).
pub const KERNEL_IMAGE_SIZE: u64 = 512 << 20;
/// First byte of the modules (Linux: `MODULES_VADDR`).
pub const MODULES_VADDR: VirtAddr = VirtAddr::new(0xffff_ffff_a000_0000);
/// First byte of the per-CPU areas, where Linux has its `cpu_entry_area`.
pub const PERCPU_START: VirtAddr = VirtAddr::new(0xffff_fe00_0000_0000);
/// First byte of the fixmap; its 512 slots share one table.
pub const FIXADDR_START: VirtAddr = VirtAddr::new(0xffff_ffff_ff40_0000);
/// Bytes of the fixmap.
pub const FIXADDR_SIZE: u64 = 2 << 20;

/// Virtual address of physical address 0 in the direct map (Linux: `PAGE_OFFSET`).
pub const fn page_offset(levels: Levels) -> VirtAddr {
    VirtAddr::new(match levels {
        Levels::Four => 0xffff_8880_0000_0000,
        Levels::Five => 0xff11_0000_0000_0000,
    })
}

/// Bytes of the direct map: 64 TiB or 32 PiB.
pub const fn direct_map_size(levels: Levels) -> u64 {
    match levels {
        Levels::Four => 64 << 40,
        Levels::Five => 32 << 50,
    }
}

/// First byte of vmalloc and ioremap (Linux: `VMALLOC_START`).
pub const fn vmalloc_start(levels: Levels) -> VirtAddr {
    VirtAddr::new(match levels {
        Levels::Four => 0xffff_c900_0000_0000,
        Levels::Five => 0xffa0_0000_0000_0000,
    })
}

/// Bytes of vmalloc and ioremap: 32 TiB or 12.5 PiB.
pub const fn vmalloc_size(levels: Levels) -> u64 {
    match levels {
        Levels::Four => 32 << 40,
        Levels::Five => 12800 << 40,
    }
}

/// Virtual address of the descriptor of frame 0 (Linux: `VMEMMAP_START`).
pub const fn vmemmap_start(levels: Levels) -> VirtAddr {
    VirtAddr::new(match levels {
        Levels::Four => 0xffff_ea00_0000_0000,
        Levels::Five => 0xffd4_0000_0000_0000,
    })
}

/// Bytes of the vmemmap: 1 TiB or 0.5 PiB.
pub const fn vmemmap_size(levels: Levels) -> u64 {
    match levels {
        Levels::Four => 1 << 40,
        Levels::Five => 512 << 40,
    }
}

/// First address past user space (Linux: `TASK_SIZE_MAX`): one page is left unmapped below the
/// hole, because SYSRET to an address that is not canonical faults in ring 0.
pub const fn task_size(levels: Levels) -> u64 {
    levels.half_len() - 4096
}

/// Where `phys` is in the direct map (Linux: `__va`); `None` past its end.
pub const fn phys_to_virt(levels: Levels, phys: PhysAddr) -> Option<VirtAddr> {
    if phys.as_u64() < direct_map_size(levels) {
        page_offset(levels).checked_add(phys.as_u64())
    } else {
        None
    }
}

/// The whole address space, ascending.
pub const fn layout(levels: Levels) -> &'static [LayoutRange] {
    match levels {
        Levels::Four => &FOUR,
        Levels::Five => &FIVE,
    }
}

/// The range that holds `va`.
pub fn range_of(levels: Levels, va: VirtAddr) -> Option<&'static LayoutRange> {
    let ranges = layout(levels);
    ranges.get(ranges.partition_point(|range| range.last < va.as_u64()))
}

/// The range of a kind that occurs once; the first if there are several.
pub fn range(levels: Levels, kind: LayoutKind) -> Option<&'static LayoutRange> {
    layout(levels).iter().find(|range| range.kind == kind as u32)
}

/// Bytes of a range: the end is `last + 1`, so the size is `last - start + 1`.
pub const fn size(range: &LayoutRange) -> u64 {
    range.last - range.start + 1
}

/// Ranges below the KASAN shadow, which depend on the depth.
const LOW: usize = 12;
/// Ranges from the KASAN shadow up, the same for both depths.
const HIGH: usize = 11;

static FOUR: [LayoutRange; LOW + HIGH] = build(Levels::Four);
static FIVE: [LayoutRange; LOW + HIGH] = build(Levels::Five);

/// Ranges by their first address; each ends where the next begins.
const fn build(levels: Levels) -> [LayoutRange; LOW + HIGH] {
    use LayoutKind::*;
    let ldt = match levels {
        Levels::Four => 0xffff_8800_0000_0000,
        Levels::Five => 0xff10_0000_0000_0000,
    };
    let kasan = match levels {
        Levels::Four => 0xffff_ec00_0000_0000,
        Levels::Five => 0xffdf_0000_0000_0000,
    };
    let starts: [(u64, LayoutKind); LOW + HIGH] = [
        (0, User),
        (task_size(levels), Guard),
        (levels.half_len(), NonCanonical),
        // Linux reserves these 16 top-level slots for the hypervisor. Slot 256, the first of
        // four-level paging, is also the one that ring 3 cannot use under some hypervisors.
        (levels.upper_half().as_u64(), Guard),
        (ldt, Unused),
        (page_offset(levels).as_u64(), DirectMap),
        (page_offset(levels).as_u64() + direct_map_size(levels), Guard),
        (vmalloc_start(levels).as_u64(), Vmalloc),
        (vmalloc_start(levels).as_u64() + vmalloc_size(levels), Guard),
        (vmemmap_start(levels).as_u64(), Vmemmap),
        (vmemmap_start(levels).as_u64() + vmemmap_size(levels), Guard),
        (kasan, Unused),
        (0xffff_fc00_0000_0000, Guard),
        (PERCPU_START.as_u64(), PerCpu),
        (0xffff_fe80_0000_0000, Guard),
        // espfix, a hole, EFI.
        (0xffff_ff00_0000_0000, Unused),
        (0xffff_ffff_0000_0000, Guard),
        (START_KERNEL_MAP.as_u64(), KernelImage),
        (MODULES_VADDR.as_u64(), Modules),
        (0xffff_ffff_ff00_0000, Guard),
        (FIXADDR_START.as_u64(), Fixmap),
        // vsyscall.
        (FIXADDR_START.as_u64() + FIXADDR_SIZE, Unused),
        (0xffff_ffff_ffe0_0000, Guard),
    ];
    let mut ranges = [LayoutRange { start: 0, last: 0, kind: 0, reserved: 0 }; LOW + HIGH];
    let mut i = 0;
    while i < ranges.len() {
        let last = if i + 1 < starts.len() { starts[i + 1].0 - 1 } else { u64::MAX };
        ranges[i] = LayoutRange { start: starts[i].0, last, kind: starts[i].1 as u32, reserved: 0 };
        i += 1;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const BOTH: [Levels; 2] = [Levels::Four, Levels::Five];

    fn kind(range: &LayoutRange) -> LayoutKind {
        LayoutKind::from_raw(range.kind).unwrap()
    }

    #[test]
    fn a1_ranges_cover_every_address_once() {
        for levels in BOTH {
            let ranges = layout(levels);
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].last), (0, u64::MAX));
            for range in ranges {
                assert!(range.start < range.last, "{range:x?}");
            }
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].last + 1, pair[1].start);
            }
            let total: u128 = ranges.iter().map(|range| u128::from(size(range))).sum();
            assert_eq!(total, 1 << 64);
        }
    }

    #[test]
    fn a2_only_the_hole_is_not_canonical() {
        for levels in BOTH {
            for range in layout(levels) {
                let expect = kind(range) != LayoutKind::NonCanonical;
                for raw in [range.start, range.start / 2 + range.last / 2, range.last] {
                    assert_eq!(levels.is_canonical(VirtAddr::new(raw)), expect, "{raw:#x}");
                }
            }
        }
    }

    #[test]
    fn a3_guards_keep_growing_areas_apart() {
        use LayoutKind::*;
        for levels in BOTH {
            let kinds: Vec<_> = layout(levels).iter().map(kind).collect();
            for (i, kind) in kinds.iter().enumerate() {
                if [DirectMap, Vmalloc, Vmemmap, PerCpu, Modules].contains(kind) {
                    assert_eq!(kinds[i + 1], Guard, "above {kind:?}");
                }
                if [Vmalloc, Vmemmap, PerCpu, KernelImage, Fixmap].contains(kind) {
                    assert_eq!(kinds[i - 1], Guard, "below {kind:?}");
                }
            }
        }
    }

    #[test]
    fn a4_the_vmemmap_describes_the_whole_direct_map() {
        for levels in BOTH {
            let frames = direct_map_size(levels) / memvisor_abi::PAGE_SIZE;
            assert_eq!(frames * size_of::<memvisor_abi::Page>() as u64, vmemmap_size(levels));
        }
    }

    #[test]
    fn sizes_are_those_of_the_linux_documentation() {
        use LayoutKind::*;
        let sizes = |levels| {
            [User, NonCanonical, Guard, DirectMap, Vmalloc, Vmemmap, KernelImage, Modules, Fixmap, PerCpu]
                .map(|kind| size(range(levels, kind).unwrap()))
        };
        let shared = [512 << 20, 1520 << 20, 2 << 20, 512 << 30];
        let four = [(128 << 40) - 4096, 0u64.wrapping_sub(256 << 40), 4096, 64 << 40, 32 << 40, 1 << 40];
        let five = [(64 << 50) - 4096, 0u64.wrapping_sub(128 << 50), 4096, 32 << 50, (25 << 50) / 2, 1 << 49];
        assert_eq!(sizes(Levels::Four).as_slice(), [four.as_slice(), &shared].concat());
        assert_eq!(sizes(Levels::Five).as_slice(), [five.as_slice(), &shared].concat());
    }

    #[test]
    fn the_first_top_level_slot_of_the_upper_half_is_a_guard() {
        for levels in BOTH {
            let first = levels.upper_half();
            let slot = Levels::page_size(levels.count());
            let range = range_of(levels, first).unwrap();
            assert_eq!((kind(range), range.start), (LayoutKind::Guard, first.as_u64()));
            assert_eq!(size(range), 16 * slot);
        }
    }

    #[test]
    fn the_range_of_an_address_holds_it() {
        for levels in BOTH {
            for range in layout(levels) {
                for raw in [range.start, range.last] {
                    assert_eq!(range_of(levels, VirtAddr::new(raw)), Some(range));
                }
            }
        }
    }

    #[test]
    fn the_direct_map_ends_where_its_range_ends() {
        for levels in BOTH {
            let last = PhysAddr::new(direct_map_size(levels) - 1);
            let range = range(levels, LayoutKind::DirectMap).unwrap();
            assert_eq!(phys_to_virt(levels, PhysAddr::new(0)).unwrap().as_u64(), range.start);
            assert_eq!(phys_to_virt(levels, last).unwrap().as_u64(), range.last);
            assert_eq!(phys_to_virt(levels, last.checked_add(1).unwrap()), None);
        }
    }
}
