//! A memvisor process and what it prints.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::super::bed::Observed;
use super::super::case::{Case, Setup};
use super::super::command::{mortal, program};
use super::{ExitedWith, arguments, observed};

/// How often it is asked whether it ended.
const POLL: Duration = Duration::from_millis(10);
/// Output kept of a process; more is read and dropped.
const OUTPUT_MAX: u64 = 64 << 20;

/// A memvisor process; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    output: Option<JoinHandle<Vec<u8>>>,
    messages: Option<JoinHandle<Vec<u8>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already; then both say so, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub(super) fn start(case: &Case, kernel: Option<&Path>, more: &[&str]) -> anyhow::Result<Process> {
        let Setup::Kvm(setup) = &case.setup else { bail!("a case without its table kvm") };
        // A stock Linux is not replaced by another build of memvisor's kernel.
        let kernel = kernel.filter(|_| setup.linux.is_none());
        let mut child = mortal(program()?, "TERM")
            .args(arguments(case, setup))
            .args(more)
            .args(kernel.map(|path| ["--kernel".as_ref(), path.as_os_str()]).into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start memvisor run")?;
        let output = child.stdout.take().map(pump);
        let messages = child.stderr.take().map(pump);
        Ok(Process { child, output, messages })
    }

    /// The exit code; `None` if time is over.
    pub(super) fn wait(&mut self, deadline: Instant) -> Option<ExitedWith> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(ExitedWith(status.code())),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
                _ => return None,
            }
        }
    }

    /// What came of it; it is killed if it did not end.
    pub(super) fn observe(mut self, ended: Option<ExitedWith>, case: &Case) -> anyhow::Result<Observed> {
        if ended.is_none() {
            // Its pipes end with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let text = |thread: Option<JoinHandle<Vec<u8>>>| {
            let bytes = thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (output, messages) = (text(self.output.take()), text(self.messages.take()));
        observed(ended, &output, messages, case)
    }
}

/// Reads a pipe to its end on a thread of its own, so that its writer never blocks.
fn pump(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What cannot be read is not there; the run is judged by what is.
        let _ = (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        bytes
    })
}
