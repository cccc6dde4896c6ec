#![expect(clippy::cast_possible_truncation, reason = "the pattern repeats")]

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use super::*;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn regions_of_one_file_are_read_at_their_offsets() {
    let bytes = pattern(0x8000);
    let file = Arc::new(file(&bytes));
    let parts = vec![
        (RamRegion { gpa: 0x10_0000, len: 0x4000 }, Arc::clone(&file), 0x4000),
        (RamRegion { gpa: 0, len: 0x3000 }, Arc::clone(&file), 0x1000),
    ];
    let memory = MappedMemory::from_files(parts).unwrap();
    assert_eq!(
        memory.regions(),
        [RamRegion { gpa: 0, len: 0x3000 }, RamRegion { gpa: 0x10_0000, len: 0x4000 }]
    );
    let mut buf = [0; 16];
    memory.read(0x2ff0, &mut buf).unwrap();
    assert_eq!(buf, bytes[0x3ff0..0x4000]);
    let word = u64::from_le_bytes(bytes[0x4008..0x4010].try_into().unwrap());
    assert_eq!(memory.read_u64(0x10_0008), Ok(word));
    for (gpa, len) in [(0x2ff8, 16), (0x3000, 1), (0xf_ffff, 2), (u64::MAX, 1), (u64::MAX - 3, 16)] {
        assert_eq!(memory.read(gpa, &mut vec![0; len]), Err(ReadError::NotRam { gpa, len: len as u64 }));
    }
    for gpa in [0x2ff9, 0x3000, 0x10_3ff9, u64::MAX] {
        assert_eq!(memory.read_u64(gpa), Err(ReadError::NotRam { gpa, len: 8 }));
    }
}

#[test]
fn adjacent_regions_are_read_as_one() {
    let bytes = pattern(0x2000);
    let parts: Vec<_> = (0..2)
        .map(|index| {
            let part = file(&bytes[index * 0x1000..][..0x1000]);
            (RamRegion { gpa: index as u64 * 0x1000, len: 0x1000 }, Arc::new(part), 0)
        })
        .collect();
    let memory = MappedMemory::from_files(parts).unwrap();
    let mut all = vec![0; 0x2000];
    memory.read(0, &mut all).unwrap();
    assert!(all == bytes);
    let word = u64::from_le_bytes(bytes[0xffc..0x1004].try_into().unwrap());
    assert_eq!(memory.read_u64(0xffc), Ok(word));
    assert!(memory.is_ram(0, 0x2000) && !memory.is_ram(1, 0x2000));
}

#[test]
fn more_regions_than_are_tried_first_are_all_found() {
    let parts: Vec<_> = (0..20u64)
        .map(|index| {
            let part = file(&index.to_le_bytes().repeat(512));
            (RamRegion { gpa: index * 0x10_0000, len: 0x1000 }, Arc::new(part), 0)
        })
        .collect();
    let memory = MappedMemory::from_files(parts).unwrap();
    for index in 0..20 {
        assert_eq!(memory.read_u64(index * 0x10_0000 + 0xff8), Ok(index));
    }
}

#[test]
fn long_reads_give_the_same_as_short_ones() {
    let bytes = pattern(3 * FILE_READ_LEN);
    let len = bytes.len() as u64;
    let memory =
        MappedMemory::from_files(vec![(RamRegion { gpa: 0x1000, len }, Arc::new(file(&bytes)), 0)]).unwrap();
    let mut long = vec![0; 2 * FILE_READ_LEN];
    memory.read(0x1000 + 777, &mut long).unwrap();
    assert!(long == bytes[777..][..long.len()]);
}

#[test]
fn holes_of_the_file_are_skipped_by_the_hint() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(8 << 20).unwrap();
    file.seek(SeekFrom::Start(5 << 20)).unwrap();
    file.write_all(&[1; 4096]).unwrap();
    let memory =
        MappedMemory::from_files(vec![(RamRegion { gpa: 1 << 30, len: 8 << 20 }, Arc::new(file), 0)])
            .unwrap();
    let data = memory.next_data(0).unwrap();
    // A file system without holes answers with the first byte, which is right as well.
    assert!(data == (1 << 30) + (5 << 20) || data == 1 << 30, "{data:#x}");
    let after = memory.next_data(data.max((1 << 30) + (5 << 20)) + 0x10_0000);
    assert!(after.is_none_or(|after| after > data));
}

#[test]
fn the_end_of_data_is_where_the_next_hole_begins() {
    // Here, and not in a temporary directory, holes are sure to be known.
    let memfd = rustix::fs::memfd_create("holes", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut sparse = File::from(memfd);
    for at in [0x1_0000, 0x5_0000] {
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(&[1; 0x2000]).unwrap();
    }
    sparse.set_len(0x8_0000).unwrap();
    // The region ends in the second piece of data.
    let region = RamRegion { gpa: 0x100_0000, len: 0x5_1000 };
    let memory = MappedMemory::from_files(vec![(region, Arc::new(sparse), 0)]).unwrap();
    let mut pieces = Vec::new();
    let mut at = region.gpa;
    while let Some(start) = memory.next_data(at) {
        let end = memory.data_end(start).unwrap();
        pieces.push((start, end));
        at = end;
    }
    assert_eq!(pieces, [(0x101_0000, 0x101_2000), (0x105_0000, 0x105_1000)]);
    assert_eq!(memory.data_end(0), None);
}

#[test]
fn a_region_inside_a_larger_mapping_ends_where_it_ends() {
    // As with huge pages: the mapping begins before the region.
    let bytes = Arc::new(file(&pattern(0x3000)));
    let region = |gpa| RamRegion { gpa, len: 0x1000 };
    let memory = MappedMemory::from_files(vec![(region(0x9800), bytes.clone(), 0x1800)]).unwrap();
    let word = |at: usize| u64::from_le_bytes(pattern(0x3000)[at..at + 8].try_into().unwrap());
    for (gpa, at) in [(0x9800, 0x1800), (0xa7f8, 0x27f8)] {
        assert_eq!(memory.read_u64(gpa), Ok(word(at)));
    }
    for gpa in [0x97f8, 0x97ff, 0xa7f9, 0xa800, 0, u64::MAX] {
        assert!(memory.read_u64(gpa).is_err(), "{gpa:#x}");
    }
    let mut all = vec![0; 0x1000];
    memory.read(0x9800, &mut all).unwrap();
    assert_eq!(all, pattern(0x3000)[0x1800..0x2800]);
    assert_eq!((memory.next_data(0), memory.data_end(0x9900)), (Some(0x9800), Some(0xa800)));

    // The same with an ordinary one beside it, which is then the one that is tried first.
    let parts = vec![(region(0x9800), bytes.clone(), 0x1800), (region(0xa800), bytes, 0x1000)];
    let memory = MappedMemory::from_files(parts).unwrap();
    assert_eq!(memory.read_u64(0xa7f8), Ok(word(0x27f8)));
    assert_eq!(memory.read_u64(0xa800), Ok(word(0x1000)));
    let across = u64::from_le_bytes(
        [pattern(0x3000)[0x27fc..0x2800].to_vec(), pattern(0x3000)[0x1000..0x1004].to_vec()]
            .concat()
            .try_into()
            .unwrap(),
    );
    assert_eq!(memory.read_u64(0xa7fc), Ok(across));
}

#[test]
fn the_vmms_own_mappings_are_shared() {
    let ranges = [(vm_memory::GuestAddress(0x1000), 0x2000), (vm_memory::GuestAddress(0x10_0000), 0x1000)];
    let guest = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let memory = MappedMemory::from_guest_memory(&guest, None).unwrap();
    vm_memory::Bytes::write_obj(&*guest, 0x1234_5678_u64, vm_memory::GuestAddress(0x10_0010)).unwrap();
    assert_eq!(memory.read_u64(0x10_0010), Ok(0x1234_5678));
    assert_eq!(memory.next_data(0), Some(0x1000), "memory without a file is all data");
}

#[test]
fn memory_files_are_mapped_whole_at_their_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ram");
    fs::write(&path, pattern(0x3000)).unwrap();
    let memory = MappedMemory::from_mem_files(&[(&path, 0), (&path, 1 << 32)]).unwrap();
    assert_eq!(memory.ram_bytes(), 0x6000);
    assert_eq!(memory.read_u64(8), memory.read_u64((1 << 32) + 8));

    let error = MappedMemory::from_mem_files(&[(&path, 0), (&path, 0x1000)]).unwrap_err();
    assert!(matches!(error, MapError::Regions(RegionError::Overlap { .. })), "{error}");
    fs::write(&path, "odd").unwrap();
    assert!(matches!(MappedMemory::from_mem_files(&[(&path, 0)]), Err(MapError::FileSize { len: 3, .. })));
    assert!(matches!(MappedMemory::from_mem_files::<&str>(&[]), Err(MapError::Empty)));
}

#[test]
fn a_file_shorter_than_its_region_is_refused() {
    let parts = vec![(RamRegion { gpa: 0, len: 0x3000 }, OwnedFd::from(file(&[0; 0x2000])), 0)];
    let error = MappedMemory::from_fds(parts).unwrap_err();
    assert!(matches!(error, MapError::Truncated { file_len: 0x2000, need: 0x3000, .. }), "{error}");
}
