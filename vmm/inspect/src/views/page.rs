//! One frame: its descriptor (Linux: `struct page`, as crash's `kmem -p` shows it), who owns it as derived from
//! outside, and where it is mapped.

mod owner;

use std::fmt;

use memvisor_abi::{PAGE_SHIFT, PAGES_PER_SECTION, PFN_NONE, Page, PageFlags, PageKind};
use serde::Serialize;

pub use self::owner::{MappedAt, Owner, Space};
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
    /// Number of its section, if that is present.
    pub section: Option<u64>,
    /// Who owns it, derived from the structures that use frames. One if all is well; none for a hole.
    pub owners: Vec<Owner>,
    /// Where it is mapped, by a walk of all page tables.
    pub mappings: Vec<MappedAt>,
    /// Mappings beyond those listed.
    pub more_mappings: u64,
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
        let descriptor = guest.page(pfn)?;
        let page = match (guest.page_gpa(pfn)?, &descriptor) {
            (Some(gpa), Some(page)) => Some(PageRow::new(gpa, page)),
            _ => None,
        };
        let ram = gpa.is_some_and(|gpa| guest.source().is_ram(gpa, 1));
        let number = pfn / PAGES_PER_SECTION;
        let present = guest.checked_sections()?.iter().any(|section| section.number == number);
        let (owners, trees) = if gpa.is_some() {
            let trees = owner::walk_trees(guest, pfn)?;
            (owner::owners(guest, pfn, descriptor.as_ref(), &trees)?, trees)
        } else {
            (Vec::new(), owner::Trees::default())
        };
        Ok(PageView {
            pfn,
            gpa: gpa.unwrap_or(u64::MAX),
            ram,
            page,
            section: present.then_some(number),
            owners,
            mappings: trees.mappings,
            more_mappings: trees.more,
        })
    }
}

impl PageView {
    /// What the descriptor does not say.
    fn fmt_outside(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(section) = self.section {
            writeln!(f, "  section   {section}")?;
        }
        for owner in &self.owners {
            writeln!(f, "  owner     {owner}")?;
        }
        match self.owners.len() {
            0 if self.ram => writeln!(f, "  ! owner   nobody uses it, and it is not free")?,
            0 | 1 => {}
            count => writeln!(f, "  ! owner   {count} at once")?,
        }
        for mapping in &self.mappings {
            writeln!(f, "  mapped at {mapping}")?;
        }
        if self.more_mappings != 0 {
            writeln!(f, "  mapped at {} more places", self.more_mappings)?;
        }
        Ok(())
    }
}

impl PageRow {
    fn new(descriptor_gpa: u64, page: &Page) -> PageRow {
        let link = |pfn| (pfn != PFN_NONE).then_some(pfn);
        let flags = page.page_flags();
        // Two fields among the flags are numbers.
        let (generation, refs) = (flags.lru_gen(), flags & PageFlags::LRU_REFS);
        let flags = flags.difference(PageFlags::LRU_GEN | PageFlags::LRU_REFS);
        let mut names: Vec<_> = flags.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let named = flags.iter_names().fold(0, |all, (_, flag)| all | flag.bits());
        names.extend(generation.map(|place| format!("lru_gen {place}")));
        if !refs.is_empty() {
            names.push(format!("lru_refs {}", refs.bits() >> Page::LRU_REFS_SHIFT));
        }
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
            if self.ram {
                writeln!(f, "  RAM without a descriptor: its section is absent or not initialised yet")?;
            } else {
                writeln!(f, "  not RAM, and without a descriptor")?;
            }
            return self.fmt_outside(f);
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
        self.fmt_outside(f)
    }
}
