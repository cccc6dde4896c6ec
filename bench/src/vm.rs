//! A guest that has ended and is held for readers.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    process::Stdio,
};

use anyhow::Context;

use crate::process::{self, KillOnDrop};

/// Memvisor with a guest in hold. Ended when dropped.
pub struct HeldVm {
    child: KillOnDrop,
    /// Name by which other commands find it.
    pub name: String,
}

impl HeldVm {
    /// Runs `command` with `--hold` and a name of its own, and waits until the guest is held.
    ///
    /// # Errors
    /// If it ends instead.
    pub fn start(command: &[OsString]) -> anyhow::Result<HeldVm> {
        let name = format!("bench-{}", std::process::id());
        let mut words = command.to_vec();
        words.extend(process::command([&"--hold", &"--name", &name]));
        let mut child = KillOnDrop(process::spawn(&words, Stdio::inherit())?);
        let mut lines = BufReader::new(child.0.stdout.take().context("a pipe was asked for")?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let len = lines.read_until(b'\n', &mut line)?;
            anyhow::ensure!(len > 0, "{} ended", process::show(&words));
            if String::from_utf8_lossy(&line).contains("held for inspection") {
                break;
            }
        }
        // What it prints after that is little enough for the pipe, which must stay open.
        child.0.stdout = Some(lines.into_inner());
        Ok(HeldVm { child, name })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Writes to the guest's RAM through memvisor's own descriptors, page by page as `fill` says: what is in
    /// the page with this number, or nothing to leave it as it is.
    ///
    /// # Errors
    /// If its descriptors cannot be opened (they are the same user's).
    pub fn fill(&self, mut fill: impl FnMut(u64, &mut [u8; 4096]) -> bool) -> anyhow::Result<()> {
        let mut number = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
            let path = entry?.path();
            let target = fs::read_link(&path).unwrap_or_default();
            if !target.to_string_lossy().starts_with("/memfd:guest-ram") {
                continue;
            }
            let file = fs::OpenOptions::new().write(true).open(&path).with_context(|| format!("{}", path.display()))?;
            let pages = file.metadata()?.len() / 4096;
            let mut page = [0; 4096];
            for index in 0..pages {
                if fill(number, &mut page) {
                    file.write_all_at(&page, index * 4096)?;
                }
                number += 1;
            }
        }
        anyhow::ensure!(number > 0, "memvisor has no descriptors of guest RAM");
        Ok(())
    }
}

impl Drop for HeldVm {
    fn drop(&mut self) {
        // Asked kindly it removes its socket; killed it could not.
        if let Ok(pid) = i32::try_from(self.pid())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.child.0.wait();
        }
    }
}
