//! The bundled guest's boot on KVM, from its entry to its audits.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Instant,
};

use anyhow::Context;

use crate::{
    Options,
    process::{self, KillOnDrop, command},
    stats::{median, spread},
    table::{Score, Table, Target},
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
             the guest's entry until the audit's result is printed, medians of {rounds} runs (range)."
        ),
    );
    let command = command([&options.memvisor, &"run", &"default"]);
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut child = KillOnDrop(process::spawn(&command, Stdio::inherit())?);
        let output = child.0.stdout.take().context("a pipe was asked for")?;
        let mut entry = None;
        let mut audits = Vec::new();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            if line.starts_with(BEFORE_ENTRY) {
                entry = Some(Instant::now());
            } else if let Some(entry) = entry
                && line.contains(" rules, ")
                && line.contains("audit:")
            {
                anyhow::ensure!(line.contains("0 findings"), "{line}");
                audits.push(entry.elapsed().as_secs_f64());
            }
        }
        let status = child.0.wait()?;
        anyhow::ensure!(status.success(), "the guest's run ended with {status}");
        first.push(*audits.first().context("no audit was printed")?);
        last.push(*audits.last().context("no audit was printed")?);
    }
    for (what, seconds) in [("first audit", &first), ("last audit, after power-off", &last)] {
        table.row(
            &format!("entry to the {what}"),
            &spread(seconds, "s"),
            ("the bound itself", &"3 s"),
            (median(seconds), " s"),
            Target::AtMost(3.0),
        );
    }
    Ok(table.print("boot"))
}
