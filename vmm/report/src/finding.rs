//! One broken invariant.

use std::fmt;

use serde::Serialize;

/// How much a finding matters. Both count as findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Suspicious, and the guest can go on.
    Warning,
    /// Memory is or will be corrupted, or the guest's books are wrong.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// A place where the guest's belief and the outside view differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable dotted name of the rule that found it.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The frame concerned (page frame number).
    pub frame: Option<u64>,
    /// The address concerned: virtual for page-table rules, else guest-physical.
    pub address: Option<u64>,
    /// One line that says what is wrong, with both claims.
    pub what: String,
    /// The guest's claim.
    pub guest_says: String,
    /// What was derived from outside.
    pub outside_says: String,
    /// What the frame's descriptor tells of its past, if it has one.
    pub history: Option<String>,
    /// Where a kernel developer should look first.
    pub hint: &'static str,
}

impl Finding {
    /// An error of `rule`: `what` names the object, the claims follow. [`Finding::what`] becomes
    /// the one line `what: the guest says .., outside says ..`.
    ///
    /// ```
    /// let finding = memvisor_report::Finding::new("zone.free_pages", "node 0 DMA", "10 pages", "9 pages")
    ///     .hint("a free or an allocation missed the counter");
    /// assert_eq!(finding.what, "node 0 DMA: the guest says 10 pages, outside says 9 pages");
    /// ```
    pub fn new(
        rule: &'static str,
        what: impl fmt::Display,
        guest_says: impl Into<String>,
        outside_says: impl Into<String>,
    ) -> Finding {
        let (guest_says, outside_says) = (guest_says.into(), outside_says.into());
        Finding {
            rule,
            severity: Severity::Error,
            frame: None,
            address: None,
            what: format!("{what}: the guest says {guest_says}, outside says {outside_says}"),
            guest_says,
            outside_says,
            history: None,
            hint: "",
        }
    }

    /// Names the frame.
    #[must_use]
    pub fn frame(mut self, pfn: u64) -> Finding {
        self.frame = Some(pfn);
        self
    }

    /// Names the address.
    #[must_use]
    pub fn address(mut self, address: u64) -> Finding {
        self.address = Some(address);
        self
    }

    /// Says where to look.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Finding {
        self.hint = hint;
        self
    }

    /// Makes it a warning.
    #[must_use]
    pub fn warning(mut self) -> Finding {
        self.severity = Severity::Warning;
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.rule)?;
        if let Some(pfn) = self.frame {
            write!(f, " at pfn {pfn:#x}")?;
        }
        if let Some(address) = self.address {
            write!(f, " at {address:#x}")?;
        }
        write!(f, "\n    {}", self.what)?;
        if let Some(history) = &self.history {
            write!(f, "\n    history: {history}")?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n    look at: {}", self.hint)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_rule_place_claims_and_hint() {
        let mut finding = Finding::new("owner.single", "frame", "free", "page table")
            .frame(0x10)
            .address(0x1_0000)
            .hint("free path");
        finding.history = Some("kind buddy".into());
        assert_eq!(
            finding.to_string(),
            "error: owner.single at pfn 0x10 at 0x10000\n    frame: the guest says free, outside says page table\n    \
             history: kind buddy\n    look at: free path"
        );
    }

    #[test]
    fn a_warning_says_so() {
        assert!(Finding::new("r", "w", "a", "b").warning().to_string().starts_with("warning: r\n"));
    }
}
