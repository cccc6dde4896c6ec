//! What /proc's texts are printed from.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use guest_fs::Errno;
use guest_fs::proc::{
    CpuInfo, CpuTime, Detail, MapInfo, MapPages, MemInfo, ProcessInfo, Rlimit, Source, SystemFile,
    SystemInfo, VmInfo, Who,
};
use guest_process::limits::Resource;
use guest_process::signal::SigSet;
use mm_core::PAGE_SIZE;
use mm_vma::{Id, Mm, Resident, RssKind, Space, VmFlags};

use super::processes::task_of;
use super::{console, mapped, now, with_vfs};
use crate::drivers::block;
use crate::mm::page_alloc;
use crate::mm::space::{self, Spaces, cache};
use crate::task::{self, Task};
use crate::{cmdline, ipc, proc, sched, signal, smp};

/// The kernel.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

const KIB_PER_PAGE: u64 = PAGE_SIZE / 1024;
const NS_PER_TICK: u64 = 10_000_000;

/// Memory of this machine, in KiB.
pub fn memory() -> MemInfo {
    let (mut free, mut managed, mut cma_free, mut cma) = (0, 0, 0, 0);
    let mut low = 0;
    for zone in page_alloc::zones() {
        let zone = zone.lock();
        free += zone.info().free_pages;
        managed += zone.info().managed_pages;
        cma_free += zone.info().nr_free_cma;
        cma += zone.info().cma_pages;
        low += zone.info().watermark[1];
    }
    let shmem = cache::nr_shmem();
    MemInfo {
        total: managed * KIB_PER_PAGE,
        free: free * KIB_PER_PAGE,
        available: free.saturating_sub(low) * KIB_PER_PAGE,
        cached: cache::nr_file_pages() * KIB_PER_PAGE,
        shmem: shmem * KIB_PER_PAGE,
        cma_total: cma * KIB_PER_PAGE,
        cma_free: cma_free * KIB_PER_PAGE,
        vmalloc_total: (32 << 40) / 1024 - 1,
        anon_pages: anon_pages() * KIB_PER_PAGE,
        ..MemInfo::default()
    }
}

/// Anonymous pages of all processes.
fn anon_pages() -> u64 {
    let tasks: Vec<Arc<Task>> = task::with_relations(|_, tasks| {
        let mut all = Vec::new();
        if all.try_reserve_exact(tasks.len()).is_ok() {
            all.extend(tasks.iter().filter(|task| task.is_leader()).cloned());
        }
        all
    });
    tasks.iter().filter_map(|task| task.mm()).map(|mm| space::mm_of(mm).rss(RssKind::Anon)).sum()
}

/// Processes that exist.
pub fn nr_processes() -> u16 {
    task::with_relations(|processes, _| u16::try_from(processes.len()).unwrap_or(u16::MAX))
}

fn vm_info(task: &Task) -> Option<VmInfo> {
    let id = task.mm()?;
    let mm = space::mm_of(id);
    let mut info = VmInfo {
        total: mm.total_vm(),
        peak: mm.total_vm(),
        locked: mm.locked_vm(),
        rss_peak: 0,
        anon: mm.rss(RssKind::Anon),
        file: mm.rss(RssKind::File),
        data: mm.data_vm(),
        stack: mm.stack_vm(),
        ..VmInfo::default()
    };
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
        Some(ProcessInfo {
            pid: task.tid,
            tgid: process.pid,
            comm: sched::comm(task.number()),
            state,
            ppid: process.parent(),
            pgrp: process.pgid(),
            session: process.sid(),
            tty: if controls { 4 << 8 | 64 } else { 0 },
            tpgid: if controls { foreground.cast_signed() } else { -1 },
            flags: 0,
            faults: (0, 0),
            child_faults: (0, 0),
            time: (0, 0),
            child_time: (0, 0),
            priority: priority.shown(),
            nice: priority.nice.into(),
            threads: process.nr_threads(),
            start: 0,
            vm: vm_info(&task),
            limits,
            pending,
            shared_pending,
            blocked,
            ignored,
            caught,
            exit_signal: process.exit_signal.load(Ordering::Relaxed),
            cpu: 0,
            exit_code: 0,
            umask: task.files.context().map_or(0o22, |context| context.umask),
            fd_size: task.files.table().map_or(0, |table| table.with(|table| table.capacity())),
            uids: [0; 4],
            gids: [0; 4],
            cpus_allowed: sched::allowed(task.number()).words()[0],
            mems_allowed: (1 << page_alloc::nr_nodes()) - 1,
            switches: (0, 0),
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
            (tasks.len(), tasks.iter().map(|task| task.tid).max().unwrap_or(0))
        });
        SystemInfo {
            uptime: sched::clock::now() / NS_PER_TICK,
            boot: u64::try_from(now().sec).unwrap_or(0).saturating_sub(sched::clock::now() / 1_000_000_000),
            running: 1,
            tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
            last_pid: last,
            cpus: smp::nr_online(),
            ..SystemInfo::default()
        }
    }

    fn cpu_time(&self, _cpu: u32) -> CpuTime {
        CpuTime { idle: sched::clock::now() / NS_PER_TICK, ..CpuTime::default() }
    }

    fn cpu_info(&self, cpu: u32, f: &mut dyn FnMut(&CpuInfo<'_>) -> fmt::Result) -> fmt::Result {
        use crate::arch::regs::cpuid;
        let [level, b, c, d] = cpuid(0, 0);
        let mut vendor = [0; 12];
        vendor
            .chunks_exact_mut(4)
            .zip([b, d, c])
            .for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        let mut brand = [0; 48];
        for (to, leaf) in brand.chunks_exact_mut(16).zip(0x8000_0002_u32..) {
            to.chunks_exact_mut(4)
                .zip(cpuid(leaf, 0))
                .for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        }
        let end = brand.iter().position(|byte| *byte == 0).unwrap_or(brand.len());
        let signature = cpuid(1, 0)[0];
        let (mut family, mut model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
        if family == 0xf {
            family += signature >> 20 & 0xff;
        }
        if family >= 6 {
            model += (signature >> 16 & 0xf) << 4;
        }
        let sizes = cpuid(0x8000_0008, 0)[0];
        f(&CpuInfo {
            vendor: core::str::from_utf8(&vendor).unwrap_or("?"),
            signature: (family, model, signature & 0xf),
            model_name: core::str::from_utf8(brand.get(..end).unwrap_or(&[])).unwrap_or("?").trim(),
            apic: cpu,
            siblings: smp::nr_online(),
            cpuid_level: level,
            flags: "fpu tsc msr pae cx8 apic pge cmov pat fxsr sse sse2 syscall nx lm",
            address_bits: (sizes & 0xff, sizes >> 8 & 0xff),
            ..CpuInfo::default()
        })
    }

    fn memory(&self) -> MemInfo {
        memory()
    }

    fn sysvipc_shm(&self, out: &mut dyn Write) -> fmt::Result {
        ipc::shm::show(out)
    }

    fn text(&self, file: SystemFile, out: &mut dyn Write) -> fmt::Result {
        match file {
            SystemFile::Diskstats => block::write_diskstats(out),
            SystemFile::Partitions => block::write_partitions(out),
            SystemFile::Cmdline => cmdline::with(|line| writeln!(out, "{line}")),
            SystemFile::Version => writeln!(
                out,
                "Linux version 6.1.0-memvisor (memvisor guest kernel) #1 SMP {}",
                env!("CARGO_PKG_VERSION")
            ),
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
        })?;
    }
    Ok(())
}

fn map_pages(flags: VmFlags, pages: &Resident) -> MapPages {
    let Resident { rss, pss, pss_dirty, shared_clean, shared_dirty, .. } = *pages;
    let Resident { private_clean, private_dirty, referenced, anonymous, locked, .. } = *pages;
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
        locked,
        vm_flags: flags.bits(),
    }
}

fn path_of_exe(task: &Task) -> Vec<u8> {
    let (Some(place), Some(context)) = (task.files.exe(), task.files.context()) else { return Vec::new() };
    with_vfs(|vfs| vfs.path_of(&context, place)).map_or(Vec::new(), |found| found.path)
}
