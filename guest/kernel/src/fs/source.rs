//! What /proc's texts are printed from.

use alloc::vec::Vec;
use core::array;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use guest_fs::Errno;
use guest_fs::proc::{
    CpuInfo, CpuTime, Detail, MapInfo, MapPages, MemInfo, Names, NumaMap, ProcessInfo, Rlimit, Source,
    SystemFile, SystemInfo, VmFile, VmInfo, Who,
};
use guest_process::limits::Resource;
use guest_process::signal::SigSet;
use memvisor_abi::{LruKind, NodeStat, Watermark};
use mm_core::PAGE_SIZE;
use mm_vma::{Id, Mm, Resident, RssKind, Space, VmFlags};

use super::disk_file::bdev;
use super::processes::task_of;
use super::{console, mapped, now, numa_maps, vm, with_vfs};
use crate::arch::percpu;
use crate::drivers::block;
use crate::mm::space::{self, Source as Contents, Spaces, cache};
use crate::mm::{oom, page_alloc, slab, swap, vmscan, vmstat};
use crate::task::{self, Task};
use crate::utsname::NAMES;
use crate::{cmdline, ipc, kallsyms, printk, proc, sched, signal, smp, topology};

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

const KIB_PER_PAGE: u64 = PAGE_SIZE / 1024;
const NS_PER_TICK: u64 = 10_000_000;

/// Memory of this machine, in KiB.
pub fn memory() -> MemInfo {
    let (mut free, mut managed, mut cma_free, mut cma) = (0, 0, 0, 0);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        managed += zone.info().managed_pages;
        cma_free += zone.info().nr_free_cma;
        cma += zone.info().cma_pages;
    }
    let stats = vmstat::total();
    let stat = |stat: NodeStat| stats[stat as usize] * KIB_PER_PAGE;
    let lists = vmscan::counts();
    let kib = |kind| lists.list(kind) * KIB_PER_PAGE;
    let files = lists.list(LruKind::ActiveFile) + lists.list(LruKind::InactiveFile);
    let slab = slab::nr_pages().unwrap_or_default();
    let (commit_limit, committed) = oom::promises::limit_and_committed();
    let buffers = bdev::nr_pages();
    let [zswap, zswapped] = swap::zswap::sizes_kib();
    let cached = cache::nr_file_pages().saturating_sub(buffers);
    MemInfo {
        total: managed * KIB_PER_PAGE,
        free: free * KIB_PER_PAGE,
        available: available(free, files, slab[0]) * KIB_PER_PAGE,
        buffers: buffers * KIB_PER_PAGE,
        cached: cached * KIB_PER_PAGE,
        active_anon: kib(LruKind::ActiveAnon),
        inactive_anon: kib(LruKind::InactiveAnon),
        active_file: kib(LruKind::ActiveFile),
        inactive_file: kib(LruKind::InactiveFile),
        unevictable: kib(LruKind::Unevictable),
        // Nothing else makes pages unevictable.
        mlocked: kib(LruKind::Unevictable),
        dirty: stat(NodeStat::Dirty),
        writeback: stat(NodeStat::Writeback),
        anon_pages: stat(NodeStat::AnonMapped),
        mapped: stat(NodeStat::FileMapped),
        shmem: stat(NodeStat::Shmem),
        slab_reclaimable: slab[0] * KIB_PER_PAGE,
        slab_unreclaimable: slab[1] * KIB_PER_PAGE,
        kernel_stack: stat(NodeStat::KernelStack),
        page_tables: stat(NodeStat::PageTable),
        vmalloc_used: stat(NodeStat::Vmalloc) + stat(NodeStat::KernelStack),
        swap_cached: stat(NodeStat::SwapCache),
        swap_total: swap::total_swap_pages() * KIB_PER_PAGE,
        swap_free: swap::nr_swap_pages() * KIB_PER_PAGE,
        zswap,
        zswapped,
        commit_limit: commit_limit * KIB_PER_PAGE,
        committed: committed * KIB_PER_PAGE,
        cma_total: cma * KIB_PER_PAGE,
        cma_free: cma_free * KIB_PER_PAGE,
        vmalloc_total: (32 << 40) / 1024 - 1,
        percpu: (topology::CPUS.lock().count as u64) * percpu::AREA_FRAMES * KIB_PER_PAGE,
    }
}

/// What programs could have without swapping: free pages beyond the reserves, half of what can be dropped or more (Linux:
/// `si_mem_available`).
fn available(free: u64, pagecache: u64, reclaimable: u64) -> u64 {
    let (mut low, mut reserve) = (0, 0);
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        let info = zone.info();
        low += info.watermark[Watermark::Low as usize];
        // Linux: `calculate_totalreserve_pages`.
        let kept =
            info.lowmem_reserve.into_iter().max().unwrap_or(0) + info.watermark[Watermark::High as usize];
        reserve += kept.min(info.managed_pages);
    }
    let part = |pages: u64| pages - low.min(pages / 2);
    free.saturating_sub(reserve) + part(pagecache) + part(reclaimable)
}

/// CPUs that run, as a set.
fn online_cpus() -> u64 {
    u64::MAX >> (64 - smp::nr_online().clamp(1, 64))
}

fn vm_info(task: &Task) -> Option<VmInfo> {
    let id = task.mm()?;
    let mm = space::mm_of(id);
    let mut info = VmInfo {
        total: mm.total_vm(),
        peak: mm.hiwater_vm(),
        locked: mm.locked_vm(),
        rss_peak: mm.hiwater_rss(),
        anon: mm.rss(RssKind::Anon),
        file: mm.rss(RssKind::File),
        data: mm.data_vm(),
        stack: mm.stack_vm(),
        swap: mm.swapents(),
        // Without the top-level one (Linux: `mm_pgtables_bytes`).
        tables: mm.table_pages().saturating_sub(1) * PAGE_SIZE,
        code: mm.code(),
        ..VmInfo::default()
    };
    let text = info.code.1.div_ceil(PAGE_SIZE).saturating_sub(info.code.0 / PAGE_SIZE);
    info.lib = mm.exec_pages().saturating_sub(text);
    info.data_range = (mm.start_data(), mm.end_data());
    info.start_brk = mm.start_brk();
    info.start_stack = space::start_stack(mm);
    Some(info)
}

impl Source for Kernel {
    fn process(&self, who: Who) -> Option<ProcessInfo> {
        let task = task_of(who)?;
        let process = &task.process;
        let (session, foreground) = console::control();
        let controls = session != 0 && session == process.sid();
        let state = if task.is_zombie() {
            'Z'
        } else if process.stopped.load(Ordering::Relaxed) != 0 {
            'T'
        } else if sched::is_asleep(task.number()) {
            'S'
        } else {
            'R'
        };
        let mut limits = [Rlimit::default(); 16];
        {
            let own = process.signals.limits.lock();
            for (number, slot) in (0..).zip(&mut limits) {
                if let Ok(resource) = Resource::new(number) {
                    let limit = own.limit(resource);
                    *slot = Rlimit { soft: limit.soft, hard: limit.hard };
                }
            }
        }
        let [pending, shared_pending, blocked, ignored, caught] = signal::sets(&task).map(SigSet::bits);
        let priority = sched::priority(task.number());
        let totalpages = oom::totalpages();
        let facts = sched::facts(task.number());
        let ticks = |ns: u64| ns / NS_PER_TICK;
        // A thread's own time; of a process, that of all its threads.
        let (own, children) = (process.usage(), process.child_usage());
        let user = if who.tid.is_some() { task.cpu_time() } else { own.user_ns };
        // Linux: PF_FORKNOEXEC.
        let flags = if process.has_execed.load(Ordering::Relaxed) { 0 } else { 0x40 };
        Some(ProcessInfo {
            pid: task.tid(),
            tgid: process.pid,
            comm: sched::comm(task.number()),
            state,
            ppid: process.parent(),
            pgrp: process.pgid(),
            session: process.sid(),
            tty: if controls { 4 << 8 | 64 } else { 0 },
            tpgid: if controls { foreground.cast_signed() } else { -1 },
            flags,
            faults: (own.minor_faults, own.major_faults),
            child_faults: (children.minor_faults, children.major_faults),
            time: (ticks(user), 0),
            child_time: (ticks(children.user_ns), 0),
            priority: priority.shown(),
            nice: priority.nice.into(),
            threads: process.nr_threads(),
            start: ticks(facts.start),
            vm: vm_info(&task),
            limits,
            pending,
            shared_pending,
            blocked,
            ignored,
            caught,
            exit_signal: process.exit_signal.load(Ordering::Relaxed),
            cpu: facts.cpu,
            exit_code: 0,
            umask: task.files.context().map_or(0o22, |context| context.umask),
            fd_size: task.files.table().map_or(0, |table| table.with(|table| table.capacity())),
            uids: [0; 4],
            gids: [0; 4],
            cpus_allowed: sched::allowed(task.number()).words()[0] & online_cpus(),
            mems_allowed: (1 << page_alloc::nr_nodes()) - 1,
            switches: (facts.switches[0], facts.switches[1]),
            oom_score: mm_oom::oom_score(oom::badness(process.pid, totalpages), totalpages),
            oom_score_adj: process.oom_score_adj(),
            fail_nth: task.fail_nth(),
        })
    }

    fn maps(&self, who: Who, detail: Detail, f: &mut dyn FnMut(&MapInfo<'_>) -> fmt::Result) -> fmt::Result {
        let task = task_of(who).ok_or(fmt::Error)?;
        let Some(id) = task.mm() else { return Ok(()) };
        space::mm_get(id);
        let result = maps_of(&task, id, detail, f);
        space::mm_put(id);
        result
    }

    fn numa_maps(&self, who: Who, f: &mut dyn FnMut(&NumaMap<'_>) -> fmt::Result) -> fmt::Result {
        let task = task_of(who).ok_or(fmt::Error)?;
        let Some(id) = task.mm() else { return Ok(()) };
        space::mm_get(id);
        let result = numa_maps::show(&task, id, f);
        space::mm_put(id);
        result
    }

    fn cmdline_of(&self, who: Who) -> Result<Vec<u8>, Errno> {
        let task = task_of(who).ok_or(Errno::Esrch)?;
        Ok(if task.is_zombie() { Vec::new() } else { task.files.arguments() })
    }

    fn environ_of(&self, who: Who) -> Result<Vec<u8>, Errno> {
        task_of(who).map(|_| Vec::new()).ok_or(Errno::Esrch)
    }

    fn mounts(&self, who: Who, out: &mut dyn Write) -> fmt::Result {
        let context = task_of(who).and_then(|task| task.files.context()).ok_or(fmt::Error)?;
        with_vfs(|vfs| Ok(vfs.show_mounts(&context, out))).unwrap_or(Err(fmt::Error))
    }

    fn system(&self) -> SystemInfo {
        let (tasks, last) = task::with_relations(|_, tasks| {
            (tasks.len(), tasks.iter().map(|task| task.tid()).max().unwrap_or(0))
        });
        SystemInfo {
            uptime: sched::clock::now() / NS_PER_TICK,
            boot: u64::try_from(now().sec).unwrap_or(0).saturating_sub(sched::clock::now() / 1_000_000_000),
            running: sched::nr_running(),
            switches: sched::account::switches(),
            forks: task::nr_forks(),
            interrupts: smp::nr_interrupts(),
            tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
            last_pid: last,
            cpus: smp::nr_online(),
            // Differs from Linux: nobody looks at the load while nobody asks.
            load: [0; 3],
            // What waits for a disk sleeps as others do.
            blocked: 0,
        }
    }

    fn cpu_time(&self, cpu: u32) -> CpuTime {
        let [user, system, idle] = sched::account::times(cpu).map(|ns| ns / NS_PER_TICK);
        CpuTime { user, nice: 0, system, idle }
    }

    fn cpu_info(&self, cpu: u32, f: &mut dyn FnMut(&CpuInfo<'_>) -> fmt::Result) -> fmt::Result {
        super::cpuinfo::with(cpu, f)
    }

    fn pagemap(&self, who: Who, first: u64, f: &mut dyn FnMut(u64) -> bool) -> Result<(), Errno> {
        let task = task_of(who).ok_or(Errno::Esrch)?;
        let Some(id) = task.mm() else { return Ok(()) };
        space::mm_get(id);
        Space::lock(&Spaces, id, task.limits()).pagemap(first, f);
        space::mm_put(id);
        Ok(())
    }

    fn memory(&self) -> MemInfo {
        memory()
    }

    fn sysvipc_shm(&self, out: &mut dyn Write) -> fmt::Result {
        ipc::shm::show(out)
    }

    fn vm(&self, file: VmFile, out: &mut dyn Write) -> fmt::Result {
        vm::show(file, out)
    }

    fn set_vm(&self, file: VmFile, number: i64) -> Result<(), Errno> {
        vm::write(file, number)
    }

    fn names(&self) -> &Names {
        &NAMES
    }

    fn pid_max(&self) -> u32 {
        task::PID_MAX
    }

    fn threads_max(&self) -> u32 {
        sched::max_threads().try_into().unwrap_or(u32::MAX)
    }

    fn set_threads_max(&self, threads: u32) {
        sched::set_max_threads(threads as usize);
    }

    fn printk(&self) -> [u8; 4] {
        array::from_fn(printk::level)
    }

    fn set_printk(&self, levels: [u8; 4]) {
        levels.into_iter().enumerate().for_each(|(which, level)| printk::set_level(which, level));
    }

    fn set_fail_nth(&self, who: Who, nth: u32) -> Result<(), Errno> {
        task_of(who).ok_or(Errno::Esrch)?.set_fail_nth(nth);
        Ok(())
    }

    fn set_oom_score_adj(&self, who: Who, adj: i16) -> Result<(), Errno> {
        task_of(who).ok_or(Errno::Esrch)?.process.set_oom_score_adj(adj);
        Ok(())
    }

    fn text(&self, file: SystemFile, out: &mut dyn Write) -> fmt::Result {
        match file {
            SystemFile::Diskstats => block::write_diskstats(out),
            SystemFile::Swaps => swap::write_swaps(out),
            SystemFile::Zswap => swap::zswap::write_counts(out),
            SystemFile::Partitions => block::write_partitions(out),
            SystemFile::Cmdline => cmdline::with(|line| writeln!(out, "{line}")),
            SystemFile::Iomem => proc::iomem(out),
            SystemFile::Kallsyms => out.write_str(core::str::from_utf8(kallsyms::text()).unwrap_or("?")),
            SystemFile::Version => {
                let Names { sysname, release, version, .. } = NAMES;
                writeln!(out, "{sysname} version {release} (memvisor guest kernel) {version}")
            }
            file => proc::write(file.name(), out),
        }
    }
}

/// Mappings are copied with mmap_lock held, and told without it.
fn maps_of(
    task: &Task,
    id: Id<Mm>,
    detail: Detail,
    f: &mut dyn FnMut(&MapInfo<'_>) -> fmt::Result,
) -> fmt::Result {
    let mm = space::mm_of(id);
    let start_stack = space::start_stack(mm);
    let path = path_of_exe(task);
    let mut all = Vec::new();
    {
        let space = Space::lock(&Spaces, id, task.limits());
        all.try_reserve_exact(space.mm().map_count() as usize).map_err(|_| fmt::Error)?;
        for (vma_id, vma) in space.mm().vmas(&Spaces) {
            let pages = match detail {
                Detail::Maps => Resident::default(),
                Detail::Pages => space.resident(vma_id),
            };
            all.push((vma.start(), vma.end(), vma.flags(), vma.pgoff(), vma.mapping(), pages));
        }
    }
    for (start, end, flags, pgoff, mapping, pages) in all {
        let is_file = mapping.is_some();
        let shown = mapping.and_then(mapped::show);
        let name: &[u8] = if let Some(shown) = &shown {
            &shown.path
        } else if is_file {
            &path
        } else if start < mm.brk() && end > mm.start_brk() {
            // Linux: `vma_is_initial_heap`.
            b"[heap]"
        } else if (start..=end).contains(&start_stack) {
            // Linux: `vma_is_initial_stack`.
            b"[stack]"
        } else {
            b""
        };
        f(&MapInfo {
            start,
            end,
            read: flags.contains(VmFlags::READ),
            write: flags.contains(VmFlags::WRITE),
            exec: flags.contains(VmFlags::EXEC),
            shared: flags.contains(VmFlags::MAYSHARE),
            offset: if is_file { pgoff * PAGE_SIZE } else { 0 },
            dev: shown.as_ref().map_or(0, |shown| shown.dev),
            ino: shown.as_ref().map_or(0, |shown| shown.ino),
            name,
            pages: map_pages(flags, &pages),
            has_mapping: is_file,
            is_shmem: mapping.is_some_and(|mapping| {
                matches!(cache::source(mapping), Contents::Shmem | Contents::Anonymous | Contents::SysV)
            }),
        })?;
    }
    Ok(())
}

fn map_pages(flags: VmFlags, pages: &Resident) -> MapPages {
    let Resident { rss, pss, pss_dirty, shared_clean, shared_dirty, .. } = *pages;
    let Resident { private_clean, private_dirty, referenced, anonymous, lazyfree, .. } = *pages;
    let Resident { locked, swap, swap_pss, .. } = *pages;
    MapPages {
        rss,
        pss,
        pss_dirty,
        shared_clean,
        shared_dirty,
        private_clean,
        private_dirty,
        referenced,
        anonymous,
        lazyfree,
        locked,
        swap,
        swap_pss,
        vm_flags: flags.bits(),
    }
}

pub(super) fn path_of_exe(task: &Task) -> Vec<u8> {
    let (Some(place), Some(context)) = (task.files.exe(), task.files.context()) else { return Vec::new() };
    with_vfs(|vfs| vfs.path_of(&context, place)).map_or(Vec::new(), |found| found.path)
}
