//! The `memvisor` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    memvisor::cli::main()
}
