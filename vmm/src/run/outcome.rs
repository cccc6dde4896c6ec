//! How a run ended, and the exit code that says so.

use std::time::Duration;

use memvisor_abi::port::ExitCode as GuestExit;
use memvisor_report::AuditReport;
use serde::Serialize;

use crate::vcpu::Failure;

/// Exit codes of the `memvisor` command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest powered off cleanly and the audit found nothing; other commands: done.
    Clean = 0,
    /// A command failed for a reason that has no number of its own.
    Error = 1,
    /// Wrong usage, or a machine file, kernel or flag that cannot be used.
    BadInput = 2,
    /// The audit found something.
    Findings = AuditReport::EXIT_FINDINGS,
    /// /dev/kvm is missing, not permitted or too old: nothing could run on this machine.
    NoKvm = 4,
    /// The guest failed: panic, failed test, triple fault; a reset by our own kernel.
    GuestFailed = 5,
    /// KVM or memvisor failed.
    VmmFailed = 6,
    /// Stopped from outside before the guest ended: a signal, Ctrl-A x, the control socket, a timeout.
    Stopped = 7,
}

/// Why a run ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum End {
    /// ACPI power-off.
    PowerOff,
    /// The guest gave an exit code.
    Exit {
        /// The code.
        code: u8,
        /// What it means.
        meaning: &'static str,
    },
    /// The guest reset the machine.
    Reset {
        /// Whether that is a good end: of a foreign kernel, such as Linux, that did not panic before.
        /// memvisor's own kernel never asks for it.
        clean: bool,
    },
    /// A vCPU could not go on.
    Failed {
        /// What is known about it.
        failure: Box<Failure>,
    },
    /// Somebody outside ended it.
    Stopped {
        /// Who.
        by: String,
    },
}

impl End {
    /// The end that a guest's exit code means.
    pub fn exit(code: u8) -> End {
        End::Exit { code, meaning: GuestExit::describe(code) }
    }

    /// Whether the guest said that all is well.
    pub fn is_clean(&self) -> bool {
        matches!(self, End::PowerOff | End::Exit { code: 0, .. } | End::Reset { clean: true })
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        match self {
            End::PowerOff => "the guest powered off".into(),
            End::Exit { code, meaning } => format!("the guest exited with {code}: {meaning}"),
            End::Reset { .. } => "the guest reset the machine".into(),
            End::Failed { failure } => failure.to_string(),
            End::Stopped { by } => format!("stopped by {by} before the guest ended"),
        }
    }
}

/// An audit at a checkpoint, or at the end.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointRecord {
    /// Number that the guest gave; `None` at the end.
    pub number: Option<u32>,
    /// Name that the guest gave.
    pub name: String,
    /// CPU that asked.
    pub cpu: Option<u32>,
    /// The report; `None` if the audit could not run or was turned off.
    pub audit: Option<AuditReport>,
    /// Why there is no report.
    pub no_audit: Option<String>,
}

/// A finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Report of a guest that panicked.
    pub epitaph: Option<String>,
    /// Audits in order; the last one is the final.
    pub checkpoints: Vec<CheckpointRecord>,
    /// From start to end.
    #[serde(rename = "duration_us", serialize_with = "as_microseconds")]
    pub duration: Duration,
}

fn as_microseconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

impl CheckpointRecord {
    /// One line for people.
    pub fn describe(&self) -> String {
        let mut text = match self.number {
            Some(number) => format!("checkpoint {number}"),
            None => "final audit".into(),
        };
        if self.number.is_some() && !self.name.is_empty() {
            text.push_str(&format!(" ({})", self.name));
        }
        match (&self.audit, &self.no_audit) {
            (Some(report), _) => {
                format!("{text}: {} in {} ms", report.summary(), report.duration.as_millis())
            }
            (None, Some(reason)) => format!("{text}: no audit: {reason}"),
            (None, None) => text,
        }
    }
}

impl Outcome {
    /// The last audit that ran.
    pub fn audit(&self) -> Option<&AuditReport> {
        self.checkpoints.iter().rev().find_map(|record| record.audit.as_ref())
    }

    /// Findings of all audits.
    pub fn findings(&self) -> usize {
        self.checkpoints.iter().filter_map(|record| record.audit.as_ref()).map(AuditReport::count).sum()
    }

    /// The exit code of the command. A finding says more than the guest's own end; a failure of KVM
    /// says that neither can be trusted.
    pub fn status(&self) -> ExitStatus {
        match &self.end {
            End::Failed { failure } if !failure.guest_fault => ExitStatus::VmmFailed,
            _ if self.findings() > 0 => ExitStatus::Findings,
            End::Stopped { .. } => ExitStatus::Stopped,
            end if end.is_clean() => ExitStatus::Clean,
            _ => ExitStatus::GuestFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use memvisor_report::RuleResult;

    use super::*;

    fn outcome(end: End, findings: usize) -> Outcome {
        let rule = RuleResult { name: "r", invariant: "i", checked: 1, findings, skipped: None };
        let audit = AuditReport { rules: vec![rule], ..AuditReport::default() };
        let record = CheckpointRecord {
            number: Some(1),
            name: String::new(),
            cpu: None,
            audit: Some(audit),
            no_audit: None,
        };
        Outcome { end, epitaph: None, checkpoints: vec![record], duration: Duration::ZERO }
    }

    #[test]
    fn only_a_clean_end_without_findings_is_zero() {
        assert_eq!(outcome(End::PowerOff, 0).status(), ExitStatus::Clean);
        assert_eq!(outcome(End::exit(0), 0).status(), ExitStatus::Clean);
        assert_eq!(outcome(End::exit(0), 1).status(), ExitStatus::Findings);
        assert_eq!(outcome(End::exit(101), 0).status(), ExitStatus::GuestFailed);
        assert_eq!(outcome(End::Reset { clean: false }, 0).status(), ExitStatus::GuestFailed);
        assert_eq!(outcome(End::Reset { clean: true }, 0).status(), ExitStatus::Clean);
        assert_eq!(outcome(End::Stopped { by: "SIGINT".into() }, 0).status(), ExitStatus::Stopped);
    }
}
