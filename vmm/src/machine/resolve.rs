//! Checks.
use super::*;

/// Checks.
pub fn resolve(file: MachineFile, overrides: &Overrides) -> Result<Machine, MachineError> {
    let _ = (file, overrides);
    todo!()
}
