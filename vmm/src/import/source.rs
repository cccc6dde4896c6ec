//! Sources: reading them, and telling by their content what they are.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claims::{At, Claims};
use super::{ImportError, acpi, dmesg, iomem, sysfs};

/// What can be imported, for messages.
pub(super) const KNOWN: &str = "give a dmesg, the output of acpidump or a binary table, /proc/iomem, or the directories /sys/firmware/memmap, /sys/firmware/acpi/tables, /sys/devices/system/node (or `grep -r .` of them)";

/// Sources are logs and tables; more than this is none of them.
const SIZE_LIMIT: u64 = 256 << 20;

/// A source.
#[derive(Clone, Debug)]
pub enum Input {
    /// Standard input.
    Stdin,
    /// A file or a directory.
    Path(PathBuf),
    /// Something that is at hand: its name and its bytes.
    Bytes(String, Vec<u8>),
}

/// What a source turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Kernel log, with or without the output of `numactl --hardware` in it.
    Dmesg,
    /// Hexadecimal dump of ACPI tables.
    Acpidump,
    /// An ACPI table, or a directory of them.
    AcpiTables,
    /// /proc/iomem.
    Iomem,
    /// /sys/firmware/memmap.
    Memmap,
    /// /sys/devices/system/node.
    Nodes,
}

impl Kind {
    /// Its name in comments and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Dmesg => "a kernel log",
            Kind::Acpidump => "acpidump",
            Kind::AcpiTables => "ACPI tables",
            Kind::Iomem => "/proc/iomem",
            Kind::Memmap => "/sys/firmware/memmap",
            Kind::Nodes => "/sys/devices/system/node",
        }
    }
}

impl Input {
    /// A source by its name on the command line; `-` is standard input.
    pub fn new(name: &Path) -> Input {
        if name.as_os_str() == "-" { Input::Stdin } else { Input::Path(name.to_owned()) }
    }

    fn name(&self) -> String {
        match self {
            Input::Stdin => "-".to_owned(),
            Input::Path(path) => path.display().to_string(),
            Input::Bytes(name, _) => name.clone(),
        }
    }
}

/// Reads `input`, adds what it claims, and says what it is.
pub(super) fn read(input: &Input, claims: &mut Claims) -> Result<Kind, ImportError> {
    let name = input.name();
    let failed = |source| ImportError::Read { name: name.clone(), source };
    let bytes = match input {
        Input::Path(path) if path.is_dir() => return read_directory(path, &name, claims),
        Input::Path(path) => read_limited(File::open(path).map_err(failed)?).map_err(failed)?,
        Input::Stdin => read_limited(io::stdin().lock()).map_err(failed)?,
        Input::Bytes(_, bytes) => return read_bytes(&name, bytes, claims),
    };
    read_bytes(&name, &bytes, claims)
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 256 MiB: this is no log"));
    }
    Ok(bytes)
}

/// Tells what `bytes` are and reads them.
pub(super) fn read_bytes(name: &str, bytes: &[u8], claims: &mut Claims) -> Result<Kind, ImportError> {
    let file: Arc<str> = Arc::from(name);
    if acpi::is_table(bytes) {
        acpi::read_table(bytes, &At { file, line: 0 }, claims)?;
        return Ok(Kind::AcpiTables);
    }
    let text = String::from_utf8_lossy(bytes);
    let kind = detect(&text).ok_or_else(|| ImportError::Unknown { name: name.to_owned() })?;
    match kind {
        Kind::Dmesg => dmesg::read(&file, &text, claims),
        Kind::Acpidump => acpi::read_dump(&file, &text, claims)?,
        Kind::Iomem => iomem::read(&file, &text, claims)?,
        Kind::Memmap | Kind::Nodes | Kind::AcpiTables => sysfs::read(&sysfs::grepped(&file, &text), claims)?,
    }
    Ok(kind)
}

/// The kind of a text, by the first lines that only one kind has.
fn detect(text: &str) -> Option<Kind> {
    // A log may quote any other kind, so its own marks count first.
    if text.lines().any(dmesg::is_mark) {
        return Some(Kind::Dmesg);
    }
    let known = text.lines().find_map(|line| {
        if acpi::dump_header(line).is_some() {
            Some(Kind::Acpidump)
        } else if line.contains("/memmap/") || sysfs::is_memmap(line) {
            Some(Kind::Memmap)
        } else if sysfs::is_node(line) {
            Some(Kind::Nodes)
        } else if iomem::parse(line).is_some() {
            Some(Kind::Iomem)
        } else {
            None
        }
    });
    known.or_else(|| text.lines().any(dmesg::is_stamped).then_some(Kind::Dmesg))
}

fn read_directory(path: &Path, name: &str, claims: &mut Claims) -> Result<Kind, ImportError> {
    let failed = |source| ImportError::Read { name: name.to_owned(), source };
    let mut names: Vec<String> = fs::read_dir(path)
        .map_err(failed)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    if names.iter().any(|entry| sysfs::node_number(entry).is_some()) {
        let wanted = ["cpulist", "distance", "meminfo"];
        sysfs::read(&leaves(path, &names, &wanted, |entry| sysfs::node_number(entry).is_some()), claims)?;
        return Ok(Kind::Nodes);
    }
    if names.iter().any(|entry| path.join(entry).join("start").is_file()) {
        sysfs::read(&leaves(path, &names, &["start", "end", "type"], |_| true), claims)?;
        return Ok(Kind::Memmap);
    }
    let mut tables = 0;
    for entry in names.iter().filter(|entry| acpi::is_signature(entry)) {
        let table = path.join(entry);
        let failed = |source| ImportError::Read { name: table.display().to_string(), source };
        let bytes = read_limited(File::open(&table).map_err(failed)?).map_err(failed)?;
        let at = At { file: Arc::from(table.display().to_string()), line: 0 };
        acpi::read_table(&bytes, &at, claims)?;
        tables += 1;
    }
    if tables == 0 {
        return Err(ImportError::Unknown { name: name.to_owned() });
    }
    Ok(Kind::AcpiTables)
}

/// The files `wanted` of the subdirectories that `choose` chooses. Missing ones are left out: kernels differ.
fn leaves(path: &Path, names: &[String], wanted: &[&str], choose: impl Fn(&str) -> bool) -> Vec<sysfs::Leaf> {
    let mut leaves = Vec::new();
    for entry in names.iter().filter(|entry| choose(entry)) {
        for leaf in wanted {
            let file = path.join(entry).join(leaf);
            let Ok(text) = fs::read_to_string(&file) else { continue };
            for (line, value) in (1..).zip(text.lines()) {
                let at = At { file: Arc::from(file.display().to_string()), line };
                leaves.push(sysfs::Leaf {
                    parent: entry.clone(),
                    name: (*leaf).to_owned(),
                    value: value.to_owned(),
                    at,
                });
            }
        }
    }
    leaves
}
