//! Running this program again, as a user would.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, bail};

/// A command that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Error output.
    pub messages: String,
}

impl Finished {
    /// The output of a command that exited with 0.
    ///
    /// # Errors
    /// The exit code and what the command said.
    pub fn succeed(&self) -> anyhow::Result<&str> {
        if self.code == Some(0) { Ok(&self.output) } else { self.fail() }
    }

    /// The output of an audit, clean or with findings.
    ///
    /// # Errors
    /// The exit code and what the command said.
    pub fn audited(&self) -> anyhow::Result<&str> {
        if self.code == Some(i32::from(memvisor_report::AuditReport::EXIT_FINDINGS)) {
            return Ok(&self.output);
        }
        self.succeed()
    }

    fn fail<T>(&self) -> anyhow::Result<T> {
        let code = self.code.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
        bail!("ended with {code}: {}", self.messages.trim())
    }
}

/// This program's file.
///
/// # Errors
/// If the system does not tell.
pub fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this program's file, to run it again")
}

/// A command that gets `signal` when the thread that starts it ends: a guest must not outlive the `memvisor test` that was killed, nobody would
/// answer it. `setpriv` (util-linux) arranges that; without it such a guest runs to its end.
pub fn mortal(program: impl AsRef<OsStr>, signal: &str) -> Command {
    static HAS_SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        let setpriv = Command::new("setpriv").arg("--version").stdin(Stdio::null()).output();
        setpriv.is_ok_and(|output| output.status.success())
    });
    if *HAS_SETPRIV {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", signal, "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// Runs `memvisor` with `words` to its end.
///
/// # Errors
/// If it cannot be started.
pub fn memvisor(words: &[&str]) -> anyhow::Result<Finished> {
    let output = Command::new(program()?)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run memvisor {}", words.join(" ")))?;
    Ok(Finished {
        code: output.status.code(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        messages: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
