//! The guest kernel, on a bed, with the program as its first process.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::archive::archive;
use crate::output::Side;

/// Where the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bed {
    /// QEMU's software CPU.
    Qemu,
    /// memvisor on this machine's /dev/kvm.
    Kvm,
}

/// A machine to boot for each run.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Where.
    pub bed: Bed,
    /// The static program.
    pub program: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// memvisor, for bed kvm.
    pub memvisor: PathBuf,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Number of CPUs.
    pub cpus: u32,
    /// Words for the kernel's command line.
    pub cmdline: String,
    /// Longest time without a word from the program.
    pub patience: Duration,
}

/// Ends with its value, whatever becomes of it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest {
    fn command(&self, archive: &Path) -> Command {
        const EXIT_PORT: &str = "0xf4";
        let kernel = self.kernel.as_os_str();
        let mut command;
        match self.bed {
            Bed::Qemu => {
                command = Command::new("qemu-system-x86_64");
                // Four levels, as this machine's Linux gives programs.
                command.args(["-accel", "tcg", "-cpu", "max,-la57", "-M", "q35", "-display", "none"]);
                command.args(["-nodefaults", "-no-user-config", "-serial", "stdio", "-no-reboot"]);
                command.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT},iosize=4")]);
                command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(archive);
                command.arg("-append").arg(format!("{} debug_exit={EXIT_PORT}", self.cmdline));
            }
            Bed::Kvm => {
                command = Command::new(&self.memvisor);
                command.args(["run", "default", "--audit", "off"]).arg("--kernel").arg(kernel);
                command.arg("--initrd").arg(archive).arg("--memory").arg(format!("{}M", self.memory_mib));
                command.arg("--cpus").arg(self.cpus.to_string());
                command.arg("--cmdline").arg(&self.cmdline);
            }
        }
        command
    }
}

impl Side for Guest {
    fn name(&self) -> &str {
        "memvisor"
    }

    fn run(&self, input: &str) -> anyhow::Result<String> {
        let program = std::fs::read(&self.program).with_context(|| self.program.display().to_string())?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("initrd");
        std::fs::write(&path, archive(&program, input.as_bytes()))?;
        let mut command = self.command(&path);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut machine = Running(child.with_context(|| format!("run {:?}", command.get_program()))?);
        let output = machine.0.stdout.take().context("a pipe for the console")?;
        Ok(String::from_utf8_lossy(&self.listen(output)).into_owned())
    }
}

impl Guest {
    /// What the machine says, until it ends or says nothing for too long.
    fn listen(&self, mut output: impl Read + Send + 'static) -> Vec<u8> {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1 << 14];
            loop {
                match output.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(len) if sender.send(buffer[..len].to_vec()).is_err() => return,
                    Ok(_) => {}
                }
            }
        });
        let mut console: Vec<u8> = Vec::new();
        let mut deadline = Instant::now() + self.patience;
        loop {
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(more) => {
                    // A kernel that says the same for ever makes no progress.
                    if more.contains(&b'~') {
                        deadline = Instant::now() + self.patience;
                    }
                    console.extend(more);
                    if is_over(&console) {
                        return console;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return console,
                Err(RecvTimeoutError::Timeout) => {
                    console.extend(
                        format!("\nno progress for {} s: stopped\n", self.patience.as_secs()).bytes(),
                    );
                    return console;
                }
            }
        }
    }
}

/// Whether the program is done; nobody waits for the machine's end.
fn is_over(console: &[u8]) -> bool {
    let tail = &console[console.len().saturating_sub(64)..];
    let done = tail.windows(3).rposition(|bytes| bytes == b"~. ");
    done.is_some_and(|at| tail[at..].contains(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_a_whole_line() {
        assert!(is_over(b"~= 1 2\r\n~. 12\r\n"));
        assert!(!is_over(b"~= 1 2\r\n~. 1"));
        assert!(!is_over(b"~= 1 2\r\n"));
    }
}
