//! Bed kvm: memvisor itself, as a process of its own, watched through its output and its control socket.
//!
//! `memvisor run --json` prints one JSON document with the guest's console and the audits of all checkpoints. With probes the guest is started with `--hold`: ended, but with its memory and
//! registers kept, until the probes are done and ask for its end.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

mod arguments;
mod document;
mod held;
mod host;
mod live;
mod process;

pub use arguments::arguments;
pub use document::{ExitedWith, observed, usage};
pub use held::HeldVm;
pub use host::Host;

use process::Process;

use super::bed::Observed;
use super::case::{Case, Setup};
use super::linux;
use super::outcome::Subcase;
use super::probes::{Control, Held};
use super::prompt;
use super::samples::{Recorder, Series};
use super::stuck;
use crate::control::Client;

/// Runs a case; `kernel` instead of the bundled guest. `watched`, with samples of its memory, unless it is stopped, probed or talked to.
///
/// # Errors
/// What kept memvisor from starting, or from being understood.
pub fn run(case: &Case, kernel: Option<&Path>, deadline: Instant, watched: bool) -> anyhow::Result<Observed> {
    if let Setup::Kvm(setup) = &case.setup
        && !case.dialogue.is_empty()
    {
        return prompt::run(case, setup, deadline);
    }
    if case.expect.live > 0 {
        return live::run(case, kernel, deadline);
    }
    if case.expect.probes.is_empty() {
        let name = unique_name();
        let mut process = Process::start(case, kernel, &["--name", &name])?;
        let recorder = watched.then(|| watch(name.clone()));
        let ended = process.wait(deadline);
        let calls = ended.is_none().then(|| stuck::asked(&name, kernel));
        let samples = recorder.map_or_else(Series::default, Recorder::end);
        let mut observed = process.observe(ended, case)?;
        observed.samples = samples;
        observed.problems.extend(calls);
        if let Setup::Kvm(setup) = &case.setup
            && setup.linux.is_some()
        {
            let outcome = linux::examine(setup, &observed.console)?;
            observed.probes.push(Subcase { name: linux::NAME.to_owned(), outcome });
        }
        return Ok(observed);
    }
    let vm = HeldVm::start(case, kernel, deadline)?;
    let mut probes = Vec::new();
    // A guest that did not come to a clean end has nothing to show to the probes; the run says why.
    if vm.held.is_some() {
        for probe in &case.expect.probes {
            let Some(parts) = &vm.held else { break };
            let mut held = Held {
                memory: &parts.memory,
                root_gpa: parts.root_gpa,
                registers: &parts.registers,
                console: &parts.console,
                facts: &parts.facts,
                control: Control::Kvm(&vm),
            };
            let outcome = probe.run(&mut held);
            probes.push(Subcase { name: probe.name().to_owned(), outcome });
        }
    }
    let mut observed = vm.finish()?;
    observed.probes = probes;
    Ok(observed)
}

/// Begins to look at the guest of that name, once it runs.
fn watch(name: String) -> Recorder {
    let mut client = None;
    Recorder::when(move || {
        if client.is_none() {
            client = Client::find(Some(&name)).ok();
        }
        let client = client.as_ref()?;
        let root_gpa = client.info().ok()?.root_gpa?;
        Some((client.map_memory().ok()?, root_gpa))
    })
}

/// A name for a guest that no other has.
fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}
