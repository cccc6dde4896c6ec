//! bzImage: a Linux kernel that unpacks itself (Documentation/arch/x86/boot.rst).
//!
//! What is loaded is the file behind its setup code, and it is entered in 64-bit mode
//! [`ENTRY_OFFSET`] bytes after its first. Reads bytes from a user's file: every offset is checked.
//!
//! B1  `init_size` bytes from the load address on are RAM and nothing else is there: the kernel unpacks
//!     itself into them before it looks at the memory map;
//! B2  the load address is a multiple of `kernel_alignment` and not below `pref_address`: a
//!     relocatable kernel that is loaded lower moves itself up to there without asking.

use linux_loader::loader::bootparam::setup_header;
use thiserror::Error;
use vm_memory::ByteValued;

/// The 64-bit entry, bytes after the load address (boot.rst, "64-bit boot protocol").
pub const ENTRY_OFFSET: u64 = 0x200;
/// Where the setup header begins in the file and in the zero page.
const HEADER_AT: usize = 0x1f1;
/// `HdrS`.
const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
/// The oldest protocol with a 64-bit entry (`xloadflags` is since 2.12, Linux 3.8).
const VERSION_MIN: u16 = 0x20c;
/// Setup sectors where the field says 0.
const SETUP_SECTS_DEFAULT: u8 = 4;
const SECTOR: u64 = 512;
const PARAGRAPH: u64 = 16;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const XLF_5LEVEL: u16 = 1 << 5;

/// What is wrong with a bzImage.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BzImageError {
    /// The file ends early.
    #[error("truncated: {what} needs {need:#x} bytes, the file has {file_len:#x}")]
    Truncated {
        /// The missing part.
        what: &'static str,
        /// Bytes that the file should have.
        need: u64,
        /// Bytes that it has.
        file_len: u64,
    },
    /// Before Linux 3.8.
    #[error(
        "boot protocol {}.{:02} is too old: a kernel with a 64-bit entry has 2.12 or later (Linux 3.8)", .0 >> 8, .0 & 0xff
    )]
    TooOld(u16),
    /// A kernel for real-mode loaders.
    #[error("this is a zImage, which is loaded below 1 MiB: build a bzImage")]
    NotHigh,
    /// A 32-bit kernel.
    #[error("not for x86-64 (xloadflags {xloadflags:#x} offers no 64-bit entry)")]
    NotX86_64 {
        /// `xloadflags` of the header.
        xloadflags: u16,
    },
    /// PVH wanted.
    #[error(
        "a bzImage has no PVH entry: boot it with --boot linux, or unpack it (scripts/extract-vmlinux of Linux)"
    )]
    NoPvhEntry,
    /// Header fields that contradict each other.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// A checked image.
#[derive(Clone, Copy, Debug)]
pub struct BzImage<'a> {
    /// The setup header as in the file; what the file's header does not reach is zero.
    pub header: setup_header,
    /// What is loaded.
    pub kernel: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Whether `bytes` claim to be a Linux image with a setup header.
    pub fn is(bytes: &[u8]) -> bool {
        bytes.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
    }

    /// Checks an image.
    ///
    /// # Errors
    /// [`BzImageError`], which says what is wrong with the file.
    pub fn parse(bytes: &'a [u8]) -> Result<BzImage<'a>, BzImageError> {
        let file_len = bytes.len() as u64;
        let truncated = |what, need| BzImageError::Truncated { what, need, file_len };
        let header = parse_header(bytes)?;
        let (sectors, paragraphs) = (header.setup_sects, header.syssize);
        let sectors = if sectors == 0 { SETUP_SECTS_DEFAULT } else { sectors };
        let start = (u64::from(sectors) + 1) * SECTOR;
        // The size is in paragraphs, rounded up.
        let end = start + u64::from(paragraphs) * PARAGRAPH;
        if end.saturating_sub(PARAGRAPH - 1) > file_len {
            return Err(truncated("the kernel behind the setup code", end));
        }
        let at = |offset: u64| usize::try_from(offset.min(file_len)).unwrap_or(bytes.len());
        let kernel = bytes.get(at(start)..at(end)).unwrap_or(&[]);
        let image = BzImage { header, kernel };
        image.check()?;
        Ok(image)
    }

    /// Bytes that the kernel needs from its load address on (B1).
    pub fn memory_len(&self) -> u64 {
        u64::from(self.header.init_size).max(self.kernel.len() as u64)
    }

    /// The preferred load address, the lowest that is any good (B2).
    pub fn preferred(&self) -> u64 {
        self.header.pref_address
    }

    /// The load address must be a multiple of this; `None` if only [`BzImage::preferred`] will do.
    pub fn alignment(&self) -> Option<u64> {
        (self.header.relocatable_kernel != 0).then_some(u64::from(self.header.kernel_alignment))
    }

    /// First address past those where kernel and boot data may be.
    pub fn address_limit(&self) -> u64 {
        if self.has(XLF_CAN_BE_LOADED_ABOVE_4G) { u64::MAX } else { 1 << 32 }
    }

    /// First address past those where the initial ramdisk may be.
    pub fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// Longest command line, bytes without the terminator.
    pub fn cmdline_max(&self) -> u64 {
        u64::from(self.header.cmdline_size)
    }

    /// Whether the kernel may be entered with 5-level paging on.
    pub fn takes_5_levels(&self) -> bool {
        self.has(XLF_5LEVEL)
    }

    fn has(&self, flag: u16) -> bool {
        self.header.xloadflags & flag != 0
    }

    /// What a loader relies on.
    fn check(&self) -> Result<(), BzImageError> {
        let damaged = |text: String| Err(BzImageError::Damaged(text));
        let (flags, xloadflags) = (self.header.loadflags, self.header.xloadflags);
        if flags & LOADED_HIGH == 0 {
            return Err(BzImageError::NotHigh);
        }
        if !self.has(XLF_KERNEL_64) {
            return Err(BzImageError::NotX86_64 { xloadflags });
        }
        let len = self.kernel.len() as u64;
        if len <= ENTRY_OFFSET {
            return damaged(format!("the kernel has {len:#x} bytes, its entry is at {ENTRY_OFFSET:#x}"));
        }
        let (offset, length) = (self.header.payload_offset, self.header.payload_length);
        if u64::from(offset) + u64::from(length) > len {
            return damaged(format!(
                "the payload at {offset:#x} (+{length:#x}) is past the kernel's {len:#x} bytes"
            ));
        }
        let preferred = self.preferred();
        if preferred.checked_add(self.memory_len()).is_none() {
            return damaged(format!("pref_address {preferred:#x} wraps with {:#x} bytes", self.memory_len()));
        }
        match self.alignment() {
            Some(alignment) if !alignment.is_power_of_two() => {
                damaged(format!("kernel_alignment {alignment:#x} is no power of two"))
            }
            _ => Ok(()),
        }
    }
}

/// The header, as far as the file has it: older ones are shorter.
fn parse_header(bytes: &[u8]) -> Result<setup_header, BzImageError> {
    let whole = size_of::<setup_header>();
    let end = HEADER_AT + whole;
    let Some(raw) = bytes.get(HEADER_AT..end) else {
        let (need, file_len) = (end as u64, bytes.len() as u64);
        return Err(BzImageError::Truncated { what: "the setup header", need, file_len });
    };
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(raw);
    let version = header.version;
    if version < VERSION_MIN {
        return Err(BzImageError::TooOld(version));
    }
    // The short jump over the header tells where it ends; code follows (boot.rst, "Details of header fields").
    let [_, jump] = header.jump.to_le_bytes();
    let known = (MAGIC_AT + usize::from(jump)).saturating_sub(HEADER_AT).min(whole);
    if let Some(beyond) = header.as_mut_slice().get_mut(known..) {
        beyond.fill(0);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::loader::testing::BzImageBuilder;

    #[test]
    fn a_good_image_says_where_it_wants_to_be() {
        let file = BzImageBuilder::new(b"\xf4").build();
        let image = BzImage::parse(&file).expect("good image");
        assert_eq!((image.preferred(), image.alignment()), (0x100_0000, Some(0x20_0000)));
        assert_eq!(image.memory_len(), 0x10_0000);
        assert_eq!(image.kernel.get(0x200), Some(&0xf4));
        assert_eq!(image.initrd_limit(), 0x8000_0000);
        assert_eq!(image.address_limit(), u64::MAX);
        assert!(image.takes_5_levels());
    }

    #[test]
    fn what_follows_a_short_header_is_not_taken_for_fields() {
        // Ends before kernel_info_offset, whose place holds code.
        let file = BzImageBuilder::new(b"\xf4").set(0x201, &[0x66]).set(0x268, &[0xcc; 4]).build();
        let header = BzImage::parse(&file).expect("good image").header;
        let offset = header.kernel_info_offset;
        assert_eq!(offset, 0);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error =
            |builder: BzImageBuilder| BzImage::parse(&builder.build()).expect_err("damaged").to_string();
        let good = || BzImageBuilder::new(b"\xf4");
        assert!(error(good().set(0x206, &[0x0b, 0x02])).contains("protocol 2.11 is too old"));
        assert!(error(good().set(0x211, &[0])).contains("zImage"));
        assert!(error(good().set(0x236, &[0, 0])).contains("not for x86-64"));
        assert!(error(good().set(0x230, &[3, 0, 0, 0])).contains("kernel_alignment 0x3"));
        assert!(error(good().set(0x258, &[0xff; 8])).contains("pref_address"));
        assert!(error(good().set(0x24c, &[0xff; 4])).contains("payload"));
        assert!(error(good().set(0x1f4, &[1, 0, 0, 0])).contains("entry"));
        let file = good().build();
        let cut = |len: usize| BzImage::parse(&file[..len]).expect_err("cut").to_string();
        assert!(cut(file.len() - 16).contains("truncated: the kernel"), "{}", cut(file.len() - 16));
        assert!(cut(0x210).contains("truncated: the setup header"));
    }

    proptest! {
        #[test]
        fn damage_never_panics(edits in prop::collection::vec((0usize..0x100, any::<u8>()), 0..8),
                               cut in any::<prop::sample::Index>()) {
            let mut file = BzImageBuilder::new(b"\xf4").build();
            for (at, byte) in edits {
                file[HEADER_AT + at] = byte;
            }
            let keep = cut.index(file.len() + 1);
            for bytes in [&file[..], &file[..keep]] {
                if let Ok(image) = BzImage::parse(bytes) {
                    prop_assert!(image.kernel.len() as u64 > ENTRY_OFFSET);
                }
            }
        }
    }
}
