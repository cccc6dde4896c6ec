//! Texts about the machine (Linux: fs/proc/meminfo.c, stat.c, uptime.c, loadavg.c, arch/x86/kernel/cpu/proc.c).

use core::fmt::{self, Write};

use super::node::SystemFile;
use super::source::{CpuInfo, CpuTime, MemInfo, Source};

pub(super) fn show(file: SystemFile, source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    match file {
        SystemFile::Meminfo => meminfo(&source.memory(), out),
        SystemFile::Uptime => uptime(source, out),
        SystemFile::Loadavg => loadavg(source, out),
        SystemFile::Stat => stat(source, out),
        SystemFile::Cpuinfo => (0..source.system().cpus)
            .try_for_each(|cpu| source.cpu_info(cpu, &mut |info| cpuinfo(cpu, info, out))),
        SystemFile::Filesystems => {
            let without_disk = ["tmpfs", "devtmpfs", "proc", "pipefs", "ramfs"];
            without_disk.iter().try_for_each(|name| writeln!(out, "nodev\t{name}"))?;
            out.write_str("\text2\n")
        }
        SystemFile::Buddyinfo
        | SystemFile::Cmdline
        | SystemFile::Diskstats
        | SystemFile::Iomem
        | SystemFile::Kallsyms
        | SystemFile::Pagetypeinfo
        | SystemFile::Partitions
        | SystemFile::Slabinfo
        | SystemFile::Swaps
        | SystemFile::Version
        | SystemFile::Vmallocinfo
        | SystemFile::Vmstat
        | SystemFile::Zoneinfo
        | SystemFile::Zswap => source.text(file, out),
    }
}

/// Differs from Linux: lines about what this kernel does not have (huge pages, hardware poison) are left out.
fn meminfo(info: &MemInfo, out: &mut dyn Write) -> fmt::Result {
    let lines = [
        ("MemTotal", info.total),
        ("MemFree", info.free),
        ("MemAvailable", info.available),
        ("Buffers", info.buffers),
        ("Cached", info.cached),
        ("SwapCached", info.swap_cached),
        ("Active", info.active_anon + info.active_file),
        ("Inactive", info.inactive_anon + info.inactive_file),
        ("Active(anon)", info.active_anon),
        ("Inactive(anon)", info.inactive_anon),
        ("Active(file)", info.active_file),
        ("Inactive(file)", info.inactive_file),
        ("Unevictable", info.unevictable),
        ("Mlocked", info.mlocked),
        ("SwapTotal", info.swap_total),
        ("SwapFree", info.swap_free),
        ("Zswap", info.zswap),
        ("Zswapped", info.zswapped),
        ("Dirty", info.dirty),
        ("Writeback", info.writeback),
        ("AnonPages", info.anon_pages),
        ("Mapped", info.mapped),
        ("Shmem", info.shmem),
        ("KReclaimable", info.slab_reclaimable),
        ("Slab", info.slab_reclaimable + info.slab_unreclaimable),
        ("SReclaimable", info.slab_reclaimable),
        ("SUnreclaim", info.slab_unreclaimable),
        ("KernelStack", info.kernel_stack),
        ("PageTables", info.page_tables),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("CommitLimit", info.commit_limit),
        ("Committed_AS", info.committed),
        ("VmallocTotal", info.vmalloc_total),
        ("VmallocUsed", info.vmalloc_used),
        ("VmallocChunk", 0),
        ("Percpu", info.percpu),
        ("CmaTotal", info.cma_total),
        ("CmaFree", info.cma_free),
    ];
    for (name, kib) in lines {
        // The name and its colon take 16 columns; a number of more than eight digits moves the unit.
        let width = 15_usize.saturating_sub(name.len());
        writeln!(out, "{name}:{:width$}{kib:>8} kB", "")?;
    }
    Ok(())
}

fn hundredths(out: &mut dyn Write, value: u64) -> fmt::Result {
    write!(out, "{}.{:02}", value / 100, value % 100)
}

fn uptime(source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    let system = source.system();
    let idle: u64 = (0..system.cpus).map(|cpu| source.cpu_time(cpu).idle).sum();
    hundredths(out, system.uptime)?;
    out.write_char(' ')?;
    hundredths(out, idle)?;
    out.write_char('\n')
}

fn loadavg(source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    let system = source.system();
    for load in system.load {
        hundredths(out, load)?;
        out.write_char(' ')?;
    }
    writeln!(out, "{}/{} {}", system.running, system.tasks, system.last_pid)
}

fn stat(source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    let system = source.system();
    let line = |out: &mut dyn Write, time: &CpuTime| {
        writeln!(out, " {} {} {} {} 0 0 0 0 0 0", time.user, time.nice, time.system, time.idle)
    };
    let mut sum = CpuTime::default();
    for cpu in 0..system.cpus {
        let time = source.cpu_time(cpu);
        sum.user += time.user;
        sum.nice += time.nice;
        sum.system += time.system;
        sum.idle += time.idle;
    }
    // Two blanks behind the sum's name, as in Linux.
    out.write_str("cpu ")?;
    line(out, &sum)?;
    for cpu in 0..system.cpus {
        write!(out, "cpu{cpu}")?;
        line(out, &source.cpu_time(cpu))?;
    }
    writeln!(out, "intr {}", system.interrupts)?;
    writeln!(out, "ctxt {}", system.switches)?;
    writeln!(out, "btime {}", system.boot)?;
    writeln!(out, "processes {}", system.forks)?;
    writeln!(out, "procs_running {}", system.running)?;
    writeln!(out, "procs_blocked {}", system.blocked)?;
    out.write_str("softirq 0 0 0 0 0 0 0 0 0 0 0\n")
}

fn cpuinfo(cpu: u32, info: &CpuInfo<'_>, out: &mut dyn Write) -> fmt::Result {
    let (family, model, stepping) = info.signature;
    writeln!(out, "processor\t: {cpu}")?;
    writeln!(out, "vendor_id\t: {}", info.vendor)?;
    writeln!(out, "cpu family\t: {family}")?;
    writeln!(out, "model\t\t: {model}")?;
    writeln!(out, "model name\t: {}", info.model_name)?;
    writeln!(out, "stepping\t: {stepping}")?;
    writeln!(out, "cpu MHz\t\t: {}.{:03}", info.khz / 1000, info.khz % 1000)?;
    if info.cache_kib != 0 {
        writeln!(out, "cache size\t: {} KB", info.cache_kib)?;
    }
    writeln!(
        out,
        "physical id\t: 0\nsiblings\t: {}\ncore id\t\t: {cpu}\ncpu cores\t: {}",
        info.siblings, info.siblings
    )?;
    writeln!(out, "apicid\t\t: {}\ninitial apicid\t: {}", info.apic, info.apic)?;
    writeln!(out, "fpu\t\t: yes\nfpu_exception\t: yes\ncpuid level\t: {}\nwp\t\t: yes", info.cpuid_level)?;
    writeln!(out, "flags\t\t: {}", info.flags)?;
    writeln!(out, "bugs\t\t: ")?;
    writeln!(out, "bogomips\t: {}.{:02}", info.khz * 2 / 1000, info.khz * 2 / 10 % 100)?;
    writeln!(out, "clflush size\t: {}\ncache_alignment\t: {}", info.clflush, info.clflush)?;
    let (physical, linear) = info.address_bits;
    writeln!(out, "address sizes\t: {physical} bits physical, {linear} bits virtual")?;
    writeln!(out, "power management:\n")
}
