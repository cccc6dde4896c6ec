//! One look at what memory is used for and at how the zones stand, cheap enough to be taken many times a second: what plots and
//! dashboards are made of.
//!
//! Nothing is stopped for it. Counts of a running guest may disagree by what changed while they were read.

use std::borrow::Cow;

use memvisor_abi::{LruKind, Lruvec, NR_LRU_LISTS, Page, PageFlags, PageKind, SwapArea, VmEvent};
use serde::{Deserialize, Serialize};

use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource};

/// What frames are used for, as plots show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub enum MemoryKind {
    /// Anonymous pages of programs.
    Anon = 0,
    /// Shared memory and files in memory: pages of a mapping that go to swap.
    Shmem = 1,
    /// Pages of other files.
    File = 2,
    /// Slabs.
    Slab = 3,
    /// Page tables.
    Tables = 4,
    /// Allocated by the kernel for anything else, its stacks and what lies behind vmalloc among it.
    Kernel = 5,
    /// Taken at boot: image, descriptors, reservations, per-CPU areas.
    Boot = 6,
    /// Free, on lists of CPUs too.
    Free = 7,
}

impl MemoryKind {
    /// All kinds, in the order in which they are stacked, by number.
    pub const ALL: [MemoryKind; 8] = [
        MemoryKind::Anon,
        MemoryKind::Shmem,
        MemoryKind::File,
        MemoryKind::Slab,
        MemoryKind::Tables,
        MemoryKind::Kernel,
        MemoryKind::Boot,
        MemoryKind::Free,
    ];

    /// Name for legends.
    pub const fn name(self) -> &'static str {
        match self {
            MemoryKind::Anon => "anonymous",
            MemoryKind::Shmem => "shared memory",
            MemoryKind::File => "files",
            MemoryKind::Slab => "slab",
            MemoryKind::Tables => "page tables",
            MemoryKind::Kernel => "kernel",
            MemoryKind::Boot => "boot",
            MemoryKind::Free => "free",
        }
    }

    /// Of a frame that is not the tail of a block; `None` for a frame that is nobody's.
    fn of(page: &Page) -> Option<MemoryKind> {
        Some(match PageKind::from_raw(page.kind)? {
            PageKind::None | PageKind::Tail => return None,
            PageKind::Buddy | PageKind::Pcp => MemoryKind::Free,
            PageKind::Reserved | PageKind::Kernel | PageKind::Memmap | PageKind::PerCpu => MemoryKind::Boot,
            PageKind::Table => MemoryKind::Tables,
            PageKind::Allocated | PageKind::Vmalloc | PageKind::KernelStack | PageKind::Zswap => {
                MemoryKind::Kernel
            }
            PageKind::Slab => MemoryKind::Slab,
            PageKind::User if page.mapping & Page::MAPPING_ANON != 0 => MemoryKind::Anon,
            PageKind::User if page.page_flags().contains(PageFlags::SWAPBACKED) => MemoryKind::Shmem,
            PageKind::User => MemoryKind::File,
        })
    }
}

/// One look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Pages by [`MemoryKind`].
    pub pages: [u64; MemoryKind::ALL.len()],
    /// Zones with managed pages, by node and kind.
    pub zones: Vec<ZoneSample>,
    /// Pages of the LRU lists of all nodes, by [`LruKind`].
    #[serde(default)]
    pub lists: [u64; NR_LRU_LISTS],
    /// Slots of swap areas, and those in use.
    #[serde(default)]
    pub swap: [u64; 2],
    /// Counts in the order of [`VmEvent::NAMES`], summed over CPUs; empty if the guest publishes none.
    pub events: Vec<u64>,
}

/// A zone; pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSample {
    /// Node.
    pub node: u32,
    /// Linux's name.
    pub zone: Cow<'static, str>,
    /// Pages that the buddy allocator has or had.
    pub managed: u64,
    /// Free ones.
    pub free: u64,
    /// Watermarks min, low and high, boost included.
    pub watermarks: [u64; 3],
}

impl Sample {
    /// Looks once.
    ///
    /// # Errors
    /// [`GuestError`]; a guest that boots has not published everything yet.
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Sample, GuestError> {
        let mut pages = [0; MemoryKind::ALL.len()];
        let mut block = None;
        guest.for_each_page(|_, page| {
            if page.kind != PageKind::Tail as u8 {
                block = MemoryKind::of(page);
            }
            if let Some(count) = block.and_then(|kind| pages.get_mut(kind as usize)) {
                *count += 1;
            }
        })?;
        let zones = guest.zones()?;
        let zones = zones.iter().filter(|zone| zone.managed_pages != 0).map(|zone| ZoneSample {
            node: zone.node,
            zone: zone_name(zone.kind).into(),
            managed: zone.managed_pages,
            free: zone.free_pages,
            watermarks: zone.watermark.map(|mark| mark.saturating_add(zone.watermark_boost)),
        });
        let events = guest.vm_events()?.map_or(Vec::new(), Vec::from);
        let mut lists = [0_u64; NR_LRU_LISTS];
        for (sum, list) in guest.lruvecs()?.iter().flat_map(lists_of) {
            lists[sum] = lists[sum].saturating_add(list);
        }
        let areas = guest.swap_areas()?;
        let used = areas.iter().filter(|area| area.flags & SwapArea::USED != 0);
        let swap = used.fold([0_u64; 2], |[all, used], area| {
            [all.saturating_add(area.pages), used.saturating_add(area.inuse)]
        });
        Ok(Sample { pages, zones: zones.collect(), lists, swap, events })
    }

    /// Pages of an LRU list.
    pub const fn list(&self, kind: LruKind) -> u64 {
        self.lists[kind as usize]
    }

    /// Pages of a kind.
    pub const fn of(&self, kind: MemoryKind) -> u64 {
        self.pages[kind as usize]
    }

    /// The sum of all events of these names; 0 if there are none, as in a guest that does not count them.
    pub fn event(&self, is_meant: impl Fn(&str) -> bool) -> u64 {
        let counted = VmEvent::NAMES.iter().zip(&self.events).filter(|(name, _)| is_meant(name));
        counted.map(|(_, count)| count).fold(0, |sum, count| sum.wrapping_add(*count))
    }
}

/// Pages of each list of a node, with its number.
fn lists_of(lruvec: &Lruvec) -> impl Iterator<Item = (usize, u64)> {
    LruKind::ALL.map(|kind| lruvec.pages(kind)).into_iter().enumerate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Machine, SyntheticGuest};
    use crate::{Levels, RamRegion};

    #[test]
    fn every_frame_is_counted_once_and_blocks_count_with_their_tails() {
        let memory = vec![(0, RamRegion { gpa: 0, len: 0x100_0000 })];
        let guest = SyntheticGuest::new(&Machine { memory, cpus: vec![0], levels: Levels::Four });
        let guest = Guest::attach(&guest.memory, guest.root_gpa).unwrap();
        let sample = Sample::new(&guest).unwrap();
        let free: u64 = sample.zones.iter().map(|zone| zone.free).sum();
        assert!(free > 0);
        assert_eq!(sample.of(MemoryKind::Free), free, "found on descriptors as zones count it");
        assert_eq!(sample.pages.iter().sum::<u64>(), 0x1000, "all of 16 MiB");
    }

    #[test]
    fn user_pages_are_told_apart_by_whose_they_are() {
        let page = |mapping, flags: PageFlags| Page {
            kind: PageKind::User as u8,
            mapping,
            flags: flags.bits(),
            ..Page::default()
        };
        assert_eq!(MemoryKind::of(&page(0x1001, PageFlags::SWAPBACKED)), Some(MemoryKind::Anon));
        assert_eq!(MemoryKind::of(&page(0x1000, PageFlags::SWAPBACKED)), Some(MemoryKind::Shmem));
        assert_eq!(MemoryKind::of(&page(0x1000, PageFlags::UPTODATE)), Some(MemoryKind::File));
    }

    #[test]
    fn events_are_summed_by_name() {
        let mut events = vec![0; VmEvent::NAMES.len()];
        events[VmEvent::AllocstallDma as usize] = 2;
        events[VmEvent::AllocstallNormal as usize] = 3;
        let sample = Sample { events, ..Sample::default() };
        assert_eq!(sample.event(|name| name.starts_with("allocstall_")), 5);
        assert_eq!(sample.event(|name| name == "nothing"), 0);
    }
}
