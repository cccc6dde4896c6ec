//! An image of guest memory with page tables in it: a memfd as the product's, RAM at guest-physical 0.
//!
//! The tables map one range of the direct map with 4 KiB pages. Tables lie at random frames of RAM and the
//! pages at random frames too, as in a guest that has run for a while. Two roots lead to the same
//! tables: one of 4 levels, and one of 5 whose last entry is the first.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::Arc,
};

use anyhow::Context;
use memvisor_inspect::{MappedMemory, RamRegion};
use rustix::fs::MemfdFlags;

/// First mapped address: where Linux's direct map is with 4 levels, canonical with 5 too.
pub const BASE: u64 = 0xffff_8880_0000_0000;
const PAGE: u64 = 4096;
/// Present, writable, accessed, dirty.
const FLAGS: u64 = 0x63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The image.
pub struct Image {
    file: Arc<File>,
    /// Bytes of RAM.
    pub len: u64,
    /// Pages mapped from [`BASE`] on.
    pub pages: u64,
    /// Address of the top table of the 4-level tree.
    pub root4: u64,
    /// Address of the top table of the 5-level tree.
    pub root5: u64,
}

impl Image {
    /// An image with `gib` GiB mapped.
    ///
    /// # Errors
    /// If the host does not give the memory.
    pub fn new(gib: u64) -> anyhow::Result<Image> {
        let pages = gib << 18;
        let tables = pages.div_ceil(512);
        let middles = tables.div_ceil(512);
        // A quarter more RAM than is mapped, as with holes and memory that is not in the direct map.
        let len = (gib << 30) + (gib << 28);
        let fd = rustix::fs::memfd_create("bench-image", MemfdFlags::CLOEXEC).context("memfd_create")?;
        let file = File::from(fd);
        file.set_len(len).context("size of the image")?;

        let mut random = Random::new(gib);
        let mut frames = Frames { next: 0, count: len / PAGE, step: random.odd() };
        // The first frame stays empty: address 0 would look like an entry that is not there.
        let _ = frames.take();
        let mut write = |entries: &[(u64, u64)]| -> anyhow::Result<u64> {
            let gpa = frames.take();
            let mut bytes = [0; PAGE as usize];
            for (index, entry) in entries {
                let at = *index as usize * 8;
                bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
            }
            file.write_all_at(&bytes, gpa).context("write a table")?;
            Ok(gpa)
        };
        let mut puds = Vec::new();
        for middle in 0..middles {
            let mut pmds = Vec::new();
            for table in 0..(tables - middle * 512).min(512) {
                let ptes: Vec<_> =
                    (0..512).map(|index| (index, ((random.next() % (len / PAGE)) * PAGE) | FLAGS)).collect();
                pmds.push((table, write(&ptes)? | FLAGS));
            }
            puds.push((middle, write(&pmds)? | FLAGS));
        }
        let pud = write(&puds)?;
        let root4 = write(&[(BASE >> 39 & 511, pud | FLAGS)])?;
        let root5 = write(&[(BASE >> 48 & 511, root4 | FLAGS)])?;
        Ok(Image { file: Arc::new(file), len, pages, root4, root5 })
    }

    /// As memvisor reads it.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn mapped(&self) -> anyhow::Result<MappedMemory> {
        let fd: OwnedFd = self.file.try_clone()?.into();
        Ok(MappedMemory::from_fds(vec![(RamRegion { gpa: 0, len: self.len }, fd, 0)])?)
    }

    /// As peers read it: a plain mapping that lives as long as the process. Nothing writes to it any more.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn bytes(&self) -> anyhow::Result<&'static [u8]> {
        let map = self.map()?;
        // SAFETY: the mapping has `len` bytes, is never unmapped, belongs to nobody else, and the file
        // behind it was written completely in `new`.
        Ok(unsafe { std::slice::from_raw_parts(map, usize::try_from(self.len)?) })
    }

    /// A new mapping, never unmapped: copy-on-write, because a peer wants mutable references that it
    /// does not use.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn map(&self) -> anyhow::Result<*mut u8> {
        use rustix::mm::{MapFlags, ProtFlags};
        let len = usize::try_from(self.len)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the place, so no other mapping is touched.
        let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &self.file, 0) };
        Ok(map.context("map the image")?.cast())
    }

    /// Addresses to look up: one of each page in order, or as many at random.
    pub fn addresses(&self, count: usize, order: Order) -> Vec<u64> {
        let mut random = Random::new(7);
        (0..count as u64)
            .map(|number| match order {
                Order::Sequential => BASE + number % self.pages * PAGE + (number * 8) % PAGE,
                Order::Random => BASE + random.next() % (self.pages * PAGE),
            })
            .collect()
    }
}

/// In which order addresses come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Page after page.
    Sequential,
    /// At random.
    Random,
}

/// Address in an entry.
pub const fn target(entry: u64) -> u64 {
    entry & ADDRESS
}

/// Gives every frame once, in an order without pattern.
struct Frames {
    next: u64,
    count: u64,
    step: u64,
}

impl Frames {
    fn take(&mut self) -> u64 {
        // `count` is 5 times a power of two: an odd step that 5 does not divide visits every frame.
        let frame = u128::from(self.next) * u128::from(self.step) % u128::from(self.count);
        self.next += 1;
        frame as u64 * PAGE
    }
}

/// xorshift64*: the same numbers in every run.
pub struct Random(u64);

impl Random {
    /// A generator for a seed.
    pub const fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// An odd number that 5 does not divide.
    fn odd(&mut self) -> u64 {
        loop {
            let number = (self.next() >> 20) | 1;
            if !number.is_multiple_of(5) {
                return number;
            }
        }
    }
}
