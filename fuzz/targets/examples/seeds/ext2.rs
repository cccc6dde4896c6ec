//! Images that mke2fs makes, with some of everything in them.

use std::process::Command;

use guest_ext2::{Access, Caller, Device, Ext2, Ino, Ram, mode};
use memvisor_fuzz_targets::ext2_seed;

/// None if there is no mke2fs.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let formats: [(&str, &[&str]); 3] = [
        ("seed-1k", &["-b", "1024", "-I", "128", "-O", "none,filetype,sparse_super,large_file"]),
        (
            "seed-2k-default",
            &["-b", "2048", "-I", "256", "-O", "none,filetype,sparse_super,large_file,ext_attr"],
        ),
        ("seed-old", &["-b", "1024", "-r", "0"]),
    ];
    formats.into_iter().filter_map(|(name, args)| Some((name, ext2_seed(&image(args)?, CALLS)))).collect()
}

/// Some of every call.
const CALLS: &[u8] = &[
    0, 12, 0, 9, 1, 1, 1, 12, 0, 1, 2, 2, 2, 12, 0, 3, 3, 200, 99, 9, 12, 14, 1, 1, 120, 50, 8, 12, 14, 1, 1,
    20, 7, 2, 12, 9, 1, 1, 5, 12, 0, 3, 2, 1, 12, 0, 14, 1, 1, 1, 5, 2, 0, 1, 5, 1, 13, 0, 14, 1, 1, 1, 6, 2,
    0, 1, 1, 1,
];

fn image(args: &[&str]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().ok()?;
    let file = folder.path().join("image");
    std::fs::write(&file, vec![0; 256 << 10]).ok()?;
    let fixed = "5e4a1c9e-8f0a-4a57-9a44-0e0a6d3c1b2f";
    let seed = format!("hash_seed={fixed}");
    let mut command = Command::new("mke2fs");
    command.env("MKE2FS_CONFIG", "/dev/null").env("E2FSPROGS_FAKE_TIME", "1700000000");
    command.args(["-q", "-F", "-N", "32", "-U", fixed, "-E", &seed]).args(args).arg(&file);
    if !command.status().is_ok_and(|status| status.success()) {
        eprintln!("mke2fs failed or is missing: the seeds of ext2 stay as they are");
        return None;
    }
    let mut fs = Ext2::mount(Ram::new(std::fs::read(&file).ok()?), Access::ReadWrite, 1_700_000_000).ok()?;
    let caller = Caller { uid: 0, gid: 0, privileged: true, now: 1_700_000_000 };
    let dir = fs.mkdir(&caller, Ino::ROOT, b"a", 0o755).ok()?.ino;
    fs.mkdir(&caller, dir, b"b", 0o755).ok()?;
    let file = fs.create(&caller, dir, b"c", 0o644).ok()?.ino;
    fs.write(&caller, file, 13 << 10, b"indirect").ok()?;
    fs.write(&caller, file, 70 << 20, b"three levels").ok()?;
    fs.symlink(&caller, dir, b"d", b"short").ok()?;
    fs.symlink(&caller, dir, b"e", &[b'l'; 80]).ok()?;
    fs.link(&caller, file, dir, b"f").ok()?;
    fs.mknod(&caller, (dir, b"g"), mode::S_IFCHR | 0o600, Device { major: 1, minor: 3 }).ok()?;
    fs.unmount(1_700_000_000).ok()?;
    Some(fs.into_buffers().bytes().to_vec())
}
