//! The calls on the crate.

use mm_core::{MemMap, Pfn, PhysAddr, PhysMem, VirtAddr, is_user_page};
use mm_pgtable::PteFlags;
use mm_vma::{
    Access, Advised, Arena, Done, Fault, FaultInfo, MlockAll, MremapFlags, MsyncFlags, Populate, dup_mmap,
    handle_fault, madvise_pageout, populate, populate_exact, populate_locked, with_user_byte,
};
use mm_vma::{
    Errno, Id, Kernel, Layout, Limits, MapFile, MapFlags, Mbind, MbindFlags, Mm, MmapRequest, NodeMask,
    Policy, ProtFlags, Space, VmFlags,
};

use super::kernel::TestKernel;
use super::op::{HEAP, MEMLOCK, Op, PAGE, PAGES, STACK, WINDOW, address};
use super::{Line, Outcome};

const TASK_SIZE: u64 = 0x7fff_ffff_f000;
const LOWEST: u64 = 0x1_0000;

pub struct Model {
    pub k: TestKernel,
    pub mm: Id<Mm>,
    pub limits: Limits,
    /// Address spaces of parents that wait.
    pub parents: Vec<Id<Mm>>,
    /// Words are read and written by the kernel for the program, as `read` and `write` do.
    pub by_kernel: bool,
}

impl Model {
    /// An address space in which only the window is free.
    pub fn new() -> Model {
        Model::on(TestKernel::new())
    }

    /// [`Model::new`] on that machine.
    pub fn on(k: TestKernel) -> Model {
        let shape = Layout { mmap_base: TASK_SIZE, mmap_legacy_base: LOWEST, task_size: TASK_SIZE };
        let mm = k.new_mm(shape);
        let limits = Limits { memlock: MEMLOCK, stack: STACK, mmap_min_addr: LOWEST, ..Limits::default() };
        let model = Model { k, mm, limits, parents: Vec::new(), by_kernel: false };
        let end = WINDOW + PAGES * PAGE;
        for (start, end) in [(LOWEST, WINDOW), (end, TASK_SIZE)] {
            let mapping = model.k.shmem_zero_setup(1 << 47, mm_vma::VmFlags::empty()).unwrap();
            let file = MapFile::of(mapping);
            let request = MmapRequest {
                addr: start,
                len: end - start,
                prot: ProtFlags::empty(),
                flags: MapFlags::SHARED | MapFlags::FIXED,
                file: Some(file),
                offset: 0,
            };
            assert_eq!(model.space().mmap(&request).unwrap().0, start);
            model.k.mapping_put(mapping);
        }
        let mm: &Mm = model.k.at(model.mm);
        mm.set_program(0, 0, WINDOW + HEAP * PAGE);
        model
    }

    /// Frames that hold pages of programs, of files and of the swap cache.
    pub fn user_frames(&self) -> Vec<Pfn> {
        let all = (0x1_0000..).map(Pfn::new).map_while(|pfn| self.k.page(pfn).map(|page| (pfn, page)));
        all.filter(|(_, page)| is_user_page(page) && page.refcount() > 0).map(|(pfn, _)| pfn).collect()
    }

    pub fn space(&self) -> Space<'_, TestKernel> {
        Space::lock(&self.k, self.mm, self.limits)
    }

    /// Whether Linux 6.18 is known to do something else from here on: a move of a locked mapping that leaves the old range
    /// mapped counts its pages as locked twice (`vrm_stat_account` without what `dontunmap_complete` unlocks).
    pub fn is_known_difference(&self, op: Op) -> bool {
        let Op::Mremap { addr, flags, .. } = op else { return false };
        let mm: &Mm = self.k.at(self.mm);
        let locked = |page: u64| {
            let vma = mm.find(&self.k, address(addr) + page * PAGE).map(|id| self.k.vmas.at(id));
            vma.is_some_and(|vma| vma.flags().contains(VmFlags::LOCKED))
        };
        flags & 4 != 0 && (0..300).any(locked)
    }

    /// What the system-call layer does, with what is left to do after mmap_lock.
    pub fn run(&mut self, index: usize, op: Op) -> Outcome {
        let result = self.call(index, op);
        Outcome { result: result.unwrap_or_else(|errno| -i64::from(errno.number())), lines: self.lines() }
    }

    fn call(&mut self, index: usize, op: Op) -> Result<i64, Errno> {
        let mut result = 0;
        match op {
            Op::Mmap { addr, len, prot, flags } => {
                let (addr, range) = self.space().mmap(&MmapRequest {
                    addr: address(addr),
                    len,
                    prot: ProtFlags::from_bits_retain(prot),
                    flags: MapFlags::from_bits_retain(flags),
                    file: None,
                    offset: 0,
                })?;
                self.populate(range);
                result = addr.cast_signed();
            }
            Op::Munmap { addr, len } => self.space().munmap(address(addr), len)?,
            Op::Mprotect { addr, len, prot } => {
                self.space().mprotect(address(addr), len, ProtFlags::from_bits_retain(prot))?;
            }
            Op::Brk { bytes } => {
                let (brk, range) = self.space().set_brk(WINDOW + HEAP * PAGE + bytes);
                self.populate(range);
                result = brk.cast_signed();
            }
            Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
                let flags = MremapFlags::from_bits_retain(flags);
                let moved = self.space().mremap(address(addr), old_len, new_len, flags, address(new_addr));
                let (addr, range) = moved?;
                self.populate(range);
                result = addr.cast_signed();
            }
            Op::Madvise { addr, len, advice } => {
                let advised = self.space().madvise(address(addr), len, advice)?;
                match advised {
                    Advised::Populate(range, access) => {
                        populate_exact(&self.k, self.mm, &self.limits, range, access)?;
                    }
                    Advised::PageOut(range) => madvise_pageout(&self.k, self.mm, range),
                    Advised::Done | Advised::Remove(_) => {}
                }
            }
            Op::Mlock { addr, len, flags } => {
                let range = self.space().mlock(address(addr), len, flags)?;
                populate_locked(&self.k, self.mm, &self.limits, range)?;
            }
            Op::Munlock { addr, len } => self.space().munlock(address(addr), len)?,
            Op::Mlockall { flags } => {
                let range = self.space().mlockall(MlockAll::from_bits_retain(flags))?;
                self.populate(range);
            }
            Op::Munlockall => self.space().munlockall(),
            Op::Mincore { addr, pages } => {
                // Pages in memory, as bits.
                self.space().mincore(address(addr), pages * PAGE, |page, resident| {
                    result |= i64::from(resident) << page;
                })?;
            }
            Op::Msync { addr, len, flags } => {
                self.space().msync(address(addr), len, MsyncFlags::from_bits_retain(flags))?;
            }
            Op::Mbind { addr, len, mode, nodes, flags } => {
                if mode > 5 {
                    return Err(Errno::Einval);
                }
                let nodes = NodeMask::from_bits(nodes);
                let mode = u32::try_from(mode).unwrap();
                let policy = Policy::new(mode, nodes, self.k.nodes_with_memory());
                self.space().mbind(&Mbind {
                    start: address(addr),
                    len,
                    policy: policy.map_err(|_| Errno::Einval),
                    nodes,
                    flags: MbindFlags::from_bits_retain(flags),
                })?;
            }
            Op::Read { addr } => return Ok(self.access(address(addr), None)),
            Op::Write { addr } => return Ok(self.access(address(addr), Some(index as u64))),
            Op::Fork => {
                let parent: &Mm = self.k.at(self.mm);
                let shape = Layout {
                    mmap_base: parent.mmap_base(),
                    mmap_legacy_base: parent.mmap_legacy_base(),
                    task_size: parent.task_size(),
                };
                let child = self.k.new_mm(shape);
                let copied = dup_mmap(&self.space(), &Space::lock(&self.k, child, self.limits));
                // A child that could not be made is empty, and ends with the others.
                let other = if copied.is_ok() { core::mem::replace(&mut self.mm, child) } else { child };
                self.parents.push(other);
                copied?;
            }
        }
        Ok(result)
    }

    fn populate(&self, range: Populate) {
        populate(&self.k, self.mm, &self.limits, range);
    }

    /// What a CPU does for an instruction: through its TLB, else through the tables, else by a fault. The word that was
    /// read, 0 for a write, or a signal and its code as Linux's side tells them.
    pub fn access(&self, addr: u64, write: Option<u64>) -> i64 {
        let mm: &Mm = self.k.at(self.mm);
        let (root, page) = (mm.page_table().root.as_u64(), addr & !(PAGE - 1));
        for _ in 0..8 {
            if self.by_kernel {
                if let Some(result) = self.copy(mm, addr, write) {
                    return result;
                }
                if let Some(signal) = self.fault(addr, write, self.walk(mm, addr, false).is_some()) {
                    return signal;
                }
                continue;
            }
            let cached = self.k.tlb.lock().unwrap().get(&(root, page)).copied();
            let entry = match cached {
                Some(entry) => Some(entry),
                None => self.walk(mm, addr, write.is_some()),
            };
            if let Some(entry) = entry
                && (write.is_none() || entry.has(PteFlags::WRITE))
            {
                // A write through an entry that is cached clean marks it in memory first, and faults if it is gone.
                let marked = if write.is_some() && !entry.has(PteFlags::DIRTY) {
                    self.walk(mm, addr, true)
                } else {
                    Some(entry)
                };
                let Some(entry) = marked else {
                    self.k.tlb.lock().unwrap().remove(&(root, page));
                    continue;
                };
                self.k.tlb.lock().unwrap().insert((root, page), entry);
                let phys = PhysAddr::new(entry.table_pfn().phys().as_u64() + addr % PAGE);
                return match write {
                    Some(value) => {
                        self.k.write_u64(phys, value);
                        0
                    }
                    None => self.k.read_u64(phys).cast_signed(),
                };
            }
            // The fault drops the translation that refused.
            self.k.tlb.lock().unwrap().remove(&(root, page));
            if let Some(signal) = self.fault(addr, write, entry.is_some()) {
                return signal;
            }
        }
        panic!("{addr:#x} faults again and again");
    }

    /// What the kernel does for a call of the program that reads or writes the word.
    fn copy(&self, mm: &Mm, addr: u64, write: Option<u64>) -> Option<i64> {
        with_user_byte(&self.k, mm, addr, write.is_some(), |phys| match write {
            Some(value) => {
                self.k.write_u64(phys, value);
                0
            }
            None => self.k.read_u64(phys).cast_signed(),
        })
    }

    /// The signal and its code if the program may not.
    fn fault(&self, addr: u64, write: Option<u64>, present: bool) -> Option<i64> {
        let access = if write.is_some() { Access::Write } else { Access::Read };
        match handle_fault(&self.k, self.mm, FaultInfo { addr, access, present }, || self.limits) {
            Ok(Done::Wait) => panic!("a page is moved while nobody moves pages"),
            Ok(_) => None,
            Err(Fault::NoMemory) => panic!("out of memory"),
            Err(fault) => Some(-i64::from(fault.signo() * 1000 + fault.code())),
        }
    }

    /// The entry of `addr`, marked as the CPU marks it.
    fn walk(&self, mm: &Mm, addr: u64, write: bool) -> Option<mm_pgtable::Entry> {
        self.k.tables(mm, |tables| {
            let mut found = None;
            mm.page_table().walk(tables, VirtAddr::new(addr), |level, table, index, entry| {
                if level == 1 && entry.is_present() {
                    found = Some((table, index, entry));
                }
            });
            let (table, index, entry) = found?;
            assert!(entry.has(PteFlags::USER));
            let mut marks = PteFlags::ACCESSED;
            marks.set(PteFlags::DIRTY, write && entry.has(PteFlags::WRITE));
            let entry = mm_pgtable::Entry::new(entry.as_u64() | marks.bits());
            mm_pgtable::TableMem::write(tables, table, index, entry.as_u64());
            Some(entry)
        })
    }

    /// Ends all address spaces; nothing may be left.
    pub fn finish(self) {
        for mm in self.parents.iter().chain([&self.mm]) {
            Space::lock(&self.k, *mm, self.limits).exit();
            let at: &Mm = self.k.at(*mm);
            assert_eq!((at.rss(mm_vma::RssKind::Anon), at.rss(mm_vma::RssKind::File)), (0, 0));
            assert_eq!(at.swapents(), 0);
        }
        self.k.audit_swap();
        assert_eq!(self.k.swap.inuse(), 0, "slots are left");
        assert_eq!(self.k.committed.load(std::sync::atomic::Ordering::Relaxed), 0, "promises are left");
        assert!(self.k.is_empty(), "objects are left");
        assert_eq!(self.k.ram.table_count(), 1 + self.parents.len(), "tables are left");
        assert_eq!(self.k.ram.used(), 1 + self.parents.len(), "pages are left");
    }

    /// What /proc/self/maps would say about the window.
    pub fn lines(&self) -> Vec<Line> {
        let mm: &Mm = self.k.at(self.mm);
        let window = WINDOW..WINDOW + PAGES * PAGE;
        mm.vmas(&self.k)
            .filter(|(_, vma)| window.contains(&vma.start()))
            .map(|(_, vma)| {
                let flags = vma.flags();
                let letter = |flag, set, clear| if flags.contains(flag) { set } else { clear };
                let shared = vma.mapping().is_some();
                Line {
                    start: vma.start() - WINDOW,
                    end: vma.end() - WINDOW,
                    perms: [
                        letter(VmFlags::READ, 'r', '-'),
                        letter(VmFlags::WRITE, 'w', '-'),
                        letter(VmFlags::EXEC, 'x', '-'),
                        letter(VmFlags::MAYSHARE, 's', 'p'),
                    ]
                    .iter()
                    .collect(),
                    offset: if shared { vma.pgoff() * PAGE } else { 0 },
                    inode: vma.mapping().map_or(0, |mapping| mapping.as_u64()),
                }
            })
            .collect()
    }
}
