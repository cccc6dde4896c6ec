//! Real machines as input: from what a running Linux says about its machine to a machine file.
//!
//! [`import()`] reads any number of sources ([`source`] tells their kinds apart by content), collects what
//! each says as claims with file and line ([`claims`]), settles them ([`map`], [`numa`]), bends what memvisor
//! cannot build ([`fit`]) and writes a machine file that [`crate::machine::resolve`] accepts. [`scale`]
//! shrinks the RAM of any machine.
//!
//! I1  Firmware's word (BIOS-e820, /sys/firmware/memmap, ACPI tables) wins over the kernel's view of it
//!     (/proc/iomem, early node ranges, /sys/devices/system/node); of equals the first one given wins.
//! I2  Two sources that cannot both be right are reported, both with their places; so is every change
//!     that [`fit`] makes. Nothing is dropped silently.
//! I3  What is written resolves: it was read back before.

mod acpi;
mod claims;
mod dmesg;
mod fit;
mod iomem;
mod map;
mod numa;
mod own;
pub mod scale;
mod shape;
mod source;
mod sysfs;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use crate::machine::{Machine, MachineError, MachineFile, Overrides, describe, resolve};

pub use claims::{At, Remark};
pub use scale::{Scale, ScaleError, scale};
pub use shape::{Node, Shape};
pub use source::{Input, Kind};

/// A machine was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file or directory could not be read.
    #[error("read {name}: {source}")]
    Read {
        /// As the user named it; `-` is standard input.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A source is of no known kind.
    #[error("{name} is nothing that can be imported; {}", source::KNOWN)]
    Unknown {
        /// As the user named it.
        name: String,
    },
    /// A source is of a known kind but cannot be used.
    #[error("{at}: {problem}")]
    Unusable {
        /// Where.
        at: At,
        /// Why, and what to do.
        problem: String,
    },
    /// No source says where RAM is.
    #[error(
        "no source has a memory map; add /sys/firmware/memmap, /proc/iomem read as root, or a dmesg with the start of the boot (lines BIOS-e820): where the kernel's log has lost it, /var/log/dmesg or `journalctl -kb` may have it"
    )]
    NoMap,
    /// The machine is one that memvisor cannot build, even bent.
    #[error("the imported machine cannot be built")]
    Refused(#[source] MachineError),
}

/// An imported machine.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The machine file.
    pub text: String,
    /// What it resolves to.
    pub machine: Machine,
    /// Contradictions, changes and notes, in the order in which they came up.
    pub remarks: Vec<Remark>,
}

/// Imports the machine that `inputs` describe together. `file` is what the result will be called.
///
/// # Errors
/// [`ImportError`]; sources that contradict each other are not errors ([`Imported::remarks`]).
pub fn import(inputs: &[Input], file: &str) -> Result<Imported, ImportError> {
    let mut claims = claims::Claims::default();
    let mut kinds = Vec::new();
    for input in inputs {
        kinds.push(source::read(input, &mut claims)?);
    }
    if claims.maps.iter().all(|map| map.entries.is_empty()) && own::has_one_of(&claims.last_lines) {
        claims.note("the log is this machine's and has lost its start: what it said is taken from /sys");
        for input in own::sources() {
            match source::read(&input, &mut claims) {
                Ok(kind) => kinds.push(kind),
                // The tables are root's.
                Err(error) => claims.note(format!("left out: {error}")),
            }
        }
    }
    let shape = settle(&mut claims)?;
    let mut kinds: Vec<&str> = kinds.into_iter().map(Kind::name).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut head = format!("Imported by memvisor from {}.\n", kinds.join(", "));
    for remark in claims.remarks.iter().filter(|remark| matches!(remark, Remark::Adapted(_))) {
        head.push_str(&format!("{remark}.\n"));
    }
    let text = shape.to_toml(&head, &shape.describe(""), None);
    let machine = read_back(file, &text).map_err(ImportError::Refused)?;
    Ok(Imported { text, machine, remarks: claims.remarks })
}

/// Scales the RAM of an imported machine.
///
/// # Errors
/// [`ImportError::Refused`] if what is left is no machine.
pub fn rescale(imported: Imported, by: Scale, file: &str) -> Result<Imported, ImportError> {
    let shape = scale::shape(&Shape::of(&imported.machine), by);
    let head: String = imported.text.lines().map_while(|line| line.strip_prefix("# ")).fold(
        String::new(),
        |mut head, line| {
            head.push_str(line);
            head.push('\n');
            head
        },
    );
    let more = format!(", RAM scaled by {by}");
    let text = shape.to_toml(&head, &shape.describe(&more), None);
    let machine = read_back(file, &text).map_err(ImportError::Refused)?;
    Ok(Imported { text, machine, ..imported })
}

/// From claims to a shape that memvisor can build.
fn settle(claims: &mut claims::Claims) -> Result<Shape, ImportError> {
    let e820 = map::settle(claims).ok_or(ImportError::NoMap)?;
    let e820 = fit::fit_map(e820, &mut claims.remarks);
    let mut shape = numa::settle(claims, e820);
    fit::fit_cpus(&mut shape, &mut claims.remarks);
    Ok(shape)
}

/// Whether `text` is a machine whose firmware tables can be built too.
fn read_back(file: &str, text: &str) -> Result<Machine, MachineError> {
    let machine = resolve(MachineFile::from_text(file, text)?, &Overrides::default())?;
    describe(&machine)?;
    Ok(machine)
}

/// Opens the sources that the command line names.
pub fn inputs(names: &[PathBuf]) -> Vec<Input> {
    names.iter().map(|name| Input::new(name)).collect()
}
