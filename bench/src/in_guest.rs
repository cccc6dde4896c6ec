//! What allocations cost in the guest kernel itself, under QEMU's software CPU: the guest's `ktest=bench`, as a table.
//!
//! The guest measures, by the time-stamp counter (guest/kernel/src/ktest/bench.rs); here its lines are read. No peer stands beside
//! it; docs/benchmarks-guest.md says why.

use std::process::{Command, Stdio};

use anyhow::Context;

use crate::Options;
use crate::process;
use crate::stats::short;
use crate::table::Score;

/// The program.
const QEMU: &str = "qemu-system-x86_64";
/// What QEMU ends with after the guest's code 0: isa-debug-exit turns a code into (code << 1) | 1.
const CLEAN: i32 = 1;
/// The machine of bed qemu, with two CPUs.
const MACHINE: &str = "-accel tcg -cpu max -M q35 -m 1024 -smp 2 -display none -nodefaults -no-user-config -serial stdio \
                       -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4";
/// What the guest is told.
const CMDLINE: &str = "ktest=bench debug_exit=0xf4";

/// Boots the guest once; its own batches are the rounds.
pub fn run(options: &Options) -> anyhow::Result<Score> {
    println!("\n### In the guest, under QEMU's software CPU\n");
    if process::find(QEMU).is_none() {
        println!("not measured: {QEMU} is not installed");
        return Ok(Score::default());
    }
    anyhow::ensure!(
        options.guest.is_file(),
        "{} is not there: build it with `make guest`",
        options.guest.display()
    );
    let version = output(Command::new(QEMU).arg("--version"), 0)?;
    println!("{}\n", version.lines().next().unwrap_or_default());
    println!("    {QEMU} {MACHINE} -kernel {} -append \"{CMDLINE}\"\n", options.guest.display());
    let mut qemu = Command::new(QEMU);
    qemu.args(MACHINE.split_ascii_whitespace()).arg("-kernel").arg(&options.guest).args(["-append", CMDLINE]);
    let console = output(&mut qemu, CLEAN)?;
    let rows: Vec<Row> = console.lines().filter_map(Row::parse).collect();
    anyhow::ensure!(!rows.is_empty(), "the guest measured nothing:\n{console}");
    println!("One pair, allocation and free: the median batch, the fastest and slowest in parentheses.\n");
    println!("| {:<21} | {:<32} | {:<11} |", "work", "a pair", "batches");
    println!("|{:-<23}|{:-<34}|{:-<13}|", "", "", "");
    for row in &rows {
        println!("| {:<21} | {:<32} | {:<11} |", row.work, row.times(), row.batches);
    }
    if let Some(khz) = console.lines().find_map(|line| line.trim().strip_prefix("bench: tsc_khz=")) {
        println!("\nThe guest measured its time-stamp counter against the PIT: {khz} kHz.");
    }
    Ok(Score::default())
}

/// What `command` prints until it ends with `code`.
fn output(command: &mut Command, code: i32) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context(QEMU)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(
        output.status.code() == Some(code),
        "{QEMU} ended with {}, not {code}\n{text}",
        output.status
    );
    Ok(text)
}

/// A line of the guest.
#[derive(Debug, PartialEq)]
struct Row {
    work: String,
    /// `ns` or `cycles`.
    unit: String,
    median: f64,
    min: f64,
    max: f64,
    batches: String,
}

impl Row {
    /// `None` for any other line.
    fn parse(line: &str) -> Option<Row> {
        let mut words = line.trim().strip_prefix("bench: ")?.split_ascii_whitespace();
        let work = words.next()?;
        let mut pair = || words.next()?.split_once('=');
        let (what, amount) = pair()?;
        let (unit, median) = pair()?;
        let mut field = |name: &str| pair().filter(|(key, _)| *key == name).map(|(_, value)| value);
        let (min, max, pairs, batches) = (field("min")?, field("max")?, field("pairs")?, field("batches")?);
        let amount = match what {
            "bytes" => bytes(amount.parse().ok()?),
            _ => format!("{what} {amount}"),
        };
        Some(Row {
            work: format!("{work}, {amount}"),
            unit: unit.into(),
            median: median.parse().ok()?,
            min: min.parse().ok()?,
            max: max.parse().ok()?,
            batches: format!("{batches} x {pairs}"),
        })
    }

    fn times(&self) -> String {
        format!("{} {} ({} to {})", short(self.median), self.unit, short(self.min), short(self.max))
    }
}

/// In the largest unit that leaves a whole number.
fn bytes(bytes: u64) -> String {
    match bytes {
        1.. if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        1.. if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guest_is_a_row() {
        let row =
            Row::parse("bench: vmalloc bytes=8192 ns=950.5 min=900.0 max=1200.4 pairs=512 batches=11\r")
                .unwrap();
        assert_eq!(row.work, "vmalloc, 8 KiB");
        assert_eq!(row.times(), "950 ns (900 to 1200)");
        assert_eq!(row.batches, "11 x 512");
        let row = Row::parse("bench: alloc_pages order=3 cycles=12.0 min=11.0 max=13.0 pairs=16 batches=11")
            .unwrap();
        assert_eq!((row.work.as_str(), row.unit.as_str()), ("alloc_pages, order 3", "cycles"));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "bench: tsc_khz=2600000",
            "ok 2 alloc_pages_pairs",
            "bench: kmalloc bytes=8 ns=x min=1 max=1 pairs=1 batches=1",
        ] {
            assert_eq!(Row::parse(line), None);
        }
    }
}
