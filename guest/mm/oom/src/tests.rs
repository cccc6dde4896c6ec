//! Host tests.

mod overcommit;
mod report;
mod victims;
