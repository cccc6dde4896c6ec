//! This machine's Linux.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::output::Side;

/// The program as a process.
#[derive(Clone, Debug)]
pub struct Host {
    program: PathBuf,
}

impl Host {
    /// Runs the static program at `program`.
    pub fn new(program: &Path) -> Host {
        Host { program: program.to_owned() }
    }

    /// The kernel's release, for reports.
    pub fn release() -> String {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        format!("Linux {}", release.trim())
    }
}

impl Side for Host {
    fn name(&self) -> &str {
        "Linux"
    }

    fn run(&self, input: &str) -> anyhow::Result<String> {
        // The guest's files are in a tmpfs, too.
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("differential-").tempdir_in(parent)?;
        let mut file = tempfile::NamedTempFile::new_in(folder.path())?;
        file.write_all(input.as_bytes())?;
        let mut child = Command::new(&self.program)
            .arg(file.path())
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {}", self.program.display()))?;
        let mut console = Vec::new();
        if let Some(mut output) = child.stdout.take() {
            output.read_to_end(&mut console)?;
        }
        child.wait()?;
        Ok(String::from_utf8_lossy(&console).into_owned())
    }
}
