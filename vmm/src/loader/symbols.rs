//! Names for the addresses of a guest's kernel.

use std::{fs, path::Path};

use anyhow::Context;
use memvisor_inspect::{Guest, MemorySource, Symbols};

use super::{BUNDLED, Image};

const PAGE: usize = 4096;

/// Symbols of `path`, an ELF file or a System.map; without it those of the bundled kernel, if the guest runs just that. None are known of
/// another.
///
/// # Errors
/// If the file cannot be read.
pub fn kernel_symbols<S: MemorySource + ?Sized>(
    guest: &Guest<'_, S>,
    path: Option<&Path>,
) -> anyhow::Result<Symbols> {
    if let Some(path) = path {
        let bytes = fs::read(path).with_context(|| format!("cannot read symbols from {}", path.display()))?;
        return Ok(Symbols::parse(&bytes));
    }
    Ok(if runs(guest, BUNDLED) { Symbols::parse(BUNDLED) } else { Symbols::default() })
}

/// Whether the guest's code, the first segment, is that of the image.
fn runs<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, image: &[u8]) -> bool {
    let Ok(image) = Image::parse(image) else { return false };
    let Some(code) = image.segments.first() else { return false };
    let walker = guest.kernel_walker();
    let mut page = [0; PAGE];
    (0..).step_by(PAGE).zip(image.contents(code).chunks(PAGE)).all(|(offset, wanted)| {
        let found = &mut page[..wanted.len()];
        let va = guest.root().kernel_va.wrapping_add(offset);
        let gpa = walker.lookup(guest.source(), va).ok().map(|mapped| mapped.gpa);
        gpa.is_some_and(|gpa| guest.source().read(gpa, found).is_ok()) && found == wanted
    })
}
