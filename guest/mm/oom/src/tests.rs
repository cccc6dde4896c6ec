//! Host tests.

mod overcommit;
mod patience;
mod report;
mod victims;
