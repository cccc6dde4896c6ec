//! A guest that has ended and is kept, with its memory and registers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use memvisor_inspect::{CpuRegisters, Facts, MappedMemory};

use super::super::bed::Observed;
use super::super::case::Case;
use super::super::command::{Finished, memvisor};
use super::super::stuck;
use super::process::Process;
use super::unique_name;
use crate::control::{Client, api::VmInfo};
use crate::run::VmState;

/// How often a guest is asked whether it is held.
const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to end after its guest did.
const ENDING: Duration = Duration::from_secs(20);

/// A guest that has ended and is kept for readers.
#[derive(Debug)]
pub struct HeldVm {
    case: Case,
    kernel: Option<PathBuf>,
    deadline: Instant,
    process: Process,
    client: Option<Client>,
    /// `None` if it ended before it could be held.
    pub(super) held: Option<Parts>,
}

#[derive(Debug)]
pub(super) struct Parts {
    pub(super) memory: MappedMemory,
    pub(super) root_gpa: u64,
    pub(super) registers: Vec<CpuRegisters>,
    pub(super) facts: Facts,
    pub(super) console: String,
}

impl HeldVm {
    /// Starts the case's guest and waits until it is held, or gone.
    ///
    /// # Errors
    /// If memvisor does not start, or its guest is not held before `deadline`.
    pub fn start(case: &Case, kernel: Option<&Path>, deadline: Instant) -> anyhow::Result<HeldVm> {
        let name = unique_name();
        let process = Process::start(case, kernel, &["--hold", "--name", &name])?;
        let kernel = kernel.map(Path::to_path_buf);
        let mut vm = HeldVm { case: case.clone(), kernel, deadline, process, client: None, held: None };
        loop {
            if vm.process.child.try_wait()?.is_some() {
                return Ok(vm);
            }
            if Instant::now() >= deadline {
                let calls = stuck::asked(&name, vm.kernel());
                bail!("the guest did not end within {} s; {calls}", case.timeout.as_secs());
            }
            if let Ok(client) = Client::find(Some(&name))
                && let Ok(info) = client.info()
                && info.state == VmState::Held
            {
                let root_gpa = info.root_gpa.context("the guest announced no root descriptor")?;
                vm.held = Some(Parts {
                    memory: client.map_memory()?,
                    root_gpa,
                    registers: client.registers()?,
                    facts: client.facts()?,
                    console: client.console()?,
                });
                vm.client = Some(client);
                return Ok(vm);
            }
            std::thread::sleep(POLL);
        }
    }

    /// The case it runs.
    pub const fn case(&self) -> &Case {
        &self.case
    }

    /// The kernel it runs instead of the bundled one.
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    /// When the case's time is over.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Its name for `--vm`.
    ///
    /// # Errors
    /// If it ended before it could be held.
    pub fn name(&self) -> anyhow::Result<&str> {
        self.client.as_ref().map(Client::name).context("the guest ended before it could be examined")
    }

    /// Its memory and the address of its root descriptor.
    ///
    /// # Errors
    /// If it ended before it could be held.
    pub fn memory(&self) -> anyhow::Result<(&MappedMemory, u64)> {
        let parts = self.held.as_ref().context("the guest ended before it could be examined")?;
        Ok((&parts.memory, parts.root_gpa))
    }

    /// What its VMM says about it now.
    ///
    /// # Errors
    /// If the guest is gone.
    pub fn info(&self) -> anyhow::Result<VmInfo> {
        let client = self.client.as_ref().context("the guest ended before it could be examined")?;
        Ok(client.info()?)
    }

    /// KVM's own translation of each address, by CPU 0.
    ///
    /// # Errors
    /// If the guest is gone.
    pub fn translate(&self, addresses: &[u64]) -> anyhow::Result<Vec<Option<u64>>> {
        let client = self.client.as_ref().context("the guest ended before it could be examined")?;
        Ok(client.translate(0, addresses)?.into_iter().map(|answer| answer.gpa).collect())
    }

    /// Runs `memvisor WORDS --vm NAME` on it.
    ///
    /// # Errors
    /// If the guest is gone or the command cannot be started.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<Finished> {
        memvisor(&[words, &["--vm", self.name()?]].concat())
    }

    /// Lets it go and says what its run came to.
    ///
    /// # Errors
    /// If it does not end, or its output cannot be understood.
    pub fn finish(mut self) -> anyhow::Result<Observed> {
        if let Some(client) = &self.client {
            client.shutdown()?;
        }
        let ended = self.process.wait(Instant::now() + ENDING);
        self.process.observe(ended, &self.case)
    }
}
