//! A stock Linux at its shell prompt: `memvisor run` as a person starts it, on a terminal of its own.
//!
//! The case's dialogue says what to wait for and what to type. Before its last line is typed, while Linux runs, the
//! case's probes examine it ([`super::live`]).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::super::bed::{Ended, Observed};
use super::super::case::{Case, KvmSetup};
use super::super::command::program;
use super::super::kvm;
use super::super::outcome::{Outcome, Subcase, Usage};
use super::live;
use crate::control::Client;
use crate::run::ExitStatus;

/// Output kept of a run.
const OUTPUT_MAX: usize = 16 << 20;
/// How long memvisor may take to end after its guest did.
const POLL: Duration = Duration::from_millis(20);

/// Runs a case with a dialogue.
///
/// # Errors
/// What kept memvisor from starting.
pub fn run(case: &Case, setup: &KvmSetup, deadline: Instant) -> anyhow::Result<Observed> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("prompt-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut prompt = Prompt::start(case, setup, &name)?;
    let mut observed = Observed {
        ended: Ended::Other(format!("no end within {} s", case.timeout.as_secs())),
        console: String::new(),
        messages: String::new(),
        audits: Vec::new(),
        usage: Usage::default(),
        probes: Vec::new(),
        problems: Vec::new(),
    };
    if let Err(error) = prompt.converse(case, &name, deadline, &mut observed) {
        observed.problems.push(format!("{error:#}"));
    } else {
        observed.ended = prompt.end(deadline);
    }
    drop(prompt.child.kill());
    drop(prompt.child.wait());
    observed.console = prompt.output.text().replace('\r', "");
    let outcome = super::examine(setup, &observed.console)?;
    observed.probes.push(Subcase { name: super::NAME.to_owned(), outcome });
    Ok(observed)
}

/// A memvisor process on a terminal.
struct Prompt {
    child: Child,
    /// The other end of its terminal.
    keyboard: File,
    output: Arc<Output>,
}

impl Drop for Prompt {
    fn drop(&mut self) {
        // It may be gone already; then both say so, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prompt {
    fn start(case: &Case, setup: &KvmSetup, name: &str) -> anyhow::Result<Prompt> {
        let (keyboard, terminal) = open_terminal().context("open a terminal")?;
        // memvisor listens to a terminal only if that is its own.
        let mut child = Command::new("setsid")
            .arg("-c")
            .arg(program()?)
            .args(kvm::arguments(setup, &case.cmdline).into_iter().filter(|word| word != "--json"))
            .args(["--name", name])
            .stdin(terminal)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start memvisor on a terminal, by setsid")?;
        let output = Arc::new(Output::default());
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for pipe in pipes.into_iter().flatten() {
            let output = output.clone();
            std::thread::spawn(move || output.fill(pipe));
        }
        Ok(Prompt { child, keyboard, output })
    }

    fn converse(
        &mut self,
        case: &Case,
        name: &str,
        deadline: Instant,
        observed: &mut Observed,
    ) -> anyhow::Result<()> {
        let mut at = 0;
        for (index, line) in case.dialogue.iter().enumerate() {
            at = self.output.wait(&line.wait, at, deadline)?;
            if index + 1 == case.dialogue.len() {
                let client = Client::find(Some(name)).context("find the running guest")?;
                let console = self.output.text();
                for probe in &case.expect.probes {
                    let outcome = live::examine(*probe, &client, &console)
                        .unwrap_or_else(|error| Outcome::Failed(vec![format!("{error:#}")]));
                    observed.probes.push(Subcase { name: probe.name().to_owned(), outcome });
                }
                observed.usage = kvm::usage(&client.info()?.stats);
            }
            if !line.text.is_empty() {
                // What the Enter key sends.
                self.keyboard.write_all(format!("{}\r", line.text).as_bytes()).context("type a line")?;
            }
        }
        Ok(())
    }

    /// Waits for the process's end.
    fn end(&mut self, deadline: Instant) -> Ended {
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(Some(status)) if status.code() == Some(ExitStatus::Clean as i32) => return Ended::Clean,
                Ok(Some(status)) => return Ended::Other(format!("memvisor ended with {status}")),
                _ => return Ended::Other("memvisor did not end after its guest".to_owned()),
            }
        }
    }
}

/// Both ends of a new terminal: ours, and the one that is a terminal to its process.
fn open_terminal() -> anyhow::Result<(File, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).context("/dev/ptmx")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let path = std::ffi::OsString::from_vec(ptsname(&ours, Vec::new())?.into_bytes());
    let theirs = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    Ok((File::from(ours), theirs.into()))
}

/// What a process has printed so far.
#[derive(Debug, Default)]
struct Output {
    printed: Mutex<Printed>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Printed {
    bytes: Vec<u8>,
    /// Pipes at their end.
    ended: usize,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, mut pipe: impl Read) {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = pipe.read(&mut chunk) {
            let mut printed = self.lock();
            if printed.bytes.len() < OUTPUT_MAX {
                printed.bytes.extend_from_slice(chunk.get(..len).unwrap_or(&[]));
            }
            self.more.notify_all();
        }
        self.lock().ended += 1;
        self.more.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// Waits until `text` is printed from `at` on, and says where it ends.
    fn wait(&self, text: &str, at: usize, deadline: Instant) -> anyhow::Result<usize> {
        let mut printed = self.lock();
        loop {
            let new = printed.bytes.get(at..).unwrap_or(&[]);
            if let Some(found) = new.windows(text.len().max(1)).position(|bytes| bytes == text.as_bytes()) {
                return Ok(at + found + text.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if printed.ended == 2 || left.is_zero() {
                let tail = String::from_utf8_lossy(new.get(new.len().saturating_sub(300)..).unwrap_or(new));
                let why = if left.is_zero() { "within the case's time" } else { "before memvisor ended" };
                bail!("Linux did not say {text:?} {why}; it said last: {tail:?}");
            }
            printed = self.more.wait_timeout(printed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_waited_for_from_a_place_on() {
        let output = Output::default();
        let soon = || Instant::now() + Duration::from_secs(5);
        output.fill(&b"/ # echo 42\n42\n/ # "[..]);
        let at = output.wait("/ # ", 0, soon()).unwrap();
        let at = output.wait("42", at, soon()).unwrap();
        let at = output.wait("42", at, soon()).unwrap();
        assert_eq!(at, 14);
        output.fill(&b""[..]);
        let error = output.wait("42", at, soon()).unwrap_err().to_string();
        assert!(error.contains("before memvisor ended") && error.contains("/ # "), "{error}");
    }

    #[test]
    fn a_terminal_carries_what_is_typed() {
        let (mut ours, theirs) = open_terminal().unwrap();
        ours.write_all(b"ls\r").unwrap();
        let mut line = [0; 3];
        File::from(theirs).read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ls\n");
    }
}
