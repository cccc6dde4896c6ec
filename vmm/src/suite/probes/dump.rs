//! `dump-roundtrip`: a dump file holds what the guest held. The audit of the dump reports what the audit of
//! the live guest reports, and gdb, if it is installed, opens the file and shows CPU 0 where the VMM has it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use super::super::command::memvisor;
use super::{Control, Held, Outcome};

pub fn probe(held: &mut Held<'_>) -> anyhow::Result<Outcome> {
    let Control::Kvm(vm) = &held.control else {
        return Ok(Outcome::Skipped("memvisor dumps its own guests only".to_owned()));
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("guest.core");
    let path = file.to_str().context("the temporary folder's name is not UTF-8")?;
    vm.command(&["dump", "-o", path])?.succeed()?;

    let mut problems = Vec::new();
    let live: Value = serde_json::from_str(vm.command(&["check", "--json"])?.audited()?)?;
    let dump: Value = serde_json::from_str(memvisor(&["check", "--dump", path, "--json"])?.audited()?)?;
    for field in ["rules", "frames_audited", "ram_bytes", "owners", "findings"] {
        let (Some(live), Some(dump)) = (live.get(field), dump.get(field)) else {
            bail!("`check --json` has no field {field}");
        };
        if live != dump {
            problems.push(format!("{field}: the live guest gives {}, the dump {}", short(live), short(dump)));
        }
    }
    if let (Some(text), Some(cpu)) = (gdb(&file)?, held.registers.first()) {
        let rip = format!("{:#x}", cpu.rip);
        if !text.lines().any(|line| line.starts_with("rip") && line.contains(&rip)) {
            problems.push(format!("gdb does not show rip {rip} in the dump: {}", text.trim()));
        }
    }
    Ok(Outcome::from_problems(problems))
}

/// What gdb says about the instruction pointer; `None` if it is not installed.
fn gdb(core: &Path) -> anyhow::Result<Option<String>> {
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-iex", "set auto-load off", "-ex", "info registers rip", "-core"])
        .arg(core)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            Ok(Some(text.into_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("run gdb"),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
