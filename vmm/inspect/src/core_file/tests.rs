#![expect(clippy::cast_possible_truncation, reason = "the sizes of the tests' machines are small")]

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::testing::{Machine, SyntheticGuest};
use crate::views::BuddyView;
use crate::{Guest, Levels, MappedMemory, MemorySource, RamRegion, SparseMemory, Walker};

fn guest() -> SyntheticGuest {
    let memory = vec![
        (0, RamRegion { gpa: 0, len: 0xa_0000 }),
        (0, RamRegion { gpa: 0x10_0000, len: 0xf0_0000 }),
        (1, RamRegion { gpa: 5 << 30, len: 0x10_0000 }),
    ];
    SyntheticGuest::new(&Machine { memory, cpus: vec![0, 1], levels: Levels::Four })
}

fn info(guest: &SyntheticGuest) -> String {
    let info = Vmcoreinfo {
        os_release: "memvisor-test".into(),
        root_gpa: Some(guest.root_gpa),
        five_levels: false,
        phys_base: -0x20_0000,
        kernel_offset: 0x40_0000,
        stext: None,
    };
    info.to_string()
}

fn dump(guest: &SyntheticGuest, path: &Path) -> Summary {
    let mut file = fs::File::create(path).unwrap();
    let text = info(guest);
    write(&mut file, &guest.memory, &guest.registers, &guest.facts, &text, &mut |_, _| ()).unwrap()
}

#[test]
fn a_dump_gives_back_memory_registers_facts_and_notes() {
    let guest = guest();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    let summary = dump(&guest, &path);
    let core = CoreFile::open(&path).unwrap();
    assert_eq!(core.regions(), guest.memory.regions());
    assert_eq!(core.registers(), guest.registers);
    assert_eq!(*core.facts(), guest.facts);
    assert_eq!(core.vmcoreinfo(), info(&guest));
    assert_eq!(core.root_gpa(), Some(guest.root_gpa));
    for region in guest.memory.regions() {
        let (mut want, mut have) = (vec![1; region.len as usize], vec![2; region.len as usize]);
        guest.memory.read(region.gpa, &mut want).unwrap();
        core.read(region.gpa, &mut have).unwrap();
        assert!(want == have, "RAM at {:#x} differs", region.gpa);
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), summary.file_len);
    assert_eq!(summary.ram_len, guest.memory.ram_bytes());

    let reader = Guest::attach(&core, core.root_gpa().unwrap()).unwrap();
    assert!(BuddyView::new(&reader).unwrap().consistent);
    let walker = Walker::from_registers(&core.registers()[1]).unwrap();
    assert_eq!(walker.lookup(&core, guest.root.kernel_va).unwrap().gpa, guest.root.kernel_gpa);
}

#[test]
fn zero_memory_takes_no_room() {
    let guest = guest();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    let summary = dump(&guest, &path);
    assert!(summary.hole_len > summary.ram_len / 2, "{summary:?}");
    let allocated = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(allocated <= summary.file_len - summary.hole_len + (64 << 10), "{allocated} of {summary:?}");
}

#[test]
fn scattered_data_of_a_mapped_file_survives_a_dump() {
    const LEN: usize = 4 << 20;
    let directory = tempfile::tempdir().unwrap();
    let (memory_file, path) = (directory.path().join("memory"), directory.path().join("dump"));
    let file = fs::File::create(&memory_file).unwrap();
    file.set_len(LEN as u64).unwrap();
    let mut want = vec![0; LEN];
    // Pieces of many sizes, the last one up to the end; some bytes in them are zero.
    for (start, len) in [(0x1000, 1), (0x5ff0, 0x20), (0x2_0000, 0x5_0000), (LEN - 0x1800, 0x1800)] {
        want[start..start + len].iter_mut().zip(1usize..).for_each(|(byte, at)| *byte = (at % 251) as u8);
        file.write_all_at(&want[start..start + len], start as u64).unwrap();
    }
    let memory = MappedMemory::from_mem_files(&[(&memory_file, 0)]).unwrap();
    let mut out = fs::File::create(&path).unwrap();
    let summary = write(&mut out, &memory, &[], &Facts::default(), "", &mut |_, _| ()).unwrap();
    assert_eq!(summary.ram_len - summary.hole_len, 0x1000 + 0x2000 + 0x5_0000 + 0x2000);
    let mut have = vec![1; LEN];
    CoreFile::open(&path).unwrap().read(0, &mut have).unwrap();
    assert!(want == have);
}

#[test]
fn progress_ends_at_the_total() {
    let guest = guest();
    let mut calls = Vec::new();
    let mut out = Cursor::new(Vec::new());
    let mut progress = |done, total| calls.push((done, total));
    write(&mut out, &guest.memory, &[], &guest.facts, "", &mut progress).unwrap();
    let total = guest.memory.ram_bytes();
    assert_eq!(calls.last(), Some(&(total, total)));
    assert!(calls.is_sorted());
}

#[test]
fn a_dump_cut_anywhere_is_called_truncated() {
    let guest = guest();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    let len = dump(&guest, &path).file_len;
    let bytes = fs::read(&path).unwrap();
    for cut in [20, 63, 64, 100, 200, 700, 5000, 0x10_0000, len as usize - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let error = CoreFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("truncated"), "cut at {cut}: {error}");
    }
    fs::write(&path, &bytes).unwrap();
    assert!(CoreFile::open(&path).is_ok());
}

#[test]
fn other_files_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        CoreFile::open(&path).unwrap_err().to_string()
    };
    assert!(error(b"").contains("ELF magic"));
    assert!(error(&[7; 8192]).contains("ELF magic"));

    let mut out = Cursor::new(Vec::new());
    write(&mut out, &guest().memory, &[], &Facts::default(), "", &mut |_, _| ()).unwrap();
    let mut bytes = out.into_inner();
    bytes[16] = 2;
    assert!(error(&bytes).contains("not a core file"));
    bytes[16] = 4;
    bytes[18] = 183;
    assert!(error(&bytes).contains("not 64-bit x86"));
    bytes[18] = 62;
    let name = bytes.windows(8).position(|window| window == b"MEMVISOR").unwrap();
    bytes[name] = b'Q';
    assert!(error(&bytes).contains("not one of memvisor's (it has no MEMVISOR note)"));
    bytes[name] = b'M';
    let json = bytes.windows(9).position(|window| window == b"{\"format\"").unwrap();
    bytes[json + 10] = b'7';
    assert!(error(&bytes).contains("format 7"));
    bytes[json] = b'[';
    assert!(error(&bytes).contains("cannot be read"));

    assert!(CoreFile::open(directory.path()).unwrap_err().to_string().contains("not a regular file"));
    assert!(CoreFile::open(directory.path().join("missing")).unwrap_err().to_string().contains("missing"));
}

#[test]
fn ram_stored_in_one_place_twice_is_refused() {
    let mut out = Cursor::new(Vec::new());
    let memory =
        SparseMemory::new(&[RamRegion { gpa: 0, len: 0x2000 }, RamRegion { gpa: 0x8000, len: 0x2000 }]);
    write(&mut out, &memory.unwrap(), &[], &Facts::default(), "", &mut |_, _| ()).unwrap();
    let mut bytes = out.into_inner();
    // The program headers follow the file's: notes, then RAM; an offset is 8 bytes into each.
    let (first, second) = (64 + 56 + 8, 64 + 2 * 56 + 8);
    bytes.copy_within(first..first + 8, second);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    fs::write(&path, &bytes).unwrap();
    let error = CoreFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("the RAM at 0x0 and at 0x8000 is stored in one place"), "{error}");
}

#[test]
fn vmcoreinfo_survives_text_and_foreign_lines() {
    let guest = guest();
    let text = info(&guest);
    let Ok(parsed) = format!("SYMBOL(x)=ffff\nno equals sign\n{text}").parse::<Vmcoreinfo>();
    assert_eq!(parsed.to_string(), text);
    let Ok(parsed) = "NUMBER(memvisor_root)=0x1000".parse::<Vmcoreinfo>();
    assert_eq!(parsed.root_gpa, Some(0x1000));
}

#[test]
fn gdb_opens_a_dump_and_reads_through_kernel_addresses() {
    if Command::new("gdb").arg("--version").output().is_err() {
        eprintln!("skipped: gdb is not installed");
        return;
    }
    let mut guest = guest();
    guest.memory.write_u64(guest.root.kernel_gpa + 0x100, 0x1122_3344_5566_7788).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    dump(&guest, &path);
    let text = format!("x/1gx {:#x}", guest.root.kernel_va + 0x100);
    let direct = format!("x/1gx {:#x}", guest.root.page_offset + guest.root.kernel_gpa + 0x100);
    let output = Command::new("gdb")
        .args([
            "-nx",
            "-batch",
            "-ex",
            "info threads",
            "-ex",
            "thread 1",
            "-ex",
            "info registers rip rax r15",
        ])
        .args(["-ex", &text, "-ex", &direct, "-c"])
        .arg(&path)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let rip = format!("{:#x}", guest.registers[0].rip);
    assert!(out.contains(&rip), "{out}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(out.matches("0x1122334455667788").count(), 2, "{out}");
    assert!(out.lines().any(|line| line.starts_with("r15") && line.contains("0xf")), "{out}");
    assert!(out.matches("LWP").count().max(out.matches("Thread").count()) >= 2, "{out}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_memory_survives_a_dump(
        lens in prop::collection::vec((1u64..40, 1u64..300, 0u64..4096), 1..5),
        writes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..30),
    ) {
        let mut gpa = 0;
        let mut regions = Vec::new();
        for (gap, pages, odd) in lens {
            let start = gpa + (gap - 1) * 0x1000;
            let len = pages * 0x1000 + odd;
            regions.push(RamRegion { gpa: start, len });
            gpa = (start + len).next_multiple_of(0x1000);
        }
        let mut memory = SparseMemory::new(&regions).unwrap();
        for (region, offset, byte) in writes {
            let region = region.get(&regions);
            memory.write(region.gpa + offset.index(region.len as usize) as u64, &[byte]).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dump");
        let mut file = fs::File::create(&path).unwrap();
        write(&mut file, &memory, &[], &Facts::default(), "", &mut |_, _| ()).unwrap();
        let core = CoreFile::open(&path).unwrap();
        prop_assert_eq!(core.regions(), memory.regions());
        for region in &regions {
            let (mut want, mut have) = (vec![1; region.len as usize], vec![2; region.len as usize]);
            memory.read(region.gpa, &mut want).unwrap();
            core.read(region.gpa, &mut have).unwrap();
            prop_assert!(want == have);
        }
    }

    #[test]
    fn a_damaged_header_neither_panics_nor_hangs(
        edits in prop::collection::vec((0usize..1200, any::<u8>()), 1..8),
    ) {
        let mut out = Cursor::new(Vec::new());
        let memory = SparseMemory::new(&[RamRegion { gpa: 0, len: 0x3000 }]).unwrap();
        write(&mut out, &memory, &[CpuRegisters::default()], &Facts::default(), "A=B\n", &mut |_, _| ()).unwrap();
        let mut bytes = out.into_inner();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dump");
        fs::write(&path, &bytes).unwrap();
        if let Ok(core) = CoreFile::open(&path) {
            prop_assert!(core.read(0, &mut [0; 8]).is_ok() || !core.is_ram(0, 8));
        }
    }
}

/// What Linux says of itself, and its page tables: the image is in the dump by its virtual addresses too.
#[test]
fn a_linux_image_is_found_by_its_own_addresses() {
    let guest = guest();
    let (va, gpa) = (guest.root.kernel_va, guest.root.kernel_gpa);
    let phys_base = gpa.wrapping_sub(va - 0xffff_ffff_8000_0000).cast_signed();
    let text =
        format!("OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(_stext)={va:x}\nNUMBER(phys_base)={phys_base}\n");
    let segments = |text: &str| {
        let mut file = Cursor::new(Vec::new());
        write(&mut file, &guest.memory, &guest.registers, &guest.facts, text, &mut |_, _| ()).unwrap();
        let bytes = file.into_inner();
        let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let all: Vec<_> = (0..count).map(|index| 64 + index * 56).collect();
        all.into_iter().map(|at| (field(at + 16), field(at + 24), field(at + 32))).collect::<Vec<_>>()
    };
    let image = segments(&text).into_iter().find(|(vaddr, ..)| *vaddr == va);
    let (_, paddr, len) = image.expect("no segment at the image's address");
    assert!(paddr == gpa && len > 0 && len <= guest.root.kernel_len.next_multiple_of(4096), "{len:#x}");
    // Elsewhere than the tables say, nothing is claimed.
    let wrong = text.replace(&phys_base.to_string(), &(phys_base + 4096).to_string());
    assert!(segments(&wrong).iter().all(|(vaddr, ..)| *vaddr != va));
}
