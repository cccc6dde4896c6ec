//! The texts, compared with those of this machine's Linux: its own numbers, printed again, must give its own lines.

use core::cell::Cell;
use core::fmt;
use std::format;
use std::fs;
use std::string::String;
use std::vec::Vec;

use super::{
    CpuInfo, CpuTime, Detail, KernelFile, MapInfo, MemInfo, Names, Node, NumaMap, NumaPlace, PidFile,
    ProcessInfo, Rlimit, Source, SystemFile, SystemInfo, VmFile, VmInfo, Who, render, store,
};
use crate::{Device, Errno};

const ME: Who = Who { pid: 5, tid: None };

/// A mapping, with its name.
type Map = (u64, u64, String, u64, u64, u64, Vec<u8>);

/// What the host said.
#[derive(Default)]
struct Host {
    info: Option<ProcessInfo>,
    maps: Vec<Map>,
    numa_maps: Vec<String>,
    memory: MemInfo,
    stored: Cell<Option<i64>>,
    levels: Cell<[u8; 4]>,
    no_memory: bool,
}

impl Source for Host {
    fn process(&self, _: Who) -> Option<ProcessInfo> {
        self.info
    }
    fn maps(&self, _: Who, _: Detail, f: &mut dyn FnMut(&MapInfo<'_>) -> fmt::Result) -> fmt::Result {
        self.maps.iter().try_for_each(|(start, end, flags, offset, dev, ino, name)| {
            let has = |letter| flags.contains(letter);
            f(&MapInfo {
                start: *start,
                end: *end,
                read: has('r'),
                write: has('w'),
                exec: has('x'),
                shared: has('s'),
                offset: *offset,
                dev: *dev,
                ino: *ino,
                name,
                ..MapInfo::default()
            })
        })
    }
    fn numa_maps(&self, _: Who, f: &mut dyn FnMut(&NumaMap<'_>) -> fmt::Result) -> fmt::Result {
        self.numa_maps.iter().try_for_each(|line| with_numa_map(line, f))
    }
    fn cmdline_of(&self, _: Who) -> Result<Vec<u8>, Errno> {
        Ok(b"sh\0-c\0".to_vec())
    }
    fn environ_of(&self, _: Who) -> Result<Vec<u8>, Errno> {
        Err(Errno::Esrch)
    }
    fn mounts(&self, _: Who, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.no_memory {
            return Err(fmt::Error);
        }
        out.write_str("mounts\n")
    }
    fn system(&self) -> SystemInfo {
        SystemInfo {
            uptime: 12_345,
            load: [5, 110, 0],
            running: 2,
            tasks: 40,
            last_pid: 77,
            cpus: 2,
            ..Default::default()
        }
    }
    fn cpu_time(&self, cpu: u32) -> CpuTime {
        CpuTime { user: 10, nice: 0, system: 20, idle: 100 + u64::from(cpu) }
    }
    fn cpu_info(&self, cpu: u32, f: &mut dyn FnMut(&CpuInfo<'_>) -> fmt::Result) -> fmt::Result {
        f(&CpuInfo {
            vendor: "Vendor",
            khz: 2_400_500,
            apic: cpu,
            siblings: 2,
            flags: "fpu sse2",
            clflush: 64,
            ..CpuInfo::default()
        })
    }
    fn memory(&self) -> MemInfo {
        self.memory
    }
    fn text(&self, file: SystemFile, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(file.name())
    }
    fn sysvipc_shm(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str("segments\n")
    }
    fn vm(&self, file: VmFile, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{} {:?}", file.name(), self.stored.get())
    }
    fn set_vm(&self, _: VmFile, number: i64) -> Result<(), Errno> {
        self.stored.set(Some(number));
        Ok(())
    }
    fn names(&self) -> &Names {
        &Names {
            sysname: "Linux",
            nodename: "host",
            release: "6.1.0",
            version: "#1",
            machine: "x86_64",
            domainname: "(none)",
        }
    }
    fn pid_max(&self) -> u32 {
        32768
    }
    fn threads_max(&self) -> u32 {
        500
    }
    fn set_threads_max(&self, threads: u32) {
        self.stored.set(Some(threads.into()));
    }
    fn printk(&self) -> [u8; 4] {
        self.levels.get()
    }
    fn set_printk(&self, levels: [u8; 4]) {
        self.levels.set(levels);
    }
    fn set_fail_nth(&self, _: Who, nth: u32) -> Result<(), Errno> {
        self.stored.set(Some(nth.into()));
        Ok(())
    }
    fn set_oom_score_adj(&self, _: Who, adj: i16) -> Result<(), Errno> {
        self.stored.set(Some(adj.into()));
        Ok(())
    }
}

fn info() -> ProcessInfo {
    let mut comm = [0; 16];
    comm[..5].copy_from_slice(b"a (b)");
    ProcessInfo {
        pid: 5,
        tgid: 5,
        comm,
        state: 'S',
        ppid: 1,
        pgrp: 5,
        session: 1,
        tty: 0,
        tpgid: -1,
        flags: 0,
        faults: (10, 1),
        child_faults: (0, 0),
        time: (3, 4),
        child_time: (0, 0),
        priority: 20,
        nice: 0,
        threads: 1,
        start: 99,
        vm: Some(VmInfo {
            total: 100,
            anon: 10,
            file: 5,
            data: 30,
            stack: 33,
            code: (0x1000, 0x3001),
            ..Default::default()
        }),
        limits: [Rlimit { soft: u64::MAX, hard: u64::MAX }; 16],
        pending: 0,
        shared_pending: 0,
        blocked: 0,
        ignored: 6,
        caught: 0x1_0000_0000,
        exit_signal: 17,
        cpu: 1,
        exit_code: 0,
        umask: 0o22,
        fd_size: 64,
        uids: [0; 4],
        gids: [0; 4],
        cpus_allowed: 0b1011,
        mems_allowed: 1,
        switches: (8, 9),
        oom_score: 0,
        oom_score_adj: 0,
        fail_nth: 0,
    }
}

fn text(source: &Host, file: PidFile) -> String {
    String::from_utf8(render(Node::File(ME, file), source).expect("a text")).expect("UTF-8")
}

fn system(source: &Host, file: SystemFile) -> String {
    String::from_utf8(render(Node::System(file), source).expect("a text")).expect("UTF-8")
}

#[test]
fn maps_are_printed_as_linux_prints_them() {
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
    let theirs = fs::read_to_string("/proc/self/maps").expect("maps");
    let parse = |line: &str| -> Map {
        let mut rest = line.splitn(6, ' ');
        let mut word = || rest.next().expect("a word");
        let (start, end) = word().split_once('-').expect("a range");
        let flags = word().into();
        let offset = hex(word());
        let (major, minor) = word().split_once(':').expect("a device");
        let number = |text| u32::try_from(hex(text)).expect("a number");
        let dev = Device { major: number(major), minor: number(minor) }.encode();
        let ino = word().parse().expect("a number");
        (hex(start), hex(end), flags, offset, u64::from(dev), ino, word().trim_start().into())
    };
    let maps = theirs.lines().map(parse).collect();
    let host = Host { info: Some(info()), maps, ..Host::default() };
    assert_eq!(text(&host, PidFile::Maps), theirs);
}

#[test]
fn limits_are_printed_as_linux_prints_them() {
    let theirs = fs::read_to_string("/proc/self/limits").expect("limits");
    let value = |line: &str, at: usize| {
        line[at..].split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(u64::MAX)
    };
    let mut info = info();
    for (limit, line) in info.limits.iter_mut().zip(theirs.lines().skip(1)) {
        *limit = Rlimit { soft: value(line, 26), hard: value(line, 47) };
    }
    assert_eq!(text(&Host { info: Some(info), ..Host::default() }, PidFile::Limits), theirs);
}

/// The text with numbers of one form: digits with the blanks before them.
fn form(line: &str) -> String {
    let (key, rest) = line.split_once(':').unwrap_or((line, ""));
    let blank = |letter: char| if letter.is_ascii_digit() { ' ' } else { letter };
    format!("{key}:{}", rest.chars().map(blank).collect::<String>())
}

#[test]
fn meminfo_has_linux_lines_in_linux_order() {
    let theirs = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let ours = system(&Host::default(), SystemFile::Meminfo);
    let mut at = theirs.lines();
    let mut same = 0;
    for line in ours.lines() {
        // Which lines there are depends on how a kernel was configured.
        if theirs.lines().any(|other| other.split(':').next() == line.split(':').next()) {
            let other = at.find(|other| other.split(':').next() == line.split(':').next());
            let other = other.unwrap_or_else(|| panic!("not in this order: {line}"));
            if other.len() == line.len() {
                assert_eq!(form(line), form(other));
            }
            same += 1;
        }
    }
    assert!(same > 30, "{same} lines are in both");
}

#[test]
fn status_has_linux_lines_in_linux_order() {
    let theirs = fs::read_to_string("/proc/self/status").expect("status");
    let ours = text(&Host { info: Some(info()), ..Host::default() }, PidFile::Status);
    let mut at = theirs.lines();
    let mut same = 0;
    for line in ours.lines() {
        let key = line.split('\t').next();
        if theirs.lines().any(|other| other.split('\t').next() == key) {
            let other = at.find(|other| other.split('\t').next() == key);
            let other = other.unwrap_or_else(|| panic!("not in this order: {line}"));
            assert_eq!(line.matches('\t').count(), other.matches('\t').count(), "{line}");
            same += 1;
        }
    }
    assert!(same > 45, "{same} lines are in both");
    assert!(ours.contains("Name:\ta (b)\nUmask:\t0022\nState:\tS (sleeping)\n"), "{ours}");
    assert!(ours.contains("VmRSS:\t      60 kB\n") && ours.contains("Cpus_allowed_list:\t0-1,3\n"), "{ours}");
    assert!(ours.contains("SigCgt:\t0000000100000000\n"), "{ours}");
}

#[test]
fn stat_has_52_fields_behind_any_name() {
    let theirs = fs::read_to_string("/proc/self/stat").expect("stat");
    let fields = |line: &str| line.rsplit_once(") ").expect("a name").1.split(' ').count() + 2;
    let ours = text(&Host { info: Some(info()), ..Host::default() }, PidFile::Stat);
    assert_eq!((fields(&ours), fields(&theirs)), (52, 52));
    assert!(ours.starts_with(
        "5 (a (b)) S 1 5 1 0 -1 0 10 0 1 0 3 4 0 0 20 0 1 0 99 409600 15 18446744073709551615 4096 12289 "
    ));
    assert!(ours.contains(" 0 0 6 0 1 0 0 17 1 0 0 0 0 0 "), "{ours}");
}

#[test]
fn the_machine_is_told_in_linux_words() {
    let host = Host::default();
    assert_eq!(system(&host, SystemFile::Uptime), "123.45 2.01\n");
    assert_eq!(system(&host, SystemFile::Loadavg), "0.05 1.10 0.00 2/40 77\n");
    let stat = system(&host, SystemFile::Stat);
    assert!(stat.starts_with("cpu  20 0 40 201 0 0 0 0 0 0\ncpu0 10 0 20 100 0"), "{stat}");
    let theirs = fs::read_to_string("/proc/stat").expect("stat");
    assert_eq!(
        stat.lines().next().map(|line| line.split(' ').count()),
        theirs.lines().next().map(|line| line.split(' ').count())
    );
    let cpuinfo = system(&host, SystemFile::Cpuinfo);
    assert_eq!(cpuinfo.matches("processor\t: ").count(), 2);
    assert!(
        cpuinfo.contains("cpu MHz\t\t: 2400.500\n") && cpuinfo.contains("bogomips\t: 4801.00\n"),
        "{cpuinfo}"
    );
    let theirs = fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
    for line in cpuinfo.lines().filter(|line| !line.is_empty()) {
        let key = line.split(':').next().expect("a key");
        assert!(theirs.contains(key), "Linux has no {key:?}");
    }
    assert_eq!(system(&host, SystemFile::Zoneinfo), "zoneinfo");
}

#[test]
fn a_process_that_is_there_still_lacks_nothing_but_memory() {
    let mut host = Host { no_memory: true, ..Host::default() };
    assert_eq!(render(Node::File(ME, PidFile::Mounts), &host), Err(Errno::Esrch));
    host.info = Some(info());
    assert_eq!(render(Node::File(ME, PidFile::Mounts), &host), Err(Errno::Enomem));
}

#[test]
fn a_process_that_is_gone_has_no_texts() {
    assert_eq!(render(Node::File(ME, PidFile::Stat), &Host::default()), Err(Errno::Esrch));
    assert_eq!(render(Node::File(ME, PidFile::Environ), &Host::default()), Err(Errno::Esrch));
    assert_eq!(render(Node::File(ME, PidFile::Cmdline), &Host::default()), Ok(b"sh\0-c\0".to_vec()));
    assert_eq!(render(Node::Root, &Host::default()), Err(Errno::Einval));
}

#[test]
fn what_is_written_to_proc_is_one_number_with_blanks_around() {
    let host = Host::default();
    let overcommit = Node::Vm(VmFile::OvercommitMemory);
    assert_eq!(store(overcommit, &host, b" 2\n"), Ok(()));
    assert_eq!(host.stored.take(), Some(2));
    for wrong in [&b""[..], b"two", b"1 2", b"9999999999999999999999", b"\xff"] {
        assert_eq!(store(overcommit, &host, wrong), Err(Errno::Einval), "{wrong:?}");
    }
    assert_eq!(store(Node::System(SystemFile::Meminfo), &host, b"1"), Err(Errno::Eio));
}

#[test]
fn proc_sys_kernel_names_the_kernel_and_bounds_threads() {
    let host = Host::default();
    let text = |file| String::from_utf8(render(Node::Kernel(file), &host).unwrap()).unwrap();
    assert_eq!(text(KernelFile::Ostype) + &text(KernelFile::Osrelease), "Linux\n6.1.0\n");
    assert_eq!(text(KernelFile::Version) + &text(KernelFile::Hostname), "#1\nhost\n");
    assert_eq!(text(KernelFile::PidMax) + &text(KernelFile::ThreadsMax), "32768\n500\n");
    let threads = Node::Kernel(KernelFile::ThreadsMax);
    assert_eq!(store(threads, &host, b"1073741823\n"), Ok(()));
    assert_eq!(host.stored.take(), Some(0x3fff_ffff));
    for wrong in [&b"0"[..], b"-1", b"1073741824", b"x"] {
        assert_eq!(store(threads, &host, wrong), Err(Errno::Einval), "{wrong:?}");
    }
    assert_eq!(store(Node::Kernel(KernelFile::PidMax), &host, b"400"), Err(Errno::Eio));
}

#[test]
fn the_levels_of_messages_are_changed_from_the_first_on() {
    let host = Host { levels: Cell::new([7, 4, 1, 7]), ..Host::default() };
    assert_eq!(render(Node::Kernel(KernelFile::Printk), &host), Ok(b"7\t4\t1\t7\n".to_vec()));
    assert_eq!(store(Node::Kernel(KernelFile::Printk), &host, b"3\n"), Ok(()));
    assert_eq!(host.levels.get(), [3, 4, 1, 7]);
    assert_eq!(store(Node::Kernel(KernelFile::Printk), &host, b"8 5\t2 8"), Ok(()));
    assert_eq!(host.levels.get(), [8, 5, 2, 8]);
    for wrong in [&b"x"[..], b"1 x", b"-1", b"300"] {
        assert_eq!(store(Node::Kernel(KernelFile::Printk), &host, wrong), Err(Errno::Einval), "{wrong:?}");
    }
    assert_eq!(host.levels.get(), [8, 5, 2, 8]);
}

#[test]
fn fail_nth_is_a_number_that_linux_takes() {
    let host = Host { info: Some(ProcessInfo { fail_nth: 3, ..info() }), ..Host::default() };
    let file = Node::File(ME, PidFile::FailNth);
    assert_eq!(render(file, &host), Ok(b"3\n".to_vec()));
    for (written, stored) in [(&b"7"[..], Some(7)), (b"0", Some(0)), (b"2147483647", Some(0x7fff_ffff))] {
        assert_eq!(store(file, &host, written), Ok(()));
        assert_eq!(host.stored.take(), stored);
    }
    for wrong in [&b"-1"[..], b"2147483648", b"x"] {
        assert_eq!(store(file, &host, wrong), Err(Errno::Einval), "{wrong:?}");
    }
}

#[test]
fn oom_score_adj_has_bounds_and_oom_adj_is_scaled() {
    let host =
        Host { info: Some(ProcessInfo { oom_score: 7, oom_score_adj: -500, ..info() }), ..Host::default() };
    let (adj, old) = (Node::File(ME, PidFile::OomScoreAdj), Node::File(ME, PidFile::OomAdj));
    for (file, written, stored) in [
        (adj, &b"-1000"[..], Some(-1000)),
        (adj, b"1001", None),
        (old, b"15", Some(1000)),
        (old, b"-17", Some(-1000)),
        (old, b"8", Some(470)),
        (old, b"16", None),
        (old, b"-18", None),
    ] {
        assert_eq!(store(file, &host, written).is_ok(), stored.is_some(), "{written:?}");
        assert_eq!(host.stored.take(), stored, "{written:?}");
    }
    let text = |file| String::from_utf8(render(Node::File(ME, file), &host).unwrap()).unwrap();
    assert_eq!(
        [PidFile::OomScore, PidFile::OomScoreAdj, PidFile::OomAdj].map(text),
        ["7\n", "-500\n", "-8\n"]
    );
}

/// A line of numa_maps as what it was printed from.
fn with_numa_map(line: &str, f: &mut dyn FnMut(&NumaMap<'_>) -> fmt::Result) -> fmt::Result {
    let mut words = line.split(' ');
    let start = u64::from_str_radix(words.next().expect("an address"), 16).expect("an address");
    let (mode, list) = words.next().map(|word| word.split_once(':').unwrap_or((word, ""))).expect("a policy");
    let mode = ["default", "prefer", "bind", "interleave", "local"].iter().position(|name| *name == mode);
    let bits = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().expect("a node"), last.parse().expect("a node"));
        (first..=last).fold(0, |bits, node| bits | 1_u64 << node)
    };
    let policy_nodes = list.split(',').filter(|range| !range.is_empty()).map(bits).sum();
    let mode = u32::try_from(mode.expect("a mode that is known")).expect("a small number");
    let (mut nodes, mut path) = ([0; 64], String::new());
    let mut map = NumaMap { start, mode, policy_nodes, ..NumaMap::default() };
    let mut active = None;
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse().expect("a number");
        match name {
            "heap" => map.place = NumaPlace::Heap,
            "stack" => map.place = NumaPlace::Stack,
            "file" => path = value.replace("\\040", " "),
            "anon" => map.anon = number(),
            "dirty" => map.dirty = number(),
            "mapped" => {}
            "mapmax" => map.mapcount_max = number(),
            "swapcache" => map.swapcache = number(),
            "active" => active = Some(number()),
            "writeback" => map.writeback = number(),
            "kernelpagesize_kB" => {}
            node => nodes[node[1..].parse::<usize>().expect("a node")] = number(),
        }
    }
    if !path.is_empty() {
        map.place = NumaPlace::File(path.as_bytes());
    }
    let pages = nodes.iter().sum();
    f(&NumaMap { pages, active: active.unwrap_or(pages), nodes: &nodes, ..map })
}

#[test]
fn numa_maps_are_printed_as_linux_prints_them() {
    let theirs = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
    let more = [
        "7f0000000000 bind:0-2,5,63 anon=3 dirty=3 active=1 N0=2 N5=1 kernelpagesize_kB=4",
        "7f0000004000 interleave:1 file=/dev/zero\\040(deleted) dirty=4 mapmax=2 N1=4 kernelpagesize_kB=4",
        "7f0000008000 prefer:3 heap",
        "7f0000009000 local stack anon=2 dirty=1 mapped=3 swapcache=1 writeback=1 N0=3 kernelpagesize_kB=4",
    ];
    let lines: Vec<String> = theirs.lines().chain(more).map(String::from).collect();
    let host = Host { info: Some(info()), numa_maps: lines.clone(), ..Host::default() };
    let ours = String::from_utf8(render(Node::File(ME, PidFile::NumaMaps), &host).unwrap()).unwrap();
    assert_eq!(ours.lines().collect::<Vec<_>>(), lines);
}
