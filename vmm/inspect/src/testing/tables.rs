//! Page tables, written entry by entry.

use crate::{Entry, Levels, MemorySource, PageSize, SparseMemory};

/// Builds a tree of page tables. Frames for tables come from `pool`, lowest first.
#[derive(Debug)]
pub struct Tables {
    root: u64,
    levels: Levels,
    next: u64,
    end: u64,
}

impl Tables {
    /// An empty tree whose tables are taken from the frames `pool`, the first of them the root.
    pub fn new(levels: Levels, pool: std::ops::Range<u64>) -> Tables {
        let root = pool.start;
        assert!(root.is_multiple_of(4096) && root < pool.end, "the pool {pool:x?} holds no frame");
        Tables { root, levels, next: root + 4096, end: pool.end }
    }

    /// Guest-physical address of the top-level table: CR3.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Depth.
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// First byte of the pool that no table uses.
    pub const fn used_end(&self) -> u64 {
        self.next
    }

    /// Maps the page at `va` to `gpa`. `flags` are those of the leaf; PS is added where the size
    /// needs it. The tables above are present, writable and user.
    pub fn map(&mut self, memory: &mut SparseMemory, va: u64, gpa: u64, size: PageSize, flags: u64) {
        let ps = if size == PageSize::Size4K { 0 } else { Entry::PS };
        let at = self.entry(memory, va, size.level());
        memory.write_u64(at, gpa | flags | ps | Entry::PRESENT).expect("tables are in RAM");
    }

    /// Maps `len` bytes with the largest pages that fit, none larger than `largest`.
    pub fn map_range(
        &mut self,
        memory: &mut SparseMemory,
        va: u64,
        gpa: u64,
        len: u64,
        flags: u64,
        largest: PageSize,
    ) {
        let mut done = 0;
        while done < len {
            let size = PageSize::ALL
                .into_iter()
                .rev()
                .find(|size| {
                    let fits = |value: u64| value.is_multiple_of(size.bytes());
                    *size <= largest
                        && fits(va.wrapping_add(done))
                        && fits(gpa + done)
                        && len - done >= size.bytes()
                })
                .unwrap_or(PageSize::Size4K);
            self.map(memory, va.wrapping_add(done), gpa + done, size, flags);
            done += size.bytes();
        }
    }

    /// Guest-physical address of the entry of `va` at `level`; the tables above it are made.
    pub fn entry(&mut self, memory: &mut SparseMemory, va: u64, level: u32) -> u64 {
        let mut table = self.root;
        let mut at = self.levels.count();
        loop {
            let place = table + 8 * ((va >> (3 + 9 * at)) & 511);
            if at == level {
                return place;
            }
            let entry = Entry::new(memory.read_u64(place).expect("tables are in RAM"));
            assert!(!entry.is_present() || !entry.is_leaf(at), "{va:#x} is inside a large page");
            table = if entry.is_present() {
                entry.table()
            } else {
                let frame = self.next;
                assert!(frame < self.end, "no frames left for page tables");
                self.next += 4096;
                let flags = Entry::PRESENT | Entry::WRITE | Entry::USER;
                memory.write_u64(place, frame | flags).expect("tables are in RAM");
                frame
            };
            at -= 1;
        }
    }
}
