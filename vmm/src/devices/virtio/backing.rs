//! The file behind a disk, and what is made to go wrong with it.
//!
//! B1  a file has one writer: it is locked (flock(2)) for this process, shared if the disk is read-only;
//! B2  nothing past the size at the start is read or written;
//! B3  after the torn write nothing reaches the file, and every request fails.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use rustix::fs::FlockOperation;
use thiserror::Error;

use crate::machine::{Disk, DiskFaults, DiskSource, Sectors};

/// Bytes of a sector: the unit of virtio-blk whatever the block size.
pub const SECTOR: u64 = 512;

/// Why a disk is not there.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file cannot be opened.
    #[error("disk {disk}: cannot open {}", path.display())]
    Open {
        /// The disk.
        disk: String,
        /// Its file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Not a regular file or block device.
    #[error("disk {disk}: {} is not a regular file", path.display())]
    NotAFile {
        /// The disk.
        disk: String,
        /// Its file.
        path: PathBuf,
    },
    /// Not whole sectors.
    #[error("disk {disk}: {} has {len} bytes, which is not a multiple of 512; make it {} (truncate -s)", path.display(), len.next_multiple_of(SECTOR))]
    NotSectors {
        /// The disk.
        disk: String,
        /// Its file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// Nothing in it.
    #[error("disk {disk}: {} is empty; give it a size first (truncate -s 64M)", path.display())]
    Empty {
        /// The disk.
        disk: String,
        /// Its file.
        path: PathBuf,
    },
    /// Another has it.
    #[error("disk {disk}: {} is in use by another guest; end that one, or give both the disk read-only", path.display())]
    InUse {
        /// The disk.
        disk: String,
        /// Its file.
        path: PathBuf,
    },
    /// No temporary file.
    #[error("disk {disk}: cannot make a temporary file of {len} bytes in {}", std::env::temp_dir().display())]
    Temporary {
        /// The disk.
        disk: String,
        /// Its length.
        len: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// No thread.
    #[error("disk {disk}: cannot start its thread")]
    Thread {
        /// The disk.
        disk: String,
        /// The host's answer.
        source: io::Error,
    },
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The machine file asked for it.
    Injected,
    /// The guest asked for what there is not.
    Invalid,
    /// The host's file failed.
    Host,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WritePlan {
    /// How many of its sectors reach the file.
    pub keep: u64,
    /// Whether it fails after them.
    pub torn: bool,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    sectors: u64,
    read_only: bool,
    faults: DiskFaults,
    /// Writes that were begun.
    writes: u64,
    power_lost: bool,
}

impl Backing {
    /// Opens what `disk` says.
    pub(super) fn open(disk: &Disk) -> Result<Backing, DiskError> {
        let (file, len) = match &disk.source {
            DiskSource::File(path) => open_file(&disk.name, path, disk.read_only)?,
            DiskSource::Temporary(len) => {
                let fail = |source| DiskError::Temporary { disk: disk.name.clone(), len: *len, source };
                // It has no name: it is gone with its last descriptor, however this process ends.
                let file = tempfile::tempfile().map_err(fail)?;
                file.set_len(*len).map_err(fail)?;
                (file, *len)
            }
        };
        Ok(Backing {
            file,
            sectors: len / SECTOR,
            read_only: disk.read_only,
            faults: disk.faults.clone(),
            writes: 0,
            power_lost: false,
        })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether `count` sectors from `sector` on may be read.
    pub(super) fn check_read(&self, sector: u64, count: u64) -> Result<(), Failure> {
        let range = self.check_range(sector, count)?;
        match self.power_lost || touches(&self.faults.read_errors, range) {
            true => Err(Failure::Injected),
            false => Ok(()),
        }
    }

    /// What becomes of a write of `count` sectors from `sector` on, which is begun with this.
    pub(super) fn plan_write(&mut self, sector: u64, count: u64) -> Result<WritePlan, Failure> {
        let range = self.check_range(sector, count)?;
        if self.read_only {
            return Err(Failure::Invalid);
        }
        if self.power_lost {
            return Err(Failure::Injected);
        }
        self.writes += 1;
        if touches(&self.faults.write_errors, range) {
            return Err(Failure::Injected);
        }
        let torn = self.faults.torn_writes == Some(self.writes);
        self.power_lost = torn;
        Ok(WritePlan { keep: if torn { count / 2 } else { count }, torn })
    }

    /// Waits until what was written is on the host's disk.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        if self.power_lost {
            return Err(Failure::Injected);
        }
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| host("flush", &error))
    }

    /// Reads bytes at `offset`, which were checked.
    pub(super) fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(to, offset).map_err(|error| host("read", &error))
    }

    /// Writes bytes at `offset`, which were planned.
    pub(super) fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(from, offset).map_err(|error| host("write", &error))
    }

    fn check_range(&self, sector: u64, count: u64) -> Result<Sectors, Failure> {
        let end = sector.checked_add(count).ok_or(Failure::Invalid)?;
        if end > self.sectors { Err(Failure::Invalid) } else { Ok(Sectors { sector, count }) }
    }
}

fn host(what: &str, error: &io::Error) -> Failure {
    tracing::warn!("disk: cannot {what}: {error}");
    Failure::Host
}

fn touches(bad: &[Sectors], range: Sectors) -> bool {
    bad.iter().any(|bad| {
        bad.sector < range.sector.saturating_add(range.count)
            && range.sector < bad.sector.saturating_add(bad.count)
    })
}

fn open_file(disk: &str, path: &std::path::Path, read_only: bool) -> Result<(File, u64), DiskError> {
    let (disk, path) = (disk.to_owned(), path.to_owned());
    let opened = OpenOptions::new().read(true).write(!read_only).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(source) => return Err(DiskError::Open { disk, path, source }),
    };
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(source) => return Err(DiskError::Open { disk, path, source }),
    };
    if !metadata.is_file() {
        return Err(DiskError::NotAFile { disk, path });
    }
    let lock = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(&file, lock) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(DiskError::InUse { disk, path }),
        Err(errno) => return Err(DiskError::Open { disk, path, source: errno.into() }),
    }
    match metadata.len() {
        0 => Err(DiskError::Empty { disk, path }),
        len if !len.is_multiple_of(SECTOR) => Err(DiskError::NotSectors { disk, path, len }),
        len => Ok((file, len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(source: DiskSource) -> Disk {
        Disk { name: "d".into(), source, read_only: false, faults: DiskFaults::default() }
    }

    fn of_file(path: &std::path::Path) -> Disk {
        disk(DiskSource::File(path.to_owned()))
    }

    #[test]
    fn files_that_are_no_disks_are_named_in_one_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.img");
        let say = |disk: &Disk| Backing::open(disk).expect_err("no disk").to_string();
        assert!(say(&of_file(&path)).contains("cannot open"));
        assert!(say(&of_file(folder.path())).starts_with("disk d: "));
        std::fs::write(&path, b"").expect("a file");
        assert!(say(&of_file(&path)).contains("is empty"));
        std::fs::write(&path, [0; 513]).expect("a file");
        assert!(say(&of_file(&path)).contains("513 bytes"));
        assert!(say(&of_file(&path)).contains("make it 1024"));
    }

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(4096).expect("room");
        let writer = of_file(file.path());
        let reader = Disk { read_only: true, ..writer.clone() };
        let first = Backing::open(&writer).expect("free");
        assert!(matches!(Backing::open(&writer), Err(DiskError::InUse { .. })));
        assert!(matches!(Backing::open(&reader), Err(DiskError::InUse { .. })));
        drop(first);
        let _one = Backing::open(&reader).expect("free");
        let _two = Backing::open(&reader).expect("shared");
        assert!(matches!(Backing::open(&writer), Err(DiskError::InUse { .. })));
    }

    #[test]
    fn the_torn_write_keeps_its_first_half_and_is_the_last() {
        let mut torn = disk(DiskSource::Temporary(64 << 10));
        torn.faults.torn_writes = Some(2);
        let mut backing = Backing::open(&torn).expect("a temporary file");
        assert_eq!(backing.plan_write(0, 8), Ok(WritePlan { keep: 8, torn: false }));
        assert_eq!(backing.check_read(0, 8), Ok(()));
        assert_eq!(backing.plan_write(8, 7), Ok(WritePlan { keep: 3, torn: true }));
        assert_eq!(backing.plan_write(0, 8), Err(Failure::Injected));
        assert_eq!(backing.check_read(0, 1), Err(Failure::Injected));
        assert_eq!(backing.flush(), Err(Failure::Injected));
    }

    #[test]
    fn errors_are_where_the_machine_wants_them() {
        let mut faulty = disk(DiskSource::Temporary(64 << 10));
        faulty.faults.read_errors = vec![Sectors { sector: 10, count: 2 }];
        faulty.faults.write_errors = vec![Sectors { sector: 20, count: 1 }];
        let mut backing = Backing::open(&faulty).expect("a temporary file");
        for (sector, count, fails) in [(8, 2, false), (8, 3, true), (11, 1, true), (12, 8, false)] {
            assert_eq!(backing.check_read(sector, count).is_err(), fails, "{sector}+{count}");
        }
        assert!(backing.plan_write(10, 2).is_ok());
        assert_eq!(backing.plan_write(19, 2), Err(Failure::Injected));
        assert_eq!(backing.plan_write(127, 2), Err(Failure::Invalid));
        assert_eq!(backing.check_read(u64::MAX, 2), Err(Failure::Invalid));
    }
}
