//! What the fuzzers run: one function a target, from bytes to a panic if a promise is broken.
//!
//! The promises to hold for whatever a user, a guest or a peer on the control socket may send:
//! no panic, no end-less or unbounded work (counted, not timed: [`Watched`]), no read outside guest
//! RAM, errors of one line. `tests/corpus.rs` replays the corpora under ordinary `cargo test`;
//! `make fuzz` looks for new inputs.

mod control;
mod devices;
mod dma;
mod dump;
mod e820;
mod ext2;
mod firmware;
mod guest;
mod import;
mod initramfs;
mod input;
mod kernel;
mod machine;
mod pages;
mod simulated;
mod slab;
mod trace;
mod virtio;
mod watched;

pub use control::control_http;
pub use devices::device_bus;
pub use dma::dma_engine;
pub use dump::dump_reader;
pub use e820::e820_memblock;
pub use ext2::{ext2, ext2_seed};
pub use firmware::firmware;
pub use guest::guest_descriptors;
pub use import::{SEPARATOR as IMPORT_SEPARATOR, import};
pub use initramfs::initramfs;
pub use input::Input;
pub use kernel::kernel_image;
pub use machine::machine_file;
pub use pages::alloc_api;
pub use slab::slab_api;
pub use trace::trace_rings;
pub use virtio::virtio_disk;
pub use watched::Watched;

/// A target: it panics on what should be fixed.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("machine_file", machine_file),
    ("kernel_image", kernel_image),
    ("firmware", firmware),
    ("e820_memblock", e820_memblock),
    ("control_http", control_http),
    ("dump_reader", dump_reader),
    ("device_bus", device_bus),
    ("guest_descriptors", guest_descriptors),
    ("import", import),
    ("trace_rings", trace_rings),
    ("alloc_api", alloc_api),
    ("slab_api", slab_api),
    ("initramfs", initramfs),
    ("virtio_disk", virtio_disk),
    ("dma_engine", dma_engine),
    ("ext2", ext2),
];

/// An error as a person gets it: words, one line, no longer than a screen.
pub(crate) fn check_error(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.trim().is_empty(), "an error without words");
    assert!(!text.contains('\n'), "an error of several lines: {text}");
    assert!(text.len() < 4096, "an error of {} bytes", text.len());
}
