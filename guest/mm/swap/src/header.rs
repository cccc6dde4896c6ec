//! The first page of an area (Linux: `read_swap_header`).

use core::fmt;

use memvisor_abi::{MAX_SWAP_BADPAGES, SWAP_MAGIC, SWAP_OFFSET_BITS, SwapHeader};

use crate::HeaderError;

/// What a header says, checked.
#[derive(Clone, Copy)]
pub struct Parsed<'h> {
    header: &'h SwapHeader,
    swapped: bool,
    max: u64,
}

impl Parsed<'_> {
    /// Slots, the header's included (Linux: `maxpages`).
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Pages that the device cannot keep.
    pub fn bad_pages(&self) -> impl Iterator<Item = u32> + '_ {
        let count = usize::try_from(self.native(self.header.nr_badpages)).unwrap_or(0);
        self.header.badpages.iter().take(count).map(|page| self.native(*page))
    }

    /// Identifies the area.
    pub const fn uuid(&self) -> &[u8; 16] {
        &self.header.uuid
    }

    /// The area's name, without padding.
    pub fn label(&self) -> &[u8] {
        self.header.volume.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    const fn native(&self, value: u32) -> u32 {
        if self.swapped { value.swap_bytes() } else { value }
    }
}

impl fmt::Debug for Parsed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parsed")
            .field("max", &self.max)
            .field("swapped", &self.swapped)
            .finish_non_exhaustive()
    }
}

/// Checks the header of a device with that many pages.
///
/// # Errors
/// See [`HeaderError`].
pub fn read_swap_header(header: &SwapHeader, device_pages: u64) -> Result<Parsed<'_>, HeaderError> {
    if header.magic != SWAP_MAGIC {
        return Err(HeaderError::NoSignature);
    }
    let mut parsed = Parsed { header, swapped: header.version.swap_bytes() == 1, max: 0 };
    let version = parsed.native(header.version);
    if version != 1 {
        return Err(HeaderError::Version { version });
    }
    let last = u64::from(parsed.native(header.last_page));
    if last == 0 {
        return Err(HeaderError::Empty);
    }
    // A slot's number fits by its width: no area is cut off.
    const _: () = assert!(SWAP_OFFSET_BITS > u32::BITS);
    parsed.max = last + 1;
    if parsed.max > device_pages {
        return Err(HeaderError::Short { device: device_pages, needed: parsed.max });
    }
    let count = parsed.native(header.nr_badpages);
    if usize::try_from(count).is_ok_and(|count| count > MAX_SWAP_BADPAGES) {
        return Err(HeaderError::TooManyBad { count });
    }
    match parsed.bad_pages().find(|page| *page == 0 || u64::from(*page) > last) {
        Some(page) => Err(HeaderError::BadPage { page }),
        None => Ok(parsed),
    }
}
