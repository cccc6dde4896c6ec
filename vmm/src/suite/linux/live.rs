//! Probes of a running stock Linux: what `memvisor inspect` and `memvisor dump` say about it is true.
//!
//! The measure is a text that Linux itself names: its banner. The guest prints the address (`linux_banner` of
//! /proc/kallsyms) and the text (/proc/version, which is the banner's format filled in); outside, the address is
//! translated by our walk of the page tables and by KVM, and the text read at the result.

use anyhow::{Context, bail};
use memvisor_inspect::MemorySource;
use serde_json::Value;

use super::super::command::memvisor;
use super::super::outcome::Outcome;
use super::super::probes::{Probe, views_agree};
use crate::control::Client;

/// Folder where dumps are left for others to open; without it they are removed.
const DUMPS: &str = "MEMVISOR_LINUX_DUMPS";
/// What the banner begins with.
const BANNER: &[u8] = b"Linux version ";

/// Examines a running Linux that has printed `console`.
///
/// # Errors
/// What kept the examination from its end.
pub fn examine(probe: Probe, client: &Client, console: &str) -> anyhow::Result<Outcome> {
    let va =
        banner_address(console).context("the console has no line of /proc/kallsyms with linux_banner")?;
    let release = release(console).context("the console has no line with Linux's release")?;
    match probe {
        Probe::LinuxViews => views(client, va, release),
        Probe::LinuxDump => dump(client, va, release),
        _ => bail!("this probe is for memvisor's own kernel"),
    }
}

/// "ffffffff82000060 D linux_banner".
fn banner_address(console: &str) -> Option<u64> {
    let line = console.lines().find(|line| line.trim_end().ends_with(" linux_banner"))?;
    u64::from_str_radix(line.split_whitespace().next()?, 16).ok().filter(|va| *va != 0)
}

/// "linux: release 6.1.0-56-amd64".
fn release(console: &str) -> Option<&str> {
    console.lines().find_map(|line| line.strip_prefix("linux: release ")).map(str::trim_end)
}

fn views(client: &Client, va: u64, release: &str) -> anyhow::Result<Outcome> {
    let mut problems = Vec::new();
    let address = format!("{va:#x}");
    let run = |words: &[&str]| memvisor(&[&["inspect"], words, &["--vm", client.name()]].concat());
    for view in [&["e820"][..], &["numa"], &["pagetables"], &["translate", &address]] {
        let (text, json) = (run(view)?, run(&[view, &["--json"]].concat())?);
        problems.extend(views_agree(&view.join(" "), &text, &json));
        if let (["e820"], Ok(json)) = (view, serde_json::from_str::<Value>(&json.output)) {
            let built = json["built"].as_array().map_or(0, Vec::len);
            let facts = client.facts()?.e820.len();
            if built == 0 || built > facts {
                problems.push(format!("e820: {built} entries built, the machine has {facts}"));
            }
        }
    }
    let json: Value = serde_json::from_str(run(&["translate", &address, "--json"])?.succeed()?)?;
    let walked = number(&json["translation"]["outcome"]["gpa"]);
    let by_kvm = client.translate(0, &[va])?.first().and_then(|answer| answer.gpa);
    if walked.is_none() || walked != by_kvm {
        problems.push(format!("linux_banner at {va:#x}: we walk to {walked:x?}, KVM to {by_kvm:x?}"));
    }
    if let Some(gpa) = walked {
        problems.extend(banner_at(&client.map_memory()?, gpa, release));
    }
    Ok(Outcome::from_problems(problems))
}

fn dump(client: &Client, va: u64, release: &str) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let kept = std::env::var_os(DUMPS).map(std::path::PathBuf::from);
    if let Some(kept) = &kept {
        std::fs::create_dir_all(kept).with_context(|| format!("make {}", kept.display()))?;
    }
    let path = kept.as_deref().unwrap_or(folder.path()).join("linux.core");
    let path = path.to_str().context("the folder's name is not UTF-8")?;
    memvisor(&["dump", "-o", path, "--vm", client.name()])?.succeed()?;
    let mut problems = Vec::new();
    let core = memvisor_inspect::CoreFile::open(std::path::Path::new(path))?;
    // Linux's own text, which crash and drgn find the kernel by.
    if !core.vmcoreinfo().contains(&format!("OSRELEASE={release}\n")) {
        problems.push(format!("the dump's VMCOREINFO is not Linux's: {:.80?}", core.vmcoreinfo()));
    }
    let json = memvisor(&["inspect", "translate", &format!("{va:#x}"), "--dump", path, "--json"])?;
    let json: Value = serde_json::from_str(json.succeed()?)?;
    match number(&json["translation"]["outcome"]["gpa"]) {
        Some(gpa) => problems.extend(banner_at(&core, gpa, release)),
        None => problems.push(format!("linux_banner at {va:#x} is not mapped in the dump")),
    }
    Ok(Outcome::from_problems(problems))
}

/// What is wrong with the banner at a guest-physical address.
fn banner_at<S: MemorySource + ?Sized>(memory: &S, gpa: u64, release: &str) -> Option<String> {
    let mut text = vec![0; BANNER.len() + release.len()];
    match memory.read(gpa, &mut text) {
        Err(error) => Some(format!("read the banner at guest-physical {gpa:#x}: {error}")),
        Ok(()) if text == [BANNER, release.as_bytes()].concat() => None,
        Ok(()) => {
            Some(format!("at guest-physical {gpa:#x} is no banner but {:?}", String::from_utf8_lossy(&text)))
        }
    }
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvisor_inspect::{RamRegion, SparseMemory};

    #[test]
    fn address_and_release_are_read_from_the_console() {
        let console = "linux: release 6.1.0\r\n/ # grep -w linux_banner /proc/kallsyms\r\n\
                       ffffffff82000060 D linux_banner\r\n/ # ";
        assert_eq!(banner_address(console), Some(0xffff_ffff_8200_0060));
        assert_eq!(release(console), Some("6.1.0"));
        assert_eq!(banner_address("0000000000000000 D linux_banner\n"), None, "hidden by kptr_restrict");
    }

    #[test]
    fn another_text_is_no_banner() {
        let mut memory = SparseMemory::new(&[RamRegion { gpa: 0, len: 0x1000 }]).unwrap();
        memory.write(0x100, b"Linux version 6.1.0-1 (x)").unwrap();
        assert_eq!(banner_at(&memory, 0x100, "6.1.0-1"), None);
        assert!(banner_at(&memory, 0x101, "6.1.0-1").unwrap().contains("inux version"));
        assert!(banner_at(&memory, 0x2000, "6.1.0-1").unwrap().contains("0x2000"));
    }
}
