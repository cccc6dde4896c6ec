//! Loops of system calls and faults (bench/guest/loops.c), one static program on memvisor's guest and on a stock Linux, on the same
//! machine of QEMU's software CPU, in turns.
//!
//! ```text
//! memvisor-bench loops --guest FILE --linux VMLINUX [--cpus 1,2,4] [--rounds N] [--ms N] [--quick] [LOOP...]
//! ```
//!
//! Time on memvisor over time on Linux is taken round by round, and of that the median, so that what else the host has to do is in
//! both. Linux runs as it comes, and with `mitigations=off`. Debian's kernel gives huge pages to programs that ask, which these do not.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use crate::both::{Run, System, compile, cpio, systems, tsc_khz};
use crate::host;
use crate::stats::{median, ratio, short};

const USAGE: &str = "usage: memvisor-bench loops --guest FILE --linux VMLINUX [--cpus 1,2,4] [--rounds N] [--ms N] [--quick] [LOOP...]";
/// The machine of bed qemu, with memory for four processes of 128 MiB. Threads are QEMU's choice: one a CPU.
const MACHINE: &str =
    "-accel tcg -cpu max -M q35 -m 1024 -display none -nodefaults -no-user-config -serial stdio -no-reboot";
/// What a row shall reach: our time over Linux's.
const TARGET: f64 = 0.8;
/// Seconds that a machine may run.
const LIMIT: u32 = 240;

/// What the command line says.
#[derive(Debug)]
struct Options {
    guest: PathBuf,
    linux: PathBuf,
    cpus: Vec<u32>,
    rounds: usize,
    ms: u64,
    loops: Vec<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
        let mut options = Options {
            guest: PathBuf::from("target/images/memvisor-guest.elf"),
            linux: PathBuf::from("target/nested/l1/vmlinux"),
            cpus: vec![1, 2, 4],
            rounds: 5,
            ms: 200,
            loops: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--guest" => options.guest = PathBuf::from(value()?),
                "--linux" => options.linux = PathBuf::from(value()?),
                "--cpus" => {
                    let cpus: Result<_, _> = value()?.split(',').map(str::parse).collect();
                    options.cpus = cpus.context("--cpus takes numbers with commas between them")?;
                }
                "--rounds" => options.rounds = value()?.parse().context("--rounds takes a number")?,
                "--ms" => options.ms = value()?.parse().context("--ms takes a number")?,
                "--quick" => (options.rounds, options.ms) = (1, 50),
                unknown if unknown.starts_with('-') => anyhow::bail!("unknown argument {unknown}\n{USAGE}"),
                name => options.loops.push(name.to_owned()),
            }
        }
        anyhow::ensure!(options.rounds > 0 && !options.cpus.is_empty(), "nothing to measure\n{USAGE}");
        Ok(options)
    }
}

/// What one loop made on one system with some CPUs: operations a second, a value each round.
struct Cell {
    system: usize,
    cpus: u32,
    name: String,
    rates: Vec<f64>,
}

/// Measures and prints the tables.
pub fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let options = Options::parse(arguments)?;
    let systems = systems(&options.guest, &options.linux, "bench-guest")?;
    let khz = tsc_khz();
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("loops.cpio");
    let config = format!("ms={} khz={khz} {}\n", options.ms, options.loops.join(" "));
    std::fs::write(
        &archive,
        cpio::archive(&[("init", &compile("loops", folder.path())?), ("loops.conf", config.as_bytes())]),
    )?;
    println!("{}", host::describe());
    println!("\n    {}\n", of(&machine_of("N"), &archive).describe());
    let mut cells: Vec<Cell> = Vec::new();
    for round in 0..options.rounds {
        for &cpus in &options.cpus {
            for (number, system) in systems.iter().enumerate() {
                eprint!("\rround {} of {}, {cpus} CPUs, {:<40}", round + 1, options.rounds, system.name);
                std::io::stderr().flush()?;
                let console = of(&machine_of(&cpus.to_string()), &archive).boot(system, || Ok(()))?;
                for (name, rate) in console.lines().filter_map(|line| parse(line, khz)) {
                    let same =
                        |cell: &&mut Cell| (cell.system, cell.cpus) == (number, cpus) && cell.name == name;
                    match cells.iter_mut().find(same) {
                        Some(cell) => cell.rates.push(rate),
                        None => cells.push(Cell { system: number, cpus, name, rates: vec![rate] }),
                    }
                }
            }
        }
    }
    eprintln!();
    print_ratios(&options, &systems, &cells);
    print_scaling(&options, &systems, &cells);
    Ok(())
}

/// The words of the machine with so many CPUs.
fn machine_of(cpus: &str) -> Vec<String> {
    MACHINE.split_ascii_whitespace().chain(["-smp", cpus]).map(str::to_owned).collect()
}

/// A run of the loops.
const fn of<'a>(machine: &'a [String], archive: &'a std::path::Path) -> Run<'a> {
    Run { machine, archive, limit: LIMIT, last_words: "loops done" }
}

/// `loop NAME cpus=N ops=OPS cycles=CYCLES` as a name and operations a second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn parse(line: &str, khz: u64) -> Option<(String, f64)> {
    let mut words = line.trim().strip_prefix("loop ")?.split_ascii_whitespace();
    let name = words.next()?;
    let mut field = |key: &str| words.find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    let (ops, cycles) = (field("ops=")?, field("cycles=")?);
    Some((name.to_owned(), ops as f64 / cycles.max(1) as f64 * khz as f64 * 1e3))
}

fn find<'c>(cells: &'c [Cell], system: usize, cpus: u32, name: &str) -> Option<&'c [f64]> {
    let right = |cell: &&Cell| (cell.system, cell.cpus) == (system, cpus) && cell.name == name;
    cells.iter().find(right).map(|cell| cell.rates.as_slice())
}

/// Names of loops in the order in which they ran.
fn names(cells: &[Cell]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for cell in cells {
        if !names.contains(&cell.name.as_str()) {
            names.push(&cell.name);
        }
    }
    names
}

fn print_ratios(options: &Options, systems: &[System], cells: &[Cell]) {
    println!(
        "Operations a second, and time on memvisor over time on the Linux before it: medians of {} rounds. Target: at most {TARGET}.\n",
        options.rounds
    );
    print!("| {:<12} | {:>4} |", "loop", "CPUs");
    for (number, system) in systems.iter().enumerate() {
        print!(" {} |", system.name);
        if number > 0 {
            print!(" ours/it |");
        }
    }
    print!("\n|---|---|");
    println!("{}", "---|".repeat(2 * systems.len() - 1));
    let (mut met, mut judged) = (0, 0);
    for name in names(cells) {
        for &cpus in &options.cpus {
            let Some(ours) = find(cells, 0, cpus, name) else { continue };
            print!("| {name:<12} | {cpus:>4} | {} |", rate(median(ours)));
            for system in 1..systems.len() {
                let Some(theirs) = find(cells, system, cpus, name) else {
                    print!(" - | - |");
                    continue;
                };
                // Rates are the other way round than times.
                let ratio = ratio(theirs, ours);
                print!(" {} | {ratio:.2} |", rate(median(theirs)));
                judged += 1;
                met += usize::from(ratio <= TARGET);
            }
            println!();
        }
    }
    println!("\n{met} of {judged} ratios are at most {TARGET}.");
}

fn print_scaling(options: &Options, systems: &[System], cells: &[Cell]) {
    let (Some(&first), Some(&last)) = (options.cpus.first(), options.cpus.last()) else { return };
    if first == last {
        return;
    }
    println!("\nScaling: operations a second with {last} CPUs over those with {first}.\n");
    print!("| {:<12} |", "loop");
    systems.iter().for_each(|system| print!(" {} |", system.name));
    println!("\n|---|{}", "---|".repeat(systems.len()));
    for name in names(cells) {
        print!("| {name:<12} |");
        for system in 0..systems.len() {
            match (find(cells, system, last, name), find(cells, system, first, name)) {
                (Some(many), Some(one)) => print!(" {:.2} |", ratio(many, one)),
                _ => print!(" - |"),
            }
        }
        println!();
    }
}

/// A rate with its unit's thousands.
fn rate(value: f64) -> String {
    if value >= 1e4 { format!("{} k", short(value / 1e3)) } else { short(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_program_is_a_rate() {
        let (name, rate) = parse("loop null cpus=2 ops=500 cycles=1000000\r", 2_000_000).unwrap();
        assert_eq!((name.as_str(), rate), ("null", 1e6));
        assert_eq!(parse("loops done", 1), None);
        assert_eq!(parse("loop fork1 failed: status 0x8b", 1), None);
    }

    #[test]
    fn options_of_the_command_line() {
        let words = ["--cpus", "1,4", "--rounds", "2", "null", "signal"].map(String::from);
        let options = Options::parse(words.into_iter()).unwrap();
        assert_eq!(
            (options.cpus, options.rounds, options.loops),
            (vec![1, 4], 2, vec!["null".into(), "signal".into()])
        );
        assert!(Options::parse(["--cpus", "x"].map(String::from).into_iter()).is_err());
    }
}
