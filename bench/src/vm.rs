//! A guest that has ended and is held for readers.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::Context;

use crate::process::{self, KillOnDrop};

/// Memvisor with a guest in hold. Ended when dropped.
pub struct HeldVm {
    child: KillOnDrop,
    /// Name by which other commands find it.
    pub name: String,
    socket: PathBuf,
}

impl HeldVm {
    /// Runs `command` with `--hold` and a name of its own, and waits until the guest is held.
    ///
    /// # Errors
    /// If it ends instead.
    pub fn start(command: &[OsString]) -> anyhow::Result<HeldVm> {
        HeldVm::watch(command, |_| ())
    }

    /// As [`HeldVm::start`], and shows every line until then to `watch`.
    ///
    /// # Errors
    /// As [`HeldVm::start`].
    pub fn watch(command: &[OsString], mut watch: impl FnMut(&str)) -> anyhow::Result<HeldVm> {
        let name = format!("bench-{}", std::process::id());
        let mut words = command.to_vec();
        words.extend(process::command([&"--hold", &"--name", &name]));
        let mut child = KillOnDrop(process::spawn(&words, Stdio::inherit())?);
        let mut lines = BufReader::new(child.0.stdout.take().context("a pipe was asked for")?);
        let mut bytes = Vec::new();
        let (mut socket, mut held) = (None, false);
        // The last audit is printed after the word that it is held.
        loop {
            bytes.clear();
            let len = lines.read_until(b'\n', &mut bytes)?;
            anyhow::ensure!(len > 0, "{} ended", process::show(&words));
            let line = String::from_utf8_lossy(&bytes);
            watch(line.trim_end());
            if let Some(path) = line.strip_prefix("memvisor: control socket ") {
                socket = Some(PathBuf::from(path.trim_end()));
            }
            held |= line.contains("held for inspection");
            if held && (line.starts_with("audit: ") || line.starts_with("memvisor: no audit")) {
                break;
            }
        }
        // The pipe must stay open, or memvisor would end with its reader.
        child.0.stdout = Some(lines.into_inner());
        let socket = socket.context("memvisor named no control socket")?;
        Ok(HeldVm { child, name, socket })
    }

    /// A counter of KVM by name, if this KVM has it.
    ///
    /// # Errors
    /// If the control socket does not answer.
    pub fn counter(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let mut socket = UnixStream::connect(&self.socket).context("connect to the control socket")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /vm/stats HTTP/1.1\r\nHost: memvisor\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        // The answer is one JSON document, which the counters end.
        while !answer.ends_with(b"}}") {
            let len = socket.read(&mut part).context("the control socket's answer")?;
            if len == 0 {
                break;
            }
            answer.extend(part.iter().take(len));
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        anyhow::ensure!(text.starts_with("HTTP/1.1 200"), "the control socket says {text}");
        let Some((_, rest)) = text.split_once(&format!("\"{name}\":")) else { return Ok(None) };
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        Ok(Some(digits.parse()?))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// The descriptors of the guest's RAM, as paths.
    fn ram(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
            let path = entry?.path();
            // A descriptor may have been closed meanwhile.
            let target = fs::read_link(&path).unwrap_or_default();
            if target.to_string_lossy().starts_with("/memfd:guest-ram") {
                paths.push(path);
            }
        }
        anyhow::ensure!(!paths.is_empty(), "memvisor has no descriptors of guest RAM");
        Ok(paths)
    }

    /// The memory file with most of the guest's RAM.
    ///
    /// # Errors
    /// If memvisor's descriptors cannot be looked at.
    pub fn largest_ram(&self) -> anyhow::Result<PathBuf> {
        let len = |path: &PathBuf| fs::metadata(path).map_or(0, |data| data.len());
        self.ram()?.into_iter().max_by_key(len).context("no RAM")
    }

    /// Writes to those pages of the guest's RAM that are zero, through memvisor's own descriptors, as `fill`
    /// says: what goes into the page with this number, or nothing to leave it as it is.
    ///
    /// # Errors
    /// If its descriptors cannot be opened (they are the same user's).
    pub fn fill(&self, mut fill: impl FnMut(u64, &mut [u8; 4096]) -> bool) -> anyhow::Result<()> {
        let mut number = 0;
        for path in self.ram()? {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("{}", path.display()))?;
            let pages = file.metadata()?.len() / 4096;
            let mut page = [0; 4096];
            for index in 0..pages {
                file.read_exact_at(&mut page, index * 4096)?;
                if page.iter().all(|byte| *byte == 0) && fill(number, &mut page) {
                    file.write_all_at(&page, index * 4096)?;
                }
                number += 1;
            }
        }
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
