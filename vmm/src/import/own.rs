//! A log of the machine that memvisor runs on. Linux keeps the latest lines only, so that `dmesg` of a machine that has been up for long has lost
//! the map of its memory; /sys still has it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::source::Input;

/// Where the kernel's log is read, a record a call (Linux: Documentation/ABI/testing/dev-kmsg).
const KMSG: &str = "/dev/kmsg";
/// Longest record (Linux: `PRINTKRB_RECORD_MAX`, with its escapes).
const RECORD: usize = 8192;
/// What says the same as the lines that the log has lost.
const SOURCES: [&str; 3] = ["/sys/firmware/memmap", "/sys/firmware/acpi/tables", "/sys/devices/system/node"];

/// Whether one of `lines`, with its time, is in the log of the kernel that runs here.
pub(super) fn has_one_of(lines: &[String]) -> bool {
    let Ok(file) = rustix::fs::open(KMSG, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
    else {
        return false;
    };
    let wanted: HashSet<&str> =
        lines.iter().filter_map(|line| line.strip_prefix('[')).map(str::trim_start).collect();
    let mut file = File::from(file);
    let mut record = [0; RECORD];
    loop {
        match file.read(&mut record) {
            Ok(0) => return false,
            Ok(len) => {
                let text = String::from_utf8_lossy(record.get(..len).unwrap_or_default());
                if line_of(&text).is_some_and(|line| wanted.contains(line.as_str())) {
                    return true;
                }
            }
            // Records that went while they were about to be read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe || error.kind() == ErrorKind::Interrupted => {
            }
            Err(_) => return false,
        }
    }
}

/// What `dmesg` prints of a record, behind its `[` and spaces; `None` for lines of the first moment, which machines share.
fn line_of(record: &str) -> Option<String> {
    let (head, rest) = record.split_once(';')?;
    let time: u64 = head.split(',').nth(2)?.parse().ok()?;
    let message = rest.split('\n').next()?;
    (time >= 1_000_000).then(|| format!("{}.{:06}] {message}", time / 1_000_000, time % 1_000_000))
}

/// The sources that there are.
pub(super) fn sources() -> Vec<Input> {
    let readable = |path: &&Path| path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    SOURCES.iter().map(Path::new).filter(readable).map(|path| Input::Path(PathBuf::from(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_lines_as_dmesg_prints_them() {
        let record = "6,339,5140900,-,caller=T1;NET: Registered PF_INET\n SUBSYSTEM=net\n";
        assert_eq!(line_of(record).as_deref(), Some("5.140900] NET: Registered PF_INET"));
        assert_eq!(line_of("6,1,0,-;Linux version 6.1").as_deref(), None);
        assert_eq!(line_of("no record"), None);
    }

    #[test]
    fn lines_of_another_machine_are_not_found() {
        assert!(!has_one_of(&[]));
        assert!(!has_one_of(&["[    7.000001] usb 1-1: a device that this machine never had".to_owned()]));
    }
}
