//! The second stage of translation: where guest-physical addresses are on the host.

use std::fmt;

use serde::Serialize;

use super::{Outcome, Translation};

/// What a live VMM knows about the host side of guest-physical memory. Implemented outside this
/// crate, by whoever holds the slots; a dump has no second stage.
pub trait Stage2 {
    /// Where `gpa` is on the host; `None` if no memory slot holds it.
    fn lookup(&self, gpa: u64) -> Option<Stage2Info>;

    /// Levels of the second-stage tables; 4 unless the host says otherwise. 0 if there is no second
    /// stage in hardware (shadow paging), where a walk makes only the guest's own references.
    fn levels(&self) -> u32 {
        4
    }

    /// What KVM maps for the guest at this moment; `None` if it does not count it.
    fn pages(&self) -> Option<Stage2Pages> {
        None
    }
}

/// Mappings of KVM's tables for a guest, by size: those of the second stage, or of its shadow page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stage2Pages {
    /// Mappings of 4 KiB.
    pub pages_4k: u64,
    /// Mappings of 2 MiB.
    pub pages_2m: u64,
    /// Mappings of 1 GiB.
    pub pages_1g: u64,
}

/// The host side of one guest-physical address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage2Info {
    /// Memory slot.
    pub slot: u32,
    /// First guest-physical byte of the slot.
    #[serde(serialize_with = "crate::hex")]
    pub slot_gpa: u64,
    /// Host virtual address, in the VMM's process.
    #[serde(serialize_with = "crate::hex")]
    pub hva: u64,
    /// Host frame, where the host lets it be read.
    pub host_frame: Option<u64>,
    /// Bytes of the host's mapping, where it can be known.
    pub page_size: Option<u64>,
    /// What the machine says that the host backs the slot with; empty if it says nothing.
    pub backing: String,
    /// Why something above is missing; empty if nothing is.
    pub note: String,
}

/// Memory references of a two-dimensional walk of `guest_levels` by `nested_levels`: each guest
/// table address and the final address is translated by the second stage, and each guest entry is
/// read. 24 for 4 by 4, 35 for 5 by 5.
pub const fn hardware_references(guest_levels: u32, nested_levels: u32) -> u32 {
    (guest_levels + 1) * (nested_levels + 1) - 1
}

/// A translation with the second stage of every table address and of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TwoStage {
    /// The guest's stage.
    pub translation: Translation,
    /// Per step of [`Translation::steps`]: the second stage of the entry's address.
    pub tables: Vec<TwoStageStep>,
    /// The second stage of the resulting address; `None` if there is no translation.
    pub result: Option<TwoStageStep>,
    /// Memory references the hardware makes for this walk with nothing cached.
    pub hardware_references: u32,
    /// Levels of the second stage; 0 if KVM shadows the guest's tables.
    pub second_stage_levels: u32,
    /// All that KVM maps for the guest at this moment.
    pub kvm_pages: Option<Stage2Pages>,
}

/// The second stage of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TwoStageStep {
    /// The address.
    #[serde(serialize_with = "crate::hex")]
    pub gpa: u64,
    /// Its host side; `None` if no slot holds it.
    pub host: Option<Stage2Info>,
}

impl TwoStage {
    /// Adds the second stage to `translation`.
    pub fn new(translation: Translation, stage2: &(impl Stage2 + ?Sized)) -> TwoStage {
        let locate = |gpa| TwoStageStep { gpa, host: stage2.lookup(gpa) };
        let tables: Vec<_> = translation.steps.iter().map(|step| locate(step.entry_gpa)).collect();
        let result = translation.mapped().map(|mapped| locate(mapped.gpa));
        // A walk that ends early translates no final address: the nested walks of the tables and the
        // reads of their entries are all it makes.
        let steps = u32::try_from(tables.len()).unwrap_or(u32::MAX);
        let nested = stage2.levels();
        let hardware_references = match &translation.outcome {
            Outcome::Mapped(_) => hardware_references(steps, nested),
            Outcome::Fault(_) => steps * (nested + 1),
        };
        let kvm_pages = stage2.pages();
        TwoStage { translation, tables, result, hardware_references, second_stage_levels: nested, kvm_pages }
    }
}

impl fmt::Display for Stage2Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stage2Pages { pages_4k, pages_2m, pages_1g } = self;
        write!(f, "{pages_4k} of 4 KiB, {pages_2m} of 2 MiB, {pages_1g} of 1 GiB")
    }
}

impl fmt::Display for TwoStageStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(host) = &self.host else { return write!(f, "{:#x} is in no memory slot", self.gpa) };
        write!(f, "slot {} (at {:#x}), host virtual {:#x}", host.slot, host.slot_gpa, host.hva)?;
        if let Some(frame) = host.host_frame {
            write!(f, ", host frame {frame:#x}")?;
        }
        if let Some(bytes) = host.page_size {
            write!(f, ", host page {} KiB", bytes >> 10)?;
        }
        if !host.backing.is_empty() {
            write!(f, ", backing {}", host.backing)?;
        }
        if !host.note.is_empty() {
            write!(f, " ({})", host.note)?;
        }
        Ok(())
    }
}
