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
use memvisor_abi::port::ExitCode;
use memvisor_inspect::{Guest, MappedMemory, find_root, trace::Names, views::BtView};

mod arguments;
mod facts;

use arguments::{arguments, disk_file, memory_files};
use facts::facts;

use super::bed::{Ended, Observed};
use super::case::{Case, QemuSetup};
use super::command::mortal;
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
        let mut child = mortal(QEMU, "KILL")
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

    /// The case of a stanza with this table.
    pub fn case(table: &str) -> (Case, QemuSetup) {
        let text = format!("[[case]]\nname = \"boot/x\"\ndescription = \"d\"\ncmdline = \"no5lvl\"\n{table}");
        let case = parse("boot", &text).unwrap().remove(0);
        let Setup::Qemu(setup) = case.setup.clone() else { panic!("not QEMU's") };
        (case, setup)
    }

    /// A machine of three nodes.
    pub const NODES: &str = "[case.qemu]\ncpus = 2\nlevels = 5\ndistances = [[10, 21, 31], [12, 10, 32], [13, 23, 10]]\n\
        nodes = [{ memory_mib = 32, cpus = [1] }, { memory_mib = 0, cpus = [0] }, { memory_mib = 64 }]\n";

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
