//! A translation with every step.

use std::fmt;

use serde::Serialize;

use super::{Entry, Fault, Levels, Mapped};

/// One level of a walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Level; 1 is pte.
    pub level: u32,
    /// Linux's name of the level.
    pub level_name: &'static str,
    /// Guest-physical address of the table.
    #[serde(serialize_with = "crate::hex")]
    pub table_gpa: u64,
    /// Entry in the table, 0..512.
    pub index: u32,
    /// Guest-physical address of the entry.
    #[serde(serialize_with = "crate::hex")]
    pub entry_gpa: u64,
    /// The entry.
    pub entry: Entry,
    /// Its flags in words.
    pub flags: String,
    /// What it points to: the next table, or the page; `None` if it is not present.
    #[serde(serialize_with = "crate::hex_option")]
    pub phys: Option<u64>,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// At a page.
    Mapped(Mapped),
    /// Without one.
    Fault(Fault),
}

impl From<Result<Mapped, Fault>> for Outcome {
    fn from(result: Result<Mapped, Fault>) -> Outcome {
        match result {
            Ok(mapped) => Outcome::Mapped(mapped),
            Err(fault) => Outcome::Fault(fault),
        }
    }
}

/// The walk for one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// The address.
    #[serde(serialize_with = "crate::hex")]
    pub va: u64,
    /// Depth.
    pub levels: Levels,
    /// Guest-physical address of the top-level table.
    #[serde(serialize_with = "crate::hex")]
    pub root: u64,
    /// The entries that were read, top first. Empty if the address is not canonical.
    pub steps: Vec<Step>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Translation {
    /// The page, if there is one.
    pub const fn mapped(&self) -> Option<&Mapped> {
        match &self.outcome {
            Outcome::Mapped(mapped) => Some(mapped),
            Outcome::Fault(_) => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Mapped(mapped) => {
                write!(f, "guest-physical {:#x}, {} page, {}", mapped.gpa, mapped.page_size, mapped.access)
            }
            Outcome::Fault(fault) => write!(f, "no translation: {fault}"),
        }
    }
}
