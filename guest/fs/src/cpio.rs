//! Reader of cpio archives in the format `newc` (Linux: Documentation/driver-api/early-userspace/buffer-format.rst,
//! init/initramfs.c). The archive is not trusted.
//!
//! Several archives may follow each other, with zeroes between. Numbers are eight hexadecimal digits; name and content are each
//! filled up to a multiple of 4 from the archive's start.

use core::fmt;

/// Why an archive cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpioError {
    /// It is compressed: what it says it is.
    Compressed(&'static str),
    /// No header where one must be: at this offset.
    Magic(usize),
    /// A digit of a header is none: the header's offset.
    Digit(usize),
    /// A header, name or content goes past the end: the header's offset.
    Short(usize),
    /// A name is empty, longer than a path may be, or does not end in a zero: the header's offset.
    Name(usize),
    /// Checksummed (`070702`) and the sum is wrong: the header's offset.
    Checksum(usize),
}

impl fmt::Display for CpioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpioError::Compressed(kind) => {
                write!(
                    f,
                    "the archive is compressed ({kind}): give an uncompressed cpio archive, format newc"
                )
            }
            CpioError::Magic(at) => write!(f, "no cpio header (format newc) at offset {at:#x}"),
            CpioError::Digit(at) => write!(f, "not a hexadecimal number in the cpio header at {at:#x}"),
            CpioError::Short(at) => write!(f, "the archive ends inside of the entry at {at:#x}"),
            CpioError::Name(at) => write!(f, "a bad name in the cpio entry at {at:#x}"),
            CpioError::Checksum(at) => write!(f, "a wrong checksum in the cpio entry at {at:#x}"),
        }
    }
}

impl core::error::Error for CpioError {}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Number of the inode; with several links the same for each.
    pub ino: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the inode in the archive.
    pub nlink: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    /// Device on which it was: (ino, device) names an inode.
    pub dev: (u32, u32),
    /// The device that it is.
    pub rdev: (u32, u32),
    /// Path, without the zero.
    pub name: &'a [u8],
    /// Content of a file, target of a symbolic link.
    pub data: &'a [u8],
}

/// Reads one entry after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    archive: &'a [u8],
    at: usize,
    done: bool,
}

const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
const MAGICS: [(&[u8], &str); 7] = [
    (&[0x1f, 0x8b], "gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
];

impl<'a> Reader<'a> {
    /// A reader at the archive's start.
    pub const fn new(archive: &'a [u8]) -> Reader<'a> {
        Reader { archive, at: 0, done: false }
    }

    fn entry(&mut self) -> Result<Option<Entry<'a>>, CpioError> {
        loop {
            let rest = self.archive.get(self.at..).unwrap_or(&[]);
            // Zeroes between archives and behind the last.
            let zeroes = rest.iter().take_while(|byte| **byte == 0).count();
            if zeroes == rest.len() {
                return Ok(None);
            }
            if zeroes > 0 {
                self.at += zeroes;
                if !self.at.is_multiple_of(4) {
                    return Err(CpioError::Magic(self.at));
                }
                continue;
            }
            let start = self.at;
            let Some(entry) = self.header(rest, start)? else { continue };
            return Ok(Some(entry));
        }
    }

    /// The entry at `start`; `None` for a trailer.
    fn header(&mut self, rest: &'a [u8], start: usize) -> Result<Option<Entry<'a>>, CpioError> {
        let magic = rest.get(..6).unwrap_or(rest);
        if !matches!(magic, b"070701" | b"070702") {
            let kind = MAGICS.iter().find(|(magic, _)| rest.starts_with(magic));
            return Err(kind.map_or(CpioError::Magic(start), |(_, kind)| CpioError::Compressed(kind)));
        }
        let mut fields = [0_u32; 13];
        let digits = rest.get(6..HEADER).ok_or(CpioError::Short(start))?;
        for (field, digits) in fields.iter_mut().zip(digits.chunks_exact(8)) {
            *field = hex(digits).ok_or(CpioError::Digit(start))?;
        }
        let [
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            filesize,
            devmajor,
            devminor,
            rdevmajor,
            rdevminor,
            namesize,
            check,
        ] = fields;
        let take = |at: usize, len: u32| -> Result<(&'a [u8], usize), CpioError> {
            let end = usize::try_from(len)
                .ok()
                .and_then(|len| at.checked_add(len))
                .ok_or(CpioError::Short(start))?;
            let bytes = self.archive.get(at..end).ok_or(CpioError::Short(start))?;
            // The last entry's filling may be missing.
            Ok((bytes, end.checked_next_multiple_of(4).ok_or(CpioError::Short(start))?))
        };
        if namesize < 2 || namesize as usize > crate::PATH_MAX {
            return Err(CpioError::Name(start));
        }
        let (name, after) = take(start + HEADER, namesize)?;
        let name = match name.split_last() {
            Some((0, name)) if !name.contains(&0) => name,
            _ => return Err(CpioError::Name(start)),
        };
        let (data, after) = take(after, filesize)?;
        self.at = after;
        if name == TRAILER {
            return Ok(None);
        }
        if magic == b"070702" {
            let sum = data.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            if sum != check {
                return Err(CpioError::Checksum(start));
            }
        }
        let (dev, rdev) = ((devmajor, devminor), (rdevmajor, rdevminor));
        Ok(Some(Entry { ino, mode, uid, gid, nlink, mtime, dev, rdev, name, data }))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.entry();
        self.done = !matches!(entry, Ok(Some(_)));
        entry.transpose()
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |number, digit| Some(number << 4 | char::from(*digit).to_digit(16)?))
}
