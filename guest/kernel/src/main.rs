//! The bundled guest kernel: a memory manager first, everything else as small as it can honestly be.
//!
//! `init.rs` has the order of boot. All assembly and all `unsafe` is in `arch/`, `sync.rs`, `mm/phys.rs`,
//! `mm/memmap.rs` and where those are called.

#![cfg_attr(target_os = "none", no_std, no_main)]

macro_rules! modules {
    ($($(#[$attribute:meta])* $name:ident,)*) => {
        $($(#[$attribute])* #[cfg(target_os = "none")] mod $name;)*
    };
}

modules! {
    #[macro_use] console,
    acpi,
    #[path = "arch/x86_64/mod.rs"] arch,
    bootinfo,
    cmdline,
    drivers,
    elf,
    init,
    introspect,
    mm,
    panic,
    seeded,
    smp,
    sync,
    syscall,
    task,
    topology,
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the guest kernel: build it with `make guest`");
    std::process::exit(2);
}
