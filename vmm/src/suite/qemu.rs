//! Bed qemu: the guest image under QEMU's software CPU, audited through its memory files.
//!
//! The guest has no memvisor device here. It prints `memvisor: checkpoint N NAME` on the serial line and,
//! told `checkpoint=serial`, waits for one byte on it. In between its CPUs are stopped and its memory is
//! read through shared memory files, so that nothing moves under the audit. The exit code comes through
//! isa-debug-exit, which turns a code into (code << 1) | 1.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use memvisor_abi::E820Entry;
use memvisor_abi::port::ExitCode;
use memvisor_inspect::{
    FactCpu, FactE820, FactNodeMemory, Facts, Guest, MappedMemory, find_root, trace::Names, views::BtView,
};

use super::bed::{Ended, Observed};
use super::case::{BlankDisk, Case, QemuNode, QemuSetup};
use super::initrd;
use super::outcome::{Outcome, Subcase, Usage};
use super::outside::audit;
use super::probes::{Control, Held, walkthrough_is_complete};
use super::qmp::Qmp;
use super::samples::{Recorder, Series};
use super::stuck;
use crate::explain::{self, Collector, Explanation, Part, Walk};
use crate::loader::kernel_symbols;

/// The program.
const QEMU: &str = "qemu-system-x86_64";
/// Port of isa-debug-exit.
const EXIT_PORT: &str = "0xf4";
/// What a checkpoint's line begins with.
const CHECKPOINT: &str = "memvisor: checkpoint ";
/// Console output kept; a guest that prints without end is cut here.
const CONSOLE_MAX: usize = 4 << 20;

/// Why this bed cannot be used here; `None` if it can.
pub fn missing() -> Option<String> {
    match Command::new(QEMU).arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("{QEMU} --version fails with {}", output.status)),
        Err(_) => Some(format!("{QEMU} is not installed; `make setup` or: apt-get install qemu-system-x86")),
    }
}

/// QEMU, to be killed with this program: a guest that nobody answers would wait at its checkpoint for ever.
/// `setpriv` (util-linux) arranges that; without it a killed `memvisor test` may leave a QEMU behind.
fn command() -> Command {
    let setpriv = Command::new("setpriv").arg("--version").stdin(Stdio::null()).output();
    if setpriv.is_ok_and(|output| output.status.success()) {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", QEMU]);
        command
    } else {
        Command::new(QEMU)
    }
}

/// A QEMU process with its files; dropped, it is gone.
struct Machine {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    messages: Receiver<Vec<u8>>,
    qmp: Qmp,
    memory: MappedMemory,
    files: Vec<(PathBuf, u64)>,
    /// The walkthrough that the case runs, read at its checkpoints as `memvisor explain` does.
    told: Option<(&'static Walk, Collector)>,
    // Removed last.
    _folder: tempfile::TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may be gone already; then both say so, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a case with the guest image at `image`; `watched`, with samples of its memory.
///
/// # Errors
/// What kept QEMU from starting.
pub fn run(
    case: &Case,
    setup: &QemuSetup,
    image: &Path,
    deadline: Instant,
    watched: bool,
) -> anyhow::Result<Observed> {
    let mut machine = Machine::start(case, setup, image)?;
    let recorder = watched.then(|| machine.watch()).transpose()?;
    let mut observed = Observed {
        ended: Ended::Other("still running".to_owned()),
        console: String::new(),
        messages: String::new(),
        audits: Vec::new(),
        // QEMU's software CPU has no exits, and counts instructions only if it is slowed down for it.
        usage: Usage::default(),
        probes: Vec::new(),
        problems: Vec::new(),
        samples: Series::default(),
    };
    let status = machine.attend(case, setup, deadline, &mut observed);
    if status.is_none() {
        let calls = machine.calls(setup, image).map(|view| view.to_string());
        observed.problems.push(stuck::told(calls));
    }
    observed.samples = recorder.map_or_else(Series::default, Recorder::end);
    if let Some((walk, collector)) = machine.told.take() {
        let outcome = told_completely(walk, collector.parts)?;
        observed.probes.push(Subcase { name: "explain-complete".to_owned(), outcome });
    }
    observed.messages = drain(&machine.messages);
    observed.ended = match status {
        None => Ended::Other(format!("no end within {} s", case.timeout.as_secs())),
        Some(status) => ended(status, &observed),
    };
    Ok(observed)
}

/// QEMU itself exits with 1 when it cannot start, which is also how a guest's code 0 arrives: a guest that
/// said nothing did not end cleanly.
fn ended(status: ExitStatus, observed: &Observed) -> Ended {
    if let Some(signal) = status.signal() {
        return Ended::Other(format!("QEMU was killed by signal {signal}"));
    }
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Ended::Clean,
        Some(1) if observed.console.is_empty() => {
            Ended::Other(format!("QEMU gave up: {}", observed.messages.trim()))
        }
        Some(1) => Ended::Clean,
        Some(odd) if odd % 2 == 1 => Ended::Guest(odd >> 1, ExitCode::describe(odd >> 1)),
        _ => Ended::Other(format!("QEMU ended with {status}: {}", observed.messages.trim())),
    }
}

impl Machine {
    fn start(case: &Case, setup: &QemuSetup, image: &Path) -> anyhow::Result<Machine> {
        // Memory files belong into memory.
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("memvisor-qemu-").tempdir_in(parent)?;
        let socket = folder.path().join("qmp");
        let files = memory_files(setup, folder.path())?;
        for (number, disk) in setup.disks.iter().enumerate() {
            File::create(disk_file(folder.path(), number))?.set_len(disk.size_mib << 20)?;
        }
        let mut child = command()
            .args(arguments(case, setup, &files, &socket, image))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            anyhow::bail!("{QEMU} was started without its pipes");
        };
        let messages = pump(errors);
        let output = pump(output);
        let qmp = match Qmp::connect(&socket, Duration::from_secs(20)) {
            Ok(qmp) => qmp,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                anyhow::bail!("{error}; {QEMU} says: {}", drain(&messages).trim());
            }
        };
        let files: Vec<(PathBuf, u64)> = files.into_iter().map(|file| (file.path, file.gpa)).collect();
        let memory = MappedMemory::from_mem_files(&files)?;
        let told = walk_of(&case.cmdline).map(|walk| (walk, Collector::new(walk)));
        Ok(Machine { child, input, output, messages, qmp, memory, files, told, _folder: folder })
    }

    /// Begins to look at its memory, by a mapping of its own.
    fn watch(&self) -> anyhow::Result<Recorder> {
        let memory = MappedMemory::from_mem_files(&self.files)?;
        Ok(Recorder::start(memory, find_root))
    }

    /// Reads the console until QEMU ends, and does what checkpoints ask for. `None` when time is over.
    fn attend(
        &mut self,
        case: &Case,
        setup: &QemuSetup,
        deadline: Instant,
        observed: &mut Observed,
    ) -> Option<ExitStatus> {
        let mut bytes = Vec::new();
        let mut scanned = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(more) if !left.is_zero() => {
                    if bytes.len() < CONSOLE_MAX {
                        bytes.extend(more);
                    }
                }
                // A guest that never stops talking has no time left, either.
                Ok(_) | Err(RecvTimeoutError::Timeout) => {
                    observed.console = String::from_utf8_lossy(&bytes).into_owned();
                    return None;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Some(len) = bytes[scanned..].iter().position(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(&bytes[scanned..scanned + len]).into_owned();
                scanned += len + 1;
                let Some(name) = line.trim().strip_prefix(CHECKPOINT) else { continue };
                if let Err(error) = self.checkpoint(case, setup, name, &bytes, observed) {
                    observed.problems.push(format!("checkpoint {name}: {error:#}"));
                }
                // If QEMU is gone, its exit status says more than this error.
                let _ = self.input.write_all(b"\n").and_then(|()| self.input.flush());
            }
        }
        observed.console = String::from_utf8_lossy(&bytes).into_owned();
        self.child.wait().ok()
    }

    /// The calls that its tasks are in.
    fn calls(&mut self, setup: &QemuSetup, image: &Path) -> anyhow::Result<BtView> {
        self.qmp.pause()?;
        let registers = self.qmp.registers(setup.cpus)?;
        let root_gpa = find_root(&self.memory).context("no root descriptor in the guest's memory")?;
        let guest = Guest::attach(&self.memory, root_gpa)?;
        let symbols = kernel_symbols(&guest, Some(image))?;
        Ok(BtView::new(&guest, &registers, &symbols, None)?)
    }

    /// Whatever an examination comes to, the guest goes on.
    fn checkpoint(
        &mut self,
        case: &Case,
        setup: &QemuSetup,
        name: &str,
        console: &[u8],
        observed: &mut Observed,
    ) -> anyhow::Result<()> {
        self.qmp.pause()?;
        let examined = self.examine(case, setup, name, console, observed);
        self.qmp.resume()?;
        examined
    }

    fn examine(
        &mut self,
        case: &Case,
        setup: &QemuSetup,
        name: &str,
        console: &[u8],
        observed: &mut Observed,
    ) -> anyhow::Result<()> {
        let registers = self.qmp.registers(setup.cpus)?;
        let Some(root_gpa) = find_root(&self.memory) else {
            anyhow::bail!("no root descriptor in the guest's memory");
        };
        let guest = Guest::attach(&self.memory, root_gpa)?;
        let facts = facts(setup, &case.cmdline, &guest.e820_raw()?);
        observed.audits.push(audit(&self.memory, root_gpa, &facts, &registers));
        if let Some((_, collector)) = &mut self.told {
            let mut names = Names::default();
            names.refresh(&guest);
            // The number comes first.
            let title = name.split_once(' ').map_or(name, |(_, title)| title);
            collector.checkpoint(title, &guest, &names)?;
        }
        // The probes want a guest that has everything: a user address space too.
        let user = guest.address_spaces().is_ok_and(|spaces| spaces.iter().any(|space| space.pid != 0));
        if user && observed.probes.is_empty() {
            let console = String::from_utf8_lossy(console);
            let mut held = Held {
                console: &console,
                memory: &self.memory,
                root_gpa,
                registers: &registers,
                facts: &facts,
                control: Control::Qemu(&mut self.qmp, &self.files),
            };
            for probe in &case.expect.probes {
                let outcome = probe.run(&mut held);
                observed.probes.push(Subcase { name: probe.name().to_owned(), outcome });
            }
            observed.probes.push(levels(&held, setup.levels));
        }
        Ok(())
    }
}

/// The walkthrough that a command line names.
fn walk_of(cmdline: &str) -> Option<&'static Walk> {
    cmdline.split_ascii_whitespace().find_map(|word| explain::find(word.strip_prefix("explain=")?))
}

/// Whether what was told of a walkthrough is all of it.
fn told_completely(walk: &Walk, parts: Vec<Part>) -> anyhow::Result<Outcome> {
    let explanation = Explanation { name: walk.name.to_owned(), about: walk.about.to_owned(), parts };
    Ok(walkthrough_is_complete(walk.name, &serde_json::to_value(explanation)?))
}

/// The depth that the stanza asks for, against CR4 and against what the guest says.
fn levels(held: &Held<'_>, wanted: u32) -> Subcase {
    let mut problems = Vec::new();
    for cpu in held.registers {
        match cpu.levels() {
            Some(levels) if levels == wanted => {}
            other => problems.push(format!("CPU {} runs with {other:?} levels, not {wanted}", cpu.index)),
        }
    }
    match Guest::attach(held.memory, held.root_gpa) {
        Ok(guest) if guest.root().levels == wanted => {}
        Ok(guest) => problems.push(format!("the guest says {} levels, not {wanted}", guest.root().levels)),
        Err(error) => problems.push(error.to_string()),
    }
    Subcase { name: format!("levels-{wanted}"), outcome: Outcome::from_problems(problems) }
}

/// What this stanza builds. The E820 map is the firmware's: the guest's copy of it has to do.
fn facts(setup: &QemuSetup, cmdline: &str, firmware: &[E820Entry]) -> Facts {
    let mut facts = Facts {
        machine: "qemu q35".to_owned(),
        levels: setup.levels,
        cmdline: cmdline.to_owned(),
        e820: firmware
            .iter()
            .map(|entry| FactE820 { addr: entry.addr, size: entry.size, kind: entry.kind })
            .collect(),
        ..Facts::default()
    };
    let mut base = 0;
    let whole = [QemuNode { memory_mib: setup.memory_mib, cpus: (0..setup.cpus).collect() }];
    let nodes = if setup.nodes.is_empty() { whole.as_slice() } else { &setup.nodes };
    for (number, node) in (0..).zip(nodes) {
        let len = node.memory_mib << 20;
        if len > 0 {
            facts.node_memory.push(FactNodeMemory { node: number, base, len });
        }
        base += len;
        // With -smp N alone every CPU is a socket, and APIC ids count up from 0.
        facts.cpus.extend(node.cpus.iter().map(|cpu| FactCpu { apic_id: *cpu, node: number }));
    }
    facts.cpus.sort_by_key(|cpu| cpu.apic_id);
    facts.distances.clone_from(&setup.distances);
    facts
}

/// A file that holds part of the guest's RAM.
struct MemoryFile {
    id: String,
    path: PathBuf,
    gpa: u64,
    mib: u64,
}

/// One file a node, in the order in which q35 puts nodes into its address space: all below 2 GiB, without
/// a hole. A machine without nodes has one file.
fn memory_files(setup: &QemuSetup, folder: &Path) -> std::io::Result<Vec<MemoryFile>> {
    let sizes: Vec<u64> = if setup.nodes.is_empty() {
        vec![setup.memory_mib]
    } else {
        setup.nodes.iter().map(|node| node.memory_mib).collect()
    };
    let mut files = Vec::new();
    let mut gpa = 0;
    for (node, mib) in sizes.into_iter().enumerate().filter(|(_, mib)| *mib > 0) {
        let id = format!("m{node}");
        let path = folder.join(&id);
        File::create(&path)?.set_len(mib << 20)?;
        files.push(MemoryFile { id, path, gpa, mib });
        gpa += mib << 20;
    }
    Ok(files)
}

fn arguments(
    case: &Case,
    setup: &QemuSetup,
    files: &[MemoryFile],
    socket: &Path,
    image: &Path,
) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-accel", "tcg", "-cpu", &setup.cpu]);
    add(&["-display", "none", "-nodefaults", "-no-user-config", "-serial", "stdio", "-no-reboot"]);
    add(&["-device", &format!("isa-debug-exit,iobase={EXIT_PORT},iosize=4")]);
    add(&["-qmp", &format!("unix:{},server=on,wait=off", escape(&socket.display().to_string()))]);
    add(&["-m", &setup.total_mib().to_string(), "-smp", &setup.cpus.to_string()]);
    for file in files {
        let path = escape(&file.path.display().to_string());
        add(&[
            "-object",
            &format!("memory-backend-file,id={},size={}M,mem-path={path},share=on", file.id, file.mib),
        ]);
    }
    if setup.nodes.is_empty() {
        add(&["-M", "q35,memory-backend=m0"]);
    } else {
        add(&["-M", "q35"]);
        for (number, node) in setup.nodes.iter().enumerate() {
            let mut text = format!("node,nodeid={number}");
            if node.memory_mib > 0 {
                text.push_str(&format!(",memdev=m{number}"));
            }
            for cpu in &node.cpus {
                text.push_str(&format!(",cpus={cpu}"));
            }
            add(&["-numa", &text]);
        }
        for (from, row) in setup.distances.iter().enumerate() {
            for (to, distance) in row.iter().enumerate() {
                add(&["-numa", &format!("dist,src={from},dst={to},val={distance}")]);
            }
        }
    }
    let folder = socket.parent().unwrap_or(Path::new("/"));
    for (number, disk) in setup.disks.iter().enumerate() {
        let file = escape(&disk_file(folder, number).display().to_string());
        add(&["-drive", &drive(disk, number, &file)]);
        let serial = escape(&disk.name);
        add(&["-device", &format!("virtio-blk-pci,drive=disk{number},serial={serial}")]);
    }
    for image in &case.images {
        let (file, name) = (escape(&image.path.display().to_string()), escape(&image.name));
        add(&["-drive", &format!("if=none,id=image-{name},format=raw,file={file}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=image-{name},serial={name}")]);
    }
    let cmdline = format!("{} checkpoint=serial debug_exit={EXIT_PORT}", case.cmdline);
    add(&["-kernel", &image.display().to_string(), "-append", cmdline.trim()]);
    if let Some(name) = &case.initrd {
        add(&["-initrd", &initrd::path(name).display().to_string()]);
    }
    args
}

/// The file of disk `number`.
fn disk_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("disk{number}"))
}

/// The `-drive` of a disk; blkdebug makes its errors.
fn drive(disk: &BlankDisk, number: usize, file: &str) -> String {
    let read_only = if disk.read_only { "on" } else { "off" };
    let mut text = format!("if=none,id=disk{number},format=raw,readonly={read_only}");
    let errors = [("read", &disk.read_errors), ("write", &disk.write_errors)];
    let mut errors =
        errors.iter().flat_map(|(kind, sectors)| sectors.iter().map(move |sector| (kind, sector))).peekable();
    if errors.peek().is_none() {
        return format!("{text},file={file}");
    }
    text.push_str(&format!(",file.driver=blkdebug,file.image.driver=file,file.image.filename={file}"));
    for (index, (kind, sector)) in errors.enumerate() {
        let rule = format!("file.inject-error.{index}");
        text.push_str(&format!(
            ",{rule}.event=none,{rule}.iotype={kind},{rule}.sector={sector},{rule}.errno=5,{rule}.once=off"
        ));
    }
    text
}

/// QEMU's option parser doubles commas.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

/// Reads a pipe to its end on a thread of its own, so that its writer never blocks.
fn pump(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver): (Sender<Vec<u8>>, _) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(len) if sender.send(buffer[..len].to_vec()).is_err() => return,
                Ok(_) => {}
            }
        }
    });
    receiver
}

/// What a pipe gave so far; after its writer ended, all of it.
fn drain(receiver: &Receiver<Vec<u8>>) -> String {
    let mut bytes = Vec::new();
    while let Ok(more) = receiver.recv_timeout(Duration::from_millis(200)) {
        bytes.extend(more);
        if bytes.len() > CONSOLE_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::{Setup, parse};

    fn case(table: &str) -> (Case, QemuSetup) {
        let text = format!("[[case]]\nname = \"boot/x\"\ndescription = \"d\"\ncmdline = \"no5lvl\"\n{table}");
        let case = parse("boot", &text).unwrap().remove(0);
        let Setup::Qemu(setup) = case.setup.clone() else { panic!("not QEMU's") };
        (case, setup)
    }

    const NODES: &str = "[case.qemu]\ncpus = 2\nlevels = 5\ndistances = [[10, 21, 31], [12, 10, 32], [13, 23, 10]]\n\
        nodes = [{ memory_mib = 32, cpus = [1] }, { memory_mib = 0, cpus = [0] }, { memory_mib = 64 }]\n";

    #[test]
    fn nodes_become_files_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (_, setup) = case(NODES);
        let files = memory_files(&setup, folder.path()).unwrap();
        let shape: Vec<_> = files.iter().map(|file| (file.id.as_str(), file.gpa, file.mib)).collect();
        assert_eq!(shape, [("m0", 0, 32), ("m2", 32 << 20, 64)]);
        assert_eq!(files[1].path.metadata().unwrap().len(), 64 << 20);
    }

    #[test]
    fn the_command_line_names_nodes_distances_and_the_handshake() {
        let folder = tempfile::tempdir().unwrap();
        let (case, setup) = case(NODES);
        let files = memory_files(&setup, folder.path()).unwrap();
        let line = arguments(&case, &setup, &files, Path::new("/a,b/qmp"), Path::new("guest.elf")).join(" ");
        for part in [
            "-numa node,nodeid=0,memdev=m0,cpus=1",
            "-numa node,nodeid=1,cpus=0",
            "-numa node,nodeid=2,memdev=m2",
            "-numa dist,src=1,dst=2,val=32",
            "-m 96 -smp 2",
            "unix:/a,,b/qmp,server=on",
            "-append no5lvl checkpoint=serial debug_exit=0xf4",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }

    #[test]
    fn facts_follow_the_stanza() {
        let (_, setup) = case(NODES);
        let facts = facts(&setup, "", &[]);
        assert_eq!(
            facts.node_memory,
            [
                FactNodeMemory { node: 0, base: 0, len: 32 << 20 },
                FactNodeMemory { node: 2, base: 32 << 20, len: 64 << 20 }
            ]
        );
        assert_eq!(facts.cpus, [FactCpu { apic_id: 0, node: 1 }, FactCpu { apic_id: 1, node: 0 }]);
        assert_eq!(facts.distances[1][2], 32);
    }

    fn observed(console: &str) -> Observed {
        Observed {
            ended: Ended::Clean,
            console: console.to_owned(),
            messages: "qemu: no such machine".to_owned(),
            audits: Vec::new(),
            usage: Usage::default(),
            probes: Vec::new(),
            problems: Vec::new(),
            samples: Series::default(),
        }
    }

    #[test]
    fn exit_codes_come_through_the_debug_port() {
        let status = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(ended(status(1), &observed("hello")), Ended::Clean);
        assert_eq!(ended(status(0), &observed("hello")), Ended::Clean);
        assert_eq!(ended(status(203), &observed("hello")), Ended::Guest(101, "the guest kernel panicked"));
        let Ended::Other(why) = ended(status(1), &observed("")) else {
            panic!("a silent guest ended cleanly")
        };
        assert!(why.contains("no such machine"));
        assert!(matches!(ended(ExitStatus::from_raw(9), &observed("x")), Ended::Other(_)));
    }
}
