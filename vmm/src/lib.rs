//! The memvisor virtual machine monitor as a library; the binary is a thin shell around it.

pub mod cli;
pub mod control;
pub mod devices;
pub mod event_loop;
pub mod explain;
pub mod import;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod run;
pub mod seccomp;
pub mod suite;
pub mod vcpu;
