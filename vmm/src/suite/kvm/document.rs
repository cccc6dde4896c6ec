//! What `memvisor run --json` prints at its end, and what it means together with the exit code.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, bail};
use memvisor_abi::port::ExitCode;
use serde::Deserialize;
use serde_json::Value;

use crate::control::api::Stats;
use crate::run::ExitStatus;
use crate::suite::bed::{Audit, Ended, Observed, last_lines};
use crate::suite::case::Case;
use crate::suite::outcome::Usage;
use crate::suite::outside::read_report;
use crate::suite::samples::Series;

/// The code of a process that ended; `None` if a signal ended it.
#[derive(Clone, Copy, Debug)]
pub struct ExitedWith(pub Option<i32>);

/// What `memvisor run --json` says at its end, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Document {
    console: String,
    end: End,
    checkpoints: Vec<Checkpoint>,
    #[serde(default)]
    stats: Stats,
}

#[derive(Debug, Deserialize)]
struct End {
    kind: String,
    code: Option<u8>,
    /// Of a reset: whether it is a good end.
    #[serde(default)]
    clean: bool,
    /// Of a vCPU that could not go on.
    failure: Option<VcpuFailure>,
    /// Of a run that was stopped from outside.
    by: Option<String>,
}

#[derive(Debug, Deserialize)]
struct VcpuFailure {
    cpu: u32,
    reason: String,
    registers: Option<Rip>,
    symbol: Option<String>,
    hint: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Rip {
    rip: u64,
}

impl End {
    /// In words, in one line.
    fn describe(&self) -> String {
        let Some(failure) = &self.failure else {
            let by = self.by.as_ref().map_or(String::new(), |by| format!(" by {by}"));
            let code = self.code.map_or(String::new(), |code| format!(" with {code}"));
            return format!("{}{by}{code}", self.kind.replace('_', " "));
        };
        let mut text = format!("{} on CPU {}", failure.reason, failure.cpu);
        if let Some(Rip { rip }) = failure.registers {
            text.push_str(&format!(" at rip {rip:#x}"));
        }
        if let Some(symbol) = &failure.symbol {
            text.push_str(&format!(" in {symbol}"));
        }
        if let Some(hint) = &failure.hint {
            text.push_str(&format!("; {hint}"));
        }
        text.replace('\n', " ")
    }
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    name: String,
    audit: Option<Value>,
    no_audit: Option<String>,
}

/// What came of a run: its exit code, its document and its error output, put together.
///
/// # Errors
/// The output is no such document.
pub fn observed(
    ended: Option<ExitedWith>,
    output: &str,
    messages: String,
    case: &Case,
) -> anyhow::Result<Observed> {
    let document: Option<Document> = match output.trim() {
        "" => None,
        text => Some(serde_json::from_str(text).context("read what `memvisor run --json` printed")?),
    };
    let mut observed = Observed {
        ended: Ended::Other(format!("no end within {} s", case.timeout.as_secs())),
        // Killed, it prints no document; the error output then has the console.
        console: document.as_ref().map_or_else(|| messages.clone(), |document| document.console.clone()),
        messages,
        audits: Vec::new(),
        usage: document.as_ref().map(|document| usage(&document.stats)).unwrap_or_default(),
        probes: Vec::new(),
        problems: Vec::new(),
        samples: Series::default(),
    };
    if let Some(document) = &document {
        for point in &document.checkpoints {
            match (&point.audit, &point.no_audit) {
                (Some(report), _) => observed.audits.push(read_report(report.clone())?),
                (None, reason) => {
                    let reason = reason.as_deref().unwrap_or("no reason given");
                    observed.problems.push(format!("no audit at checkpoint {}: {reason}", point.name));
                }
            }
        }
    }
    if let Some(ExitedWith(code)) = ended {
        observed.ended = meaning(code, document.as_ref(), &observed.audits, &observed.messages)
            .unwrap_or_else(|error| Ended::Other(error.to_string()));
    }
    Ok(observed)
}

/// Exits of all vCPUs by reason, and KVM's count of the instructions that it emulated.
pub fn usage(stats: &Stats) -> Usage {
    let mut exits = BTreeMap::new();
    for (reason, count) in stats.vcpus.iter().flat_map(|vcpu| &vcpu.exits) {
        *exits.entry(reason.clone()).or_insert(0) += count;
    }
    Usage { exits: Some(exits), emulated_instructions: stats.kvm.get("insn_emulation").copied() }
}

/// Lines quoted of an error output.
const LAST_WORDS: usize = 5;

/// What an exit code means, cross-checked with what the document says.
fn meaning(
    code: Option<i32>,
    document: Option<&Document>,
    audits: &[Audit],
    messages: &str,
) -> anyhow::Result<Ended> {
    let code = code.ok_or_else(|| anyhow!("memvisor was killed by a signal"))?;
    if code == ExitStatus::BadInput as i32 || code == ExitStatus::NoKvm as i32 {
        return Ok(Ended::Refused);
    }
    let Some(document) = document else {
        // Its error output begins with the guest's console and ends with its own words.
        bail!(
            "memvisor exited with {code} and without a document: {}",
            last_lines(messages, LAST_WORDS).join(" / ")
        )
    };
    let found = audits.iter().any(|audit| audit.findings > 0);
    let clean = document.end.kind == "power_off" || document.end.clean || document.end.code == Some(0);
    match (document.end.code, code) {
        _ if clean && !found && code == ExitStatus::Clean as i32 => Ok(Ended::Clean),
        _ if clean && found && code == ExitStatus::Findings as i32 => Ok(Ended::Clean),
        (Some(guest), _) if guest != 0 && code != ExitStatus::Clean as i32 => {
            Ok(Ended::Guest(guest, ExitCode::describe(guest)))
        }
        _ => bail!("{} (memvisor exited with {code}, findings: {found})", document.end.describe()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::ExitStatus;
    use crate::suite::bed::{Ended, judge};
    use crate::suite::case::parse;
    use crate::suite::outcome::Outcome;

    fn case() -> Case {
        let text = "[[case]]\nname = \"boot/x\"\ndescription = \"d\"\ncmdline = \"seeded=leak\"\n\
                    kvm = { machine = \"tiny\", boot = \"pvh\", paging = \"4\", cpus = 2, disks = [\
                    { name = \"swap\", size_mib = 8 }, { name = \"ro\", size_mib = 1, read_only = true }] }\n";
        parse("boot", text).unwrap().remove(0)
    }

    fn end(code: ExitStatus, output: &str) -> Observed {
        observed(Some(ExitedWith(Some(code as i32))), output, "error: why".to_owned(), &case()).unwrap()
    }

    const CLEAN: &str = r#"{"console": "hello\n", "end": {"kind": "exit", "code": 0}, "checkpoints": [{"name": "end",
        "no_audit": null, "audit": {"rules": [{"name": "owner.none", "findings": 0, "skipped": null}],
        "frames_audited": 8, "findings": []}}]}"#;

    #[test]
    fn the_document_says_console_and_audits() {
        let observed = end(ExitStatus::Clean, CLEAN);
        assert_eq!(observed.ended, Ended::Clean);
        assert_eq!(observed.console, "hello\n");
        assert_eq!((observed.audits[0].rules, observed.audits[0].frames), (1, 8));
    }

    #[test]
    fn exits_and_emulated_instructions_are_those_of_all_vcpus() {
        let stats = r#""stats": {"uptime_us": 1, "unclaimed_accesses": 0, "kvm": {"insn_emulation": 70}, "vcpus": [
            {"index": 0, "state": "stopped", "exits": {"hlt": 2, "io_out": 3}},
            {"index": 1, "state": "stopped", "exits": {"hlt": 1}}]}, "console"#;
        let usage = end(ExitStatus::Clean, &CLEAN.replacen("\"console", stats, 1)).usage;
        assert_eq!(usage.describe().as_deref(), Some("6 exits (hlt 3, io_out 3), 70 instructions emulated"));
    }

    #[test]
    fn an_exit_code_that_the_document_contradicts_is_not_clean() {
        assert!(matches!(end(ExitStatus::Findings, CLEAN).ended, Ended::Other(_)));
        let findings = CLEAN.replace("\"findings\": 0", "\"findings\": 3");
        assert!(matches!(end(ExitStatus::Clean, &findings).ended, Ended::Other(_)));
        assert_eq!(end(ExitStatus::Findings, &findings).ended, Ended::Clean);
    }

    #[test]
    fn a_refusal_needs_no_document() {
        assert_eq!(end(ExitStatus::BadInput, "").ended, Ended::Refused);
        assert!(matches!(end(ExitStatus::Clean, "").ended, Ended::Other(_)));
        let killed = observed(Some(ExitedWith(None)), CLEAN, String::new(), &case()).unwrap();
        assert!(matches!(killed.ended, Ended::Other(_)));
        let late = observed(None, "", "hello".to_owned(), &case()).unwrap();
        assert_eq!(late.console, "hello");
        assert!(matches!(late.ended, Ended::Other(text) if text.contains("180 s")));
        assert!(observed(Some(ExitedWith(Some(0))), "no json", String::new(), &case()).is_err());
    }

    #[test]
    fn a_vcpu_that_could_not_go_on_speaks_before_the_console() {
        let failed = r#"{"console": "one\n\n two\nthree\n", "checkpoints": [], "end":
            {"kind": "failed", "failure": {"cpu": 1, "reason": "triple fault", "guest_fault": true,
             "registers": {"rip": 18446744071578845184}, "symbol": "start+0x10", "hint": null}}}"#;
        let observed = end(ExitStatus::GuestFailed, failed);
        let Outcome::Failed(reasons) = judge(&case(), &observed, &[]) else { panic!("not a failure") };
        let lines: Vec<&str> = reasons[0].lines().collect();
        assert_eq!(
            lines[0],
            "expected a clean power-off, got: triple fault on CPU 1 at rip 0xffffffff81000000 in start+0x10 \
             (memvisor exited with 5, findings: false)"
        );
        assert_eq!(lines[1..], ["the console ends:", "  one", "  two", "  three"]);
    }

    #[test]
    fn a_memvisor_that_died_is_quoted_by_its_last_words() {
        let messages = (0..100).map(|n| format!("line {n}\n")).collect::<String>() + "memvisor: no memory\n";
        let observed = observed(Some(ExitedWith(Some(6))), "", messages, &case()).unwrap();
        let Ended::Other(text) = observed.ended else { panic!("no failure") };
        assert!(text.contains("exited with 6") && text.ends_with("line 99 / memvisor: no memory"), "{text}");
        assert!(!text.contains("line 90"), "{text}");
    }

    #[test]
    fn a_run_that_was_stopped_names_who_did_it() {
        let stopped = r#"{"console": "", "checkpoints": [], "end": {"kind": "stopped", "by": "SIGINT"}}"#;
        let Ended::Other(text) = end(ExitStatus::Stopped, stopped).ended else { panic!("no failure") };
        assert!(text.starts_with("stopped by SIGINT (memvisor exited with 7"), "{text}");
    }

    #[test]
    fn a_guest_that_gave_up_is_named() {
        let panicked = CLEAN.replace("\"code\": 0", "\"code\": 101");
        assert_eq!(
            end(ExitStatus::GuestFailed, &panicked).ended,
            Ended::Guest(101, "the guest kernel panicked")
        );
    }

    #[test]
    fn a_checkpoint_without_an_audit_is_a_problem() {
        let none = r#"{"console": "", "end": {"kind": "power_off"},
            "checkpoints": [{"name": "smp", "audit": null, "no_audit": "off"}]}"#;
        assert!(end(ExitStatus::Clean, none).problems[0].contains("smp: off"));
    }
}
