//! Describes.
use super::*;

/// Everything about a machine, for `--dry-run`.
#[derive(Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Description {
    machine: String,
}

impl std::fmt::Display for Description {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}

/// Describes.
pub fn describe(machine: &Machine) -> Result<Description, MachineError> {
    let _ = machine;
    todo!()
}
