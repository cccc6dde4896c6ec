//! Full disks and large files: limits of blocks, inodes, names and sizes.

use guest_ext2::{Access, Caller, Create, Errno, Ext2, Ino, Ram};

use crate::host::{self, FORMATS, Format};
use crate::twin::CALLER;

fn mounted(format: &Format) -> Ext2<Ram> {
    Ext2::mount(Ram::new(host::image(format)), Access::ReadWrite, CALLER.now).expect("mounts")
}

/// Unmounts; e2fsck must be content.
fn clean(mut fs: Ext2<Ram>) {
    assert_eq!(fs.take_error(), None);
    fs.unmount(CALLER.now).expect("unmounts");
    assert_eq!(host::e2fsck(fs.into_buffers().bytes()), Ok(()));
}

const USER: Caller = Caller { uid: 1000, gid: 1000, privileged: false, ..CALLER };

#[test]
fn reserved_blocks_are_for_root() {
    if !host::is_ready() {
        return;
    }
    let mut fs = mounted(&FORMATS[3]);
    let file = fs.create(&USER, Ino::ROOT, b"user", 0o644).expect("makes").ino;
    let bytes = vec![1; 4 << 20];
    let written = fs.write(&USER, file, 0, &bytes).expect("writes some");
    assert!(written < bytes.len());
    assert_eq!(fs.write(&USER, file, written as u64, &bytes), Err(Errno::Enospc));
    let told = fs.statfs().expect("tells");
    assert_eq!(told.available, 0);
    assert_eq!(told.free, 2048 * 5 / 100);
    let more = fs.write(&CALLER, file, written as u64, &bytes).expect("root writes more");
    assert_eq!(fs.write(&CALLER, file, (written + more) as u64, &bytes), Err(Errno::Enospc));
    assert!(fs.statfs().expect("tells").free < 3);
    clean(fs);
}

#[test]
fn a_full_disk_refuses_every_call_that_needs_a_block_and_is_whole_after_it() {
    if !host::is_ready() {
        return;
    }
    for format in &FORMATS {
        let mut fs = mounted(format);
        let file = fs.create(&CALLER, Ino::ROOT, b"file", 0o644).expect("makes").ino;
        let dir = fs.mkdir(&CALLER, Ino::ROOT, b"dir", 0o755).expect("makes").ino;
        let before = fs.statfs().expect("tells");
        fs.write(&CALLER, file, 0, &vec![1; 8 << 20]).expect("fills");
        let full = fs.statfs().expect("tells");
        assert_eq!(fs.mkdir(&CALLER, dir, b"a", 0o755), Err(Errno::Enospc));
        assert_eq!(fs.symlink(&CALLER, dir, b"b", &[b'x'; 100]), Err(Errno::Enospc));
        // A block far away needs three indirect ones.
        assert_eq!(fs.write(&CALLER, file, fs.max_size() - 5000, b"x"), Err(Errno::Enospc));
        let mut result = Ok(());
        for number in 0..100 {
            result = fs.link(&CALLER, file, dir, format!("{number:0200}").as_bytes());
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(Errno::Enospc), "the directory needs another block");
        assert_eq!(fs.statfs().expect("tells"), full);
        let found = fs.inode(file).expect("reads");
        assert_eq!(u64::from(found.nlink()), 1 + u64::from(entries(&mut fs, dir)));
        fs.truncate(file, 0, CALLER.now).expect("empties");
        assert_eq!(fs.statfs().expect("tells"), before);
        clean(fs);
    }
}

fn entries(fs: &mut Ext2<Ram>, dir: Ino) -> u32 {
    let mut count = 0;
    fs.list(dir, 0, |entry| {
        count += u32::from(entry.name[0] != b'.');
        true
    })
    .expect("lists");
    count
}

#[test]
fn inodes_run_out_and_come_back() {
    if !host::is_ready() {
        return;
    }
    for format in [FORMATS[0], FORMATS[5], FORMATS[8]] {
        let mut fs = mounted(&format);
        let free = fs.statfs().expect("tells").free_files;
        for number in 0..free {
            let name = format!("f{number}");
            fs.create(&CALLER, Ino::ROOT, name.as_bytes(), 0o644).expect("makes");
        }
        assert_eq!(fs.create(&CALLER, Ino::ROOT, b"more", 0o644), Err(Errno::Enospc));
        assert_eq!(fs.mkdir(&CALLER, Ino::ROOT, b"more", 0o755), Err(Errno::Enospc));
        for number in (0..free).step_by(2) {
            fs.unlink(Ino::ROOT, format!("f{number}").as_bytes(), CALLER.now).expect("removes");
        }
        fs.create(&CALLER, Ino::ROOT, b"more", 0o644).expect("makes");
        clean(fs);
    }
}

#[test]
fn sparse_files_reach_through_every_level_of_pointers() {
    if !host::is_ready() {
        return;
    }
    for format in &FORMATS {
        let mut fs = mounted(format);
        let before = fs.statfs().expect("tells");
        let file = fs.create(&CALLER, Ino::ROOT, b"sparse", 0o644).expect("makes").ino;
        let block = u64::from(format.block);
        let pointers = block / 4;
        let ends = [12, 12 + pointers, 12 + pointers + pointers * pointers];
        let mut places: Vec<u64> = ends.iter().map(|end| end * block - 2).collect();
        places.push((ends[2] + pointers * pointers + 77) * block - 2);
        places.push(fs.max_size() - 4);
        for (at, place) in places.iter().enumerate() {
            assert_eq!(fs.write(&CALLER, file, *place, &[u8::try_from(at).expect("few") + 1; 4]), Ok(4));
        }
        for (at, place) in places.iter().enumerate() {
            let mut found = [9; 8];
            let read = fs.read(file, place - 2, &mut found).expect("reads");
            let byte = u8::try_from(at).expect("few") + 1;
            assert_eq!(found[..6], [0, 0, byte, byte, byte, byte]);
            assert!(read == 8 || *place == fs.max_size() - 4);
        }
        assert_eq!(fs.inode(file).expect("reads").size(), fs.max_size());
        assert_eq!(fs.write(&CALLER, file, fs.max_size(), b"x"), Err(Errno::Efbig));
        assert_eq!(fs.set_size(file, fs.max_size() + 1, 0), Err(Errno::Efbig));
        fs.sync(CALLER.now).expect("writes");
        assert_eq!(host::e2fsck(fs.buffers().bytes()), Ok(()), "{format:?}");
        // From the end, so that each level is cut in its middle.
        for place in places.iter().rev() {
            fs.truncate(file, place + 1, CALLER.now).expect("cuts");
            let mut found = [9; 4];
            assert_eq!(fs.read(file, place - 1, &mut found), Ok(2));
            assert_ne!(found[1], 0);
            fs.sync(CALLER.now).expect("writes");
            assert_eq!(host::e2fsck(fs.buffers().bytes()), Ok(()), "{format:?} cut at {place}");
        }
        fs.unlink(Ino::ROOT, b"sparse", CALLER.now).expect("removes");
        assert_eq!(fs.statfs().expect("tells"), before);
        clean(fs);
    }
}

#[test]
fn a_file_that_grows_alone_lies_in_a_row() {
    if !host::is_ready() {
        return;
    }
    let mut fs = mounted(&FORMATS[3]);
    let file = fs.create(&CALLER, Ino::ROOT, b"file", 0o644).expect("makes").ino;
    for index in 0..200 {
        let mapped = fs.get_block(file, index, 1, Create::Yes(&CALLER)).expect("maps").expect("made");
        assert!(mapped.new);
    }
    fs.extend(file, 200 * 1024).expect("grows");
    let direct = fs.get_block(file, 0, 100, Create::No).expect("maps").expect("there");
    assert_eq!((direct.count, direct.new), (12, false));
    let first = fs.get_block(file, 12, 500, Create::No).expect("maps").expect("there");
    // The indirect block lies between.
    assert_eq!((first.count, first.block), (188, direct.block.plus(13)));
    assert_eq!(fs.get_block(file, 200, 1, Create::No), Ok(None));
    clean(fs);
}

#[test]
fn a_file_has_32000_names_at_most() {
    if !host::is_ready() {
        return;
    }
    let format = Format { blocks: 4096, inodes: 16, ..FORMATS[9] };
    let mut fs = mounted(&format);
    let file = fs.create(&CALLER, Ino::ROOT, b"file", 0o644).expect("makes").ino;
    let mut dirs = Vec::new();
    // Few names in each, or each link would look through thousands.
    for number in 0..4_u32 {
        dirs.push(fs.mkdir(&CALLER, Ino::ROOT, format!("d{number}").as_bytes(), 0o755).expect("makes").ino);
    }
    host::set_links(&mut fs, file, 31_998);
    assert_eq!(fs.link(&CALLER, file, dirs[0], b"a"), Ok(()));
    assert_eq!(fs.link(&CALLER, file, dirs[0], b"b"), Ok(()));
    assert_eq!(fs.link(&CALLER, file, dirs[0], b"c"), Err(Errno::Emlink));
    host::set_links(&mut fs, dirs[1], 32_000);
    assert_eq!(fs.mkdir(&CALLER, dirs[1], b"more", 0o755), Err(Errno::Emlink));
}
