//! The memmap: descriptors of frames.

use memvisor_abi as abi;
use memvisor_abi::{PAGE_SHIFT, PAGES_PER_SECTION, PFN_NONE, Page, Section, SectionState};
use zerocopy::IntoBytes;

use super::{Guest, GuestError, TableName};
use crate::MemorySource;

/// Bytes of a section's descriptors.
const MEMMAP_LEN: u64 = PAGES_PER_SECTION * size_of::<Page>() as u64;
/// log2 of [`PAGES_PER_SECTION`].
const SECTION_PFN_SHIFT: u32 = PAGES_PER_SECTION.trailing_zeros();

impl<S: MemorySource + ?Sized> Guest<'_, S> {
    /// The descriptor of frame `pfn`; `None` if its section is absent or deferred, so that no
    /// descriptor says anything. The section table is read once and kept until
    /// [`Guest::refresh`].
    ///
    /// # Errors
    /// [`GuestError`] for a damaged section table.
    pub fn page(&self, pfn: u64) -> Result<Option<Page>, GuestError> {
        let Some(gpa) = self.page_gpa(pfn)? else { return Ok(None) };
        let mut page = Page::default();
        self.source.read(gpa, page.as_mut_bytes())?;
        Ok(Some(page))
    }

    /// Guest-physical address of the descriptor of frame `pfn`; `None` as for [`Guest::page`].
    ///
    /// # Errors
    /// As [`Guest::page`].
    pub fn page_gpa(&self, pfn: u64) -> Result<Option<u64>, GuestError> {
        let sections = self.checked_sections()?;
        let number = pfn >> SECTION_PFN_SHIFT;
        let Ok(index) = sections.binary_search_by_key(&number, |section| section.number) else {
            return Ok(None);
        };
        let Some(memmap) = sections.get(index).and_then(memmap_gpa) else { return Ok(None) };
        Ok(Some(memmap + (pfn % PAGES_PER_SECTION) * size_of::<Page>() as u64))
    }

    /// Copies all descriptors of `section` into `pages`, whose memory is used again, and says
    /// whether there are any: a deferred section has none, and `pages` is then empty.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn read_section(&self, section: &Section, pages: &mut Vec<Page>) -> Result<bool, GuestError> {
        let Some(gpa) = memmap_gpa(section) else {
            pages.clear();
            return Ok(false);
        };
        #[expect(clippy::cast_possible_truncation, reason = "32768")]
        pages.resize(PAGES_PER_SECTION as usize, Page::default());
        self.source.read(gpa, pages.as_mut_slice().as_mut_bytes())?;
        Ok(true)
    }

    /// Calls `visit` with each frame of `section` and its descriptor; never for a deferred section.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn for_each_page_in_section(
        &self,
        section: &Section,
        mut visit: impl FnMut(u64, &Page),
    ) -> Result<(), GuestError> {
        let mut pages = Vec::new();
        if self.read_section(section, &mut pages)? {
            for (pfn, page) in (section_start_pfn(section)..).zip(&pages) {
                visit(pfn, page);
            }
        }
        Ok(())
    }

    /// Calls `visit` with every frame that has a descriptor, ascending.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn for_each_page(&self, mut visit: impl FnMut(u64, &Page)) -> Result<(), GuestError> {
        let mut pages = Vec::new();
        for section in self.checked_sections()? {
            if self.read_section(section, &mut pages)? {
                for (pfn, page) in (section_start_pfn(section)..).zip(&pages) {
                    visit(pfn, page);
                }
            }
        }
        Ok(())
    }

    /// The section table, checked: numbers ascend, states are defined, descriptors are in RAM.
    ///
    /// # Errors
    /// [`GuestError::Element`] names what is wrong.
    pub fn checked_sections(&self) -> Result<&[Section], GuestError> {
        if let Some(sections) = self.sections.get() {
            return Ok(sections);
        }
        let sections = self.sections()?;
        let wrong = |index, field, value, why| {
            Err(GuestError::Element { table: TableName::Sections, index, field, value, why })
        };
        let mut previous = None;
        for (index, section) in sections.iter().enumerate() {
            let number = section.number;
            if number >> (abi::MAX_PHYSMEM_BITS - abi::SECTION_SIZE_BITS) != 0 {
                return wrong(index, "number", number, "past the last possible section");
            }
            if previous.is_some_and(|previous| previous >= number) {
                return wrong(index, "number", number, "not above the one before");
            }
            previous = Some(number);
            if section.state > SectionState::Online as u32 {
                return wrong(index, "state", section.state.into(), "not a defined state");
            }
            if section.memmap_pfn == PFN_NONE {
                if section.state == SectionState::Online as u32 {
                    return wrong(index, "memmap_pfn", PFN_NONE, "an online section must have descriptors");
                }
                continue;
            }
            let in_ram = section.memmap_pfn >> (abi::MAX_PHYSMEM_BITS - PAGE_SHIFT) == 0
                && self.source.is_ram(section.memmap_pfn << PAGE_SHIFT, MEMMAP_LEN);
            if !in_ram {
                return wrong(
                    index,
                    "memmap_pfn",
                    section.memmap_pfn,
                    "its 2 MiB of descriptors are not RAM",
                );
            }
        }
        Ok(self.sections.get_or_init(|| sections))
    }
}

/// First frame of a section.
pub const fn section_start_pfn(section: &Section) -> u64 {
    section.number << SECTION_PFN_SHIFT
}

fn memmap_gpa(section: &Section) -> Option<u64> {
    let online = section.state == SectionState::Online as u32 && section.memmap_pfn != PFN_NONE;
    (online && section.memmap_pfn >> (abi::MAX_PHYSMEM_BITS - PAGE_SHIFT) == 0)
        .then_some(section.memmap_pfn << PAGE_SHIFT)
}
