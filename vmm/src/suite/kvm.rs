//! Bed kvm: memvisor itself, as a process of its own, watched through its output and control socket.

use std::path::Path;
use std::time::Instant;

use memvisor_inspect::MappedMemory;

use super::bed::Observed;
use super::case::Case;
use super::command::Finished;

/// Why this bed cannot be used here; `None` if it can.
pub fn missing() -> Option<String> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm cannot be opened ({error})")),
    }
}

/// Runs a case.
///
/// # Errors
/// What kept memvisor from starting.
pub fn run(case: &Case, kernel: Option<&Path>, deadline: Instant) -> anyhow::Result<Observed> {
    let _ = (case, kernel, deadline);
    anyhow::bail!("not merged yet")
}

/// A guest that stands still at a checkpoint.
#[derive(Debug)]
pub struct HeldVm {
    case: Case,
}

impl HeldVm {
    pub fn start(case: &Case, deadline: Instant) -> anyhow::Result<HeldVm> {
        let _ = (case, deadline);
        anyhow::bail!("not merged yet")
    }
    pub fn name(&self) -> &str {
        ""
    }
    pub fn case(&self) -> &Case {
        &self.case
    }
    pub fn deadline(&self) -> Instant {
        Instant::now()
    }
    pub fn memory(&self) -> &MappedMemory {
        todo!()
    }
    pub fn root_gpa(&self) -> u64 {
        0
    }
    pub fn release(self) -> anyhow::Result<()> {
        Ok(())
    }
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<Finished> {
        super::command::memvisor(words)
    }
    pub fn translate(&self, _: &[u64]) -> anyhow::Result<Vec<Option<u64>>> {
        Ok(vec![])
    }
}
