//! Views of a process's memory.

use memvisor_abi::{AnonVma, Mm, Page};

use super::*;
use crate::testing::{Machine, SyntheticGuest, SyntheticProcess};
use crate::{CpuRegisters, Guest, Levels, SparseMemory, Symbols};

const PID: u32 = SyntheticProcess::PID;

fn guest(levels: Levels) -> (SyntheticGuest, SyntheticProcess) {
    let mut guest = SyntheticGuest::new(&Machine::pc(64 << 20, levels));
    let process = SyntheticProcess::add(&mut guest, 0x380_0000);
    (guest, process)
}

fn reader(guest: &SyntheticGuest) -> Guest<'_, SparseMemory> {
    Guest::attach(&guest.memory, guest.root_gpa).expect("a good root")
}

#[test]
fn maps_reads_as_in_proc() {
    for levels in [Levels::Four, Levels::Five] {
        let (guest, process) = guest(levels);
        let view = MapsView::new(&reader(&guest), PID, false).expect("readable").expect("it lives");
        let line = |head: &str, name: &str| format!("{head:<73}{name}\n");
        let wanted = [
            line("00400000-00401000 r-xp 00000000 00:00 0 ", &format!("mapping:{:#x}", process.mapping())),
            line("00600000-00602000 rw-p 00000000 00:00 0 ", "[heap]"),
            line("7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 ", "[stack]"),
        ];
        assert_eq!(view.to_string(), wanted.concat());
        assert_eq!(MapsView::new(&reader(&guest), 9, false).expect("readable"), None);
    }
}

#[test]
fn smaps_counts_what_the_page_tables_have() {
    let (guest, _) = guest(Levels::Four);
    let view = MapsView::new(&reader(&guest), PID, true).expect("readable").expect("it lives");
    let [text, heap, stack] = view.vmas.as_slice() else { panic!("three VMAs") };
    let (text, heap) = (text.smaps.as_ref().expect("asked for"), heap.smaps.as_ref().expect("asked for"));
    assert_eq!((text.size, text.rss, text.pss, text.private_clean, text.anonymous), (4, 4, 4, 4, 0));
    assert_eq!((heap.size, heap.rss, heap.private_dirty, heap.anonymous, heap.referenced), (8, 4, 4, 4, 4));
    assert_eq!(stack.smaps.as_ref().map(|smaps| (smaps.size, smaps.rss)), Some((132, 0)));
    assert!(view.to_string().contains("Private_Dirty:         4 kB\n"), "{view}");
    assert!(view.to_string().contains("VmFlags: rd wr mr mw me gd \n"), "{view}");
}

#[test]
fn numa_maps_has_the_pages_that_smaps_has_and_the_policies() {
    let (mut guest, _) = guest(Levels::Four);
    let view = NumaMapsView::new(&reader(&guest), PID).expect("readable").expect("it lives");
    let smaps = MapsView::new(&reader(&guest), PID, true).expect("readable").expect("it lives");
    assert_eq!(view.vmas.len(), smaps.vmas.len());
    for (row, maps) in view.vmas.iter().zip(&smaps.vmas) {
        let smaps = maps.smaps.as_ref().expect("asked for");
        assert_eq!((row.pages * 4, row.anon * 4), (smaps.rss, smaps.anonymous));
        assert_eq!(row.nodes.values().sum::<u64>(), row.pages);
        assert_eq!((row.policy.as_str(), maps.policy.as_str()), ("default", "default"));
    }
    assert_eq!(view.vmas[1].place, "heap");
    let vma = reader(&guest).mm_spaces().expect("readable")[0].vmas.items[1].gpa;
    let at = |offset: usize| vma + offset as u64;
    let counted = reader(&guest).mm_spaces().expect("readable")[0].vmas.items[1].vma.refcount;
    let word = u64::from(counted) | u64::from(memvisor_abi::mpol::BIND) << 32;
    guest.memory.write_u64(at(std::mem::offset_of!(memvisor_abi::Vma, refcount)), word).expect("in RAM");
    guest.memory.write_u64(at(std::mem::offset_of!(memvisor_abi::Vma, policy_nodes)), 6).expect("in RAM");
    let view = NumaMapsView::new(&reader(&guest), PID).expect("readable").expect("it lives");
    assert!(view.vmas[1].to_string().contains(" bind:1-2 heap anon=1 dirty=1 "), "{}", view.vmas[1]);
    assert_eq!(NumaMapsView::new(&reader(&guest), 9).expect("readable"), None);
}

#[test]
fn ps_joins_tasks_and_address_spaces() {
    let (mut guest, process) = guest(Levels::Four);
    let view = PsView::new(&reader(&guest)).expect("readable");
    let [row] = view.tasks.as_slice() else { panic!("one task") };
    assert_eq!((row.pid, row.ppid, row.name.as_str(), row.state), (7, 1, "sh", Some("running")));
    assert_eq!((row.vsz_kib, row.rss_kib), (144, 8));
    // One that ended has no address space any more, and is no task of the kernel for that.
    let task = guest.root.tasks.gpa;
    let mm = std::mem::offset_of!(memvisor_abi::TaskInfo, mm) as u64;
    guest.memory.write_u64(task + mm, 0).expect("in RAM");
    let text = PsView::new(&reader(&guest)).expect("readable").to_string();
    assert!(text.starts_with("1 with an address space, 0 tasks of the kernel, 1 that ended"), "{text}");
    assert!(text.contains(" sh\n"), "{text}");
    guest.memory.write_u64(task + mm, process.mm()).expect("in RAM");
    // Without a task the address space is still there.
    guest.root.tasks.count = 0;
    guest.write_root();
    let view = PsView::new(&reader(&guest)).expect("readable");
    assert_eq!((view.tasks[0].pid, view.tasks[0].state, view.tasks[0].mm), (7, None, process.mm()));
}

/// A task that sleeps in two calls, with its stack at `at` in the direct map.
fn put_to_sleep(guest: &mut SyntheticGuest, at: u64, outermost: [u64; 2]) -> u64 {
    use memvisor_abi::{TaskInfo, TaskState};
    let va = |offset: u64| guest.root.page_offset + at + offset;
    let (outer, text) = (va(0x100), 0xffff_ffff_8100_0000);
    let words = [
        (TaskInfo::SAVED_RBP, va(0x80)),
        (TaskInfo::SAVED_RIP, text + 0x10),
        (0x80, outer),
        (0x88, text + 0x200),
        (0x100, outermost[0]),
        (0x108, outermost[1]),
    ];
    let rsp = va(0);
    for (offset, word) in words {
        guest.memory.write_u64(at + offset, word).expect("in RAM");
    }
    let task = guest.root.tasks.gpa;
    let field = |offset: usize| task + offset as u64;
    guest.memory.write_u64(field(std::mem::offset_of!(TaskInfo, rsp)), rsp).expect("in RAM");
    let state = u64::from(PID) | u64::from(TaskState::Sleeping as u32) << 32;
    guest.memory.write_u64(field(std::mem::offset_of!(TaskInfo, pid)), state).expect("in RAM");
    outer
}

#[test]
fn bt_follows_frame_pointers_to_where_the_kernel_was_entered() {
    let symbols =
        Symbols::parse(b"ffffffff81000000 t schedule\nffffffff810001f0 t wait\nffffffff81000200 t next\n");
    for levels in [Levels::Four, Levels::Five] {
        let (mut guest, process) = guest(levels);
        // The frame below is ring 3's.
        put_to_sleep(&mut guest, process.objects + 0xc00, [0x7fff_0000_0000, 0x40_0000]);
        let view = BtView::new(&reader(&guest), &[], &symbols, None).expect("readable");
        let [task] = view.tasks.as_slice() else { panic!("one task") };
        let names: Vec<_> = task.frames.iter().map(|frame| frame.name.as_deref()).collect();
        // A call that is its function's last instruction returns to the next one's first.
        assert_eq!(names, [Some("schedule+0x10"), Some("wait+0x10")]);
        let text = "    7 sh               sleeping on CPU 0\n        ffffffff81000010  schedule+0x10\n        ffffffff81000200  wait+0x10\n";
        assert!(view.to_string().ends_with(text), "{view}");
        let nameless = BtView::new(&reader(&guest), &[], &Symbols::default(), Some(PID)).expect("readable");
        assert!(nameless.to_string().ends_with("\n        ffffffff81000200\n"), "{nameless}");
        assert!(BtView::new(&reader(&guest), &[], &symbols, Some(99)).expect("readable").tasks.is_empty());
    }
}

#[test]
fn bt_ends_where_frame_pointers_run_in_a_circle_or_astray() {
    let (mut guest, process) = guest(Levels::Four);
    let at = process.objects + 0xc00;
    let outer = put_to_sleep(&mut guest, at, [0, 0]);
    let frames = |guest: &SyntheticGuest| {
        let view = BtView::new(&reader(guest), &[], &Symbols::default(), None).expect("readable");
        (view.tasks[0].frames.len(), view.tasks[0].note.clone())
    };
    put_to_sleep(&mut guest, at, [outer, 0xffff_ffff_8100_0300]);
    assert_eq!(frames(&guest), (64, None));
    for wild in [1, outer + 4, 0xffff_ff00_dead_0000] {
        put_to_sleep(&mut guest, at, [wild, 0xffff_ffff_8100_0300]);
        assert_eq!(frames(&guest), (3, None), "{wild:#x}");
    }
    let rsp = guest.root.tasks.gpa + std::mem::offset_of!(memvisor_abi::TaskInfo, rsp) as u64;
    guest.memory.write_u64(rsp, 0x1000).expect("in RAM");
    assert_eq!(frames(&guest), (0, Some("its stack pointer 0x1000 leads nowhere".to_owned())));
}

#[test]
fn bt_knows_a_task_that_runs_by_its_cpus_registers() {
    let (mut guest, process) = guest(Levels::Four);
    let at = process.objects + 0xc00;
    let outer = put_to_sleep(&mut guest, at, [0, 0xffff_ffff_8100_0300]);
    let state = u64::from(PID) | u64::from(memvisor_abi::TaskState::Running as u32) << 32;
    guest.memory.write_u64(guest.root.tasks.gpa, state).expect("in RAM");
    let row = |registers: &[CpuRegisters]| {
        let view = BtView::new(&reader(&guest), registers, &Symbols::default(), None).expect("readable");
        view.tasks[0].clone()
    };
    let mut cpu = CpuRegisters { rip: 0xffff_ffff_8100_0044, ..CpuRegisters::default() };
    cpu.gpr[7] = outer;
    let addresses: Vec<u64> = row(&[cpu.clone()]).frames.iter().map(|frame| frame.address).collect();
    assert_eq!(addresses, [0xffff_ffff_8100_0044, 0xffff_ffff_8100_0300]);
    cpu.rip = 0x40_1234;
    assert_eq!(row(&[cpu.clone()]).note.as_deref(), Some("in user space, at 0x401234"));
    cpu.index = 1;
    assert_eq!(row(&[cpu]).note.as_deref(), Some("it runs, and registers of CPU 0 are not known"));
}

#[test]
fn rmap_finds_an_entry_both_ways_and_names_one_that_the_lists_miss() {
    let (mut guest, process) = guest(Levels::Five);
    let view = RmapView::new(&reader(&guest), process.heap).expect("readable");
    let [entry] = view.entries.as_slice() else { panic!("one entry: {view}") };
    assert_eq!((entry.pid, entry.va), (PID, SyntheticProcess::HEAP));
    assert!(entry.by_walk && entry.by_lists && view.problems.is_empty(), "{view}");
    assert!(!view.to_string().contains('!'), "{view}");
    guest.edit_page(process.heap, |page: &mut Page| page.index += 1);
    let view = RmapView::new(&reader(&guest), process.heap).expect("readable");
    assert!(view.to_string().contains("! the guest's own lists do not lead here"), "{view}");
    let chains = process.anon_vma() + std::mem::offset_of!(AnonVma, chains) as u64;
    guest.memory.write_u64(chains, 0xdead_0000).expect("in RAM");
    let view = RmapView::new(&reader(&guest), process.heap).expect("readable");
    assert!(view.problems[0].contains("where no anon_vma_chain can be"), "{view}");
}

#[test]
fn tlb_compares_what_the_guest_says_with_cr3() {
    let (mut guest, process) = guest(Levels::Four);
    let mut registers = CpuRegisters { cr3: process.pgd << 12, ..guest.registers[0].clone() };
    let view = TlbView::new(&reader(&guest), std::slice::from_ref(&registers)).expect("readable");
    assert_eq!((view.cpus[0].cr3_pid, view.cpus[0].says_pid), (Some(PID), Some(PID)));
    assert_eq!(view.spaces[0].cpus, [0]);
    assert!(!view.to_string().contains('!'), "{view}");
    guest.edit(process.mm(), |mm: &mut Mm| (mm.tlb_flush_pending, mm.cpus[1]) = (2, 1 << 3));
    registers.cr3 = guest.root.pgd_pfn << 12;
    let view = TlbView::new(&reader(&guest), std::slice::from_ref(&registers)).expect("readable");
    assert_eq!((view.cpus[0].cr3_pid, view.spaces[0].cpus.as_slice()), (None, &[0, 67][..]));
    assert!(view.to_string().contains("! 2 removals not flushed"), "{view}");
}

#[test]
fn a_list_that_comes_back_to_itself_ends() {
    let (mut guest, process) = guest(Levels::Four);
    let next = std::mem::offset_of!(memvisor_abi::Vma, next) as u64;
    guest.memory.write_u64(process.objects + 0x280 + next, process.objects + 0x200).expect("in RAM");
    let view = MapsView::new(&reader(&guest), PID, true).expect("readable").expect("it lives");
    assert_eq!(view.vmas.len(), 2);
    assert!(view.problems[0].contains("twice"), "{view}");
}
