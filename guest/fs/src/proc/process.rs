//! Texts about a process (Linux: fs/proc/array.c, base.c, task_mmu.c).

use core::fmt::{self, Write};

use super::node::{PidFile, Who};
use super::numa_maps;
use super::source::{Detail, MapInfo, ProcessInfo, Source, VmInfo};

const PAGE_KIB: u64 = 4;
const PAGE: u64 = 4096;

pub(super) fn show(
    file: PidFile,
    who: Who,
    info: &ProcessInfo,
    source: &dyn Source,
    out: &mut dyn Write,
) -> fmt::Result {
    match file {
        PidFile::Comm => {
            comm(info, out)?;
            out.write_char('\n')
        }
        PidFile::Limits => limits(info, out),
        PidFile::Maps => source.maps(who, Detail::Maps, &mut |map| maps(map, out)),
        PidFile::Smaps => source.maps(who, Detail::Pages, &mut |map| smaps(map, out)),
        PidFile::SmapsRollup => smaps_rollup(who, source, out),
        PidFile::NumaMaps => source.numa_maps(who, &mut |map| numa_maps::show(map, out)),
        PidFile::Mounts => source.mounts(who, out),
        PidFile::FailNth => writeln!(out, "{}", info.fail_nth),
        PidFile::OomScore => writeln!(out, "{}", info.oom_score),
        PidFile::OomScoreAdj => writeln!(out, "{}", info.oom_score_adj),
        PidFile::OomAdj => writeln!(out, "{}", oom_adj(info.oom_score_adj)),
        PidFile::Stat => stat(info, out),
        PidFile::Statm => statm(info, out),
        PidFile::Status => status(info, out),
        // Bytes, not text: see `render`.
        PidFile::Cmdline | PidFile::Environ | PidFile::Pagemap => Ok(()),
    }
}

/// Linux: `oom_adj_read`.
fn oom_adj(score_adj: i16) -> i32 {
    if score_adj == 1000 { 15 } else { (i32::from(score_adj) * 17 / 1000).min(15) }
}

/// The name; what is not ASCII is shown as a question mark, because text is built of characters.
fn comm(info: &ProcessInfo, out: &mut dyn Write) -> fmt::Result {
    let len = info.comm.iter().position(|byte| *byte == 0).unwrap_or(info.comm.len());
    for &byte in info.comm.iter().take(len) {
        out.write_char(if byte.is_ascii() { char::from(byte) } else { '?' })?;
    }
    Ok(())
}

/// Linux: `do_task_stat`.
fn stat(info: &ProcessInfo, out: &mut dyn Write) -> fmt::Result {
    let vm = info.vm.unwrap_or_default();
    write!(out, "{} (", info.pid)?;
    comm(info, out)?;
    write!(out, ") {} {} {} {} ", info.state, info.ppid, info.pgrp, info.session)?;
    write!(out, "{} {} {} ", info.tty, info.tpgid, info.flags)?;
    write!(out, "{} {} {} {} ", info.faults.0, info.child_faults.0, info.faults.1, info.child_faults.1)?;
    write!(out, "{} {} {} {} ", info.time.0, info.time.1, info.child_time.0, info.child_time.1)?;
    write!(out, "{} {} {} 0 {} ", info.priority, info.nice, info.threads, info.start)?;
    write!(out, "{} {} {} ", vm.total * PAGE, rss(&vm), info.limits[5].soft)?;
    write!(out, "{} {} {} 0 0 ", vm.code.0, vm.code.1, vm.start_stack)?;
    // Only the lower 31 bits, in decimal, as ever.
    let low = |set: u64| set & 0x7fff_ffff;
    write!(out, "{} {} {} {} ", low(info.pending), low(info.blocked), low(info.ignored), low(info.caught))?;
    let waits = u32::from(info.state != 'R');
    write!(out, "{waits} 0 0 {} {} 0 0 0 0 0 ", info.exit_signal, info.cpu)?;
    write!(out, "{} {} {} ", vm.data_range.0, vm.data_range.1, vm.start_brk)?;
    writeln!(out, "{} {} {} {} {}", vm.args.0, vm.args.1, vm.env.0, vm.env.1, info.exit_code)
}

const fn rss(vm: &VmInfo) -> u64 {
    vm.anon + vm.file + vm.shmem
}

/// Pages of the program's code (Linux: `end_code` and `start_code` to page borders).
const fn text_pages(vm: &VmInfo) -> u64 {
    vm.code.1.div_ceil(PAGE).saturating_sub(vm.code.0 / PAGE)
}

/// Linux: `proc_pid_statm`.
fn statm(info: &ProcessInfo, out: &mut dyn Write) -> fmt::Result {
    let vm = info.vm.unwrap_or_default();
    let (shared, text) = (vm.file + vm.shmem, text_pages(&vm));
    writeln!(out, "{} {} {shared} {text} 0 {} 0", vm.total, rss(&vm), vm.data + vm.stack)
}

const fn state_name(state: char) -> &'static str {
    match state {
        'R' => "running",
        'S' => "sleeping",
        'D' => "disk sleep",
        'T' => "stopped",
        't' => "tracing stop",
        'Z' => "zombie",
        'X' => "dead",
        'I' => "idle",
        _ => "parked",
    }
}

/// Linux: `proc_pid_status`.
fn status(info: &ProcessInfo, out: &mut dyn Write) -> fmt::Result {
    out.write_str("Name:\t")?;
    comm(info, out)?;
    writeln!(out, "\nUmask:\t{:04o}", info.umask)?;
    writeln!(out, "State:\t{} ({})", info.state, state_name(info.state))?;
    writeln!(out, "Tgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t0", info.tgid, info.pid, info.ppid)?;
    for (name, ids) in [("Uid", info.uids), ("Gid", info.gids)] {
        writeln!(out, "{name}:\t{}\t{}\t{}\t{}", ids[0], ids[1], ids[2], ids[3])?;
    }
    writeln!(out, "FDSize:\t{}\nGroups:\t ", info.fd_size)?;
    writeln!(
        out,
        "NStgid:\t{}\nNSpid:\t{}\nNSpgid:\t{}\nNSsid:\t{}",
        info.tgid, info.pid, info.pgrp, info.session
    )?;
    if let Some(vm) = &info.vm {
        status_vm(vm, out)?;
    }
    writeln!(out, "CoreDumping:\t0\nTHP_enabled:\t0\nThreads:\t{}", info.threads)?;
    writeln!(out, "SigQ:\t0/{}", info.limits[11].soft)?;
    let sets = [
        ("SigPnd", info.pending),
        ("ShdPnd", info.shared_pending),
        ("SigBlk", info.blocked),
        ("SigIgn", info.ignored),
        ("SigCgt", info.caught),
    ];
    for (name, set) in sets {
        writeln!(out, "{name}:\t{set:016x}")?;
    }
    // Root has all 41 capabilities.
    let all = if info.uids[1] == 0 { (1_u64 << 41) - 1 } else { 0 };
    for (name, set) in
        [("CapInh", 0), ("CapPrm", all), ("CapEff", all), ("CapBnd", (1 << 41) - 1), ("CapAmb", 0)]
    {
        writeln!(out, "{name}:\t{set:016x}")?;
    }
    writeln!(out, "NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0")?;
    writeln!(out, "Speculation_Store_Bypass:\tunknown\nSpeculationIndirectBranch:\tunknown")?;
    for (name, set) in [("Cpus", info.cpus_allowed), ("Mems", info.mems_allowed)] {
        writeln!(out, "{name}_allowed:\t{set:x}")?;
        write!(out, "{name}_allowed_list:\t")?;
        ranges(set, out)?;
        out.write_char('\n')?;
    }
    writeln!(out, "voluntary_ctxt_switches:\t{}", info.switches.0)?;
    writeln!(out, "nonvoluntary_ctxt_switches:\t{}", info.switches.1)
}

/// Linux: `task_mem`.
fn status_vm(vm: &VmInfo, out: &mut dyn Write) -> fmt::Result {
    let lines = [
        ("VmPeak", vm.peak.max(vm.total)),
        ("VmSize", vm.total),
        ("VmLck", vm.locked),
        ("VmPin", 0),
        ("VmHWM", vm.rss_peak.max(rss(vm))),
        ("VmRSS", rss(vm)),
        ("RssAnon", vm.anon),
        ("RssFile", vm.file),
        ("RssShmem", vm.shmem),
        ("VmData", vm.data),
        ("VmStk", vm.stack),
        ("VmExe", text_pages(vm)),
        ("VmLib", vm.lib),
    ];
    for (name, pages) in lines {
        writeln!(out, "{name}:\t{:>8} kB", pages * PAGE_KIB)?;
    }
    writeln!(out, "VmPTE:\t{:>8} kB\nVmSwap:\t{:>8} kB", vm.tables / 1024, vm.swap * PAGE_KIB)
}

/// A set as `0-2,5` (Linux: the format `%*pbl`).
fn ranges(set: u64, out: &mut dyn Write) -> fmt::Result {
    let mut comma = "";
    let mut from = 0;
    while let Some(start) = (from..64).find(|bit| set >> bit & 1 != 0) {
        let end = (start..64).find(|bit| set >> bit & 1 == 0).unwrap_or(64);
        write!(out, "{comma}{start}")?;
        if end - start > 1 {
            write!(out, "-{}", end - 1)?;
        }
        comma = ",";
        from = end;
    }
    Ok(())
}

/// Linux: `proc_pid_limits`.
fn limits(info: &ProcessInfo, out: &mut dyn Write) -> fmt::Result {
    const LINES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    writeln!(out, "{:<25} {:<20} {:<20} {:<10}", "Limit", "Soft Limit", "Hard Limit", "Units")?;
    for ((name, unit), limit) in LINES.iter().zip(&info.limits) {
        write!(out, "{name:<25} ")?;
        for value in [limit.soft, limit.hard] {
            if value == u64::MAX {
                write!(out, "{:<20} ", "unlimited")?;
            } else {
                write!(out, "{value:<20} ")?;
            }
        }
        if unit.is_empty() {
            out.write_char('\n')?;
        } else {
            writeln!(out, "{unit:<10}")?;
        }
    }
    Ok(())
}

/// Counts what is written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    len: usize,
}

impl Write for Counted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.len += text.len();
        self.out.write_str(text)
    }
}

/// Linux: `show_map_vma`.
fn maps(map: &MapInfo<'_>, out: &mut dyn Write) -> fmt::Result {
    /// Column before a name.
    const NAME: usize = 25 + 8 * 6 - 1;
    let mut out = Counted { out, len: 0 };
    let bit = |set: bool, letter: char| if set { letter } else { '-' };
    let (read, write, exec) = (bit(map.read, 'r'), bit(map.write, 'w'), bit(map.exec, 'x'));
    let shared = if map.shared { 's' } else { 'p' };
    write!(out, "{:08x}-{:08x} {read}{write}{exec}{shared} ", map.start, map.end)?;
    let dev = u32::try_from(map.dev).map_or(crate::Device::default(), crate::Device::decode);
    write!(out, "{:08x} {:02x}:{:02x} {} ", map.offset, dev.major, dev.minor, map.ino)?;
    if !map.name.is_empty() {
        let width = NAME.saturating_sub(out.len);
        write!(out, "{:width$} ", "")?;
        for &byte in map.name {
            match byte {
                b'\n' => out.write_str("\\012")?,
                byte if byte.is_ascii() => out.write_char(char::from(byte))?,
                byte => write!(out, "\\{byte:03o}")?,
            }
        }
    }
    out.write_char('\n')
}

/// Linux: `show_smap`.
fn smaps(map: &MapInfo<'_>, out: &mut dyn Write) -> fmt::Result {
    maps(map, out)?;
    let pages = &map.pages;
    let sizes = [("Size", map.end - map.start), ("KernelPageSize", PAGE), ("MMUPageSize", PAGE)];
    smap_lines(&sizes, out)?;
    smap_sums(pages, &[], out)?;
    out.write_str("THPeligible:    0\nVmFlags: ")?;
    vm_flags(pages.vm_flags, out)
}

/// Linux: `show_smaps_rollup`.
fn smaps_rollup(who: Who, source: &dyn Source, out: &mut dyn Write) -> fmt::Result {
    let mut all: Option<MapInfo<'_>> = None;
    let (mut anon, mut file, mut shmem) = (0, 0, 0);
    source.maps(who, Detail::Pages, &mut |map| {
        let sum = all.get_or_insert(MapInfo { start: map.start, name: b"[rollup]", ..MapInfo::default() });
        sum.end = map.end;
        sum.pages.add(&map.pages);
        // Shared memory has an inode in no file system of a disk; what a private mapping wrote is anonymous.
        *(if map.is_anonymous() {
            &mut anon
        } else if map.is_shmem {
            &mut shmem
        } else {
            &mut file
        }) += map.pages.pss;
        Ok(())
    })?;
    let Some(all) = all else { return Ok(()) };
    maps(&all, out)?;
    smap_sums(&all.pages, &[("Pss_Anon", anon), ("Pss_File", file), ("Pss_Shmem", shmem)], out)
}

/// Linux: `__show_smap`; `parts` stand behind what they are parts of.
fn smap_sums(pages: &super::source::MapPages, parts: &[(&str, u64)], out: &mut dyn Write) -> fmt::Result {
    let lines = [("Rss", pages.rss), ("Pss", pages.pss), ("Pss_Dirty", pages.pss_dirty)];
    smap_lines(&lines, out)?;
    smap_lines(parts, out)?;
    let lines = [
        ("Shared_Clean", pages.shared_clean),
        ("Shared_Dirty", pages.shared_dirty),
        ("Private_Clean", pages.private_clean),
        ("Private_Dirty", pages.private_dirty),
        ("Referenced", pages.referenced),
        ("Anonymous", pages.anonymous),
        ("LazyFree", pages.lazyfree),
        ("AnonHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", pages.swap),
        ("SwapPss", pages.swap_pss),
        ("Locked", pages.locked),
    ];
    smap_lines(&lines, out)
}

/// Lines of names and bytes.
fn smap_lines(lines: &[(&str, u64)], out: &mut dyn Write) -> fmt::Result {
    lines.iter().try_for_each(|(name, bytes)| {
        let width = 15_usize.saturating_sub(name.len());
        writeln!(out, "{name}:{:width$}{:>8} kB", "", bytes / 1024)
    })
}

/// Linux: `show_smap_vma_flags`, by bit.
fn vm_flags(flags: u64, out: &mut dyn Write) -> fmt::Result {
    const NAMES: [(u32, &str); 26] = [
        (0, "rd"),
        (1, "wr"),
        (2, "ex"),
        (3, "sh"),
        (4, "mr"),
        (5, "mw"),
        (6, "me"),
        (7, "ms"),
        (8, "gd"),
        (10, "pf"),
        (13, "lo"),
        (14, "io"),
        (15, "sr"),
        (16, "rr"),
        (17, "dc"),
        (18, "de"),
        (19, "lf"),
        (20, "ac"),
        (21, "nr"),
        (22, "ht"),
        (23, "sf"),
        (25, "wf"),
        (26, "dd"),
        (28, "mm"),
        (29, "hg"),
        (30, "nh"),
    ];
    for (bit, name) in NAMES {
        if flags >> bit & 1 != 0 {
            write!(out, "{name} ")?;
        }
    }
    out.write_char('\n')
}
