//! The process of the synthetic guest: its address space, and damage to it.

use std::mem::offset_of;

use memvisor_abi::*;
use memvisor_inspect::SparseMemory;

use super::guest::*;
use crate::Moment;

/// The frame with the objects, and where they are in it.
const OBJECTS_PFN: u64 = 0x3320;
pub(super) const MM: u64 = OBJECTS_PFN * 4096;
const TEXT: u64 = MM + 0x200;
const DATA: u64 = MM + 0x280;
const STACK: u64 = MM + 0x300;
const NODE: u64 = MM + 0x400;
const ANON: u64 = MM + 0x700;
const CHAIN: u64 = MM + 0x740;
const MAPPING: u64 = MM + 0x780;
/// The mapping as a cache of one page, the first.
const CACHE: Mapping = Mapping {
    vmas: TEXT,
    root: USER_PFN << 12,
    marks: 0,
    changes: 0,
    nrpages: 1,
    size: 4096,
    references: 1,
    flags: Mapping::HOLDS_PAGES,
    swap_next: 0,
    swap_prev: 0,
    dev: 0,
    ino: 0,
    name: [0; memvisor_abi::MAPPING_NAME_LEN],
};
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
const STACK_TOP: u64 = 0x7fff_0000_0000;
const RWX: u64 = vm_flags::MAYREAD | vm_flags::MAYWRITE | vm_flags::MAYEXEC;
const DATA_VA: u64 = USER_VA + 0x1000;

/// Kind, mapping and index of the frames of the process and of the frame with its objects.
pub(super) fn describe(pfn: u64, page: &mut Page) {
    if pfn == OBJECTS_PFN {
        (page.kind, page.refcount) = (PageKind::Allocated as u8, 1);
    }
    if (USER_PFN..USER_PFN + 4).contains(&pfn) {
        (page.kind, page.refcount, page.mapcount) = (PageKind::User as u8, 1, 0);
        (page.mapping, page.index) = match pfn - USER_PFN {
            0 => (MAPPING, 0),
            n => (ANON | Page::MAPPING_ANON, USER_VA / 4096 + n),
        };
    }
}

fn vmas() -> [(u64, Vma); 3] {
    let vma =
        |start, end, flags| Vma { start, end, mm: MM, flags: flags | RWX, refcount: 1, ..Vma::default() };
    let text = vma(USER_VA, DATA_VA, vm_flags::READ | vm_flags::EXEC);
    let data = vma(DATA_VA, DATA_VA + 0x3000, vm_flags::READ | vm_flags::WRITE);
    let stack = vma(STACK_TOP - 0x2000, STACK_TOP, vm_flags::READ | vm_flags::WRITE | vm_flags::GROWSDOWN);
    let chain = Vma { anon_vma: ANON, chain_first: CHAIN, chain_last: CHAIN, ..data };
    [
        (TEXT, Vma { mapping: MAPPING, next: DATA, ..text }),
        (DATA, Vma { pgoff: DATA_VA / 4096, prev: TEXT, next: STACK, ..chain }),
        (STACK, Vma { pgoff: STACK_TOP / 4096 - 2, prev: DATA, ..stack }),
    ]
}

/// Writes the address space, the only one; returns where it is.
pub(super) fn publish(memory: &mut SparseMemory, pgd_pfn: u64, levels: u32) -> u64 {
    let mut node = VmaNode { len: 3, ..VmaNode::EMPTY };
    for (n, (gpa, vma)) in vmas().into_iter().rev().enumerate() {
        memory.write_value(gpa, &vma).unwrap();
        (node.start[n], node.end[n], node.slot[n]) = (vma.start, vma.end, gpa);
    }
    memory.write_value(NODE, &node).unwrap();
    let anon = AnonVma {
        root: ANON,
        parent: ANON,
        chains: CHAIN,
        refcount: 1,
        num_children: 1,
        ..Default::default()
    };
    memory.write_value(ANON, &AnonVma { num_active_vmas: 1, ..anon }).unwrap();
    memory.write_value(CHAIN, &AnonVmaChain { vma: DATA, anon_vma: ANON, ..Default::default() }).unwrap();
    memory.write_value(MAPPING, &Mapping { vmas: TEXT, references: 1, ..Mapping::default() }).unwrap();
    let table_pages = u64::from(levels);
    let mm = Mm {
        tree_root: NODE,
        tree_height: 1,
        first: TEXT,
        pgd_pfn,
        levels,
        map_count: 3,
        task_size: TASK_SIZE,
        total_vm: 6,
        data_vm: 3,
        exec_vm: 1,
        stack_vm: 2,
        start_brk: DATA_VA + 0x3000,
        brk: DATA_VA + 0x3000,
        rss: [3, 1],
        table_pages,
        users: 1,
        owner: PID,
        cpus: [0b10, 0, 0, 0],
        ..Mm::default()
    };
    memory.write_value(MM, &mm).unwrap();
    MM
}

/// CPU 1 runs the process.
pub(super) fn tlbs() -> [CpuTlb; 2] {
    [CpuTlb::default(), CpuTlb { mm: MM, flush_requested: 5, flush_done: 5, rests: 0 }]
}

fn edit_mm(guest: &mut TestGuest, edit: impl FnOnce(&mut Mm)) {
    let mut mm = guest.guest().mm_spaces().unwrap()[0].mm;
    edit(&mut mm);
    guest.memory.write_value(MM, &mm).unwrap();
}

fn edit_vma(guest: &mut TestGuest, gpa: u64, edit: impl FnOnce(&mut Vma)) {
    let space = guest.guest().mm_spaces().unwrap().remove(0);
    let mut vma = space.vmas.items.iter().find(|at| at.gpa == gpa).unwrap().vma;
    edit(&mut vma);
    guest.memory.write_value(gpa, &vma).unwrap();
}

fn edit_user(guest: &mut TestGuest, va: u64, edit: impl FnOnce(u64) -> u64) {
    guest.edit_entry(guest.user_pgd, va, 1, edit);
}

#[track_caller]
fn rules(guest: &TestGuest) -> Vec<&'static str> {
    let mut rules: Vec<_> = guest.audit().findings.iter().map(|finding| finding.rule).collect();
    rules.dedup();
    rules
}

#[test]
fn vma_list_sees_vmas_that_overlap_or_end_outside_user_space() {
    let mut guest = healthy();
    edit_vma(&mut guest, TEXT, |vma| vma.end += 0x1000);
    assert_eq!(rules(&guest), ["vma.list", "vma.tree", "vma.counts", "pte.write"]);
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.task_size = STACK_TOP - 0x1000);
    assert!(only(&guest, "vma.list").outside_says.contains("user space ends"));
    let mut guest = healthy();
    edit_vma(&mut guest, STACK, |vma| vma.refcount = 0);
    only(&guest, "vma.list");
}

#[test]
fn vma_list_sees_a_cycle_and_a_link_out_of_ram() {
    let mut guest = healthy();
    guest.memory.write_u64(STACK + offset_of!(Vma, next) as u64, TEXT).unwrap();
    let report = guest.audit();
    assert!(report.findings[0].outside_says.contains("on the list twice"), "{report}");
    let mut guest = healthy();
    guest.memory.write_u64(DATA + offset_of!(Vma, next) as u64, 0xd000_0000).unwrap();
    assert!(guest.audit().findings.iter().any(|finding| finding.rule == "vma.list"));
}

#[test]
fn vma_tree_sees_a_bound_that_only_the_tree_has_and_entries_out_of_order() {
    let mut guest = healthy();
    guest.memory.write_u64(NODE + 8, DATA_VA + 0x2000).unwrap();
    assert_eq!(only(&guest, "vma.tree").address, Some(DATA_VA));
    let mut guest = healthy();
    guest.memory.write_u64(NODE + offset_of!(VmaNode, start) as u64, 0).unwrap();
    assert!(only(&guest, "vma.tree").outside_says.contains("do not descend"));
}

#[test]
fn vma_tree_sees_what_searches_would_stumble_over() {
    let slot = NODE + offset_of!(VmaNode, slot) as u64;
    let mut guest = healthy();
    guest.memory.write_u64(slot + 8 * 3, DATA).unwrap();
    assert!(only(&guest, "vma.tree").outside_says.contains("behind its last entry"));
    let mut guest = healthy();
    guest.memory.write_u64(slot, STACK | VMA_SLOT_NODE).unwrap();
    assert!(only(&guest, "vma.tree").outside_says.contains("not what its level has"));
}

#[test]
fn vma_counts_sees_each_counter() {
    let edits: [fn(&mut Mm); 6] = [
        |mm| mm.map_count += 1,
        |mm| mm.total_vm += 1,
        |mm| mm.data_vm -= 1,
        |mm| mm.exec_vm += 1,
        |mm| mm.stack_vm += 1,
        |mm| mm.locked_vm += 1,
    ];
    for edit in edits {
        let mut guest = healthy();
        edit_mm(&mut guest, edit);
        only(&guest, "vma.counts");
    }
}

#[test]
fn vma_heap_sees_a_break_below_its_start() {
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.brk = mm.start_brk - 0x1000);
    only(&guest, "vma.heap");
}

#[test]
fn vma_guard_sees_memory_below_a_stack() {
    let mut guest = healthy();
    let (start, end) = (DATA_VA + 0x3000 + 0x1000, DATA_VA + 0x3000 + 0x3000);
    edit_vma(&mut guest, STACK, |vma| (vma.start, vma.end) = (start, end));
    guest.memory.write_u64(NODE + offset_of!(VmaNode, start) as u64, start).unwrap();
    guest.memory.write_u64(NODE, end).unwrap();
    assert!(only(&guest, "vma.guard").outside_says.contains("1 pages below"));
}

#[test]
fn vma_policy_sees_modes_and_nodes_that_do_not_go_together() {
    let node = |vma: &mut Vma, mode, nodes| (vma.policy, vma.policy_nodes) = (mode, nodes);
    for (mode, nodes, says) in [
        (mpol::BIND, 1 << 63 | 1, "have no memory"),
        (mpol::INTERLEAVE, 0, "has nodes"),
        (mpol::PREFERRED, 0, "one node"),
        (mpol::DEFAULT, 1, "has no nodes"),
        (mpol::LOCAL, 1, "has no nodes"),
        (77, 1, "no mode 77"),
    ] {
        let mut guest = healthy();
        edit_vma(&mut guest, DATA, |vma| node(vma, mode, nodes));
        let finding = only(&guest, "vma.policy");
        assert!(finding.outside_says.contains(says), "{finding:?}");
    }
    for (mode, nodes) in [(mpol::BIND, 1), (mpol::PREFERRED, 1), (mpol::LOCAL, 0), (mpol::PREFERRED_MANY, 1)]
    {
        let mut guest = healthy();
        edit_vma(&mut guest, DATA, |vma| node(vma, mode, nodes));
        assert_eq!(guest.audit().findings, []);
    }
}

#[test]
fn pte_rules_see_an_entry_with_more_rights_than_its_vma() {
    let mut guest = healthy();
    edit_user(&mut guest, DATA_VA, |entry| entry & !(1 << 63));
    // A page of ring 3 that is writable and executable breaks no rule of the kernel's.
    assert_eq!(only(&guest, "pte.exec").address, Some(DATA_VA));
    let mut guest = healthy();
    edit_vma(&mut guest, DATA, |vma| vma.flags &= !vm_flags::WRITE);
    edit_mm(&mut guest, |mm| mm.data_vm = 0);
    assert_eq!(rules(&guest), ["pte.write"]);
    let mut guest = healthy();
    edit_vma(&mut guest, TEXT, |vma| vma.flags &= !(vm_flags::READ | vm_flags::EXEC));
    edit_mm(&mut guest, |mm| mm.exec_vm = 0);
    assert_eq!(rules(&guest), ["pte.exec", "pte.access"]);
}

#[test]
fn a_page_without_access_is_mapped_and_counted() {
    let mut guest = healthy();
    edit_vma(&mut guest, DATA, |vma| vma.flags &= !(vm_flags::READ | vm_flags::WRITE));
    edit_mm(&mut guest, |mm| mm.data_vm = 0);
    for page in 0..3 {
        edit_user(&mut guest, DATA_VA + page * 4096, |entry| entry & !3 | PTE_PROTNONE);
    }
    assert_eq!(guest.audit().findings, []);
    edit_user(&mut guest, DATA_VA, |entry| entry & !PTE_PROTNONE | 1);
    only(&guest, "pte.access");
}

#[test]
fn pte_vma_sees_an_entry_outside_and_one_without_meaning() {
    let mut guest = healthy();
    edit_user(&mut guest, DATA_VA + 0x3000, |_| 0xbad_0000);
    assert!(only(&guest, "pte.vma").outside_says.contains("means nothing"));
    let mut guest = healthy();
    edit_user(&mut guest, USER_VA, |_| 0);
    edit_user(&mut guest, DATA_VA + 0x3000, |_| USER_PFN << 12 | 5);
    assert_eq!(only(&guest, "pte.vma").frame, Some(USER_PFN));
}

#[test]
fn pte_migration_sees_an_entry_that_nobody_will_bring_back() {
    let mut guest = healthy();
    edit_user(&mut guest, DATA_VA, |entry| entry & !1 | PTE_MIGRATION);
    let finding = rules(&guest);
    assert!(finding.contains(&"pte.migration"), "{finding:?}");
    // Whoever moves the page has it locked.
    guest.edit_page(USER_PFN + 1, |page| page.flags |= PageFlags::LOCKED.bits());
    assert!(!rules(&guest).contains(&"pte.migration"));
}

#[test]
fn rmap_refcount_sees_a_reference_too_many_and_counts_what_a_mapping_holds() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN + 1, |page| page.refcount = 2);
    assert_eq!(only(&guest, "rmap.refcount").frame, Some(USER_PFN + 1));
    // Whoever has it locked has a reference, but not two.
    guest.edit_page(USER_PFN + 1, |page| page.flags |= PageFlags::LOCKED.bits());
    assert!(!rules(&guest).contains(&"rmap.refcount"));
    guest.edit_page(USER_PFN + 1, |page| page.refcount = 3);
    assert!(rules(&guest).contains(&"rmap.refcount"));
    let mut guest = with_cache(CACHE, FileCounts { nr_file_pages: 1, ..FileCounts::default() });
    assert_eq!(guest.audit().findings, []);
    guest.edit_page(USER_PFN, |page| page.refcount = 1);
    assert_eq!(only(&guest, "rmap.refcount").frame, Some(USER_PFN));
}

/// The mapping as a cache of its one page.
fn with_cache(mapping: Mapping, counts: FileCounts) -> TestGuest {
    let mut guest = healthy();
    guest.memory.write_value(MAPPING, &mapping).unwrap();
    let gpa = guest.guest().root().file_counts.gpa;
    guest.memory.write_value(gpa, &counts).unwrap();
    guest.edit_page(USER_PFN, |page| page.refcount = 2);
    guest
}

#[test]
fn cache_tree_sees_a_page_that_is_elsewhere_and_one_that_is_missing() {
    let counts = FileCounts { nr_file_pages: 1, ..FileCounts::default() };
    let mut guest = with_cache(Mapping { nrpages: 2, ..CACHE }, counts);
    only(&guest, "cache.tree");
    guest.memory.write_value(MAPPING, &Mapping { root: 0, nrpages: 0, ..CACHE }).unwrap();
    let found = rules(&guest);
    assert!(found.contains(&"cache.tree") && found.contains(&"cache.counts"), "{found:?}");
}

#[test]
fn cache_marks_sees_a_dirty_page_without_a_mark() {
    let on_disk = Mapping { flags: Mapping::HOLDS_PAGES | Mapping::WRITTEN_BACK, ..CACHE };
    let counts = FileCounts { nr_file_pages: 1, nr_file_dirty: 1, ..FileCounts::default() };
    let mut guest = with_cache(Mapping { marks: 1, ..on_disk }, counts);
    guest.edit_page(USER_PFN, |page| page.flags |= PageFlags::DIRTY.bits());
    assert_eq!(guest.audit().findings, []);
    guest.memory.write_value(MAPPING, &on_disk).unwrap();
    assert_eq!(only(&guest, "cache.marks").frame, Some(USER_PFN));
}

#[test]
fn cache_counts_sees_a_page_too_many_but_not_in_the_middle_of_a_change() {
    let counts = FileCounts { nr_file_pages: 1, nr_writeback: 1, ..FileCounts::default() };
    only(&with_cache(CACHE, counts), "cache.counts");
    assert_eq!(with_cache(CACHE, FileCounts { busy: 1, ..counts }).audit().findings, []);
}

#[test]
fn a_page_that_only_its_mapping_holds_is_owned_and_counted() {
    let mut guest = with_cache(CACHE, FileCounts { nr_file_pages: 1, ..FileCounts::default() });
    guest.edit_page(USER_PFN, |page| page.refcount = 1);
    edit_user(&mut guest, USER_VA, |_| 0);
    edit_mm(&mut guest, |mm| mm.rss[1] = 0);
    guest.edit_page(USER_PFN, |page| page.mapcount = -1);
    assert_eq!(guest.audit().findings, []);
    guest.edit_page(USER_PFN, |page| page.refcount = 2);
    assert_eq!(only(&guest, "rmap.refcount").frame, Some(USER_PFN));
}

#[test]
fn rmap_lists_sees_a_vma_that_is_missing_from_a_list() {
    let mut guest = healthy();
    guest.memory.write_u64(ANON + offset_of!(AnonVma, chains) as u64, 0).unwrap();
    assert_eq!(rules(&guest), ["rmap.lists", "rmap.finds"]);
    let mut guest = healthy();
    guest.memory.write_u64(MAPPING, DATA).unwrap();
    assert_eq!(rules(&guest), ["rmap.lists", "rmap.finds"]);
    let mut guest = healthy();
    guest.memory.write_u64(CHAIN + offset_of!(AnonVmaChain, anon_next) as u64, CHAIN).unwrap();
    assert_eq!(rules(&guest), ["rmap.lists"]);
}

#[test]
fn rmap_finds_sees_a_wrong_index_and_a_page_of_somebody_else() {
    let mut guest = healthy();
    guest.edit_page(USER_PFN + 2, |page| page.index += 1);
    assert_eq!(only(&guest, "rmap.finds").frame, Some(USER_PFN + 2));
    let mut guest = healthy();
    guest.edit_page(USER_PFN + 2, |page| page.mapping = 0);
    // Nobody knows either what it counts as.
    assert_eq!(rules(&guest), ["rmap.finds", "mm.rss"]);
}

#[test]
fn cow_read_only_sees_two_entries_of_which_one_is_writable() {
    let mut guest = healthy();
    // The page at DATA_VA + 0x1000 is mapped at DATA_VA, too.
    edit_user(&mut guest, DATA_VA, |_| (USER_PFN + 2) << 12 | 5 | 1 << 63);
    guest.edit_page(USER_PFN + 2, |page| (page.mapcount, page.refcount) = (1, 2));
    let found = rules(&guest);
    assert!(found.contains(&"cow.read-only") && found.contains(&"rmap.finds"), "{found:?}");
    let mut guest = healthy();
    guest.edit_page(USER_PFN + 1, |page| (page.mapping, page.index) = (MAPPING, 5));
    let found = rules(&guest);
    assert!(found.contains(&"cow.read-only"), "{found:?}");
}

#[test]
fn mm_rules_see_counters_and_locks() {
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.rss[0] += 1);
    only(&guest, "mm.rss");
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.rss[1] -= 1);
    only(&guest, "mm.rss");
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.table_pages += 1);
    only(&guest, "mm.tables");
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.mmap_lock = 2);
    assert!(only(&guest, "mm.locks").outside_says.contains("2 readers"));
}

#[test]
fn mm_tasks_sees_a_wrong_count_and_a_task_without_its_address_space() {
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.users = 2);
    assert!(only(&guest, "mm.tasks").what.contains("users"));
    let mut guest = healthy();
    let task = guest.guest().root().tasks.gpa + offset_of!(TaskInfo, mm) as u64;
    guest.memory.write_u64(task, MM).unwrap();
    assert_eq!(guest.audit().findings, [], "one task, one user");
    guest.memory.write_u64(task, MM + 8).unwrap();
    assert!(only(&guest, "mm.tasks").what.contains("task"));
}

#[test]
fn a_list_of_address_spaces_that_is_broken_is_no_list() {
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.prev = MM);
    // Nobody knows the tables that CPU 1 uses then.
    assert_eq!(rules(&guest), ["attach.tables", "pgtable.cr3"]);
}

#[test]
fn at_a_moment_that_the_guest_did_not_choose_only_what_always_holds_is_judged_unless_it_rests() {
    let any = |guest: &TestGuest| crate::audit(&crate::Evidence { moment: Moment::Any, ..guest.evidence() });
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.mmap_lock = -1);
    let task = guest.guest().root().tasks.gpa;
    for cpu in &mut guest.registers {
        cpu.selectors[0] = 0x33;
    }
    assert_eq!(any(&guest).findings.len(), 1, "all CPUs are in ring 3, so all rules hold");
    for (cs, flags, rests, whole) in [
        (0x33, 0, 0, true),
        (8, 0x202, CpuTlb::IDLE, true),
        (8, 2, CpuTlb::IDLE, false),
        (8, 0x202, 0, false),
        (8, 2, CpuTlb::CHECKPOINT, true),
    ] {
        (guest.registers[1].selectors[0], guest.registers[1].rflags) = (cs, flags);
        let tlb = guest.guest().root().cpu_tlbs.gpa + size_of::<CpuTlb>() as u64;
        guest.memory.write_u64(tlb + offset_of!(CpuTlb, rests) as u64, rests).unwrap();
        let report = any(&guest);
        assert_eq!(report.findings.len(), usize::from(whole), "{cs} {flags:#x} {rests}: {report}");
        let skipped = report.rules.iter().find(|rule| rule.name == "mm.locks").unwrap().skipped.clone();
        assert_eq!(skipped.is_some(), !whole);
        assert!(report.rules.iter().any(|rule| rule.name == "pgtable.wx" && rule.skipped.is_none()));
    }
    // A task that let others run in the middle of something.
    let mut info: TaskInfo = guest.guest().tasks().unwrap()[0];
    (info.state, info.rests) = (TaskState::Runnable as u32, 0);
    guest.memory.write_value(task, &info).unwrap();
    let report = any(&guest);
    assert_eq!(report.findings, []);
    let reason = report.rules.iter().find(|rule| rule.name == "owner.none").unwrap().skipped.clone().unwrap();
    assert!(reason.contains("between two states: task"), "{reason}");
}

#[test]
fn tlb_rules_see_a_cpu_outside_the_mask_and_a_flush_that_waits() {
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.cpus[0] = 1);
    assert!(only(&guest, "tlb.cpumask").guest_says.contains("CPU 1"));
    let mut guest = healthy();
    let gpa = guest.guest().root().cpu_tlbs.gpa;
    guest.memory.write_u64(gpa, MM).unwrap();
    // It says so itself, its CR3 does not, and it is not in the mask.
    assert_eq!(rules(&guest), ["tlb.cpumask"]);
    let mut guest = healthy();
    edit_mm(&mut guest, |mm| mm.tlb_flush_pending = 1);
    only(&guest, "tlb.pending");
    let mut guest = healthy();
    guest.memory.write_u64(gpa + (size_of::<CpuTlb>() + offset_of!(CpuTlb, flush_done)) as u64, 4).unwrap();
    only(&guest, "tlb.pending");
}

#[test]
fn the_zero_page_is_mapped_without_counts() {
    let mut guest = healthy();
    // Frame of the kernel's that the process maps read-only, beside its own.
    guest.edit_root(|root| root.zero_pfn = ALLOCATED_PFN);
    edit_vma(&mut guest, STACK, |vma| vma.start -= 0x1000);
    edit_user(&mut guest, DATA_VA, |_| ALLOCATED_PFN << 12 | 5 | 1 << 63);
    let found = rules(&guest);
    assert!(!found.contains(&"owner.single") && !found.contains(&"rmap.finds"), "{found:?}");
    edit_user(&mut guest, DATA_VA, |entry| entry | 2);
    assert!(rules(&guest).contains(&"cow.read-only"));
}

/// The process maps a frame of a driver's at DATA_VA + 0x3000: shared, or private and not copied yet.
fn with_device(shared: bool) -> TestGuest {
    let mut guest = healthy();
    let marks = vm_flags::PFNMAP | vm_flags::IO | vm_flags::DONTEXPAND | vm_flags::DONTDUMP;
    // The stack makes room: its two pages become the device's one.
    let (start, end) = (DATA_VA + 0x3000, DATA_VA + 0x4000);
    let how = if shared { vm_flags::SHARED | vm_flags::MAYSHARE } else { 0 };
    edit_vma(&mut guest, STACK, |vma| {
        (vma.start, vma.end, vma.pgoff) = (start, end, if shared { 0 } else { ALLOCATED_PFN });
        vma.flags = vm_flags::READ | vm_flags::WRITE | how | RWX | marks;
    });
    guest.memory.write_u64(NODE + offset_of!(VmaNode, start) as u64, start).unwrap();
    guest.memory.write_u64(NODE, end).unwrap();
    edit_mm(&mut guest, |mm| {
        (mm.total_vm, mm.stack_vm, mm.data_vm) = (5, 0, if shared { 3 } else { 4 });
        mm.brk = mm.start_brk;
    });
    let write = if shared { 2 } else { 0 };
    edit_user(&mut guest, start, |_| ALLOCATED_PFN << 12 | 5 | write | 1 << 63 | PTE_SPECIAL);
    guest
}

#[test]
fn a_device_is_mapped_without_counts() {
    for shared in [true, false] {
        let found = with_device(shared).audit().findings;
        assert_eq!(found, [], "shared: {shared}");
    }
}

#[test]
fn pfnmap_rules_see_marks_frames_and_rights_that_are_wrong() {
    let at = DATA_VA + 0x3000;
    let mut guest = with_device(true);
    edit_user(&mut guest, at, |entry| entry & !PTE_SPECIAL);
    assert!(rules(&guest).contains(&"pfnmap.vma"), "{:?}", rules(&guest));
    let mut guest = with_device(true);
    edit_vma(&mut guest, STACK, |vma| vma.flags &= !vm_flags::DONTDUMP);
    assert_eq!(only(&guest, "pfnmap.vma").address, Some(at));
    let mut guest = with_device(false);
    edit_vma(&mut guest, STACK, |vma| vma.pgoff += 1);
    assert!(only(&guest, "pfnmap.frames").outside_says.contains("frame"));
    let mut guest = with_device(false);
    edit_user(&mut guest, at, |entry| entry | 2);
    assert_eq!(only(&guest, "pfnmap.cow").address, Some(at));
    let mut guest = with_device(true);
    edit_user(&mut guest, at, |entry| entry | 1 << 4);
    assert!(rules(&guest).contains(&"pfnmap.cache"), "{:?}", rules(&guest));
    let mut guest = with_device(true);
    guest.edit_page(ALLOCATED_PFN, |page| page.mapcount = 0);
    assert!(rules(&guest).contains(&"pfnmap.uncounted"), "{:?}", rules(&guest));
}
