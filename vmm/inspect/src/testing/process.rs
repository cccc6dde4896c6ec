//! A process in a synthetic guest.

use memvisor_abi::{
    AnonVma, AnonVmaChain, CpuTlb, Mapping, Mm, Page, PageKind, TableRef, TaskInfo, TaskState, Vma, VmaNode,
    vm_flags,
};

use super::{SyntheticGuest, Tables};
use crate::{Entry, Levels, PageSize};

/// A process with text (one page of a mapping), a heap (two pages, the first one resident) and a stack without pages.
#[derive(Clone, Copy, Debug)]
pub struct SyntheticProcess {
    /// Guest-physical address of its objects, one page.
    pub objects: u64,
    /// Its top-level table.
    pub pgd: u64,
    /// Frame of its text.
    pub text: u64,
    /// Frame of its heap.
    pub heap: u64,
}

impl SyntheticProcess {
    /// Its number.
    pub const PID: u32 = 7;
    /// Address of its text.
    pub const TEXT: u64 = 0x40_0000;
    /// Address of its heap.
    pub const HEAP: u64 = 0x60_0000;
    /// First address past its stack.
    pub const STACK_TOP: u64 = 0x7fff_ffff_f000;
    /// Bytes of RAM that it needs, from a page boundary on.
    pub const LEN: u64 = 16 << 12;

    /// Makes the process in `LEN` bytes at `at`, which the guest's own account calls free: only views are right about it.
    pub fn add(guest: &mut SyntheticGuest, at: u64) -> SyntheticProcess {
        let levels = Levels::new(guest.root.levels).expect("a synthetic guest has 4 or 5 levels");
        let objects = at;
        let (text, heap) = (at + (14 << 12), at + (15 << 12));
        let mut tables = Tables::new(levels, at + 4096..text);
        let root = guest.root.pgd_pfn << 12;
        for slot in 256..512 {
            let entry = crate::MemorySource::read_u64(&guest.memory, root + 8 * slot).expect("in RAM");
            guest.memory.write_u64(tables.root() + 8 * slot, entry).expect("in RAM");
        }
        let user = Entry::USER | Entry::ACCESSED;
        tables.map(&mut guest.memory, Self::TEXT, text, PageSize::Size4K, user);
        let data = user | Entry::WRITE | Entry::DIRTY | Entry::NX;
        tables.map(&mut guest.memory, Self::HEAP, heap, PageSize::Size4K, data);
        let nr_tables = (tables.used_end() - tables.root()) >> 12;
        let process =
            SyntheticProcess { objects, pgd: tables.root() >> 12, text: text >> 12, heap: heap >> 12 };
        process.write_objects(guest, nr_tables);
        let user = |page: &mut Page, mapping, index| {
            (page.kind, page.refcount, page.mapcount) = (PageKind::User as u8, 1, 0);
            (page.mapping, page.index) = (mapping, index);
        };
        guest.edit_page(process.text, |page| user(page, process.mapping(), 0));
        let anon = process.anon_vma() | Page::MAPPING_ANON;
        guest.edit_page(process.heap, |page| user(page, anon, Self::HEAP >> 12));
        process
    }

    /// Address of its `mm_struct`.
    pub const fn mm(&self) -> u64 {
        self.objects
    }

    /// Address of its heap's anon_vma.
    pub const fn anon_vma(&self) -> u64 {
        self.objects + 0x700
    }

    /// Address of what its text maps.
    pub const fn mapping(&self) -> u64 {
        self.objects + 0x780
    }

    fn write_objects(&self, guest: &mut SyntheticGuest, table_pages: u64) {
        let [text, heap, stack, node, chain] =
            [0x200, 0x280, 0x300, 0x400, 0x740].map(|at| self.objects + at);
        let may = vm_flags::MAYREAD | vm_flags::MAYWRITE | vm_flags::MAYEXEC;
        let vma = |start, end, flags| Vma {
            start,
            end,
            mm: self.mm(),
            flags: flags | may,
            refcount: 1,
            pgoff: start >> 12,
            ..Vma::default()
        };
        let writable = vm_flags::READ | vm_flags::WRITE;
        let vmas = [
            Vma {
                pgoff: 0,
                mapping: self.mapping(),
                next: heap,
                ..vma(Self::TEXT, Self::TEXT + 0x1000, vm_flags::READ | vm_flags::EXEC)
            },
            Vma {
                anon_vma: self.anon_vma(),
                chain_first: chain,
                chain_last: chain,
                prev: text,
                next: stack,
                ..vma(Self::HEAP, Self::HEAP + 0x2000, writable)
            },
            Vma {
                prev: heap,
                ..vma(Self::STACK_TOP - 0x2_1000, Self::STACK_TOP, writable | vm_flags::GROWSDOWN)
            },
        ];
        let mut tree = VmaNode { len: 3, ..VmaNode::EMPTY };
        for (n, (gpa, vma)) in [text, heap, stack].into_iter().zip(vmas).enumerate() {
            (tree.start[2 - n], tree.end[2 - n], tree.slot[2 - n]) = (vma.start, vma.end, gpa);
            guest.memory.write_value(gpa, &vma).expect("in RAM");
        }
        let mm = Mm {
            tree_root: node,
            tree_height: 1,
            first: text,
            pgd_pfn: self.pgd,
            levels: guest.root.levels,
            map_count: 3,
            task_size: Self::STACK_TOP,
            total_vm: 36,
            data_vm: 2,
            exec_vm: 1,
            stack_vm: 33,
            start_brk: Self::HEAP,
            brk: Self::HEAP + 0x1800,
            rss: [1, 1],
            min_flt: 2,
            table_pages,
            users: 1,
            owner: Self::PID,
            cpus: [1, 0, 0, 0],
            ..Mm::default()
        };
        let anon = self.anon_vma();
        let anon_vma = AnonVma {
            root: anon,
            parent: anon,
            chains: chain,
            refcount: 1,
            num_children: 1,
            num_active_vmas: 1,
            reserved: 0,
        };
        let link = AnonVmaChain { vma: heap, anon_vma: anon, ..AnonVmaChain::default() };
        let task = TaskInfo {
            pid: Self::PID,
            tgid: Self::PID,
            ppid: 1,
            state: TaskState::Running as u32,
            rests: 1,
            mm: self.mm(),
            name: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..TaskInfo::default()
        };
        let tlb = CpuTlb { mm: self.mm(), flush_requested: 3, flush_done: 3, rests: 0 };
        let mapping = Mapping { vmas: text, references: 1, ..Mapping::default() };
        let memory = &mut guest.memory;
        let mut put = |gpa, bytes: &[u8]| memory.write(gpa, bytes).expect("in RAM");
        use zerocopy::IntoBytes;
        put(self.mm(), mm.as_bytes());
        put(node, tree.as_bytes());
        put(anon, anon_vma.as_bytes());
        put(chain, link.as_bytes());
        put(self.mapping(), mapping.as_bytes());
        put(self.objects + 0x800, task.as_bytes());
        put(self.objects + 0x900, tlb.as_bytes());
        put(self.objects + 0xa00, self.mm().as_bytes());
        let one = |at, size: usize| TableRef {
            gpa: self.objects + at,
            count: 1,
            stride: u32::try_from(size).expect("small"),
        };
        guest.root.tasks = one(0x800, size_of::<TaskInfo>());
        guest.root.cpu_tlbs = one(0x900, size_of::<CpuTlb>());
        guest.root.mm_list = one(0xa00, 8);
        guest.write_root();
    }
}
