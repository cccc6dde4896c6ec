//! Measures memvisor against its peers: the same work, in the same run, one after the other.
//!
//! ```text
//! memvisor-bench [start] [resident] [translate] [dump] [boot] [pages] [slab] [vmas] [guest]
//!                [--memvisor FILE] [--guest FILE] [--rounds N] [--quick]
//! memvisor-bench loops ...
//! memvisor-bench pressure ...
//! ```
//!
//! Without names all of them run, but for `loops` and `pressure`, which boot a stock Linux (see [`both`]). Every table is Markdown; docs/benchmarks.md holds one run of each.

mod boot;
mod both;
mod dump;
mod guest;
mod host;
mod image;
mod in_guest;
mod loops;
mod objects;
mod pages;
mod peers;
mod pressure;
mod process;
mod resident;
mod start;
mod stats;
mod table;
mod translate;
mod vm;
mod vmas;

use std::path::PathBuf;

use anyhow::Context;

use crate::table::Score;

const USAGE: &str = "usage: memvisor-bench [start] [resident] [translate] [dump] [boot] [pages] [slab] [vmas] [guest] \
                     [--memvisor FILE] [--guest FILE] [--rounds N] [--quick]";

/// What the command line says.
#[derive(Debug)]
pub struct Options {
    /// The binary to measure.
    pub memvisor: PathBuf,
    /// The guest image.
    pub guest: PathBuf,
    /// Counted rounds of each measurement.
    pub rounds: usize,
    /// Small sizes: to see that the benchmarks work.
    pub quick: bool,
}

type Benchmark = fn(&Options) -> anyhow::Result<Score>;
const BENCHMARKS: [(&str, Benchmark); 9] = [
    ("start", start::run),
    ("resident", resident::run),
    ("translate", translate::run),
    ("dump", dump::run),
    ("boot", boot::run),
    ("slab", objects::run),
    ("pages", pages::run),
    ("vmas", vmas::run),
    ("guest", in_guest::run),
];

fn main() -> anyhow::Result<()> {
    let mut options = Options {
        memvisor: PathBuf::from("target/release/memvisor"),
        guest: PathBuf::from("target/images/memvisor-guest.elf"),
        rounds: 11,
        quick: false,
    };
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "loops").is_some() {
        return loops::run(arguments);
    }
    if arguments.next_if(|first| first == "pressure").is_some() {
        return pressure::run(arguments);
    }
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--memvisor" => options.memvisor = PathBuf::from(value()?),
            "--guest" => options.guest = PathBuf::from(value()?),
            "--rounds" => options.rounds = value()?.parse().context("--rounds takes a number")?,
            "--quick" => options.quick = true,
            name if BENCHMARKS.iter().any(|(known, _)| *known == name) => names.push(argument),
            other => anyhow::bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    anyhow::ensure!(options.rounds > 0, "--rounds takes at least 1");
    anyhow::ensure!(
        options.memvisor.is_file(),
        "{} is not there: build it with `make build`, or name it with --memvisor",
        options.memvisor.display()
    );
    println!("{}", host::describe());
    let mut total = Score::default();
    for (name, benchmark) in BENCHMARKS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            let score = benchmark(&options).with_context(|| format!("benchmark {name}"))?;
            total.met += score.met;
            total.judged += score.judged;
        }
    }
    println!("\nall: {} of {} targets met", total.met, total.judged);
    Ok(())
}
