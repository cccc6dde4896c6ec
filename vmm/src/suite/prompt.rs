//! A guest at its shell prompt: `memvisor run` as a person starts it, on a terminal of its own.
//!
//! The case's dialogue says what to wait for and what to type. Before its last line is typed, while a stock Linux
//! runs, the case's probes examine it ([`linux::examine_live`]). memvisor's own kernel is audited, so its run is asked
//! for the JSON document that the audits are in; its console is then the error output.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::bed::{Ended, Observed};
use super::case::{Case, KvmSetup};
use super::command::{mortal, program};
use super::kvm::{self, ExitedWith};
use super::linux;
use super::outcome::{Outcome, Subcase, Usage};
use super::samples::Series;
use crate::control::Client;
use crate::run::ExitStatus;

/// Output kept of a run.
const OUTPUT_MAX: usize = 16 << 20;
/// How often the process is asked whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// Runs a case with a dialogue.
///
/// # Errors
/// What kept memvisor from starting.
pub fn run(case: &Case, setup: &KvmSetup, deadline: Instant) -> anyhow::Result<Observed> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("prompt-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let is_linux = setup.linux.is_some();
    let mut prompt = Prompt::start(case, setup, &name)?;
    let mut observed = Observed {
        ended: Ended::Other(format!("no end within {} s", case.timeout.as_secs())),
        console: String::new(),
        messages: String::new(),
        audits: Vec::new(),
        usage: Usage::default(),
        probes: Vec::new(),
        problems: Vec::new(),
        samples: Series::default(),
    };
    if let Err(error) = prompt.converse(case, &name, deadline, &mut observed) {
        observed.problems.push(format!("{error:#}"));
    } else {
        let ended = prompt.end(deadline);
        if is_linux {
            observed.ended = ended_of(ended);
        } else {
            observed = kvm::observed(ended, &prompt.document.text(), prompt.output.text(), case)?;
        }
    }
    drop(prompt.child.kill());
    drop(prompt.child.wait());
    observed.console = prompt.output.text().replace('\r', "");
    if is_linux {
        let outcome = linux::examine(setup, &observed.console)?;
        observed.probes.push(Subcase { name: linux::NAME.to_owned(), outcome });
    }
    Ok(observed)
}

/// How a Linux ended, for which no document is asked.
fn ended_of(ended: Option<ExitedWith>) -> Ended {
    match ended {
        Some(ExitedWith(Some(code))) if code == ExitStatus::Clean as i32 => Ended::Clean,
        Some(ExitedWith(Some(code))) => Ended::Other(format!("memvisor exited with {code}")),
        Some(ExitedWith(None)) => Ended::Other("memvisor was killed by a signal".to_owned()),
        None => Ended::Other("memvisor did not end after its guest".to_owned()),
    }
}

/// A memvisor process on a terminal.
struct Prompt {
    child: Child,
    /// The other end of its terminal.
    keyboard: File,
    /// The guest's console, among what memvisor says itself.
    output: Arc<Output>,
    /// The run's JSON document; empty for a Linux, whose console is standard output.
    document: Arc<Output>,
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
        let is_linux = setup.linux.is_some();
        let (keyboard, terminal) = open_terminal().context("open a terminal")?;
        // memvisor listens to a terminal only if that is its own.
        let mut child = mortal("setsid", "TERM")
            .arg("-c")
            .arg(program()?)
            .args(kvm::arguments(case, setup).into_iter().filter(|word| !is_linux || word != "--json"))
            .args(["--name", name])
            .stdin(terminal)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start memvisor on a terminal, by setsid")?;
        let (output, document) = (Arc::new(Output::default()), Arc::new(Output::default()));
        let standard = if is_linux { output.clone() } else { document.clone() };
        if let Some(pipe) = child.stdout.take() {
            standard.follow(pipe);
        }
        if let Some(pipe) = child.stderr.take() {
            output.follow(pipe);
        }
        Ok(Prompt { child, keyboard, output, document })
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
                    let outcome = linux::examine_live(*probe, &client, &console)
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

    /// Waits for the process's end and for the last of its output; `None` if it does not end in time.
    fn end(&mut self, deadline: Instant) -> Option<ExitedWith> {
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                Ok(Some(status)) => {
                    self.output.wait_for_end(deadline);
                    self.document.wait_for_end(deadline);
                    return Some(ExitedWith(status.code()));
                }
                _ => return None,
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
    /// Pipes that are not at their end.
    writers: usize,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a pipe gives until its end, on a thread of its own.
    fn follow(self: &Arc<Output>, pipe: impl Read + Send + 'static) {
        self.lock().writers += 1;
        let output = Arc::clone(self);
        std::thread::spawn(move || output.fill(pipe));
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
        self.lock().writers -= 1;
        self.more.notify_all();
    }

    /// Waits until every pipe is at its end, at most until `deadline`.
    fn wait_for_end(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let printed = self.lock();
        // Whoever reads the text afterwards takes what is there.
        drop(self.more.wait_timeout_while(printed, left, |printed| printed.writers > 0));
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
            if printed.writers == 0 || left.is_zero() {
                let tail = String::from_utf8_lossy(new.get(new.len().saturating_sub(300)..).unwrap_or(new));
                let why = if left.is_zero() { "within the case's time" } else { "before memvisor ended" };
                bail!("the guest did not say {text:?} {why}; it said last: {tail:?}");
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
        output.lock().writers = 2;
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
