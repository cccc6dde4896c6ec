//! Puts the bundled guest kernel into the binary.
//!
//! `MEMVISOR_GUEST` names its ELF file. Unset, nothing is bundled: host crates then build and test
//! without a cross build, and `memvisor run` asks for `--kernel`.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MEMVISOR_GUEST");
    println!("cargo::rerun-if-changed=build.rs");
    let Some(out) = env::var_os("OUT_DIR") else { return };
    let target = PathBuf::from(out).join("guest.elf");
    let bytes = match env::var_os("MEMVISOR_GUEST").filter(|path| !path.is_empty()) {
        None => Vec::new(),
        Some(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    println!("cargo::error=cannot read MEMVISOR_GUEST={}: {error}", path.display());
                    return;
                }
            }
        }
    };
    if let Err(error) = fs::write(&target, bytes) {
        println!("cargo::error=cannot write {}: {error}", target.display());
    }
}
