//! Bad input and hostile guests, end to end: the program as a user starts it.
//!
//! Every case ends with the exit code that its error has, says one line that names the file, line or
//! flag and what would be right, and leaves nothing behind: no socket, no lock, no file.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use support::{Bench, FLOOD, Guest, SPIN, TRIPLE_FAULT, WILD, device_flood, has_kvm, kernel, refused};

/// A machine file of two nodes, changed in one place.
const MACHINE: &str = "\
[machine]
name = \"m\"
[[node]]
memory = [\"32M\"]
cpus = [0]
distances = { 1 = 20 }
[[node]]
memory = [{ at = \"4G\", size = \"16M\" }]
cpus = [1]
";

/// A bench with a kernel that spins; `None` where nothing can run.
fn spinning_bench() -> Option<Bench> {
    has_kvm().then(|| {
        let bench = Bench::new();
        bench.put("kernel", &kernel(&SPIN));
        bench
    })
}

/// A guest of this name that spins, with its control socket open.
fn spinning_guest(name: &str) -> Option<(Bench, Guest)> {
    let bench = spinning_bench()?;
    let mut guest = Guest::start(&bench, &["--name", name]);
    guest.wait_for_socket(&bench, name);
    Some((bench, guest))
}

#[test]
fn machine_files_are_refused_at_their_line() {
    let bench = Bench::new();
    let cases: &[(&str, &str, &[&str])] = &[
        ("cpus = [0]", "cpus = [0]\ncolour = 1", &["m.toml:6", "colour", "memory"]),
        ("cpus = [0]", "cpus = [0]\ncpus = [0]", &["m.toml:6", "cpus", "twice"]),
        ("name = \"m\"", "name = \"m\"\n[machine]", &["m.toml:3", "machine"]),
        ("[\"32M\"]", "[\"32M\"", &["m.toml:"]),
        ("[\"32M\"]", "[\"32M\", { at = \"4G\", size = \"1M\" }]", &["m.toml:", "overlap"]),
        ("[\"32M\"]", "[\"32M\", { at = \"3G\", size = \"1M\" }]", &["m.toml:4", "MMIO hole", "0xc0000000"]),
        ("\"4G\"", "\"3G\"", &["m.toml:8", "MMIO hole", "0x100000000"]),
        ("\"4G\"", "\"64T\"", &["m.toml:8", "46 physical address bits", "0x400000000000"]),
        ("\"4G\"", "\"16777216T\"", &["m.toml:8"]),
        ("1 = 20", "1 = 9", &["m.toml:6", "distance 9", "11 to 254"]),
        ("1 = 20", "1 = 256", &["m.toml:6", "distance 256"]),
        ("1 = 20", "0 = 20", &["m.toml:6", "always 10"]),
        ("1 = 20", "2 = 20", &["m.toml:6", "node 2", "0..=1"]),
        ("cpus = [1]", "cpus = [1]\ndistances = { 0 = 21 }", &["m.toml:10", "20", "asymmetric"]),
        ("cpus = [1]", "cpus = [0]", &["m.toml:9", "CPU 0", "already in node 0"]),
        ("cpus = [1]", "cpus = [2]", &["m.toml:9", "CPU 1", "no node"]),
        ("cpus = [1]", "cpus = [1, 4000000000]", &["m.toml:9"]),
        ("\"16M\"", "\"1001K\"", &["m.toml:8", "4 KiB", "1000 KiB or 1004 KiB"]),
        ("\"16M\"", "\"0\"", &["m.toml:8"]),
        (
            "[\"32M\"]",
            "[{ at = \"1M\", size = \"32M\" }]",
            &["m.toml:4", "0x90000", "application processors"],
        ),
        ("name = \"m\"", "name = \"a/b\"", &["m.toml:2", "not a name", "letters"]),
    ];
    for (old, new, words) in cases {
        assert!(MACHINE.contains(old));
        bench.put("m.toml", MACHINE.replacen(old, new, 1).as_bytes());
        bench.refuses(&["run", "m.toml", "--dry-run"], 2, words);
        bench.refuses(&["run", "m.toml"], 2, words);
    }
    bench.put("m.toml", b"[[node]]\nmemory = [\"32M\"]\n");
    bench.refuses(&["run", "m.toml"], 2, &["m.toml:", "at least one CPU", "--cpus 1"]);
    bench.put("m.toml", b"[[node]]\ncpus = [\xff]\n");
    bench.refuses(&["run", "./m.toml"], 2, &["m.toml"]);
    bench.refuses(&["run", "./missing.toml"], 2, &["missing.toml"]);
    bench.refuses(&["run", "nosuch"], 2, &["nosuch", "default"]);
    let cmdline = "x".repeat(2048);
    let text = format!("[boot]\ncmdline = \"{cmdline}\"\n[[node]]\nmemory=[\"32M\"]\ncpus=[0]");
    bench.put("m.toml", text.as_bytes());
    bench.refuses(&["run", "m.toml"], 2, &["m.toml:2", "2048", "2047"]);
}

#[test]
fn flags_are_refused_by_name() {
    let bench = Bench::new();
    let long = "x".repeat(2048);
    let cases: &[(&[&str], &[&str])] = &[
        (&["--memory", "1001K"], &["--memory", "4 KiB"]),
        (&["--cpus", "0"], &["--cpus", "at least one"]),
        (&["--cpus", "100000"], &["--cpus", "at most"]),
        (&["--cmdline", &long], &["--cmdline", "2047"]),
        (&["--cmdline", "a\nb"], &["--cmdline", "one line"]),
        (&["--name", "../x"], &["--name", "letters"]),
        (&["--name", &long], &["--name", "44"]),
        (&["--disk", "size=1M,colour=1"], &["--disk", "colour", "readonly"]),
        (&["--disk", "size=100"], &["--disk", "512"]),
        (&["--numa", "guest_numa_id=0,colour=1"], &["--numa", "colour", "guest_numa_id"]),
        (&["--memory-zone", "id=a,size=32M", "--memory-zone", "id=a,size=32M"], &["--memory-zone", "twice"]),
        (
            &["--memory-zone", "id=a,size=32M,at=0", "--memory-zone", "id=b,size=32M,at=16M"],
            &["--memory-zone", "overlap"],
        ),
    ];
    for (flags, words) in cases {
        bench.refuses(&[&["run", "tiny", "--dry-run"], *flags].concat(), 2, words);
    }
}

#[test]
fn disks_are_refused_by_file() {
    let bench = Bench::new();
    if !has_kvm() {
        return;
    }
    bench.put("spin", &kernel(&SPIN));
    bench.put("empty.img", b"");
    bench.put("odd.img", &[0; 700]);
    bench.put("good.img", &[0; 1024]);
    for (file, word) in [("none.img", "cannot open"), ("empty.img", "truncate"), ("odd.img", "1024")] {
        let flag = format!("file={file},name=data");
        let args = ["run", "tiny", "--kernel", "spin", "--disk", &flag];
        bench.refuses(&args, 2, &["disk data", file, word]);
    }
    // Two disks of one machine are two users of the file.
    let args =
        ["run", "tiny", "--kernel", "spin", "--disk", "file=good.img", "--disk", "file=good.img,name=b"];
    bench.refuses(&args, 2, &["disk b", "good.img", "in use"]);
}

#[test]
fn kernels_are_refused_by_file() {
    let bench = Bench::new();
    let good = kernel(&SPIN);
    let damaged = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("empty", Vec::new(), &["is empty"]),
        ("text", b"hello, kernel\n".to_vec(), &["neither an ELF file nor a bzImage"]),
        ("head", good[..40].to_vec(), &["truncated"]),
        ("programs", good[..100].to_vec(), &["truncated"]),
        ("segment", good[..good.len() - 1].to_vec(), &["truncated", "segment"]),
        ("elf32", damaged(4, 1), &["64-bit"]),
        ("arm", damaged(18, 0xb7), &["not for x86-64"]),
        ("object", damaged(16, 1), &["not an executable"]),
        ("program", damaged(64, 3), &["not a kernel"]),
    ];
    for (name, bytes, words) in cases {
        bench.put(name, bytes);
        if has_kvm() {
            bench.refuses(&["run", "tiny", "--kernel", name], 2, &[&[*name], *words].concat());
        }
    }
    bench.refuses(&["run", "--kernel", "missing"], 2, &["missing", "No such file"]);
    bench.refuses(&["run", "--kernel", "."], 2, &["directory"]);
    bench.put("kernel", &good);
    bench.refuses(&["run", "tiny", "--kernel", "kernel", "--initrd", "missing"], 2, &["initrd", "missing"]);
    if !has_kvm() {
        return;
    }
    bench.refuses(&["run", "tiny", "--kernel", "kernel", "--boot", "pvh"], 2, &["PVH", "--boot linux"]);
    let mut big = kernel(&SPIN);
    big[64 + 40..64 + 48].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    bench.put("big", &big);
    bench.refuses(&["run", "tiny", "--kernel", "big"], 2, &["big", "0x10000000000", "RAM"]);
    let line = "x".repeat(2040);
    let run = ["run", "tiny", "--kernel", "kernel", "--paging", "4", "--cmdline", &line];
    bench.refuses(&run, 2, &["--cmdline", "2047"]);
}

#[test]
fn dumps_are_refused_by_file() {
    let bench = Bench::new();
    bench.put("text", b"hello\n");
    bench.put("elf", &kernel(&SPIN));
    let mut core = kernel(&SPIN);
    core[16] = 4;
    bench.put("core", &core);
    bench.put("cut", &core[..100]);
    for command in [&["inspect", "zones"][..], &["check"], &["inspect", "pagetables"]] {
        let refuses = |file: &str, words: &[&str]| {
            bench.refuses(&[command, &["--dump", file]].concat(), 1, &[&[file], words].concat());
        };
        refuses("missing", &["No such file"]);
        refuses("text", &["not a dump"]);
        refuses("elf", &["not a core file"]);
        refuses("core", &["not one of memvisor's", "memvisor dump"]);
        refuses("cut", &["truncated"]);
        refuses(".", &["not a regular file"]);
    }
    bench.refuses(&["check", "--mem", "missing"], 1, &["missing"]);
    bench.refuses(&["check", "--vm", "nobody"], 1, &["nobody"]);
    bench.refuses(&["check"], 1, &["memvisor run"]);
    bench.refuses(&["dump", "-o", "out"], 1, &["memvisor run"]);
    bench.refuses(&["check", "--vm", "a/b"], 2, &["a/b", "name"]);
}

#[test]
fn a_place_for_the_socket_that_cannot_be_used_is_named() {
    let bench = Bench::new();
    bench.put("kernel", &kernel(&SPIN));
    let run = ["run", "tiny", "--kernel", "kernel"];
    let deep = bench.path(&"d".repeat(100));
    fs::create_dir(&deep).expect("a folder");
    let before = bench.files();
    let out = bench.command(&run).env("XDG_RUNTIME_DIR", &deep).output().expect("starts");
    refused(&out, &run, 2, &["tiny.sock", "107", "XDG_RUNTIME_DIR"]);
    let out = bench.command(&run).env("XDG_RUNTIME_DIR", bench.path("kernel")).output().expect("starts");
    refused(&out, &run, 2, &["kernel"]);
    assert_eq!(bench.files(), before);
}

#[test]
fn a_second_guest_of_the_same_name_is_refused_and_the_first_goes_on() {
    let Some((bench, mut first)) = spinning_guest("twin") else { return };
    bench.refuses(&["run", "tiny", "--kernel", "kernel", "--name", "twin"], 2, &["twin", "--name"]);
    first.signal(Signal::INT);
    assert_eq!(first.end().0, Some(7));
    assert_eq!(bench.files(), [bench.path("kernel")]);
}

#[test]
fn a_socket_that_a_killed_memvisor_left_behind_is_taken_over() {
    let Some((bench, mut killed)) = spinning_guest("twin") else { return };
    killed.signal(Signal::KILL);
    assert_eq!(killed.end().0, None);
    assert!(bench.path("memvisor/twin.sock").exists());
    bench.refuses(&["check", "--vm", "twin"], 1, &["twin"]);
    let mut second = Guest::start(&bench, &["--name", "twin", "--timeout", "1"]);
    assert_eq!(second.end().0, Some(7));
    assert_eq!(bench.files(), [bench.path("kernel")]);
}

#[test]
fn a_host_without_room_is_told_so() {
    let Some(bench) = spinning_bench() else { return };
    let limited = |resource: Resource, limit: u64, words: &[&str]| {
        let run = ["run", "tiny", "--kernel", "kernel", "--memory", "64G"];
        let mut command = bench.command(&run);
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        // SAFETY: setrlimit(2) is a plain system call, allowed between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit)?)) };
        refused(&command.output().expect("starts"), &run, 6, words);
        assert_eq!(bench.files(), [bench.path("kernel")]);
    };
    limited(
        Resource::As,
        8 << 30,
        &["map a memfd for RAM at", "--memory", "ulimit", "Cannot allocate memory"],
    );
    limited(Resource::Fsize, 1 << 20, &["size a memfd for RAM at", "too large"]);
}

#[test]
fn guests_that_misbehave_end() {
    if !has_kvm() {
        return;
    }
    let bench = Bench::new();
    let ends = |name: &str, code: &[u8], flags: &[&str], status: i32, words: &[&str]| {
        bench.put("kernel", &kernel(code));
        let (code, text) = Guest::start(&bench, &[&["--name", name], flags].concat()).end();
        assert_eq!(code, Some(status), "{name}: {}", text.get(..2000).unwrap_or(&text));
        for word in words {
            assert!(text.contains(word), "{name} says nothing of {word:?}");
        }
        assert_eq!(bench.files(), [bench.path("kernel")]);
    };
    let limit = ["--timeout", "1"];
    ends("triple-fault", &TRIPLE_FAULT, &[], 5, &["triple fault"]);
    ends("spins", &SPIN, &limit, 7, &["time limit of 1 s"]);
    ends("halts", &[0xfa, 0xf4, 0xeb, 0xfd], &limit, 7, &["time limit"]);
    ends("floods-com1", &FLOOD, &limit, 7, &["time limit"]);
    ends("floods-the-device", &device_flood(), &limit, 7, &["time limit"]);
    ends("writes-everywhere", &WILD, &limit, 7, &["time limit"]);
    // A foreign kernel may end by a reset: that is how `reboot` ends.
    ends("resets", &[0xb0, 0xfe, 0xe6, 0x64, 0xf4], &[], 0, &["reset"]);
}

#[test]
fn a_spinning_or_flooding_guest_stays_controllable() {
    if !has_kvm() {
        return;
    }
    let bench = Bench::new();
    for (name, code) in [("spin", &SPIN[..]), ("flood", &FLOOD)] {
        bench.put("kernel", &kernel(code));
        let mut guest = Guest::start(&bench, &["--name", name]);
        guest.wait_for_socket(&bench, name);
        let dump = bench.run(&["dump", "--vm", name, "-o", "out"]);
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        fs::remove_file(bench.path("out")).expect("a dump");
        guest.wait_for_socket(&bench, name);
        guest.signal(Signal::INT);
        let (code, text) = guest.end();
        assert_eq!(code, Some(7));
        assert!(text.contains("SIGINT"));
        assert_eq!(bench.files(), [bench.path("kernel")]);
    }
}

#[test]
fn ctrl_a_x_ends_any_guest_and_gives_the_terminal_back() {
    if !has_kvm() {
        return;
    }
    let bench = Bench::new();
    let halt: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
    let guests =
        [("spin", &SPIN[..], true), ("halt", halt, true), ("flood", &FLOOD, true), ("stuck", &FLOOD, false)];
    for (name, code, read) in guests {
        bench.put("kernel", &kernel(code));
        let (mut guest, mut terminal) = Guest::start_on_terminal(&bench, &["--name", name]);
        if read {
            guest.read_terminal(&terminal);
        }
        guest.wait_for_socket(&bench, name);
        terminal.wait_for_raw();
        if !read {
            guest.wait_for_silence(&bench, name);
        }
        // Other keys are the guest's, with Ctrl-A before them or without.
        terminal.type_in(b"ab\x01cx");
        assert!(guest.is_there(), "{name}");
        terminal.type_in(b"\x01x");
        if !read {
            guest.read_terminal(&terminal);
        }
        let (code, text) = guest.end();
        assert_eq!(code, Some(7), "{name}");
        assert!(text.contains("stopped by Ctrl-A x"), "{name}: {}", text.get(..2000).unwrap_or(&text));
        assert!(terminal.edits_lines(), "{name} keeps the terminal");
        assert_eq!(bench.files(), [bench.path("kernel")]);
    }
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody_but_the_guest() {
    if !has_kvm() {
        return;
    }
    let bench = Bench::new();
    bench.put("kernel", &kernel(&FLOOD));
    let mut guest = Guest::start_unread(&bench, &["--name", "stuck"]);
    guest.wait_for_socket(&bench, "stuck");
    guest.wait_for_silence(&bench, "stuck");
    let dump = bench.run(&["dump", "--vm", "stuck", "-o", "out"]);
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    fs::remove_file(bench.path("out")).expect("a dump");
    // The first one ends the guest, the second one the wait for somebody who reads how it ended.
    guest.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    guest.signal(Signal::INT);
    assert_eq!(guest.end().0, Some(7));
    assert_eq!(bench.files(), [bench.path("kernel")]);
}

#[test]
fn filters_can_be_turned_off() {
    let Some(bench) = spinning_bench() else { return };
    for (flags, restricted) in [(&["--name", "free", "--no-seccomp"][..], false), (&["--name", "free"], true)]
    {
        let mut guest = Guest::start(&bench, flags);
        guest.wait_for_socket(&bench, "free");
        for thread in ["vcpu0", "event-loop"] {
            assert_eq!(guest.is_filtered(thread), restricted, "{thread} {flags:?}");
        }
        guest.signal(Signal::TERM);
        assert_eq!(guest.end().0, Some(7));
    }
}

#[test]
fn a_dump_that_cannot_be_finished_leaves_no_file_and_the_guest_running() {
    let Some((bench, mut guest)) = spinning_guest("lab") else { return };
    let files = bench.files();
    let dump = ["dump", "--vm", "lab", "-o", "out"];
    let mut command = bench.command(&dump);
    let limit = Rlimit { current: Some(4096), maximum: Some(4096) };
    // SAFETY: setrlimit(2) is a plain system call, allowed between fork and exec.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Fsize, limit)?)) };
    refused(&command.output().expect("starts"), &dump, 1, &["dump", "too large"]);
    assert_eq!(bench.files(), files);
    bench.refuses(&["dump", "--vm", "lab", "-o", "no/such/folder"], 1, &["no/such"]);
    guest.wait_for_socket(&bench, "lab");
    guest.signal(Signal::INT);
    assert_eq!(guest.end().0, Some(7));
}

#[test]
fn a_dump_that_was_cut_is_refused() {
    let Some((bench, mut guest)) = spinning_guest("lab") else { return };
    let dump = bench.run(&["dump", "--vm", "lab", "-o", "core"]);
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    guest.signal(Signal::INT);
    assert_eq!(guest.end().0, Some(7));
    let file = fs::OpenOptions::new().write(true).open(bench.path("core")).expect("a dump");
    let whole = file.metadata().expect("ours").len();
    for len in [whole - 1, whole / 2, 4096, 64, 20] {
        file.set_len(len).expect("ours");
        for command in [&["check"][..], &["inspect", "pagetables"]] {
            bench.refuses(&[command, &["--dump", "core"]].concat(), 1, &["core", "truncated"]);
        }
    }
    file.set_len(0).expect("ours");
    bench.refuses(&["check", "--dump", "core"], 1, &["core", "not a dump"]);
}

#[test]
fn ram_past_the_hosts_address_width_is_refused_before_anything_starts() {
    if !has_kvm() {
        return;
    }
    let kvm = memvisor::vcpu::open_kvm().expect("it is there");
    let bits = memvisor::vcpu::HostOffer::probe(&kvm, false).expect("it answers").phys_bits;
    if bits >= 52 {
        eprintln!("SKIPPED: this host's guests reach all that a machine file can say");
        return;
    }
    let bench = Bench::new();
    let at = 1_u64 << bits.max(46);
    let text = format!(
        "[boot]\npaging = 5\n[[node]]\nmemory = [\"32M\"]\ncpus = [0]\n[[node]]\nmemory = [{{ at = \"{at:#x}\", size = \"1M\" }}]\n"
    );
    bench.put("m.toml", text.as_bytes());
    bench.put("kernel", &kernel(&SPIN));
    let range = format!("{at:#x}..{:#x}", at + (1 << 20));
    let limit = format!("{:#x} or below", 1_u64 << bits);
    let words = ["node 1", range.as_str(), "MAXPHYADDR", &bits.to_string(), limit.as_str()];
    bench.refuses(&["run", "m.toml", "--kernel", "kernel"], 2, &words);
}

#[test]
fn huge_pages_that_the_host_has_not_are_refused_before_anything_starts() {
    let Some(bench) = spinning_bench() else { return };
    // More than any host has in its pools, and nothing that is touched.
    for backing in ["hugetlb-2m", "hugetlb-1g"] {
        let run = ["run", "tiny", "--kernel", "kernel", "--memory", "16T", "--backing", backing];
        bench.refuses(&run, 2, &[backing, "huge pages"]);
    }
    bench.refuses(&["run", "tiny", "--backing", "2m"], 2, &["--backing", "hugetlb-2m"]);
}

#[test]
fn a_peer_that_is_no_memvisor_is_told_apart() {
    let bench = Bench::new();
    fs::create_dir(bench.path("memvisor")).expect("a folder");
    let listener = UnixListener::bind(bench.path("memvisor/fake.sock")).expect("a socket");
    let answer = std::thread::spawn(move || {
        // The first connection only looks whether somebody listens.
        for stream in listener.incoming().take(2) {
            let _ = stream.expect("a connection").write_all(b"SSH-2.0-OpenSSH\r\n");
        }
    });
    bench.refuses(&["check", "--vm", "fake"], 1, &["fake"]);
    answer.join().expect("no panic");
}
