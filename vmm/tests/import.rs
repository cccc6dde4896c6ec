//! `memvisor import` and what it makes, end to end: the program as a user starts it.

#[expect(dead_code, reason = "shared with another test, which uses all of it")]
mod support;

use std::io::Write;
use std::process::Stdio;

use support::{Bench, has_kvm, refused};

/// Two nodes, as a server's kernel log tells them.
const LOG: &str = "\
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable
[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000007fffffff] usable
[    0.000000] BIOS-e820: [mem 0x0000000100000000-0x00000010ffffffff] usable
[    0.012248] SRAT: PXM 0 -> APIC 0x00 -> Node 0
[    0.012250] SRAT: PXM 1 -> APIC 0x20 -> Node 1
[    0.012347] ACPI: SRAT: Node 0 PXM 0 [mem 0x00000000-0x7fffffff]
[    0.012349] ACPI: SRAT: Node 0 PXM 0 [mem 0x100000000-0x8ffffffff]
[    0.012350] ACPI: SRAT: Node 1 PXM 1 [mem 0x900000000-0x10ffffffff]
";

#[test]
fn a_log_from_standard_input_becomes_a_machine_that_runs() {
    let bench = Bench::new();
    let mut command = bench.command(&["import", "-", "-o", "m.toml"]);
    let mut import = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("memvisor starts");
    import.stdin.take().expect("a pipe").write_all(LOG.as_bytes()).expect("it reads");
    let out = import.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("m.toml: 2 nodes, 2 CPUs"), "{text}");
    assert_eq!(bench.files(), [bench.path("m.toml")]);

    let out = bench.run(&["run", "m.toml", "--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let cpus: Vec<_> = json["nodes"].as_array().expect("nodes").iter().map(|node| &node["cpus"]).collect();
    assert_eq!(cpus, [&serde_json::json!([0]), &serde_json::json!([1])]);

    if !has_kvm() {
        return;
    }
    let out = bench.run(&["run", "m.toml", "--scale", "1/64"]);
    let errors = String::from_utf8_lossy(&out.stderr);
    if errors.contains("--kernel") {
        eprintln!("SKIPPED: this build has no guest kernel in it");
        return;
    }
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{text}{errors}");
    assert!(text.trim_end().ends_with(", 0 findings"), "{text}");
    assert_eq!(bench.files(), [bench.path("m.toml")]);
}

#[test]
fn a_log_of_this_machine_that_lost_its_start_is_completed() {
    let log = std::process::Command::new("dmesg").output().map(|out| out.stdout).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let latest: Vec<&str> = log.lines().rev().take(20).collect();
    let has_map = std::fs::read_dir("/sys/firmware/memmap").is_ok_and(|mut entries| entries.next().is_some());
    if latest.is_empty() || log.lines().count() < 100 || !has_map {
        eprintln!("SKIPPED: this machine's log, or /sys/firmware/memmap, cannot be read");
        return;
    }
    let bench = Bench::new();
    bench.put("log", latest.join("\n").as_bytes());
    let out = bench.run(&["import", "log", "-o", "m.toml"]);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{errors}");
    assert!(errors.contains("the log is this machine's and has lost its start"), "{errors}");
    let other = latest.join("\n").replace("] ", "] other: ");
    bench.put("other", other.as_bytes());
    bench.refuses(&["import", "other", "-o", "n.toml"], 2, &["no source has a memory map"]);
}

#[test]
fn what_cannot_be_imported_is_named_and_leaves_no_file() {
    let bench = Bench::new();
    bench.put("log", LOG.as_bytes());
    bench.put("noise", b"\x00\xff\x7fELF nothing of a machine");
    bench.put("empty", b"");
    bench.refuses(&["import", "noise", "-o", "m.toml"], 2, &["noise"]);
    bench.refuses(&["import", "empty", "-o", "m.toml"], 2, &["empty"]);
    bench.refuses(&["import", "missing", "-o", "m.toml"], 2, &["missing", "No such file"]);
    bench.refuses(&["import", "-", "-", "-o", "m.toml"], 2, &["`-`", "twice"]);
    bench.refuses(&["import", "log"], 2, &["--output"]);
    bench.refuses(&["import", "log", "-o", "m.toml", "--scale", "64"], 2, &["--scale", "1/64"]);
    let args = ["import", "log", "-o", "no/such/m.toml"];
    let out = bench.run(&args);
    // What was adapted is said before.
    let last = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("no/such/m.toml") && last.contains("No such file"), "{last}");
    assert_eq!(out.status.code(), Some(1));
    let before = bench.files();
    refused(&bench.run(&["run", "m.toml"]), &["run", "m.toml"], 2, &["m.toml"]);
    assert_eq!(bench.files(), before);
}
