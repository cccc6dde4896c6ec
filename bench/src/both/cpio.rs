//! An initramfs: an archive of the form that Linux calls `newc` (Documentation/driver-api/early-userspace/buffer-format.rst).

const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

/// The archive of these files, all of them programs, of the folder that some are in, and of /dev/console, which a first process writes to.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    add(&mut out, "dev", S_IFDIR | 0o755, (0, 0), &[]);
    add(&mut out, "dev/console", S_IFCHR | 0o600, (5, 1), &[]);
    let mut folders: Vec<&str> =
        files.iter().filter_map(|(name, _)| Some(name.rsplit_once('/')?.0)).collect();
    folders.dedup();
    for folder in folders {
        add(&mut out, folder, S_IFDIR | 0o755, (0, 0), &[]);
    }
    for (name, bytes) in files {
        add(&mut out, name, S_IFREG | 0o755, (0, 0), bytes);
    }
    add(&mut out, "TRAILER!!!", 0, (0, 0), &[]);
    out
}

fn add(out: &mut Vec<u8>, name: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) {
    // Two entries of one number would be one file.
    let inode = u32::try_from(out.len()).unwrap_or(u32::MAX);
    let size = u32::try_from(bytes.len()).expect("files of an initramfs are small");
    let name_size = u32::try_from(name.len() + 1).expect("names are short");
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    out.extend(b"070701");
    fields.iter().for_each(|field| out.extend(format!("{field:08x}").bytes()));
    out.extend(name.bytes());
    out.push(0);
    pad(out);
    out.extend(bytes);
    pad(out);
}

/// Names and contents begin at multiples of 4.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents_are_aligned() {
        let archive = archive(&[("init", b"abcde")]);
        assert_eq!(archive.len() % 4, 0);
        let at = archive.windows(5).position(|window| window == b"abcde").unwrap();
        assert_eq!(at % 4, 0);
        assert!(archive.starts_with(b"070701"));
        assert!(archive.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
