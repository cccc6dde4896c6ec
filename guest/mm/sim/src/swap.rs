//! Swap areas on disks in memory, for machines of tests.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memvisor_abi::{SWAP_MAGIC, SwapHeader};
use mm_core::PAGE_SIZE;
use mm_swap::{
    Cluster, CpuCluster, NewArea, SWAPFILE_CLUSTER, Swap, SwapEntry, SwapInfo, SwapList, Totals,
    read_swap_header, swapon,
};

/// The table of an area's clusters.
pub type Clusters = Vec<Cluster>;
type Page = [u64; 512];
const _: () = assert!(size_of::<Page>() as u64 == PAGE_SIZE);

/// What a machine needs to be a [`Swap`], and the contents of its slots.
#[derive(Debug)]
pub struct SimSwap {
    areas: Vec<(Vec<AtomicU64>, Mutex<SwapInfo<Clusters>>)>,
    list: Mutex<SwapList>,
    cpu: Mutex<CpuCluster>,
    totals: Totals,
    disk: Mutex<HashMap<SwapEntry, Page>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimSwap {
    /// Areas of that many slots, headers included, not in use yet.
    ///
    /// # Panics
    /// If one has no slot but its header.
    pub fn new(areas: &[u32]) -> SimSwap {
        let area = |slots: &u32| {
            let header = SwapHeader {
                bootbits: [0; 1024],
                version: 1,
                last_page: slots - 1,
                nr_badpages: 0,
                uuid: [0; 16],
                volume: [0; 16],
                padding: [0; 117],
                badpages: [0; 637],
                unused: [0; 2],
                magic: SWAP_MAGIC,
            };
            let parsed = read_swap_header(&header, u64::MAX).expect("a good header");
            let words: Vec<AtomicU64> = (0..*slots).map(|_| AtomicU64::new(0)).collect();
            let clusters = vec![Cluster::NEW; words.len().div_ceil(cluster_slots())];
            let new = NewArea::new(&parsed, &words, clusters).expect("tables that are large enough");
            (words, Mutex::new(new.into_info()))
        };
        SimSwap {
            areas: areas.iter().map(area).collect(),
            list: Mutex::new(SwapList::new()),
            cpu: Mutex::new(CpuCluster::default()),
            totals: Totals::new(),
            disk: Mutex::default(),
        }
    }

    /// Has all areas used by the machine that this is part of.
    ///
    /// # Panics
    /// If the machine does not know one.
    pub fn swapon_all(machine: &impl Swap, areas: u32) {
        for area in 0..areas {
            swapon(machine, area, None).expect("the machine has the area");
        }
    }

    /// See [`Swap::slots`].
    pub fn slots(&self, area: u32) -> &[AtomicU64] {
        usize::try_from(area).ok().and_then(|area| self.areas.get(area)).map_or(&[], |(words, _)| words)
    }

    /// See [`Swap::with_area`].
    pub fn with_area<R>(&self, area: u32, f: impl FnOnce(&mut SwapInfo<Clusters>) -> R) -> Option<R> {
        let (_, info) = self.areas.get(usize::try_from(area).ok()?)?;
        Some(f(&mut lock(info)))
    }

    /// See [`Swap::with_list`].
    pub fn with_list<R>(&self, f: impl FnOnce(&mut SwapList) -> R) -> R {
        f(&mut lock(&self.list))
    }

    /// See [`mm_core::CpuLocal`].
    pub fn with_cpu<R>(&self, f: impl FnOnce(&mut CpuCluster) -> R) -> R {
        f(&mut lock(&self.cpu))
    }

    /// See [`Swap::totals`].
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// What a slot holds; `None` if nobody wrote it.
    pub fn read(&self, entry: SwapEntry) -> Option<Page> {
        lock(&self.disk).get(&entry).copied()
    }

    /// Writes a slot.
    pub fn write(&self, entry: SwapEntry, page: Page) {
        lock(&self.disk).insert(entry, page);
    }

    /// Slots in use, of all areas.
    pub fn inuse(&self) -> u64 {
        self.areas.iter().map(|(_, info)| lock(info).inuse_pages()).sum()
    }
}

fn cluster_slots() -> usize {
    usize::try_from(SWAPFILE_CLUSTER).unwrap_or(usize::MAX)
}

/// Makes a machine of tests a [`Swap`] by a field of it that is a [`SimSwap`].
#[macro_export]
macro_rules! swap_by_field {
    ($machine:ty, $field:ident) => {
        impl $crate::mm_core::CpuLocal<$crate::mm_swap::CpuCluster> for $machine {
            fn with<R>(&self, f: impl FnOnce(u32, &mut $crate::mm_swap::CpuCluster) -> R) -> R {
                self.$field.with_cpu(|cpu| f(0, cpu))
            }

            fn for_each(&self, mut f: impl FnMut(u32, &mut $crate::mm_swap::CpuCluster)) {
                self.$field.with_cpu(|cpu| f(0, cpu));
            }
        }

        impl $crate::mm_swap::Swap for $machine {
            type Word = core::sync::atomic::AtomicU64;
            type Clusters = $crate::Clusters;

            fn slots(&self, area: u32) -> &[Self::Word] {
                self.$field.slots(area)
            }

            fn with_area<R>(
                &self,
                area: u32,
                f: impl FnOnce(&mut $crate::mm_swap::SwapInfo<Self::Clusters>) -> R,
            ) -> Option<R> {
                self.$field.with_area(area, f)
            }

            fn with_list<R>(&self, f: impl FnOnce(&mut $crate::mm_swap::SwapList) -> R) -> R {
                self.$field.with_list(f)
            }

            fn totals(&self) -> &$crate::mm_swap::Totals {
                self.$field.totals()
            }
        }
    };
}
