//! Archives as `cpio --format=newc` writes them.

/// Type and permissions, number and links of the inode, name, content.
type Entry = (u32, u32, u32, &'static str, &'static str);

const ROOT: [Entry; 8] = [
    (0o40_755, 1, 2, ".", ""),
    (0o40_755, 2, 2, "bin", ""),
    (0o100_755, 3, 1, "bin/sh", "a program"),
    (0o120_777, 4, 1, "init", "bin/sh"),
    (0o20_600, 5, 1, "console", ""),
    (0o100_644, 6, 2, "one", ""),
    (0o100_644, 6, 2, "two", "linked"),
    (0, 0, 1, "TRAILER!!!", ""),
];
const HOSTILE: [Entry; 5] = [
    (0o120_777, 1, 1, "loop", "loop"),
    (0o100_644, 2, 1, "loop/x", "x"),
    (0o40_755, 3, 1, "../../a/", ""),
    (0o100_644, 4, 1, "/a", "in the way"),
    (0o10_644, 5, 3, "//a/../a", ""),
];

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let fill = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    for (mode, ino, nlink, name, data) in entries {
        let fields = [*ino, *mode, 0, 0, *nlink, 1, len(data), 0, 0, 5, 1, len(name) + 1, 0];
        out.extend_from_slice(b"070701");
        out.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        fill(&mut out);
        out.extend_from_slice(data.as_bytes());
        fill(&mut out);
    }
    out
}

fn len(text: &str) -> u32 {
    u32::try_from(text.len()).expect("short")
}

/// Names and bytes.
pub fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let root = archive(&ROOT);
    let two = [&root[..], &[0; 8], &archive(&HOSTILE)].concat();
    [("seed-root", root), ("seed-hostile", archive(&HOSTILE)), ("seed-two", two)]
}
