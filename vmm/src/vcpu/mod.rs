//! Virtual CPUs: set-up, the thread that runs each, and what is said when one cannot go on.

mod cpuid;
mod diagnose;
mod probe;
mod regs;
mod stats;
mod thread;

pub use cpuid::{Features, build_cpuid};
pub use diagnose::Failure;
pub use probe::{HostOffer, KvmOpenError, emulates_ring0, open_kvm, second_stage_levels};
pub use regs::{read_registers, set_boot_registers, set_memory_type};
pub use stats::KvmStats;
pub use thread::{
    ExitCounts, Hold, Report, SharedBus, State, Translation, Vcpu, VcpuError, VcpuEvent, install_kick_handler,
};
