//! Images that were changed behind the file system's back: errors, but no panic, no endless work, and no write after an error.

use guest_ext2::{
    Access, Block, Buffers, Caller, Create, Device, Errno, Ext2, Ino, Name, Ram, Replace, SetAttr, mode,
};
use proptest::prelude::*;

use crate::host::{self, FORMATS, Format};
use crate::twin::CALLER;

/// A device that counts.
#[derive(Debug)]
struct Counted {
    ram: Ram,
    calls: u64,
    writes: u64,
    /// Reads that still succeed.
    good_reads: u64,
}

impl Counted {
    fn new(bytes: Vec<u8>) -> Counted {
        Counted { ram: Ram::new(bytes), calls: 0, writes: 0, good_reads: u64::MAX }
    }

    fn call(&mut self) -> Result<(), Errno> {
        self.calls += 1;
        assert!(self.calls < 3_000_000, "endless work");
        if self.calls > self.good_reads { Err(Errno::Eio) } else { Ok(()) }
    }
}

impl Buffers for Counted {
    fn set_block_size(&mut self, bytes: u32) -> Result<(), Errno> {
        self.ram.set_block_size(bytes)
    }

    fn blocks(&self) -> u64 {
        self.ram.blocks()
    }

    fn read<R>(&mut self, block: Block, with: impl FnOnce(&[u8]) -> R) -> Result<R, Errno> {
        self.call()?;
        self.ram.read(block, with)
    }

    fn change<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        self.call()?;
        self.writes += 1;
        self.ram.change(block, with)
    }

    fn fill<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        self.call()?;
        self.writes += 1;
        self.ram.fill(block, with)
    }

    fn forget(&mut self, block: Block) {
        self.ram.forget(block);
    }

    fn sync(&mut self) -> Result<(), Errno> {
        self.ram.sync()
    }
}

/// A small image with some of everything.
fn populated(format: &Format) -> Vec<u8> {
    let mut fs = Ext2::mount(Ram::new(host::image(format)), Access::ReadWrite, CALLER.now).expect("mounts");
    fill(&mut fs, &CALLER).expect("there is room");
    fs.unmount(CALLER.now).expect("unmounts");
    fs.into_buffers().bytes().to_vec()
}

fn fill<B: Buffers>(fs: &mut Ext2<B>, caller: &Caller) -> Result<(), Errno> {
    let dir = fs.mkdir(caller, Ino::ROOT, b"dir", 0o755)?.ino;
    let below = fs.mkdir(caller, dir, b"below", 0o755)?.ino;
    let file = fs.create(caller, dir, b"file", 0o644)?.ino;
    fs.write(caller, file, 0, &[3; 20_000])?;
    fs.write(caller, file, 400_000, &[4; 2000])?;
    fs.write(caller, file, 80 << 20, &[5; 10])?;
    fs.symlink(caller, dir, b"fast", b"file")?;
    fs.symlink(caller, dir, b"slow", &[b'z'; 99])?;
    fs.mknod(caller, (dir, b"null"), mode::S_IFCHR | 0o666, Device { major: 1, minor: 3 })?;
    for number in 0..12 {
        fs.link(caller, file, below, &[b'a' + number; 200])?;
    }
    Ok(())
}

/// Every call on whatever is found, with nothing expected of the results.
fn exercise(fs: &mut Ext2<Counted>) {
    let mut queue = vec![Ino::ROOT];
    let mut all: Vec<(Ino, Vec<u8>, Ino)> = Vec::new();
    while let Some(dir) = queue.pop() {
        let _ = fs.list(dir, 0, |entry| {
            if all.len() < 200 {
                all.push((dir, entry.name.to_vec(), entry.ino));
            }
            true
        });
        for (_, name, _) in all.clone().iter().filter(|(of, ..)| *of == dir) {
            if let Ok(inode) = fs.lookup(dir, name)
                && inode.is_dir()
                && !matches!(&name[..], b"." | b"..")
                && queue.len() < 20
                && all.len() < 100
            {
                queue.push(inode.ino);
            }
        }
    }
    let dirs: Vec<Ino> = all.iter().map(|(dir, ..)| *dir).collect();
    for (at, (dir, name, ino)) in all.iter().enumerate() {
        let other = dirs[at * 7 % dirs.len()];
        let mut bytes = [0; 3000];
        let _ = fs.read(*ino, 11_000, &mut bytes);
        let _ = fs.read_link(*ino);
        let _ = fs.get_block(*ino, 80 << 10, 10, Create::No);
        let _ = fs.hold(*ino);
        let _ = fs.write(&CALLER, *ino, 300_000, &bytes);
        let _ = fs.set_attr(*ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }, 1);
        let _ = fs.create(&CALLER, *dir, &[b'n', at.to_le_bytes()[0] | 1], 0o644);
        let _ = fs.mkdir(&CALLER, other, &[b'd', at.to_le_bytes()[0] | 1], 0o755);
        let _ = fs.link(&CALLER, *ino, other, &[b'l', at.to_le_bytes()[0] | 1]);
        let (from, to) =
            (Name { dir: *dir, name }, Name { dir: other, name: &[b'r', at.to_le_bytes()[0] | 1] });
        match at % 4 {
            0 => drop(fs.unlink(*dir, name, 1)),
            1 => drop(fs.rmdir(*dir, name, 1)),
            2 => drop(fs.rename(&CALLER, from, to, Replace::Yes)),
            _ => drop(fs.truncate(*ino, 13_000, 1)),
        }
        let _ = fs.release(*ino, 1);
    }
    let _ = fs.statfs();
    let _ = fs.sync(2);
}

/// Mounts and does everything; after an error nothing may be written.
fn survive(mut device: Counted) {
    device.calls = 0;
    let Ok(mut fs) = Ext2::mount(device, Access::ReadWrite, CALLER.now) else { return };
    exercise(&mut fs);
    if fs.access() == Access::ReadOnly {
        let writes = fs.buffers().writes;
        exercise(&mut fs);
        assert_eq!(fs.buffers().writes, writes, "written after an error");
    }
    let _ = fs.unmount(3);
}

/// Small ones: a changed bit is likelier to matter.
const SMALL: [Format; 4] = [
    Format { blocks: 200, group: 0, inodes: 32, ..FORMATS[3] },
    Format { blocks: 600, group: 256, inodes: 48, ..FORMATS[2] },
    Format { blocks: 200, group: 0, inodes: 32, ..FORMATS[8] },
    Format { blocks: 200, group: 0, inodes: 32, ..FORMATS[0] },
];

#[derive(Clone, Debug)]
enum Damage {
    Bit(usize, u8),
    Word(usize, u32),
    Copy(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || prop_oneof![2 => 1024..1300usize, 2 => 2048..2200usize, 12 => 1024..40_000usize, 1 => any::<usize>()];
    let word = prop_oneof![0..400u32, Just(u32::MAX), any::<u32>()];
    prop_oneof![
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Damage::Bit(at, bit)),
        3 => (at(), word).prop_map(|(at, word)| Damage::Word(at & !3, word)),
        2 => (0..200usize, 0..200usize).prop_map(|(from, to)| Damage::Copy(from, to)),
    ]
}

fn apply(image: &mut [u8], damage: &Damage) {
    let len = image.len();
    match *damage {
        Damage::Bit(at, bit) => image[at % len] ^= 1 << bit,
        Damage::Word(at, word) => {
            let at = at % (len - 4);
            image[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        Damage::Copy(from, to) => image.copy_within(from * 1024..(from + 1) * 1024, to * 1024),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::sequences::cases(150), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_image_gives_errors_and_nothing_worse(
        format in 0..SMALL.len(),
        damages in prop::collection::vec(damage(), 1..12),
    ) {
        if host::is_ready() {
            let mut image = populated(&SMALL[format]);
            for damage in &damages {
                apply(&mut image, damage);
            }
            survive(Counted::new(image));
        }
    }

    #[test]
    fn a_device_that_fails_at_any_call_gives_errors_and_nothing_worse(format in 0..SMALL.len(), good in 5..1500u64) {
        if host::is_ready() {
            let mut device = Counted::new(host::image(&SMALL[format]));
            device.good_reads = good;
            if let Ok(mut fs) = Ext2::mount(device, Access::ReadWrite, CALLER.now) {
                let _ = fill(&mut fs, &CALLER);
                exercise(&mut fs);
            }
        }
    }
}

#[test]
fn an_error_is_told_written_down_and_ends_all_writing() {
    if !host::is_ready() {
        return;
    }
    let mut image = populated(&SMALL[0]);
    let dir_block = {
        let mut fs = Ext2::mount(Ram::new(image.clone()), Access::ReadOnly, 0).expect("mounts");
        let mut listed = 0;
        fs.list(Ino::ROOT, 0, |_| {
            listed += 1;
            true
        })
        .expect("lists");
        assert_eq!(listed, 4);
        let at = image.windows(11).position(|bytes| bytes == b"lost+found\0").expect("the root");
        at / 1024 * 1024
    };
    // The length of the first entry.
    image[dir_block + 4] = 6;
    let mut fs = Ext2::mount(Ram::new(image), Access::ReadWrite, 0).expect("mounts");
    assert_eq!(fs.lookup(Ino::ROOT, b"dir"), Err(Errno::Eio));
    let error = fs.take_error().expect("told");
    assert_eq!((error.what, error.number), ("rec_len is smaller than minimal", 2));
    assert_eq!(fs.take_error(), None);
    assert_eq!(fs.access(), Access::ReadOnly);
    assert_eq!(fs.create(&CALLER, Ino::new(12), b"a", 0o644), Err(Errno::Erofs));
    assert_eq!(fs.remount(Access::ReadWrite, 0), Err(Errno::Erofs));
    assert_eq!(fs.buffers().bytes()[1024 + 58] & 2, 2, "EXT2_ERROR_FS");
}
