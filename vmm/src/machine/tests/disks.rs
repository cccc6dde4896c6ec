//! Disks of files and flags.

use std::path::{Path, PathBuf};

use super::super::*;
use super::{machine, parsed};

const NODE: &str = "[[node]]\nmemory = [\"64M\"]\ncpus = [0]\n";

fn refusal(disk: &str, flags: &[&str]) -> String {
    let overrides =
        Overrides { disk: flags.iter().map(|flag| (*flag).to_owned()).collect(), ..Overrides::default() };
    let text = format!("{NODE}{disk}");
    let file = MachineFile::from_text("m.toml", &text);
    match file.and_then(|file| resolve(file, &overrides)) {
        Ok(machine) => panic!("accepted: {:?}\n{text}", machine.disks),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_bundled_disks_are_as_their_file_says() {
    let disks = machine("disks").disks;
    let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["data", "swap", "ro", "flaky", "torn", "slow"]);
    assert_eq!(disks[1].source, DiskSource::Temporary(32 << 20));
    assert!(disks[2].read_only && disks[0].faults.is_none());
    assert_eq!(disks[3].faults.read_errors, [Sectors { sector: 64, count: 1 }]);
    assert_eq!((disks[4].faults.torn_writes, disks[5].faults.delay_us), (Some(3), 2000));
}

#[test]
fn disks_of_flags_follow_those_of_the_file() {
    let text = format!("{NODE}[[disk]]\nfile = \"a.img\"\n");
    let file = MachineFile::from_text("m.toml", &text).expect("reads");
    let disk = ["path=b.img,name=b,readonly=on", "size=1M,ro", "size=512,readonly=off"];
    let overrides = Overrides { disk: disk.map(str::to_owned).to_vec(), ..Overrides::default() };
    let disks = resolve(file, &overrides).expect("resolves").disks;
    let seen: Vec<(&str, bool)> = disks.iter().map(|disk| (disk.name.as_str(), disk.read_only)).collect();
    assert_eq!(seen, [("disk0", false), ("b", true), ("disk2", true), ("disk3", false)]);
    assert_eq!(disks[0].source, DiskSource::File(PathBuf::from("a.img")));
    assert_eq!(disks[3].source, DiskSource::Temporary(512));
}

#[test]
fn a_path_is_relative_to_the_machine_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.toml");
    std::fs::write(&path, format!("{NODE}[[disk]]\nfile = \"d/a.img\"\n")).expect("a file");
    let file = load(&path.display().to_string()).expect("reads");
    let disks = resolve(file, &Overrides::default()).expect("resolves").disks;
    assert_eq!(disks[0].source, DiskSource::File(folder.path().join(Path::new("d/a.img"))));
}

#[test]
fn each_mistake_in_a_disk_is_one_line() {
    let size = "a disk of 1000 bytes; give a multiple of 512 from 512 on";
    assert_eq!(refusal("[[disk]]\nsize = 1000", &[]), format!("m.toml:4: disk[0]: {size}"));
    assert_eq!(refusal("", &["size=1000"]), format!("--disk: size=1000: {size}"));
    for (disk, word) in [
        ("[[disk]]\nname = \"a\"", "needs `file`"),
        ("[[disk]]\nsize = \"1M\"\nfile = \"a\"", "give one of them"),
        ("[[disk]]\nsize = 0", "0 bytes"),
        ("[[disk]]\nsize = \"1M\"\nname = \"a b\"", "not the name of a disk"),
        ("[[disk]]\nsize = \"1M\"\nname = \"abcdefghijklmnopqrstu\"", "1 to 20"),
        ("[[disk]]\nsize = \"1M\"\ntorn_writes = 0", "from 1 on"),
        ("[[disk]]\nsize = \"1M\"\ndelay_us = 60000001", "at most 60000000"),
        ("[[disk]]\nsize = \"1M\"\nread_errors = [{ at = 3 }]", "unknown field `at`"),
        ("[[disk]]\nsize = \"1M\"\nname = \"a\"\n[[disk]]\nsize = \"1M\"\nname = \"a\"", "given twice"),
    ] {
        let text = refusal(disk, &[]);
        assert!(text.contains(word) && !text.contains('\n') && text.starts_with("m.toml:"), "{text}");
    }
    for (flag, word) in [
        ("size=1M,mode=2", "unknown key `mode`"),
        ("size=1M,torn_writes=0", "from 1 on"),
        ("size=1M,delay_us=60000001", "at most 60000000"),
        ("size=1M,readonly=maybe", "on or off"),
        ("size=1M,ro,readonly=on", "given twice"),
        ("file=a,path=b", "given twice"),
        ("a.img", "not KEY=VALUE"),
    ] {
        let text = refusal("", &[flag]);
        assert!(text.contains(word) && text.starts_with("--disk: "), "{text}");
    }
    let many: Vec<&str> = vec!["size=512"; 27];
    assert!(refusal("", &many).contains("at most 26"));
}

#[test]
fn a_root_bridge_is_there_only_if_there_are_disks() {
    let dsdt = |machine: &Machine| {
        let tables = acpi::build(machine).expect("fits").tables;
        tables.into_iter().find(|table| table.signature == *b"DSDT").expect("a DSDT").bytes
    };
    let without = parsed(NODE);
    let with = parsed(&format!("{NODE}[[disk]]\nsize = \"1M\"\n"));
    let has = |bytes: &[u8]| bytes.windows(4).any(|name| name == b"PCI0");
    assert!(has(&dsdt(&with)) && !has(&dsdt(&without)));
    assert_eq!(without.effective_e820(), with.effective_e820());
}
