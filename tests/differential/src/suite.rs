//! The archive for suite `differential`: the program, sequences, and what this machine's Linux did with each, just now.
//!
//! The guest compares by itself and prints KTAP, so that a suite runs it like any other test in the guest.

use std::path::Path;

use anyhow::{Context, bail};

use crate::archive::archive;
use crate::differences::MEANT;
use crate::host::Host;
use crate::output::{Outcome, run_all};
use crate::sequence::{Mode, Sequence, input};

/// Makes the archive.
///
/// # Errors
/// If the program cannot be run here.
pub fn pack(program: &Path, sequences: &[Sequence]) -> anyhow::Result<Vec<u8>> {
    let outcomes = run_all(&Host::new(program), sequences, Mode::Compact, &|_| ())?;
    let mut expected = Vec::new();
    for (sequence, outcome) in sequences.iter().zip(outcomes) {
        match outcome {
            Outcome::Ran { hash, .. } => expected.push(hash),
            Outcome::Died(words) => bail!("{} ended the program here: {words}", sequence.name),
        }
    }
    let bytes = std::fs::read(program).with_context(|| program.display().to_string())?;
    Ok(archive(&bytes, input(Mode::Ktap, sequences.iter(), &expected).as_bytes()))
}

/// Whether a sequence can be compared by its hash alone: it has no call that is meant to differ.
pub fn is_comparable(sequence: &Sequence) -> bool {
    !sequence.calls.iter().any(|call| MEANT.iter().any(|meant| (meant.may_be)(sequence, call)))
}
