//! A translation, with the second stage where there is one.

use std::fmt;

use serde::Serialize;

use crate::{Stage2, Translation, TwoStage};

/// `inspect translate VA`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TranslateView {
    /// Guest tables only: a dump or a memory file has no host behind it.
    OneStage(Translation),
    /// Guest tables and the host behind each of them.
    TwoStage(TwoStage),
}

impl TranslateView {
    /// With the second stage, if there is one.
    pub fn new(translation: Translation, stage2: Option<&dyn Stage2>) -> TranslateView {
        match stage2 {
            Some(stage2) => TranslateView::TwoStage(TwoStage::new(translation, stage2)),
            None => TranslateView::OneStage(translation),
        }
    }

    /// The guest's stage.
    pub const fn translation(&self) -> &Translation {
        match self {
            TranslateView::OneStage(translation) => translation,
            TranslateView::TwoStage(both) => &both.translation,
        }
    }
}

impl fmt::Display for TranslateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let translation = self.translation();
        let (tables, result) = match self {
            TranslateView::OneStage(_) => (&[][..], None),
            TranslateView::TwoStage(both) => (both.tables.as_slice(), both.result.as_ref()),
        };
        writeln!(
            f,
            "translation of {:#x} with {} levels from guest-physical {:#x}",
            translation.va,
            translation.levels.count(),
            translation.root
        )?;
        for (index, step) in translation.steps.iter().enumerate() {
            writeln!(
                f,
                "  {} {:>3}  entry at {:#x}: {:?}  {}",
                step.level_name, step.index, step.entry_gpa, step.entry, step.flags
            )?;
            if let Some(host) = tables.get(index) {
                writeln!(f, "           {host}")?;
            }
        }
        writeln!(f, "  => {}", translation.outcome)?;
        if let Some(host) = result {
            writeln!(f, "           {host}")?;
        }
        if let TranslateView::TwoStage(both) = self {
            writeln!(f, "  {} memory references with nothing cached", both.hardware_references)?;
            if let Some(pages) = both.kvm_pages {
                let tables =
                    if both.second_stage_levels == 0 { "shadow page tables" } else { "second stage" };
                writeln!(f, "  KVM's {tables} map now: {pages}")?;
            }
        }
        Ok(())
    }
}
