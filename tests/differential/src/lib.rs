//! The same calls on this machine's Linux and in the guest, and every difference in what they do.
//!
//! A sequence is a list of [`call::Call`]s, hand-written ([`cases`]) or generated from a seed ([`generate`]). The static program
//! of `tests/programs/differential` carries it out and prints a record: results, errnos, signals, the shape of
//! /proc/self/maps, contents. It runs here as a process ([`host`]) and as the first process of a machine ([`guest`]);
//! [`compare`] looks at the records, [`shrink`] takes calls away from a sequence while its records differ.
//! What may differ is in one place, [`differences`].

pub mod archive;
pub mod call;
pub mod cases;
pub mod compare;
pub mod differences;
pub mod generate;
pub mod guest;
pub mod host;
pub mod output;
pub mod report;
pub mod sequence;
pub mod shrink;
pub mod suite;
mod text;
