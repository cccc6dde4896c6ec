//! The archive that the guest's first root is made from.

use guest_ext2::{Ext2, Ino, Ram};
use guest_fs::proc::NoProcesses;
use guest_fs::{Data, DiskNode, Errno, Reader, Source, Timespec, Vecs, Vfs, unpack};

use crate::check_error;

/// Files that count what is written to them.
#[derive(Debug, Default)]
struct Counted {
    vecs: Vecs,
    written: usize,
}

impl Data for Counted {
    type Id = usize;
    type Device = Ram;

    fn create(&mut self) -> Result<usize, Errno> {
        self.vecs.create()
    }

    fn size(&self, id: usize) -> u64 {
        self.vecs.size(id)
    }

    fn set_size(&mut self, id: usize, size: u64) -> Result<(), Errno> {
        assert_eq!(size, 0, "an archive has no holes");
        self.vecs.set_size(id, size)
    }

    fn blocks(&self, id: usize) -> u64 {
        self.vecs.blocks(id)
    }

    fn write(&mut self, id: usize, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.written += bytes.len();
        self.vecs.write(id, offset, bytes)
    }

    fn device(&mut self, source: Source<usize>) -> Result<Ram, Errno> {
        self.vecs.device(source)
    }

    fn attach(&mut self, fs: &mut Ext2<Ram>, file: DiskNode) -> Result<usize, Errno> {
        self.vecs.attach(fs, file)
    }

    fn flush(&mut self, fs: &mut Ext2<Ram>, file: Ino, id: usize) -> Result<(), Errno> {
        self.vecs.flush(fs, file, id)
    }

    fn release(&mut self, id: usize) {
        self.vecs.release(id);
    }
}

/// An archive.
pub fn initramfs(data: &[u8]) {
    let mut entries = 0;
    for entry in Reader::new(data) {
        match entry {
            Ok(entry) => {
                entries += 1;
                assert!(!entry.name.is_empty() && !entry.name.contains(&0));
            }
            Err(error) => check_error(&error),
        }
    }
    // A header has 110 bytes.
    assert!(entries <= data.len() / 110, "{entries} entries in {} bytes", data.len());
    let Ok(mut vfs) = Vfs::new(Counted::default(), NoProcesses, Timespec::default()) else { return };
    let context = vfs.kernel_context(Timespec::default());
    let result = unpack(&mut vfs, &context, data);
    assert_eq!(result.entries, entries as u64);
    assert!(vfs.data.written <= data.len(), "{} bytes from {}", vfs.data.written, data.len());
    assert_eq!(vfs.audit(), Ok(()));
}
