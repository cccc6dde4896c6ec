//! A guest that is looked at again and again while it runs, at moments that it did not choose.
//!
//! Each look stops it where nothing is half done (`PUT /vm/rest`), audits it, shows the views of its processes, and lets it go on. No look
//! at rest may find anything, and enough of them must be at rest; what the others may say, they must say without findings, too.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use memvisor_check::{Evidence, Moment};
use memvisor_inspect::views::{MapsView, PsView, StacksView, TlbView};
use memvisor_inspect::{CpuRegisters, Guest, MappedMemory};

use super::super::bed::{EXAMPLES, Ended, Observed};
use super::super::case::Case;
use super::super::outcome::{Outcome, Subcase};
use super::super::stuck;
use super::{Process, unique_name};
use crate::control::Client;
use crate::run::VmState;

/// What the guest gets to run between two looks, and by how much more from one to the next.
const BETWEEN: (Duration, u32) = (Duration::from_millis(5), 9);

/// Runs a case that expects looks: one guest after the other until enough looks were at rest, since a fast machine's ends soon. A guest that
/// does not end as it shall is the last.
///
/// # Errors
/// What kept memvisor from starting, or from being understood.
pub fn run(case: &Case, kernel: Option<&std::path::Path>, deadline: Instant) -> anyhow::Result<Observed> {
    let begin = Instant::now();
    // Another guest may take as long as all before it.
    let last_begin = begin + deadline.saturating_duration_since(begin) / 2;
    let mut looks = Looks::default();
    loop {
        let mut observed = guest(case, kernel, deadline, &mut looks)?;
        let enough = looks.at_rest >= case.expect.live;
        let clean = observed.ended == Ended::Clean && observed.audits().findings == 0;
        if enough || !clean || Instant::now() > last_begin {
            observed.probes.push(looks.judge(case.expect.live));
            return Ok(observed);
        }
    }
}

/// One guest.
fn guest(
    case: &Case,
    kernel: Option<&std::path::Path>,
    deadline: Instant,
    looks: &mut Looks,
) -> anyhow::Result<Observed> {
    let name = unique_name();
    let mut process = Process::start(case, kernel, &["--name", &name])?;
    looks.memory = None;
    while process.child.try_wait()?.is_none() && Instant::now() < deadline {
        if let Ok(client) = Client::find(Some(&name)) {
            // The guest may end at any time, and then nobody answers.
            if let Err(error) = looks.look_again(&client) {
                looks.last_error = Some(format!("{error:#}"));
            }
        }
        thread::sleep(BETWEEN.0 * (1 + looks.count % BETWEEN.1));
    }
    let ended = process.wait(deadline);
    let calls = ended.is_none().then(|| stuck::asked(&name, kernel));
    let mut observed = process.observe(ended, case)?;
    observed.problems.extend(calls);
    Ok(observed)
}

/// What the looks came to.
#[derive(Debug, Default)]
struct Looks {
    memory: Option<MappedMemory>,
    count: u32,
    at_rest: u32,
    /// Most processes that one look met.
    processes: usize,
    problems: Vec<String>,
    busy: Option<String>,
    last_error: Option<String>,
}

impl Looks {
    fn look_again(&mut self, client: &Client) -> anyhow::Result<()> {
        let info = client.info()?;
        let (VmState::Running, Some(root)) = (info.state, info.root_gpa) else { return Ok(()) };
        if self.memory.is_none() {
            self.memory = Some(client.map_memory()?);
        }
        let facts = client.facts()?;
        let rest = client.rest()?;
        let registers = client.registers();
        if let (Some(memory), Ok(registers)) = (&self.memory, &registers) {
            let (source, registers): (_, &[CpuRegisters]) = (memory, registers);
            let evidence = Evidence {
                source,
                root_gpa: Some(root),
                facts: Some(&facts),
                registers,
                moment: Moment::Any,
            };
            let report = memvisor_check::audit(&evidence);
            let found = report.findings.iter().take(EXAMPLES).map(|finding| format!("finding: {finding}"));
            let mut problems: Vec<String> = found.collect();
            self.count += 1;
            // Before its tasks are published nobody is at rest, and nobody busy.
            if rest.busy.as_ref().is_some_and(Vec::is_empty) {
                self.at_rest += 1;
                match views(memory, root, registers) {
                    Ok(processes) => self.processes = self.processes.max(processes),
                    Err(error) => problems.push(format!("at rest: {error:#}")),
                }
            } else if let Some(busy) = rest.busy.iter().flatten().next() {
                self.busy = Some(busy.to_string());
            }
            self.problems
                .extend(problems.into_iter().map(|problem| format!("look {}: {problem}", self.count)));
        }
        client.resume()?;
        Ok(())
    }

    fn judge(mut self, wanted: u32) -> Subcase {
        let name =
            format!("looks at rest: {} of {}, at {} processes", self.at_rest, self.count, self.processes);
        if self.at_rest < wanted {
            let reason =
                self.busy.or(self.last_error).unwrap_or_else(|| "the guest ended too early".to_owned());
            self.problems.push(format!("{} looks at rest, {wanted} are wanted: {reason}", self.at_rest));
        }
        self.problems.truncate(10);
        Subcase { name, outcome: Outcome::from_problems(self.problems) }
    }
}

/// Views of processes; how many there are.
fn views(memory: &MappedMemory, root: u64, registers: &[CpuRegisters]) -> anyhow::Result<usize> {
    let guest = Guest::attach(memory, root)?;
    let ps = PsView::new(&guest).context("ps")?;
    TlbView::new(&guest, registers).context("tlb")?;
    StacksView::new(&guest).context("stacks")?;
    let spaces = guest.address_spaces().context("address spaces")?;
    for row in ps.tasks.iter().filter(|row| row.mm != 0) {
        let pid = row.tgid;
        anyhow::ensure!(row.vsz_kib > 0 && row.tables_kib > 0, "ps: process {pid} has no memory");
        anyhow::ensure!(
            spaces.iter().any(|space| space.mm == row.mm),
            "ps: process {pid}'s memory is nobody's"
        );
    }
    for space in &spaces {
        let maps = MapsView::new(&guest, space.pid, true).context("maps")?.context("maps: it is gone")?;
        anyhow::ensure!(maps.problems.is_empty(), "maps {}: {}", space.pid, maps.problems.join("; "));
    }
    Ok(ps.tasks.iter().filter(|row| row.mm != 0 && row.pid == row.tgid).count())
}
