use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const TASK_SIZE: u64 = (1 << 47) - PAGE;
const LOAD: u32 = 1;
const INTERP: u32 = 3;
const STACK: u32 = 0x6474_e551;
const RX: u32 = 5;
const RW: u32 = 6;

/// A program header: type, flags, [offset, vaddr, filesz, memsz, align].
type Row = (u32, u32, [u64; 5]);

fn file(kind: u16, rows: &[Row]) -> Vec<u8> {
    let mut file = vec![0; HEADER_LEN];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..18].copy_from_slice(&kind.to_le_bytes());
    file[18..20].copy_from_slice(&62_u16.to_le_bytes());
    file[24..32].copy_from_slice(&0x40_1000_u64.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    file[56..58].copy_from_slice(&u16::try_from(rows.len()).unwrap().to_le_bytes());
    for (kind, flags, [offset, vaddr, filesz, memsz, align]) in rows {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [*offset, *vaddr, *vaddr, *filesz, *memsz, *align] {
            file.extend(word.to_le_bytes());
        }
    }
    file
}

fn parse(file: &[u8]) -> Result<Image, ElfError> {
    let header = Header::parse(file)?;
    let at = usize::try_from(header.table_offset).unwrap_or(usize::MAX);
    Image::parse(&header, file.get(at..).unwrap_or(&[]), TASK_SIZE)
}

fn usual() -> [Row; 3] {
    [
        (LOAD, RX, [0, 0x40_0000, 0x1234, 0x1234, 0x1000]),
        (LOAD, RW, [0x1e10, 0x40_2e10, 0x200, 0x1400, 0x1000]),
        (STACK, RW, [0; 5]),
    ]
}

#[test]
fn a_fixed_program_is_where_it_says() {
    let image = parse(&file(2, &usual())).unwrap();
    let data = image.segments[1];
    assert_eq!((image.kind, image.bias(0x5000_0000)), (Kind::Fixed, 0));
    assert_eq!((data.start, data.file_end, data.end), (0x40_2e10, 0x40_3010, 0x40_4210));
    assert_eq!(data.prot, ProtFlags::READ | ProtFlags::WRITE);
    assert_eq!((image.first(), image.span(), image.brk_start()), (0x40_0000, 0x5000, 0x40_5000));
    assert_eq!(image.table_at, 0x40_0040);
    assert!(!image.exec_stack);
}

#[test]
fn a_static_pie_program_moves_as_a_whole() {
    let rows =
        [(LOAD, RX, [0, 0, 0x1234, 0x1234, 0x20_0000]), (LOAD, RW, [0x1e10, 0x2e10, 0x200, 0x1400, 0x1000])];
    let image = parse(&file(3, &rows)).unwrap();
    let bias = image.bias(0x7fff_0000_0000);
    assert_eq!(bias, 0x7fff_0000_0000);
    assert_eq!(image.segments[1].moved(bias).start, 0x7fff_0000_2e10);
    assert_eq!(image.align, 0x20_0000);
    assert_eq!(image.brk_start(), 0x5555_5555_5000);
}

#[test]
fn an_interpreter_is_elibbad_and_says_where() {
    let mut rows = usual().to_vec();
    rows.insert(0, (INTERP, 4, [0x318, 0x318, 28, 28, 1]));
    let error = parse(&file(3, &rows)).unwrap_err();
    assert_eq!(error, ElfError::Interpreter { offset: 0x318 });
    assert_eq!(error.errno(), Errno::Elibbad);
}

#[test]
fn an_executable_stack_is_asked_for_by_its_header_only() {
    let mut rows = usual();
    rows[2].1 = 7;
    assert!(parse(&file(2, &rows)).unwrap().exec_stack);
    assert!(!parse(&file(2, &rows[..2])).unwrap().exec_stack);
}

#[test]
fn other_files_are_enoexec() {
    let good = file(2, &usual());
    let broken = |at: usize, to: u8| {
        let mut file = good.clone();
        file[at] = to;
        parse(&file).unwrap_err().errno()
    };
    assert_eq!(broken(0, b'#'), Errno::Enoexec);
    assert_eq!(broken(4, 1), Errno::Enoexec, "32 bits");
    assert_eq!(broken(16, 1), Errno::Enoexec, "an object file");
    assert_eq!(broken(18, 3), Errno::Enoexec, "another machine");
    assert_eq!(broken(54, 32), Errno::Enoexec, "entries of a wrong size");
    assert_eq!(broken(56, 0), Errno::Enoexec, "no program headers");
    assert_eq!(broken(57, 5), Errno::Enoexec, "more than 64 KiB of program headers");
    assert_eq!(broken(56, 90), Errno::Enoexec, "more program headers than file");
    assert_eq!(parse(&good[..40]).unwrap_err(), ElfError::Short);
    assert_eq!(parse(b"#!/bin/sh\n").unwrap_err(), ElfError::Magic);
}

#[test]
fn impossible_segments_are_einval() {
    let with = |row: [u64; 5]| parse(&file(2, &[usual()[0], (LOAD, RW, row)])).unwrap_err();
    for row in [
        [0x1000, 0x50_0000, 0x300, 0x200, 0x1000],
        [0x1000, 0x50_0010, 0x100, 0x200, 0x1000],
        [0x1000, TASK_SIZE - 0x1000, 0x100, 0x1001, 0x1000],
        [0x1000, u64::MAX - 0xfff, 0x100, 0x1000, 0x1000],
        [0x1000, 0x50_0000, 0x100, u64::MAX, 0x1000],
        [u64::MAX - 0xfff, 0x50_0000, 0x1000, 0x1000, 0x1000],
    ] {
        assert_eq!(with(row), ElfError::Segment { index: 1 }, "{row:x?}");
    }
    assert_eq!(parse(&file(2, &[usual()[2]])).unwrap_err(), ElfError::Empty);
    assert_eq!(parse(&file(2, &[(LOAD, RX, [0, 0x40_0000, 0, 0, 0])])).unwrap_err(), ElfError::Empty);
}

#[test]
fn this_very_test_is_a_program_with_an_interpreter() {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    let error = parse(&bytes);
    assert!(matches!(error, Err(ElfError::Interpreter { .. })), "{error:?}");
}

proptest! {
    /// E1 to E3 hold for whatever a file says.
    #[test]
    fn segments_keep_their_promises(
        kind in 2_u16..4,
        rows in prop::collection::vec(
            (prop_oneof![9 => Just(LOAD), 1 => Just(STACK)], 0_u32..8,
             prop::array::uniform5(prop_oneof![
                 0_u64..0x4000, Just(TASK_SIZE), Just(u64::MAX), TASK_SIZE - 0x4000..TASK_SIZE, any::<u64>()
             ])), 1..6),
    ) {
        if let Ok(image) = parse(&file(kind, &rows)) {
            prop_assert!(!image.segments.is_empty());
            for segment in &image.segments {
                prop_assert!(image.first() <= segment.start && segment.start <= segment.file_end);
                prop_assert!(segment.file_end <= segment.end && segment.page_end() <= TASK_SIZE);
                prop_assert!(segment.page_end() - image.first() <= image.span());
                prop_assert_eq!(segment.start % PAGE, segment.offset % PAGE);
                prop_assert!(segment.offset.checked_add(segment.file_end - segment.start).is_some());
            }
            prop_assert!(image.span() > 0 && image.align.is_power_of_two());
        }
    }

    #[test]
    fn no_bytes_break_the_reader(mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        if magic && bytes.len() > 20 {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
        }
        let _ = parse(&bytes);
    }
}
