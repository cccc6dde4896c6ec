//! An image of ext2, and calls on what it holds.

use guest_ext2::{
    Access, Block, Buffers, Caller, Create, Device, Errno, Ext2, Ino, Name, Ram, Replace, SetAttr, mode,
};

use crate::Input;

/// Largest device in KiB.
const DEVICE_KIB: usize = 256;
/// Calls of the device that no call of the file system should need on so small a one.
const BUDGET: u64 = 2_000_000;
/// Calls of the file system.
const CALLS: usize = 64;

/// A device that counts what is asked of it.
#[derive(Debug)]
struct Watched {
    ram: Ram,
    calls: u64,
    writes: u64,
}

impl Watched {
    fn count(&mut self) {
        self.calls += 1;
        assert!(self.calls < BUDGET, "unbounded work");
    }
}

impl Buffers for Watched {
    fn set_block_size(&mut self, bytes: u32) -> Result<(), Errno> {
        self.ram.set_block_size(bytes)
    }

    fn blocks(&self) -> u64 {
        self.ram.blocks()
    }

    fn read<R>(&mut self, block: Block, with: impl FnOnce(&[u8]) -> R) -> Result<R, Errno> {
        self.count();
        self.ram.read(block, with)
    }

    fn change<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        self.count();
        self.writes += 1;
        self.ram.change(block, with)
    }

    fn fill<R>(&mut self, block: Block, with: impl FnOnce(&mut [u8]) -> R) -> Result<R, Errno> {
        self.count();
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

/// A device of zeroes but for pieces: its size in KiB, then 16 bits of where each begins, in units of 16 bytes, its length and bytes;
/// a length of 0 ends them.
fn device(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(input.u8()).min(DEVICE_KIB - 1) * 1024 + 1024];
    loop {
        let (at, len) = (usize::from(input.u16()) * 16, usize::from(input.u8()));
        let piece = input.bytes(len);
        if len == 0 {
            return bytes;
        }
        if let Some(place) = bytes.get_mut(at..at + piece.len()) {
            place.copy_from_slice(piece);
        }
    }
}

/// The same from an image: for seeds.
pub fn ext2_seed(image: &[u8], calls: &[u8]) -> Vec<u8> {
    let kib = image.len() / 1024 - 1;
    let mut seed = vec![u8::try_from(kib).expect("at most 256 KiB")];
    let units: Vec<&[u8]> = image.chunks(16).collect();
    let is_zero = |at: usize| units.get(at).is_none_or(|unit| unit.iter().all(|byte| *byte == 0));
    let mut at = 0;
    while at < units.len() {
        let count = (0..15).take_while(|step| !is_zero(at + step)).count();
        if count > 0 {
            seed.extend_from_slice(&u16::try_from(at).expect("at most 1 MiB").to_le_bytes());
            seed.push(u8::try_from(count * 16).expect("at most 240"));
            seed.extend(units.iter().skip(at).take(count).copied().flatten());
        }
        at += count.max(1);
    }
    seed.extend_from_slice(&[0; 3]);
    seed.extend_from_slice(calls);
    seed
}

/// An image, and calls: inodes are small numbers, names a few letters that the seeds use.
pub fn ext2(data: &[u8]) {
    let mut input = Input::new(data);
    let ram = Ram::new(device(&mut input));
    let device = Watched { ram, calls: 0, writes: 0 };
    let Ok(mut fs) = Ext2::mount(device, Access::ReadWrite, 1) else { return };
    for _ in 0..CALLS {
        if input.is_empty() {
            break;
        }
        let stopped = (fs.access() == Access::ReadOnly).then(|| fs.buffers().writes);
        fs.buffers().calls = 0;
        call(&mut fs, &mut input);
        assert!(stopped.is_none_or(|writes| writes == fs.buffers().writes), "written after an error");
    }
    // Whatever was done, everything can be looked at.
    let mut dirs = vec![Ino::ROOT];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        let _ = fs.list(dir, 0, |entry| {
            seen += 1;
            if seen < 64 {
                dirs.push(entry.ino);
            }
            seen < 4096
        });
    }
    let _ = fs.statfs();
    let _ = fs.unmount(2);
}

fn call(fs: &mut Ext2<Watched>, input: &mut Input<'_>) {
    let caller = Caller { uid: 0, gid: 0, privileged: true, now: 1 };
    let what = input.u8();
    let dir = Ino::new(u32::from(input.u8()));
    let ino = Ino::new(u32::from(input.u8()));
    let names = [b"a".repeat(usize::from(input.u8())), vec![b'a' + input.u8() % 8]];
    let [name, other] = names.each_ref().map(Vec::as_slice);
    let number = input.number();
    let len = usize::try_from(number % 5000).unwrap_or(0);
    match what % 16 {
        0 => drop(fs.create(&caller, dir, name, 0o644)),
        1 => drop(fs.mkdir(&caller, dir, other, 0o755)),
        2 => drop(fs.symlink(&caller, dir, other, &vec![b'b'; len])),
        3 => drop(fs.mknod(&caller, (dir, name), mode::S_IFCHR, Device { major: 1, minor: 300 })),
        4 => drop(fs.link(&caller, ino, dir, name)),
        5 => drop(fs.unlink(dir, other, 1)),
        6 => drop(fs.rmdir(dir, other, 1)),
        7 => {
            let (from, to) = (Name { dir, name: other }, Name { dir: ino, name });
            let _ = fs.rename(&caller, from, to, Replace::Yes);
        }
        8 => drop(fs.truncate(ino, number, 1)),
        9 => drop(fs.write(&caller, ino, number, &vec![7; len])),
        10 => drop(fs.read(ino, number, &mut vec![0; len])),
        11 => drop(fs.get_block(ino, number, 100, Create::Yes(&caller))),
        12 => drop(fs.hold(ino)),
        13 => drop(fs.release(ino, 1)),
        14 => drop(fs.read_link(ino)),
        _ => drop(fs.set_attr(ino, &SetAttr { mode: Some(0o777), ..SetAttr::default() }, 1)),
    }
}
