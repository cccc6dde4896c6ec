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
