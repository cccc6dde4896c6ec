//! The memory files of Linux's /proc as they must read, made from the other views: what a guest prints of itself can be
//! compared with it, line by line.
//!
//! Counters of what our kernel does not have are left out, as in its own text; so are lines that nothing outside derives.

mod counts;
mod memory;
mod objects;
mod process;
mod vmstat;
mod zones;

use std::fmt;

use serde::Serialize;

use super::buddy::BuddyView;
use super::pagetypes::PagetypesView;
use super::swap::SwapView;
use super::vmalloc::VmallocView;
use crate::{Guest, GuestError, MemorySource};

/// `inspect proc NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcView {
    /// Name in /proc.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl ProcView {
    /// The files that the guest prints of itself (`proc=` on its command line).
    pub const NAMES: [&'static str; 8] =
        ["meminfo", "zoneinfo", "buddyinfo", "pagetypeinfo", "vmstat", "swaps", "slabinfo", "vmallocinfo"];

    /// Makes the file of that name, also iomem, `PID/maps`, `PID/smaps`, `PID/numa_maps`, `PID/status` and `PID/statm`; `None` if there is none.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new<S: MemorySource + ?Sized>(
        guest: &Guest<'_, S>,
        name: &str,
    ) -> Result<Option<ProcView>, GuestError> {
        let mut text = String::new();
        if let Some((pid, file)) = name.split_once('/') {
            let Ok(pid) = pid.parse() else { return Ok(None) };
            let known = process::write(&mut text, guest, pid, file)?;
            return Ok(known.then(|| ProcView { name: name.to_owned(), text }));
        }
        let Some(name) = ProcView::NAMES.into_iter().chain(["iomem"]).find(|known| *known == name) else {
            return Ok(None);
        };
        // A String takes all that is written to it.
        let _ = match name {
            "meminfo" => match memory::Meminfo::read(guest)? {
                Some(all) => memory::meminfo(&mut text, &all),
                None => return Ok(None),
            },
            "zoneinfo" => zones::zoneinfo(&mut text, &zones::Zoneinfo::read(guest)?),
            "buddyinfo" => zones::buddyinfo(&mut text, &BuddyView::new(guest)?, &online(guest)?),
            "pagetypeinfo" => zones::pagetypeinfo(&mut text, &PagetypesView::new(guest)?, &online(guest)?),
            "vmstat" => vmstat::vmstat(&mut text, &vmstat::Vmstat::read(guest)?),
            "iomem" => memory::iomem(&mut text, guest.root(), &guest.e820()?),
            "swaps" => memory::swaps(&mut text, &SwapView::new(guest)?),
            "slabinfo" => objects::slabinfo(&mut text, &guest.slabs()?),
            _ => objects::vmallocinfo(&mut text, &VmallocView::new(guest)?),
        };
        Ok(Some(ProcView { name: name.to_owned(), text }))
    }
}

impl fmt::Display for ProcView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Nodes that are online, whose zones the files list.
fn online<S: MemorySource + ?Sized>(guest: &Guest<'_, S>) -> Result<Vec<u32>, GuestError> {
    Ok(guest.nodes()?.iter().filter(|node| node.online == 1).map(|node| node.id).collect())
}
