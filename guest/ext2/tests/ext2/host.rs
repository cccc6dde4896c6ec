//! The host's own programs for ext2 (e2fsprogs), which make images, check them and read them.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use guest_ext2::{Ext2, Ino, Ram};

/// Whether the programs are there. If not, a test says so and does nothing.
pub fn is_ready() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| {
        let missing: Vec<&str> =
            ["mke2fs", "e2fsck", "debugfs"].into_iter().filter(|name| program(name).is_none()).collect();
        if !missing.is_empty() {
            // Not `eprintln!`: the test harness would swallow it.
            let skipped = format!(
                "SKIPPED: no {} (Debian: e2fsprogs; `make setup` installs it): ext2 was checked by nothing but itself\n",
                missing.join(", ")
            );
            std::io::stderr().write_all(skipped.as_bytes()).expect("writes");
        }
        missing.is_empty()
    })
}

/// The program, which may be where only root looks for it.
fn program(name: &str) -> Option<&'static str> {
    static FOUND: OnceLock<HashMap<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let mut found = HashMap::new();
        for name in ["mke2fs", "e2fsck", "debugfs"] {
            for place in ["", "/usr/sbin/", "/sbin/"] {
                let path = format!("{place}{name}");
                if Command::new(&path).arg("-V").output().is_ok() {
                    found.entry(name.to_owned()).or_insert(path);
                }
            }
        }
        found
    });
    found.get(name).map(String::as_str)
}

fn run(name: &str, args: &[&str], file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(program(name).expect("is_ready was asked"));
    // No file of this machine decides what mke2fs does.
    command.env("MKE2FS_CONFIG", "/dev/null").env("LC_ALL", "C").args(args).arg(file).args(more);
    command.output().expect("runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What mke2fs is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    pub revision: u32,
    pub block: u32,
    pub inode: u32,
    /// Features beside none, with commas between.
    pub features: &'static str,
    /// Blocks.
    pub blocks: u32,
    /// Blocks of a group; 0: as many as there can be.
    pub group: u32,
    pub inodes: u32,
    /// Percent for root.
    pub reserved: u32,
}

/// All features that there is code for.
pub const NEW: &str = "filetype,sparse_super,large_file";
/// What mke2fs.conf has for ext2. With groups that are too small for the inode that grows, mke2fs makes meta_bg of it.
pub const DEFAULT: &str = "filetype,sparse_super,large_file,dir_index,ext_attr,resize_inode";

/// Formats of every size and feature that is supported.
pub const FORMATS: [Format; 12] = [
    format(0, 1024, 128, "", 2048, 512),
    format(0, 4096, 128, "", 600, 0),
    format(1, 1024, 128, "", 3000, 256),
    format(1, 1024, 128, NEW, 2048, 0),
    format(1, 1024, 256, NEW, 4096, 1024),
    format(1, 1024, 256, DEFAULT, 2048, 512),
    format(1, 2048, 128, "filetype", 1024, 256),
    format(1, 2048, 256, DEFAULT, 1500, 512),
    format(1, 4096, 128, DEFAULT, 600, 256),
    format(1, 4096, 256, "sparse_super,large_file", 800, 0),
    format(1, 4096, 256, DEFAULT, 1024, 512),
    format(1, 1024, 1024, NEW, 2048, 0),
];

const fn format(
    revision: u32,
    block: u32,
    inode: u32,
    features: &'static str,
    blocks: u32,
    group: u32,
) -> Format {
    Format { revision, block, inode, features, blocks, group, inodes: 128, reserved: 5 }
}

/// An image that mke2fs made, empty or with what is in `from`.
pub fn mke2fs(format: &Format, from: Option<&Path>) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("image");
    fs::write(&file, vec![0; format.block as usize * format.blocks as usize]).expect("writes");
    let number = |value: u32| value.to_string();
    let (block, inode, inodes) = (number(format.block), number(format.inode), number(format.inodes));
    let (group, reserved, revision) =
        (number(format.group), number(format.reserved), number(format.revision));
    let features = format!("none,{}", format.features);
    let mut args = vec!["-q", "-F", "-b", &block, "-N", &inodes, "-m", &reserved, "-r", &revision];
    if format.revision > 0 {
        args.extend(["-I", &inode, "-O", features.trim_end_matches(',')]);
    }
    if format.group > 0 {
        args.extend(["-g", &group]);
    }
    let from = from.map(|path| path.to_str().expect("UTF-8").to_owned());
    if let Some(from) = &from {
        args.extend(["-d", from]);
    }
    let output = run("mke2fs", &args, &file, &[&number(format.blocks)]);
    assert!(output.status.success(), "mke2fs {args:?}: {}", text(&output));
    fs::read(&file).expect("reads")
}

/// The image of a format, made once.
pub fn image(format: &Format) -> Vec<u8> {
    static IMAGES: OnceLock<std::sync::Mutex<HashMap<Format, Vec<u8>>>> = OnceLock::new();
    let mut images = IMAGES.get_or_init(Default::default).lock().expect("no panic while it is held");
    images.entry(*format).or_insert_with(|| mke2fs(format, None)).clone()
}

/// `e2fsck -fn`: what it complains of, or nothing.
pub fn e2fsck(bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("image");
    fs::write(&file, bytes).expect("writes");
    let output = run("e2fsck", &["-fn"], &file, &[]);
    if output.status.success() { Ok(()) } else { Err(text(&output)) }
}

/// `e2fsck -fy`: the image as it is then.
pub fn repair(bytes: &[u8]) -> Vec<u8> {
    changed(bytes, "-fy")
}

fn changed(bytes: &[u8], how: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("image");
    fs::write(&file, bytes).expect("writes");
    let output = run("e2fsck", &[how], &file, &[]);
    assert!(output.status.code().is_some_and(|code| code < 4), "{}", text(&output));
    fs::read(&file).expect("reads")
}

/// `e2fsck -D`: directories get indexes.
pub fn index(bytes: &[u8]) -> Vec<u8> {
    changed(bytes, "-fyD")
}

/// Says that an inode has so many names.
pub fn set_links(fs: &mut Ext2<Ram>, ino: Ino, links: u16) {
    fs.sync(0).expect("writes");
    let commands = format!("set_inode_field <{}> links_count {links}\n", ino.as_u32());
    let image = Debugfs::new(fs.buffers().bytes()).change(&commands);
    fs.buffers().bytes_mut().copy_from_slice(&image);
}

/// What debugfs tells of an inode.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    pub kind: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub links: u32,
    pub target: Option<String>,
    pub mtime: u32,
}

/// An image that debugfs reads.
#[derive(Debug)]
pub struct Debugfs {
    folder: tempfile::TempDir,
}

impl Debugfs {
    pub fn new(bytes: &[u8]) -> Debugfs {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("image"), bytes).expect("writes");
        Debugfs { folder }
    }

    fn commands(&self, commands: &str) -> String {
        let script = self.folder.path().join("commands");
        fs::write(&script, commands).expect("writes");
        let script = script.to_str().expect("UTF-8").to_owned();
        text(&run("debugfs", &["-f", &script], &self.folder.path().join("image"), &[]))
    }

    /// Changes the image with debugfs's own commands.
    pub fn change(&self, commands: &str) -> Vec<u8> {
        let script = self.folder.path().join("commands");
        fs::write(&script, commands).expect("writes");
        let script = script.to_str().expect("UTF-8").to_owned();
        let image = self.folder.path().join("image");
        let output = run("debugfs", &["-w", "-f", &script], &image, &[]);
        assert!(output.status.success(), "{}", text(&output));
        fs::read(&image).expect("reads")
    }

    /// `stat` of all these inodes.
    pub fn stat(&self, inodes: &[u32]) -> Vec<Told> {
        let commands: String = inodes.iter().map(|ino| format!("stat <{ino}>\n")).collect();
        let said = self.commands(&commands);
        let told: Vec<Told> = said.split("debugfs: stat <").skip(1).map(parse).collect();
        assert_eq!(told.len(), inodes.len(), "{said}");
        told
    }

    /// The bytes of these inodes, by `dump`.
    pub fn dump(&self, inodes: &[u32]) -> Vec<Vec<u8>> {
        let path = |ino: &u32| self.folder.path().join(format!("dump-{ino}"));
        let commands: String =
            inodes.iter().map(|ino| format!("dump <{ino}> {}\n", path(ino).display())).collect();
        let said = self.commands(&commands);
        let read =
            |ino: &u32| fs::read(path(ino)).unwrap_or_else(|error| panic!("inode {ino}: {error}: {said}"));
        inodes.iter().map(read).collect()
    }

    /// Names and inodes of a directory.
    pub fn list(&self, ino: u32) -> Vec<(String, u32)> {
        let said = self.commands(&format!("ls -p <{ino}>\n"));
        let lines = said.lines().filter(|line| line.starts_with('/'));
        let field = |line: &str, at: usize| line.split('/').nth(at).expect("fields").to_owned();
        lines
            .filter(|line| field(line, 1) != "0")
            .map(|line| (field(line, 5), field(line, 1).parse().expect("a number")))
            .collect()
    }
}

fn parse(said: &str) -> Told {
    let after = |label: &str| {
        let rest = said.split(label).nth(1).unwrap_or_else(|| panic!("no {label} in {said}"));
        rest.split_whitespace().next().expect("a word").to_owned()
    };
    let number = |label: &str| after(label).parse().unwrap_or_else(|_| panic!("{label} in {said}"));
    let seconds =
        u32::from_str_radix(after("\nmtime:").trim_start_matches("0x").split(':').next().expect("one"), 16);
    // Devices have no size.
    let size = if said.contains("Size: ") { u64::from(number("Size: ")) } else { 0 };
    let target = said.split("Fast link dest: \"").nth(1).and_then(|rest| rest.split('"').next());
    Told {
        kind: after("Type: "),
        mode: u32::from_str_radix(&after("Mode:"), 8).expect("octal"),
        uid: number("User: "),
        gid: number("Group: "),
        size,
        links: number("Links: "),
        target: target.map(str::to_owned),
        mtime: seconds.expect("hexadecimal"),
    }
}
