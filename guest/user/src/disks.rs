//! Disks as files. Writes to the disk `data`, which is /dev/vda, and not where the kernel's own tests do.

use crate::proc::file_has;
use crate::program::Checks;
use crate::shared::{close, is_error, mount, open, pread, pwrite, unmount};
use crate::sys::call;

const RDWR: u64 = 2;
const EACCES: u64 = 13_u64.wrapping_neg();
const ENXIO: u64 = 6_u64.wrapping_neg();
const EIO: u64 = 5_u64.wrapping_neg();
const ENODEV: u64 = 19_u64.wrapping_neg();
const ENOSPC: u64 = 28_u64.wrapping_neg();
const ENOTTY: u64 = 25_u64.wrapping_neg();
/// Bytes of `data` in images/machines/disks.toml.
const SIZE: u64 = 16 << 20;
/// Where the checks write.
const AT: u64 = 8 << 20;

pub fn run(checks: &mut Checks) {
    mount(checks);
    contents(checks);
    numbers(checks);
    faults(checks);
    unmount(checks);
}

fn contents(checks: &mut Checks) {
    let fd = open(c"/dev/vda", RDWR);
    checks.check("/dev/vda opens", !is_error(fd));
    let (mut text, mut back) = ([0; 10_000], [0; 10_000]);
    for (byte, number) in text.iter_mut().zip(0_u64..) {
        *byte = (number * 7 % 251).to_le_bytes()[0];
    }
    let len = text.len() as u64;
    checks.check("a write of pages and a part", pwrite(fd, &text, AT) == len);
    checks.check("is read back", pread(fd, &mut back, AT) == len && back == text);
    checks.check("a write in the middle of sectors", pwrite(fd, b"in between", AT + 1019) == 10);
    text[1019..1029].copy_from_slice(b"in between");
    checks.check("changes nothing else", pread(fd, &mut back, AT) == len && back == text);
    checks.check("a read that is not aligned", {
        let got = pread(fd, &mut back[..600], AT + 1000);
        got == 600 && back[..600] == text[1000..1600]
    });
    checks.check("fsync", call(74, [fd, 0, 0, 0, 0, 0]) == 0);
    let again = open(c"/dev/vda", 0);
    checks.check(
        "another open file sees it",
        pread(again, &mut back[..512], AT) == 512 && back[..512] == text[..512],
    );
    close(again);
    close(fd);
}

fn numbers(checks: &mut Checks) {
    let fd = open(c"/dev/vda", RDWR);
    let seek = |offset: u64, whence: u64| call(8, [fd, offset, whence, 0, 0, 0]);
    checks.check("its end is its size", seek(0, 2) == SIZE);
    let mut byte = [0];
    checks.check("nothing is read there", pread(fd, &mut byte, SIZE) == 0);
    checks.check("nothing is written there", pwrite(fd, b"x", SIZE) == ENOSPC);
    checks.check("the last bytes are", pwrite(fd, b"end", SIZE - 2) == 2);
    let mut size = 0_u64;
    let ioctl = |request: u64, to: &mut u64| call(16, [fd, request, core::ptr::from_mut(to) as u64, 0, 0, 0]);
    checks.check("BLKGETSIZE64", ioctl(0x8008_1272, &mut size) == 0 && size == SIZE);
    checks.check("BLKSSZGET", ioctl(0x1268, &mut size) == 0 && size & 0xffff_ffff == 512);
    checks.check("an ioctl that there is not", ioctl(0x1234, &mut size) == ENOTTY);
    let mapped = call(9, [0, 4096, 1, 1, fd, 0]);
    checks.check("it cannot be mapped", mapped == ENODEV);
    checks.check("/proc/partitions", file_has(c"/proc/partitions", b" 254        0      16384 vda\n"));
    checks.check("/proc/diskstats", file_has(c"/proc/diskstats", b" 254       0 vda "));
    close(fd);
    let node = call(133, [c"/dev/none".as_ptr() as u64, 0o60_600, 254 << 8 | 0xf0, 0, 0, 0]);
    checks.check("a node without a disk", node == 0 && open(c"/dev/none", 0) == ENXIO);
    checks.check("goes", call(87, [c"/dev/none".as_ptr() as u64, 0, 0, 0, 0, 0]) == 0);
}

/// Disks ro and flaky, which are vdc and vdd.
fn faults(checks: &mut Checks) {
    checks.check("a read-only disk is not written", open(c"/dev/vdc", RDWR) == EACCES);
    let fd = open(c"/dev/vdc", 0);
    let mut sector = [1; 512];
    checks.check("but read", pread(fd, &mut sector, 0) == 512 && sector == [0; 512]);
    close(fd);
    let fd = open(c"/dev/vdd", RDWR);
    checks.check("sector 64 cannot be read", pread(fd, &mut sector, 64 * 512) == EIO);
    checks.check("the one before can", pread(fd, &mut sector, 63 * 512) == 512);
    checks.check("sector 128 is written in memory", pwrite(fd, &sector, 128 * 512) == 512);
    checks.check("fsync says that the disk does not take it", call(74, [fd, 0, 0, 0, 0, 0]) == EIO);
    checks.check("once", call(74, [fd, 0, 0, 0, 0, 0]) == 0);
    close(fd);
}
