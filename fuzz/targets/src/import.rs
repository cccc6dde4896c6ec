//! What a real machine says about itself: kernel logs, ACPI tables, /proc and /sys.

use std::error::Error;

use memvisor::import::{self, Imported};
use memvisor::machine::{MachineFile, Overrides, resolve};

use crate::{check_error, machine};

/// Between sources.
pub const SEPARATOR: &[u8] = b"\n----\n";
/// Tables whose length and checksum are made right, so that what they protect is reached.
const SEALED: [&[u8; 4]; 4] = [b"SRAT", b"SLIT", b"APIC", b"HMAT"];

/// A byte of choices (whether tables are sealed, a scale), then sources with [`SEPARATOR`] between them.
pub fn import(data: &[u8]) {
    let (choice, inputs) = parse(data);
    let imported = match import::import(&inputs, "fuzz.toml") {
        Ok(imported) => imported,
        Err(error) => return check_chain(&error),
    };
    check_imported(&imported);
    let divisor = 1_u32 << (choice >> 3);
    let scale = format!("1/{divisor}").parse();
    if choice & 2 != 0
        && let Ok(scale) = scale
    {
        match import::rescale(imported, scale, "fuzz.toml") {
            Ok(scaled) => check_imported(&scaled),
            Err(error) => check_chain(&error),
        }
    }
}

fn parse(data: &[u8]) -> (u8, Vec<import::Input>) {
    let (choice, mut rest) = data.split_first().unwrap_or((&0, &[]));
    let mut inputs = Vec::new();
    while !rest.is_empty() {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR).unwrap_or(rest.len());
        let mut bytes = rest.get(..end).unwrap_or(rest).to_vec();
        rest = rest.get(end + SEPARATOR.len()..).unwrap_or(&[]);
        if choice & 1 != 0 && SEALED.iter().any(|signature| bytes.starts_with(signature.as_slice())) {
            seal(&mut bytes);
        }
        inputs.push(import::Input::Bytes(format!("source-{}", inputs.len()), bytes));
    }
    (*choice, inputs)
}

fn seal(table: &mut [u8]) {
    let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
    if let Some(slot) = table.get_mut(4..8) {
        slot.copy_from_slice(&len.to_le_bytes());
    }
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(slot) = table.get_mut(9) {
        *slot = slot.wrapping_sub(sum);
    }
}

fn check_chain(error: &dyn Error) {
    let mut next = Some(error);
    while let Some(error) = next {
        check_error(error);
        next = error.source();
    }
}

/// I3: what is written is what was made, and a machine.
fn check_imported(imported: &Imported) {
    machine::check_machine(&imported.machine);
    let again = MachineFile::from_text("fuzz.toml", &imported.text)
        .and_then(|file| resolve(file, &Overrides::default()))
        .unwrap_or_else(|error| panic!("{error}\n{}", imported.text));
    assert_eq!(again, imported.machine);
    for remark in &imported.remarks {
        let text = remark.to_string();
        assert!(!text.trim().is_empty() && !text.contains('\n'), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_machines() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../corpus/import");
        for entry in std::fs::read_dir(folder).expect("a corpus").flatten() {
            let name = entry.file_name().into_string().expect("UTF-8");
            if name.starts_with("seed-") {
                let (_, inputs) = parse(&std::fs::read(entry.path()).expect("readable"));
                import::import(&inputs, "seed").unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
}
