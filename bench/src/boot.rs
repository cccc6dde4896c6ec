//! The bundled guest's boot on KVM, from its entry to its audits.

use std::time::Instant;

use anyhow::Context;

use crate::{
    Options,
    process::command,
    stats::{median, spread},
    table::{Score, Table, Target},
    vm::HeldVm,
};

/// The last line before the first vCPU is let go.
const BEFORE_ENTRY: &str = "memvisor: control socket";

/// Runs it.
///
/// # Errors
/// If the guest does not power off with clean audits.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    let rounds = options.rounds.min(5);
    let mut table = Table::new(
        "Boot",
        &format!(
            "Machine default: 2 nodes, 2 CPUs, 256 MiB, the bundled kernel, audits at every checkpoint. Seconds from \
             the guest's entry until the audit's result is printed, medians of {rounds} runs (range). Instructions are \
             KVM's count insn_emulation of both CPUs: on a KVM that emulates ring 0 all that the kernel executed, on \
             others next to nothing."
        ),
    );
    let mut runs = Vec::new();
    for _ in 0..rounds {
        runs.push(boot(options)?);
    }
    let first: Vec<f64> = runs.iter().map(|run| run.first_audit).collect();
    let last: Vec<f64> = runs.iter().map(|run| run.last_audit).collect();
    for (what, seconds) in [("first audit", &first), ("last audit, after the end", &last)] {
        table.row(
            &format!("entry to the {what}"),
            &spread(seconds, "s"),
            ("the bound itself", &"3 s"),
            (median(seconds), " s"),
            Target::AtMost(3.0),
        );
    }
    let instructions: Vec<f64> =
        runs.iter().filter_map(|run| run.instructions).map(|count| count / 1e6).collect();
    if instructions.is_empty() {
        table.absent("instructions", "-", "this KVM does not count what it emulates");
    } else {
        table.row(
            "instructions that KVM emulated until the end",
            &spread(&instructions, "million"),
            ("-", &"-"),
            (median(&instructions) / median(&last), " million a second"),
            Target::None,
        );
    }
    Ok(table.print("boot"))
}

/// One boot, in seconds since the guest's entry.
struct Boot {
    first_audit: f64,
    last_audit: f64,
    instructions: Option<f64>,
}

fn boot(options: &Options) -> anyhow::Result<Boot> {
    let mut entry = None;
    let mut audits = Vec::new();
    let vm = HeldVm::watch(&command([&options.memvisor, &"run", &"default"]), |line| {
        if line.starts_with(BEFORE_ENTRY) {
            entry = Some(Instant::now());
        } else if let Some(entry) = entry
            && line.contains(" rules, ")
            && line.contains("audit:")
        {
            audits.push((entry.elapsed().as_secs_f64(), line.contains("0 findings")));
        }
    })?;
    anyhow::ensure!(audits.iter().all(|(_, clean)| *clean), "an audit has findings");
    let (first, last) = audits.first().zip(audits.last()).context("no audit was printed")?;
    Ok(Boot {
        first_audit: first.0,
        last_audit: last.0,
        instructions: vm.counter("insn_emulation")?.map(|count| count as f64),
    })
}
