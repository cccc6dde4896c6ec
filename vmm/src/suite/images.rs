//! Disks with a file system for a case: made before it runs by mke2fs, checked after it by e2fsck and read by debugfs, so that another
//! implementation of ext2 judges what the guest left.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};
use serde::Deserialize;
use tempfile::TempDir;

use super::outcome::{Outcome, Subcase};

/// A disk that begins as an empty ext2 file system.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name, which the guest sees as the serial number.
    pub name: String,
    /// Bytes in MiB.
    pub size_mib: u64,
    /// Bytes of a block: 1024, 2048 or 4096.
    #[serde(default = "Image::default_block")]
    pub block: u32,
    /// The guest stops without unmounting it: e2fsck may mend what nobody promised, before files are looked at.
    #[serde(default)]
    pub cut: bool,
    /// Files that must be on it afterwards.
    #[serde(default)]
    pub files: Vec<Content>,
    /// Where it is, once it is made.
    #[serde(skip)]
    pub path: PathBuf,
}

/// A file, and what it holds: the pattern of guest/user/src/files.rs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Its path on the disk.
    pub path: String,
    /// Which pattern.
    pub seed: u64,
    /// How many bytes of it.
    pub bytes: u64,
    /// Zeroes behind them.
    #[serde(default)]
    pub zeroes: u64,
}

impl Image {
    const fn default_block() -> u32 {
        4096
    }

    /// What makes no sense.
    pub fn problem(&self) -> Option<String> {
        if !matches!(self.block, 1024 | 2048 | 4096) {
            return Some(format!("image {}: block = {}: give 1024, 2048 or 4096", self.name, self.block));
        }
        (!(1..=1024).contains(&self.size_mib))
            .then(|| format!("image {}: size_mib = {}: give 1 to 1024", self.name, self.size_mib))
    }
}

/// A program of e2fsprogs, which Debian keeps in sbin.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// What is missing on this machine for cases with images.
pub fn missing() -> Option<&'static str> {
    let all = ["mke2fs", "e2fsck", "debugfs"].iter().all(|name| program(name).is_some());
    (!all).then_some("no mke2fs, e2fsck or debugfs (Debian: e2fsprogs; `make setup` installs it)")
}

fn run(name: &str, args: &[&str]) -> anyhow::Result<Output> {
    let program = program(name).with_context(|| format!("{name} is not there"))?;
    Command::new(program).args(args).output().with_context(|| format!("run {name}"))
}

/// Makes all images in a folder that is gone with the returned value.
///
/// # Errors
/// What keeps mke2fs from it.
pub fn make(images: &mut [Image]) -> anyhow::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("memvisor-images-").tempdir()?;
    for image in images {
        image.path = folder.path().join(&image.name);
        let path = image.path.display().to_string();
        let (block, size) = (image.block.to_string(), format!("{}M", image.size_mib));
        let output = run("mke2fs", &["-q", "-F", "-t", "ext2", "-b", &block, &path, &size])?;
        if !output.status.success() {
            bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(folder)
}

/// Checks all images after a run: a part of the case for each.
pub fn examine(images: &[Image]) -> Vec<Subcase> {
    let check = |image: &Image| {
        let outcome = match examine_one(image) {
            Ok(problems) => Outcome::from_problems(problems),
            Err(error) => Outcome::from_problems(vec![format!("{error:#}")]),
        };
        Subcase { name: format!("image-{}", image.name), outcome }
    };
    images.iter().map(check).collect()
}

fn examine_one(image: &Image) -> anyhow::Result<Vec<String>> {
    let path = image.path.display().to_string();
    let mut problems = Vec::new();
    let output = run("e2fsck", &[if image.cut { "-fy" } else { "-fn" }, &path])?;
    // 0 is clean; 1 is clean once errors were mended.
    let code = output.status.code().unwrap_or(i32::MAX);
    if code > i32::from(image.cut) {
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("Pass ")).take(6).collect();
        problems.push(format!("e2fsck ends with {code}: {}", lines.join("; ")));
    }
    for file in &image.files {
        if let Some(problem) = compare(&image.path, file)? {
            problems.push(problem);
        }
    }
    Ok(problems)
}

fn compare(image: &Path, file: &Content) -> anyhow::Result<Option<String>> {
    let output = run("debugfs", &["-R", &format!("cat {}", file.path), &image.display().to_string()])?;
    let found = output.stdout;
    let whole = file.bytes + file.zeroes;
    if found.len() as u64 != whole {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().nth(1).unwrap_or_default();
        return Ok(Some(format!("{} has {} bytes, not {whole} {said}", file.path, found.len())));
    }
    let wanted = |at: u64| if at < file.bytes { pattern(file.seed, at) } else { 0 };
    let wrong = found.iter().zip(0..).find(|(byte, at)| **byte != wanted(*at));
    Ok(wrong.map(|(byte, at)| format!("{} has {byte:#04x} at byte {at}, not {:#04x}", file.path, wanted(at))))
}

/// As `pattern` of guest/user/src/files.rs.
fn pattern(seed: u64, offset: u64) -> u8 {
    let mixed = (offset ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[5]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let file = Content { path: "/a".to_owned(), seed: 1, bytes: 5000, zeroes: 3 };
        Image {
            name: "d".to_owned(),
            size_mib: 1,
            block: 1024,
            cut: false,
            files: vec![file],
            path: PathBuf::new(),
        }
    }

    #[test]
    fn an_image_is_judged_by_what_is_on_it() {
        if let Some(why) = missing() {
            eprintln!("SKIPPED: {why}");
            return;
        }
        let mut images = [image()];
        let folder = make(&mut images).unwrap();
        let absent = examine_one(&images[0]).unwrap();
        assert!(absent.len() == 1 && absent[0].contains("/a has 0 bytes, not 5003"), "{absent:?}");
        let text: Vec<u8> = (0..5000).map(|at| pattern(1, at)).chain([0; 3]).collect();
        let source = folder.path().join("text");
        let write = |bytes: &[u8]| {
            std::fs::write(&source, bytes).unwrap();
            let path = images[0].path.display().to_string();
            let request = format!("write {} a", source.display());
            run("debugfs", &["-w", "-R", "rm a", &path]).unwrap();
            assert!(run("debugfs", &["-w", "-R", &request, &path]).unwrap().status.success());
        };
        write(&text);
        assert_eq!(examine_one(&images[0]).unwrap(), Vec::<String>::new());
        let mut wrong = text;
        wrong[4097] ^= 1;
        write(&wrong);
        let found = examine_one(&images[0]).unwrap();
        assert!(found.len() == 1 && found[0].contains("at byte 4097"), "{found:?}");
    }
}
