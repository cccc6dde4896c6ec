//! One frame's descriptor (Linux: `struct page`, as crash's `kmem -p` shows it).

use std::fmt;

use memvisor_abi::{PAGE_SHIFT, PFN_NONE, Page, PageKind};
use serde::Serialize;

use super::zones::zone_name;
use crate::{Guest, GuestError, MemorySource};

/// `inspect page PFN`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageView {
    /// Frame.
    pub pfn: u64,
    /// Its guest-physical address.
    #[serde(serialize_with = "crate::hex")]
    pub gpa: u64,
    /// Whether the source has RAM there.
    pub ram: bool,
    /// The descriptor; `None` if the frame's section is absent or deferred.
    pub page: Option<PageRow>,
}

/// A descriptor, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageRow {
    /// Guest-physical address of the descriptor.
    #[serde(serialize_with = "crate::hex")]
    pub descriptor_gpa: u64,
    /// Node.
    pub node: u32,
    /// Zone.
    pub zone: &'static str,
    /// Who owns the frame, as the guest believes.
    pub kind: &'static str,
    /// Set flags, Linux's names.
    pub flags: Vec<String>,
    /// Order of the block that starts here.
    pub order: u8,
    /// References.
    pub refcount: i32,
    /// Page-table entries that map it, minus one.
    pub mapcount: i32,
    /// Owner of the contents.
    pub mapping: u64,
    /// Offset in the owner, in pages.
    pub index: u64,
    /// For the owner's use.
    pub private: u64,
    /// Next frame on the list; `None` at its end.
    pub next: Option<u64>,
    /// Previous frame on the list; `None` at its start.
    pub prev: Option<u64>,
}

impl PageView {
    /// Reads the descriptor of `pfn`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(guest: &Guest<'_, S>, pfn: u64) -> Result<PageView, GuestError> {
        let gpa = pfn.checked_shl(PAGE_SHIFT).filter(|gpa| gpa >> PAGE_SHIFT == pfn);
        let page = match (guest.page_gpa(pfn)?, guest.page(pfn)?) {
            (Some(gpa), Some(page)) => Some(PageRow::new(gpa, &page)),
            _ => None,
        };
        Ok(PageView {
            pfn,
            gpa: gpa.unwrap_or(u64::MAX),
            ram: gpa.is_some_and(|gpa| guest.source().is_ram(gpa, 1)),
            page,
        })
    }
}

impl PageRow {
    fn new(descriptor_gpa: u64, page: &Page) -> PageRow {
        let link = |pfn| (pfn != PFN_NONE).then_some(pfn);
        let flags = page.page_flags();
        let mut names: Vec<_> = flags.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let named = flags.iter_names().fold(0, |all, (_, flag)| all | flag.bits());
        if flags.bits() & !named != 0 {
            names.push(format!("{:#x}", flags.bits() & !named));
        }
        PageRow {
            descriptor_gpa,
            node: page.node(),
            zone: zone_name(page.zone()),
            kind: PageKind::from_raw(page.kind).map_or("undefined", PageKind::name),
            flags: names,
            order: page.order,
            refcount: page.refcount,
            mapcount: page.mapcount,
            mapping: page.mapping,
            index: page.index,
            private: page.private,
            next: link(page.next),
            prev: link(page.prev),
        }
    }
}

impl fmt::Display for PageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "page frame {:#x}, guest-physical {:#x}", self.pfn, self.gpa)?;
        let Some(page) = &self.page else {
            return if self.ram {
                writeln!(f, "  RAM without a descriptor: its section is absent or not initialised yet")
            } else {
                writeln!(f, "  not RAM, and without a descriptor")
            };
        };
        let link = |pfn: Option<u64>| pfn.map_or("none".to_owned(), |pfn| format!("{pfn:#x}"));
        let flags = if page.flags.is_empty() { "none".to_owned() } else { page.flags.join(" ") };
        writeln!(f, "  kind      {}", page.kind)?;
        writeln!(f, "  node      {}, zone {}", page.node, page.zone)?;
        writeln!(f, "  flags     {flags}")?;
        writeln!(f, "  order     {}", page.order)?;
        writeln!(f, "  refcount  {}, mapcount {}", page.refcount, page.mapcount)?;
        writeln!(f, "  mapping   {:#x}, index {:#x}, private {:#x}", page.mapping, page.index, page.private)?;
        writeln!(f, "  list      next {}, prev {}", link(page.next), link(page.prev))?;
        writeln!(f, "  descriptor at guest-physical {:#x}", page.descriptor_gpa)?;
        if !self.ram {
            writeln!(f, "  ! the frame is not RAM")?;
        }
        Ok(())
    }
}
