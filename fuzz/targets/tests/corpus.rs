//! Replays the corpora: everything that a fuzzer once found, and the seeds it starts from.

use std::fs;
use std::path::{Path, PathBuf};

use memvisor_fuzz_targets::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names of the entries of a folder, ascending.
fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let folder = fuzz().join("corpus").join(name);
    let files = entries(&folder);
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        eprintln!("{name}/{file}");
        target(&fs::read(folder.join(file)).expect("readable"));
    }
    target(&[]);
}

macro_rules! replays {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_corpus_a_program_and_a_replay() {
            let replayed = [$(stringify!($name)),*];
            let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(targets, replayed);
            let mut sorted = targets.clone();
            sorted.sort_unstable();
            assert_eq!(entries(&fuzz().join("corpus")), sorted);
            let programs: Vec<String> = sorted.iter().map(|name| format!("{name}.rs")).collect();
            assert_eq!(entries(&fuzz().join("fuzz_targets")), programs);
            let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("readable");
            for name in targets {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
            }
        }
    };
}

replays!(
    machine_file,
    kernel_image,
    firmware,
    e820_memblock,
    control_http,
    dump_reader,
    device_bus,
    guest_descriptors,
    import,
    trace_rings,
    alloc_api,
    slab_api,
    initramfs,
    virtio_disk,
    dma_engine,
    ext2
);
