//! The reader's own page-table walker, and the two-dimensional view of a translation.
//!
//! Shares nothing with the guest's page-table code: entries, reserved bits and canonical form are
//! taken from the processor manuals (SDM 3A chapter 4, APM 2 chapter 5).

mod entry;
mod stage2;
mod translation;
mod walker;

#[cfg(test)]
mod tests;

pub use entry::{Access, Entry, Levels, PageSize};
pub use stage2::{Stage2, Stage2Info, Stage2Pages, TwoStage, TwoStageStep, hardware_references};
pub use translation::{Outcome, Step, Translation};
pub use walker::{Fault, Mapped, Walker};
