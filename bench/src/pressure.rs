//! Programs that want more memory than there is (bench/guest/pressure.c), one static program on memvisor's guest and on a stock Linux, with the same disks
//! and as much RAM, on the same machine of QEMU's software CPU, in turns.
//!
//! ```text
//! memvisor-bench pressure --guest FILE --linux VMLINUX [--modules FOLDER] [--mib N] [--cpus N] [--rounds N] [--quick] [--policies] [ROW...]
//! ```
//!
//! With `--policies` memvisor's guest alone, with each of its LRU policies and slab allocators.
//!
//! The disks are made anew for each run: an ext2 by mke2fs, a swap area by mkswap, on files that QEMU writes through to the host's cache.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::both::{Run, System, compile, cpio, policies, systems, tsc_khz};
use crate::host;
use crate::stats::{median, ratio, short};

const USAGE: &str = "usage: memvisor-bench pressure --guest FILE --linux VMLINUX [--modules FOLDER] [--mib N] [--cpus N] [--rounds N] [--quick] [--policies] [ROW...]";
/// What every row shall reach, and what half of them shall: our time over Linux's.
const TARGETS: [f64; 2] = [1.0, 0.8];
/// Seconds that a machine may run.
const LIMIT: u32 = 1200;

/// What the command line says.
#[derive(Debug)]
struct Options {
    guest: PathBuf,
    linux: PathBuf,
    modules: PathBuf,
    mib: u64,
    cpus: u32,
    rounds: usize,
    policies: bool,
    rows: Vec<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
        let mut options = Options {
            guest: PathBuf::from("target/images/memvisor-guest.elf"),
            linux: PathBuf::from("target/nested/l1/vmlinux"),
            modules: PathBuf::from("target/nested/l1/disk"),
            mib: 256,
            cpus: 2,
            rounds: 3,
            policies: false,
            rows: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--guest" => options.guest = PathBuf::from(value()?),
                "--linux" => options.linux = PathBuf::from(value()?),
                "--modules" => options.modules = PathBuf::from(value()?),
                "--mib" => options.mib = value()?.parse().context("--mib takes a number")?,
                "--cpus" => options.cpus = value()?.parse().context("--cpus takes a number")?,
                "--rounds" => options.rounds = value()?.parse().context("--rounds takes a number")?,
                "--policies" => options.policies = true,
                "--quick" => (options.rounds, options.mib) = (1, 128),
                unknown if unknown.starts_with('-') => anyhow::bail!("unknown argument {unknown}\n{USAGE}"),
                name => options.rows.push(name.to_owned()),
            }
        }
        anyhow::ensure!(options.rounds > 0 && options.mib >= 128, "at least a round and 128 MiB\n{USAGE}");
        Ok(options)
    }

    /// What is compared; the first one is what the others are compared with.
    fn systems(&self) -> anyhow::Result<Vec<System>> {
        const VERB: &str = "bench-pressure";
        Ok(match self.policies {
            true => policies(&self.guest, VERB)?.into(),
            false => systems(&self.guest, &self.linux, VERB)?.into(),
        })
    }

    /// The words of the machine; disks lie in `folder`.
    fn machine(&self, folder: &Path) -> Vec<String> {
        let words = format!(
            "-accel tcg -cpu max -M q35 -m {} -smp {} -display none -nodefaults -no-user-config -serial stdio -no-reboot",
            self.mib, self.cpus
        );
        let mut words: Vec<String> = words.split_ascii_whitespace().map(str::to_owned).collect();
        for name in ["data", "swap"] {
            let file = folder.join(name);
            words.push("-drive".to_owned());
            words.push(format!("if=none,id={name},format=raw,cache=writeback,file={}", file.display()));
            words.push("-device".to_owned());
            words.push(format!("virtio-blk-pci,drive={name},serial={name}"));
        }
        words
    }
}

/// One row on one system: a value for each round.
struct Cell {
    system: usize,
    name: String,
    /// Seconds an operation.
    times: Vec<f64>,
    refaults: Vec<f64>,
}

/// Measures and prints the table.
///
/// # Errors
/// What is missing, or a system that does not come to its end.
pub fn run(arguments: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let options = Options::parse(arguments)?;
    let systems = options.systems()?;
    let khz = tsc_khz();
    let folder = tempfile::tempdir()?;
    let archive = archive(&options, khz, folder.path())?;
    let machine = options.machine(folder.path());
    let run = Run { machine: &machine, archive: &archive, limit: LIMIT, last_words: "pressure done" };
    println!("{}", host::describe());
    println!("\n    {}\n", run.describe());
    let mut cells: Vec<Cell> = Vec::new();
    for round in 0..options.rounds {
        for (number, system) in systems.iter().enumerate() {
            eprint!("\rround {} of {}, {:<40}", round + 1, options.rounds, system.name);
            std::io::stderr().flush()?;
            let console = run.boot(system, || make_disks(&options, folder.path()))?;
            for row in console.lines().filter_map(|line| parse(line, khz)) {
                let same = |cell: &&mut Cell| cell.system == number && cell.name == row.name;
                if let Some(cell) = cells.iter_mut().find(same) {
                    cell.times.push(row.time);
                    cell.refaults.push(row.refaults);
                } else {
                    let (times, refaults) = (vec![row.time], vec![row.refaults]);
                    cells.push(Cell { system: number, name: row.name, times, refaults });
                }
            }
        }
    }
    eprintln!();
    print(&options, &systems, &cells);
    Ok(())
}

/// The initramfs: the program, what it shall do, and the modules that a stock Linux needs for the disks.
fn archive(options: &Options, khz: u64, folder: &Path) -> anyhow::Result<PathBuf> {
    let config = format!("khz={khz} {}\n", options.rows.join(" "));
    let mut files = vec![
        ("init".to_owned(), compile("pressure", folder)?),
        ("pressure.conf".to_owned(), config.into_bytes()),
    ];
    for entry in std::fs::read_dir(&options.modules).with_context(|| options.modules.display().to_string())? {
        let entry = entry?;
        files.push((format!("disk/{}", entry.file_name().display()), std::fs::read(entry.path())?));
    }
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let path = folder.join("pressure.cpio");
    std::fs::write(&path, cpio::archive(&files))?;
    Ok(path)
}

/// Both disks: room for a file, and for anonymous memory, of twice the RAM.
fn make_disks(options: &Options, folder: &Path) -> anyhow::Result<()> {
    for (name, program, words) in
        [("data", "mke2fs", &["-q", "-F", "-t", "ext2", "-b", "4096"][..]), ("swap", "mkswap", &["-q"][..])]
    {
        let path = folder.join(name);
        let file = std::fs::File::create(&path)?;
        file.set_len((options.mib * 5 / 2) << 20)?;
        let output = Command::new(program)
            .args(words)
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .with_context(|| program.to_owned())?;
        anyhow::ensure!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A row that the program printed.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    /// Seconds an operation.
    time: f64,
    /// Pages an operation: each kernel gets work for the RAM that it manages, so sums are not for comparing.
    refaults: f64,
}

/// `row NAME ops=OPS cycles=CYCLES refaults=PAGES ...`.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn parse(line: &str, khz: u64) -> Option<Row> {
    let mut words = line.trim().strip_prefix("row ")?.split_ascii_whitespace();
    let name = words.next()?.to_owned();
    let mut field = |key: &str| words.find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    let (ops, cycles, refaults) = (field("ops=")?, field("cycles=")?, field("refaults=")?);
    let time = cycles as f64 / (khz.max(1) as f64 * 1e3) / ops.max(1) as f64;
    Some(Row { name, time, refaults: refaults as f64 / ops.max(1) as f64 })
}

fn print(options: &Options, systems: &[System], cells: &[Cell]) {
    let (what, column, other) = match options.policies {
        true => ("the time of each policy over the first one's", "over it", "the generations"),
        false => ("time on memvisor over time on the Linux before it", "ours/it", "Linux"),
    };
    println!(
        "Microseconds an operation, and {what}: medians of {} rounds, {} MiB, {} CPUs. Refaults: pages an operation that were taken back too early, \
         on {} and on {other}.\n",
        options.rounds,
        options.mib,
        options.cpus,
        if options.policies { "the classic lists" } else { "memvisor" },
    );
    let [first, others @ ..] = systems else { return };
    print!("| row | {} |", first.name);
    others.iter().for_each(|system| print!(" {} | {column} |", system.name));
    println!(" refaults |\n|---|{}---|", "---|".repeat(1 + 2 * others.len()));
    let mut ratios = Vec::new();
    for cell in cells.iter().filter(|cell| cell.system == 0) {
        print!("| {} | {} |", cell.name, micros(median(&cell.times)));
        let of =
            |system: usize| cells.iter().find(|other| (other.system, &other.name) == (system, &cell.name));
        for system in 1..=others.len() {
            let Some(other) = of(system) else {
                print!(" - | - |");
                continue;
            };
            let ratio = match options.policies {
                true => ratio(&other.times, &cell.times),
                false => ratio(&cell.times, &other.times),
            };
            ratios.push(ratio);
            print!(" {} | {ratio:.2} |", micros(median(&other.times)));
        }
        let second = of(1).map_or("-".to_owned(), |other| short(median(&other.refaults)));
        println!(" {}, {second} |", short(median(&cell.refaults)));
    }
    for target in TARGETS.iter().filter(|_| !options.policies) {
        let met = ratios.iter().filter(|ratio| *ratio <= target).count();
        println!("\n{met} of {} ratios are at most {target}.", ratios.len());
    }
}

fn micros(seconds: f64) -> String {
    short(seconds * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_program_is_a_row() {
        let row =
            parse("row touch-seq-1.0 ops=500 cycles=1000000 refaults=7 swapins=1 swapouts=2\r", 1_000_000);
        assert_eq!(row, Some(Row { name: "touch-seq-1.0".to_owned(), time: 2e-6, refaults: 0.014 }));
        assert_eq!(parse("pressure done", 1), None);
    }

    #[test]
    fn options_of_the_command_line() {
        let options = Options::parse(["--mib", "512", "oom"].map(String::from).into_iter()).unwrap();
        assert_eq!((options.mib, options.rows), (512, vec!["oom".to_owned()]));
        assert!(Options::parse(["--policies"].map(String::from).into_iter()).unwrap().policies);
        assert!(Options::parse(["--mib", "1"].map(String::from).into_iter()).is_err());
    }
}
