//! What this kernel is called (Linux: init/version.c).

use guest_fs::proc::Names;

/// The names. Programs look at that of the kernel and at its release to decide what they can expect: Linux's calls as 6.1 has them.
pub const NAMES: Names = Names {
    sysname: "Linux",
    nodename: "memvisor",
    release: "6.1.0-memvisor",
    version: concat!("#1 SMP ", env!("CARGO_PKG_VERSION")),
    machine: "x86_64",
    domainname: "(none)",
};
