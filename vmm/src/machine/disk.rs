//! Disks of a machine: `[[disk]]` in files, `--disk` on the command line.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::Origin;
use super::file::{DiskSpec, MachineFile};
use super::flags::{self, DiskFlag};
use super::resolve::{is_name, path};
use super::{MachineError, Overrides, Problem, layout};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Longest name: what the device can tell a driver (virtio 1.2 section 5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub(super) const NAME_MAX: usize = 20;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Its name, which the guest sees as the serial number.
    pub name: String,
    /// Where its bytes are.
    pub source: DiskSource,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What goes wrong with it.
    #[serde(skip_serializing_if = "DiskFaults::is_none")]
    pub faults: DiskFaults,
}

/// Where the bytes of a disk are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskSource {
    /// A file, which stays.
    File(PathBuf),
    /// A temporary file of so many bytes that reads as zero at first and is gone at the end.
    Temporary(u64),
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskSource::File(path) => path.display().fmt(f),
            DiskSource::Temporary(_) => f.write_str("temporary"),
        }
    }
}

/// What is made to go wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskFaults {
    /// A read of any of these fails.
    pub read_errors: Vec<Sectors>,
    /// A write of any of these fails, and none of its sectors is written.
    pub write_errors: Vec<Sectors>,
    /// Every request takes at least so many microseconds; requests in flight wait together.
    pub delay_us: u64,
    /// Of the write of this number, counted from 1, only the first half of its sectors (rounded down) is
    /// written. It fails, and so does every request after it: the disk has lost its power.
    pub torn_writes: Option<u64>,
}

impl DiskFaults {
    /// Whether nothing goes wrong.
    pub fn is_none(&self) -> bool {
        *self == DiskFaults::default()
    }
}

/// Sectors of 512 bytes, `sector..sector + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sectors {
    /// The first.
    pub sector: u64,
    /// How many.
    #[serde(default = "one")]
    pub count: u64,
}

const fn one() -> u64 {
    1
}

/// The disks of `file`, then those of the command line.
pub(super) fn resolve(file: &MachineFile, overrides: &Overrides) -> Result<Vec<Disk>, MachineError> {
    let mut disks: Vec<Disk> = Vec::new();
    for (index, spanned) in file.spec.disk.iter().enumerate() {
        let origin = file.source.origin(spanned.span().start, format!("disk[{index}]"));
        let disk =
            of_file(file, index, spanned.get_ref()).map_err(|problem| MachineError::at(&origin, problem))?;
        add(&mut disks, disk, &origin)?;
    }
    for text in &overrides.disk {
        let origin = flags::origin("--disk", text);
        let disk = flags::disk(text)
            .and_then(|flag| of_flag(disks.len(), flag))
            .map_err(|problem| MachineError::at(&origin, problem))?;
        add(&mut disks, disk, &origin)?;
    }
    Ok(disks)
}

fn add(disks: &mut Vec<Disk>, disk: Disk, origin: &Origin) -> Result<(), MachineError> {
    let problem = if disks.iter().any(|other| other.name == disk.name) {
        Problem::DiskTwice(disk.name)
    } else if disks.len() >= layout::MAX_DISKS {
        Problem::TooManyDisks
    } else {
        disks.push(disk);
        return Ok(());
    };
    Err(MachineError::at(origin, problem))
}

fn of_file(file: &MachineFile, index: usize, spec: &DiskSpec) -> Result<Disk, Problem> {
    let size = spec.size.map(|size| size.bytes());
    let source = source(path(&file.source, None, spec.file.as_deref()), size)?;
    let faults = checked(DiskFaults {
        read_errors: spec.read_errors.clone(),
        write_errors: spec.write_errors.clone(),
        delay_us: spec.delay_us,
        torn_writes: spec.torn_writes,
    })?;
    Ok(Disk { name: name(index, spec.name.as_deref())?, source, read_only: spec.read_only, faults })
}

fn checked(faults: DiskFaults) -> Result<DiskFaults, Problem> {
    if faults.torn_writes == Some(0) {
        return Err(Problem::BadValue {
            text: "torn_writes = 0".to_owned(),
            what: "the number of a write, from 1 on",
        });
    }
    if faults.delay_us > DELAY_MAX {
        return Err(Problem::BadValue {
            text: faults.delay_us.to_string(),
            what: "a delay of at most 60000000 microseconds",
        });
    }
    Ok(faults)
}

/// Longest delay in microseconds: a minute.
const DELAY_MAX: u64 = 60_000_000;

fn of_flag(index: usize, flag: DiskFlag) -> Result<Disk, Problem> {
    Ok(Disk {
        name: name(index, flag.name.as_deref())?,
        source: source(flag.file, flag.size)?,
        read_only: flag.read_only,
        faults: checked(flag.faults)?,
    })
}

fn name(index: usize, wished: Option<&str>) -> Result<String, Problem> {
    match wished {
        None => Ok(format!("disk{index}")),
        Some(name) if is_name(name) && name.len() <= NAME_MAX => Ok(name.to_owned()),
        Some(name) => Err(Problem::DiskName(name.to_owned())),
    }
}

fn source(file: Option<PathBuf>, size: Option<u64>) -> Result<DiskSource, Problem> {
    match (file, size) {
        (Some(path), None) => Ok(DiskSource::File(path)),
        (None, Some(size)) if size > 0 && size.is_multiple_of(SECTOR) && i64::try_from(size).is_ok() => {
            Ok(DiskSource::Temporary(size))
        }
        (None, Some(size)) => Err(Problem::DiskSize(size)),
        (Some(_), Some(_)) | (None, None) => Err(Problem::DiskSource),
    }
}
