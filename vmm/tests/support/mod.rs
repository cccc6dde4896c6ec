//! memvisor as a process, in a folder of its own, with kernels of a few instructions.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memvisor_abi::port;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder to run in, with a runtime directory of its own.
pub struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Bench {
        Bench(tempfile::tempdir().expect("temporary directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("write");
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memvisor"));
        command.args(args).current_dir(self.0.path());
        command.env("XDG_RUNTIME_DIR", self.0.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("memvisor starts")
    }

    /// Asserts that a command fails with `code` and one line that has all of `words`, and that it
    /// leaves no file.
    pub fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.files();
        refused(&self.run(args), args, code, words);
        assert_eq!(self.files(), before, "{args:?} leaves something behind");
    }

    /// All files below; folders are left out.
    pub fn files(&self) -> Vec<PathBuf> {
        fn list(folder: &Path, into: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    list(&entry.path(), into);
                } else {
                    into.push(entry.path());
                }
            }
        }
        let mut files = Vec::new();
        list(self.0.path(), &mut files);
        files.sort();
        files
    }
}

pub fn refused(out: &Output, args: &[&str], code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{args:?}: {text}");
    assert!(text.starts_with("memvisor: "), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?} says nothing of {word:?}: {text}");
    }
}

/// A memvisor process with a guest.
pub struct Guest {
    child: Child,
    output: Option<JoinHandle<String>>,
}

impl Guest {
    /// Runs `kernel` of the bench's folder.
    pub fn start(bench: &Bench, flags: &[&str]) -> Guest {
        let mut guest = Guest::start_unread(bench, flags);
        let mut stdout = guest.child.stdout.take().expect("a pipe");
        // Read all the time: a guest that floods must not wait for us.
        guest.output = Some(std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        }));
        guest
    }

    /// As [`Guest::start`], but nobody reads its output.
    pub fn start_unread(bench: &Bench, flags: &[&str]) -> Guest {
        let mut command = bench.command(&arguments(flags));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("memvisor starts");
        Guest { child, output: None }
    }

    /// As [`Guest::start_unread`], on a terminal of its own.
    pub fn start_on_terminal(bench: &Bench, flags: &[&str]) -> (Guest, Terminal) {
        let (terminal, slave) = Terminal::new();
        assert!(terminal.edits_lines(), "a new terminal does");
        let mut command = bench.command(&arguments(flags));
        for set in [Command::stdin, Command::stdout, Command::stderr] {
            set(&mut command, Stdio::from(slave.try_clone().expect("a descriptor")));
        }
        // SAFETY: setsid(2) and ioctl(2) are plain system calls, allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
            });
        }
        (Guest { child: command.spawn().expect("memvisor starts"), output: None }, terminal)
    }

    /// Reads its terminal from now on.
    pub fn read_terminal(&mut self, terminal: &Terminal) {
        let mut master = terminal.0.try_clone().expect("a descriptor");
        self.output = Some(std::thread::spawn(move || {
            let mut text = Vec::new();
            // Ends with an error when the last one on the other side is gone.
            let _ = master.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        }));
    }

    /// Waits until the guest runs and answers.
    pub fn wait_for_socket(&mut self, bench: &Bench, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let vms = bench.run(&["vms", "--json"]);
            let text = String::from_utf8_lossy(&vms.stdout);
            if text.contains(&format!("\"{name}\"")) && text.contains("\"running\"") {
                return;
            }
            assert!(Instant::now() < deadline, "no guest {name} runs: {text}");
            assert!(self.child.try_wait().expect("ours").is_none(), "the guest {name} ended");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the guest makes no more exits: its pipe is full.
    pub fn wait_for_silence(&mut self, bench: &Bench, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        let exits = || {
            let vms = bench.run(&["vms", "--json"]);
            let list: serde_json::Value = serde_json::from_slice(&vms.stdout).expect("JSON");
            assert_eq!(list[0]["name"], name);
            list[0]["stats"]["vcpus"][0]["exits"]["io_out"].as_u64()
        };
        let mut before = exits();
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = exits();
            if now == before && now > Some(0) {
                return;
            }
            assert!(Instant::now() < deadline, "the guest {name} does not wait for its reader");
            before = now;
        }
    }

    /// Whether the process has not ended.
    pub fn is_there(&mut self) -> bool {
        self.child.try_wait().expect("ours").is_none()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id")).expect("not 0");
        kill_process(pid, signal).expect("it runs");
    }

    /// Whether the thread of this name has a seccomp filter.
    pub fn is_filtered(&self, name: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        // Threads start after the socket is there.
        let task = loop {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
            let named =
                |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
            if let Some(task) = tasks.flatten().map(|task| task.path()).find(named) {
                break task;
            }
            assert!(Instant::now() < deadline, "there is no thread {name}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let status = fs::read_to_string(task.join("status")).expect("it runs");
        status.lines().any(|line| line == "Seccomp:\t2")
    }

    /// Exit code (`None` for a signal) and output.
    pub fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("ours") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the guest does not end"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let text = self.output.take().map(|output| output.join().expect("no panic")).unwrap_or_default();
        (status.code(), text)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arguments<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&["run", "tiny", "--kernel", "kernel", "--audit", "off"], flags].concat()
}

/// The side of a pseudo-terminal at which a person sits.
pub struct Terminal(File);

impl Terminal {
    /// With the side that a program gets.
    fn new() -> (Terminal, File) {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("our own");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let mut options = OpenOptions::new();
        let slave = options.read(true).write(true).open(OsStr::from_bytes(name.to_bytes())).expect("our own");
        (Terminal(File::from(master)), slave)
    }

    /// Whether lines are edited and echoed, as a shell wants it.
    pub fn edits_lines(&self) -> bool {
        let modes = tcgetattr(&self.0).expect("a terminal").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until memvisor has taken the terminal over.
    pub fn wait_for_raw(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.edits_lines() {
            assert!(Instant::now() < deadline, "nobody takes the terminal over");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn type_in(&mut self, keys: &[u8]) {
        self.0.write_all(keys).expect("there is room for a few keys");
    }
}

pub fn has_kvm() -> bool {
    match memvisor::vcpu::open_kvm() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: no KVM here: {error}");
            false
        }
    }
}

// Code that is entered in 64-bit mode, with an identity map of 4 GiB and no interrupt table.

/// `ud2`.
pub const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];
/// `jmp .`.
pub const SPIN: [u8; 2] = [0xeb, 0xfe];
/// `mov dx, 0x3f8; mov al, 'x'; again: out dx, al; jmp again`.
pub const FLOOD: [u8; 9] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
/// `mov edi, 0xb0000000; again: mov [rdi], rdi; add edi, 0x1008; and edi, 0xffffff; or edi, 0xb0000000;
/// jmp again`: where nothing is, mostly, in odd places.
pub const WILD: [u8; 28] = [
    0xbf, 0x00, 0x00, 0x00, 0xb0, 0x48, 0x89, 0x3f, 0x81, 0xc7, 0x08, 0x10, 0x00, 0x00, 0x81, 0xe7, 0xff,
    0xff, 0xff, 0x00, 0x81, 0xcf, 0x00, 0x00, 0x00, 0xb0, 0xeb, 0xe9,
];

/// Gives the memvisor device the longest text that it takes, again and again.
pub fn device_flood() -> Vec<u8> {
    let mut code = Vec::new();
    let mut out = |port: u16, value: u32| {
        code.extend([0x66, 0xba]);
        code.extend(port.to_le_bytes());
        code.push(0xb8);
        code.extend(value.to_le_bytes());
        code.push(0xef);
    };
    out(port::ARG_LO, 0x20_0000);
    out(port::ARG_HI, 0);
    out(port::ARG_LEN, port::CONSOLE_MAX);
    out(port::COMMAND, port::Command::Console as u32);
    let back = 0_u8.wrapping_sub(u8::try_from(code.len() + 2).expect("short"));
    code.extend([0xeb, back]);
    code
}

/// An ELF file with `code` at 2 MiB.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    let len = code.len() as u64;
    let mut file = Vec::from(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".as_slice());
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([0x20_0000_u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1_u32, 7].map(u32::to_le_bytes).concat());
    file.extend([120, 0x20_0000, 0x20_0000, len, len, 4096].map(u64::to_le_bytes).concat());
    file.extend(code);
    file
}
