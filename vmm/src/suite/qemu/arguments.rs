//! QEMU's command line for a case, and the files that it names.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::super::case::{BlankDisk, Case, QemuSetup};
use super::super::initrd;

/// Port of isa-debug-exit.
const EXIT_PORT: &str = "0xf4";

/// A file that holds part of the guest's RAM.
pub struct MemoryFile {
    pub id: String,
    pub path: PathBuf,
    pub gpa: u64,
    pub mib: u64,
}

/// One file a node, in the order in which q35 puts nodes into its address space: all below 2 GiB, without
/// a hole. A machine without nodes has one file.
pub fn memory_files(setup: &QemuSetup, folder: &Path) -> std::io::Result<Vec<MemoryFile>> {
    let sizes: Vec<u64> = if setup.nodes.is_empty() {
        vec![setup.memory_mib]
    } else {
        setup.nodes.iter().map(|node| node.memory_mib).collect()
    };
    let mut files = Vec::new();
    let mut gpa = 0;
    for (node, mib) in sizes.into_iter().enumerate().filter(|(_, mib)| *mib > 0) {
        let id = format!("m{node}");
        let path = folder.join(&id);
        File::create(&path)?.set_len(mib << 20)?;
        files.push(MemoryFile { id, path, gpa, mib });
        gpa += mib << 20;
    }
    Ok(files)
}

/// The arguments of the QEMU that runs a case, with its control socket at `socket` and its disks' files beside it.
pub fn arguments(
    case: &Case,
    setup: &QemuSetup,
    files: &[MemoryFile],
    socket: &Path,
    image: &Path,
) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-accel", "tcg", "-cpu", &setup.cpu]);
    add(&["-display", "none", "-nodefaults", "-no-user-config", "-serial", "stdio", "-no-reboot"]);
    add(&["-device", &format!("isa-debug-exit,iobase={EXIT_PORT},iosize=4")]);
    add(&["-qmp", &format!("unix:{},server=on,wait=off", escape(&socket.display().to_string()))]);
    add(&["-m", &setup.total_mib().to_string(), "-smp", &setup.cpus.to_string()]);
    for file in files {
        let path = escape(&file.path.display().to_string());
        add(&[
            "-object",
            &format!("memory-backend-file,id={},size={}M,mem-path={path},share=on", file.id, file.mib),
        ]);
    }
    if setup.nodes.is_empty() {
        add(&["-M", "q35,memory-backend=m0"]);
    } else {
        add(&["-M", "q35"]);
        for (number, node) in setup.nodes.iter().enumerate() {
            let mut text = format!("node,nodeid={number}");
            if node.memory_mib > 0 {
                text.push_str(&format!(",memdev=m{number}"));
            }
            for cpu in &node.cpus {
                text.push_str(&format!(",cpus={cpu}"));
            }
            add(&["-numa", &text]);
        }
        for (from, row) in setup.distances.iter().enumerate() {
            for (to, distance) in row.iter().enumerate() {
                add(&["-numa", &format!("dist,src={from},dst={to},val={distance}")]);
            }
        }
    }
    let folder = socket.parent().unwrap_or(Path::new("/"));
    for (number, disk) in setup.disks.iter().enumerate() {
        let file = escape(&disk_file(folder, number).display().to_string());
        add(&["-drive", &drive(disk, number, &file)]);
        let serial = escape(&disk.name);
        add(&["-device", &format!("virtio-blk-pci,drive=disk{number},serial={serial}")]);
    }
    for image in &case.images {
        let (file, name) = (escape(&image.path.display().to_string()), escape(&image.name));
        add(&["-drive", &format!("if=none,id=image-{name},format=raw,file={file}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=image-{name},serial={name}")]);
    }
    let cmdline = format!("{} checkpoint=serial debug_exit={EXIT_PORT}", case.cmdline);
    add(&["-kernel", &image.display().to_string(), "-append", cmdline.trim()]);
    if let Some(name) = &case.initrd {
        add(&["-initrd", &initrd::path(name).display().to_string()]);
    }
    args
}

/// The file of disk `number`.
pub fn disk_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("disk{number}"))
}

/// The `-drive` of a disk; blkdebug makes its errors.
fn drive(disk: &BlankDisk, number: usize, file: &str) -> String {
    let read_only = if disk.read_only { "on" } else { "off" };
    let mut text = format!("if=none,id=disk{number},format=raw,readonly={read_only}");
    let errors = [("read", &disk.read_errors), ("write", &disk.write_errors)];
    let mut errors =
        errors.iter().flat_map(|(kind, sectors)| sectors.iter().map(move |sector| (kind, sector))).peekable();
    if errors.peek().is_none() {
        return format!("{text},file={file}");
    }
    text.push_str(&format!(",file.driver=blkdebug,file.image.driver=file,file.image.filename={file}"));
    for (index, (kind, sector)) in errors.enumerate() {
        let rule = format!("file.inject-error.{index}");
        text.push_str(&format!(
            ",{rule}.event=none,{rule}.iotype={kind},{rule}.sector={sector},{rule}.errno=5,{rule}.once=off"
        ));
    }
    text
}

/// QEMU's option parser doubles commas.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NODES, case};
    use super::*;

    #[test]
    fn nodes_become_files_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (_, setup) = case(NODES);
        let files = memory_files(&setup, folder.path()).unwrap();
        let shape: Vec<_> = files.iter().map(|file| (file.id.as_str(), file.gpa, file.mib)).collect();
        assert_eq!(shape, [("m0", 0, 32), ("m2", 32 << 20, 64)]);
        assert_eq!(files[1].path.metadata().unwrap().len(), 64 << 20);
    }

    #[test]
    fn the_command_line_names_nodes_distances_and_the_handshake() {
        let folder = tempfile::tempdir().unwrap();
        let (case, setup) = case(NODES);
        let files = memory_files(&setup, folder.path()).unwrap();
        let line = arguments(&case, &setup, &files, Path::new("/a,b/qmp"), Path::new("guest.elf")).join(" ");
        for part in [
            "-numa node,nodeid=0,memdev=m0,cpus=1",
            "-numa node,nodeid=1,cpus=0",
            "-numa node,nodeid=2,memdev=m2",
            "-numa dist,src=1,dst=2,val=32",
            "-m 96 -smp 2",
            "unix:/a,,b/qmp,server=on",
            "-append no5lvl checkpoint=serial debug_exit=0xf4",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
}
