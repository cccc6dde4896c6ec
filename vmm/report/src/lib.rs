//! What an audit found, as text for people and as JSON for programs.
//!
//! [`Finding`] is one broken invariant with both claims; [`AuditReport`] is a whole audit, whose
//! text ends in exactly one line of the form `audit: N rules, M frames, K findings`. [`Table`]
//! prints aligned columns and is what every view uses; [`Picture`] draws cells. Nothing here knows the guest.

#![forbid(unsafe_code)]

mod audit;
mod finding;
mod picture;
mod table;

pub use audit::{AuditReport, KEPT_PER_RULE, PRINTED_PER_RULE, RuleResult};
pub use finding::{Finding, Severity};
pub use picture::{Colours, Layer, Legend, Picture};
pub use table::{Align, Table};
