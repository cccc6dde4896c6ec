//! A cpio archive (`newc`), the root of a machine whose first process is the program.

/// The archive: the program as /init, its input as /sequences, and empty directories.
pub fn archive(program: &[u8], input: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o04_0755;
    const PROGRAM: u32 = 0o10_0755;
    const FILE: u32 = 0o10_0644;
    let mut out = Vec::with_capacity(program.len() + input.len() + 4096);
    for name in ["proc", "tmp", "dev"] {
        entry(&mut out, name, DIRECTORY, &[]);
    }
    entry(&mut out, "init", PROGRAM, program);
    entry(&mut out, "sequences", FILE, input);
    entry(&mut out, "TRAILER!!!", 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    const MAGIC: &str = "070701";
    let fields = [0, mode, 0, 0, 1, 0, len(bytes.len()), 0, 0, 0, 0, len(name.len() + 1), 0];
    out.extend_from_slice(MAGIC.as_bytes());
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(bytes);
    pad(out);
}

/// The format has 32 bits; what is longer is cut off rather than damaging what follows.
fn len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_where_their_headers_say() {
        let bytes = archive(b"program", b"in");
        let text = String::from_utf8_lossy(&bytes);
        let at = text.find("init\0").unwrap();
        // Magic, then 13 fields of 8; the sixth from the front, counted from 0, is the length.
        let header = &text[at - 110..at];
        assert!(header.starts_with("070701"));
        assert_eq!(&header[6 + 6 * 8..6 + 7 * 8], "00000007");
        let data = (at + 5).next_multiple_of(4);
        assert_eq!(&bytes[data..data + 7], b"program");
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.contains("TRAILER!!!"));
    }
}
