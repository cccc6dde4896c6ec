//! Machines: from a TOML file and command-line flags to the exact machine that is built.
//!
//! [`load`] reads a file, [`resolve`] checks it together with the [`Overrides`] and gives a
//! [`Machine`], [`acpi::build`] its firmware tables, [`describe`] all of it in words and JSON.
//! Nothing here touches KVM: `--dry-run` is these four calls.

pub mod acpi;
mod describe;
mod disk;
mod draft;
pub(crate) mod e820;
mod error;
mod file;
mod flags;
pub mod layout;
mod library;
mod model;
mod place;
mod resolve;
mod size;

pub use describe::{Description, E820Line, describe};
pub use disk::{Disk, DiskFaults, DiskSource, Sectors};
pub use error::{MachineError, Origin, Place, Problem, Shown};
pub use file::{MachineFile, load};
pub use library::names;
pub use model::{
    Backed, Backing, Boot, Cpu, Dma, Hmat, HmatKind, HmatMatrix, Machine, Node, Overrides, Paging, Range,
    Slot, SlotKind,
};
pub use resolve::resolve;
pub use size::Size;

#[cfg(test)]
mod tests;
