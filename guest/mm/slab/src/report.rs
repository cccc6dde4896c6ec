//! What the console says about a damaged object, in the shape of Linux's reports: the finding, who allocated and who freed the
//! object, the slab, the object with its bytes and what lies around it.

use core::fmt;

use memvisor_abi::Track;
use mm_core::PhysMem;

use crate::cache::Name;
use crate::debug::TrackKind;
use crate::slab_page::{Place, counters};
use crate::slub::link;
use crate::{Kmem, Machine, Object, SlabFlags};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Bytes `from..to` of a part of the object are not what they must be.
    Bytes { what: &'static str, from: u64, to: u64, found: u8, byte: u8 },
    /// The link of a free object leads nowhere.
    FreePointer,
    /// The slab's free list leads nowhere.
    FreeChain,
    /// Freed twice.
    AlreadyFree,
    /// No object starts there.
    InvalidPointer,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Bytes { what, .. } => write!(f, "{what} overwritten"),
            Finding::FreePointer => f.write_str("Freepointer corrupt"),
            Finding::FreeChain => f.write_str("Freechain corrupt"),
            Finding::AlreadyFree => f.write_str("Object already free"),
            Finding::InvalidPointer => f.write_str("Invalid object pointer"),
        }
    }
}

/// A report in the making.
pub(crate) struct Report<'a, M> {
    pub(crate) kmem: &'a Kmem<M>,
    pub(crate) place: &'a Place<'a>,
    pub(crate) finding: Finding,
}

/// Linux prints at most a page of an object.
const OBJECT_MAX: u64 = 4096;
/// And this much before it.
const BEFORE: u64 = 16;

impl<M: Machine> Report<'_, M> {
    /// Linux: `slab_bug`, `object_err`, `print_trailer`.
    pub(crate) fn print(&self) {
        let &Place { cache, pfn, page, object, .. } = self.place;
        // No object is there to show.
        let object = Some(object).filter(|_| self.finding != Finding::InvalidPointer);
        let name = Name::from_raw(cache.load().name);
        self.line(format_args!(
            "============================================================================="
        ));
        self.line(format_args!("BUG {} (Not tainted): {}", name.as_str(), self.finding));
        self.line(format_args!(
            "-----------------------------------------------------------------------------"
        ));
        let start = pfn.phys().as_u64();
        if let Finding::Bytes { from, to, found, byte, .. } = self.finding {
            self.line(format_args!(
                "{from:#x}-{:#x} @offset={}. First byte {found:#04x} instead of {byte:#04x}",
                to - 1,
                from - start
            ));
        }
        if let Some(object) = object {
            for (kind, word) in [(TrackKind::Alloc, "Allocated"), (TrackKind::Free, "Freed")] {
                if let Some(track) = self.kmem.track_of(cache, object, kind) {
                    self.track(word, &track);
                }
            }
        }
        let k = counters(page);
        self.line(format_args!(
            "Slab {} objects={} used={} fp={:#x} order={}",
            pfn,
            k.objects,
            k.inuse,
            page.index(),
            page.order().as_u8()
        ));
        if let Some(object) = object {
            self.object(object, start);
        }
    }

    fn track(&self, word: &str, track: &Track) {
        let age = self.kmem.machine.track().when.saturating_sub(track.when);
        let first = track.stack.first().copied().unwrap_or(0);
        self.line(format_args!("{word} in {first:#x} age={age} cpu={} pid={}", track.cpu, track.pid));
        for address in track.stack.iter().take_while(|address| **address != 0) {
            self.line(format_args!("\t{address:#x}"));
        }
    }

    fn object(&self, object: Object, start: u64) {
        let cache = self.place.cache;
        let next = self.kmem.machine.mem().read_u64(link(cache, object.0));
        self.line(format_args!("Object {object} @offset={} fp={next:#x}", object.0 - start));
        let end = object.0 + u64::from(cache.object_size());
        let inuse = object.0 + u64::from(cache.inuse());
        let first = object.0 - u64::from(cache.red_left());
        if cache.slab_flags().contains(SlabFlags::RED_ZONE) {
            self.section("Redzone ", first, object.0);
        } else if object.0 - start > BEFORE {
            self.section("Bytes b4", object.0 - BEFORE, object.0);
        }
        self.section("Object  ", object.0, end.min(object.0 + OBJECT_MAX));
        if cache.slab_flags().contains(SlabFlags::RED_ZONE) {
            self.section("Redzone ", end, inuse);
        }
        let mut info = inuse;
        if cache.offset() >= cache.inuse() {
            info += 8;
        }
        if cache.track() != 0 {
            info += 2 * size_of::<Track>() as u64;
        }
        self.section("Padding ", info, first + u64::from(cache.size()));
    }

    /// Bytes, 16 a line (Linux: `print_section`).
    fn section(&self, title: &str, from: u64, to: u64) {
        let mut at = from;
        while at < to {
            let end = to.min(at + 16);
            self.line(format_args!("{title} {at:016x}: {}", Bytes { kmem: self.kmem, from: at, to: end }));
            at = end;
        }
    }

    fn line(&self, line: fmt::Arguments<'_>) {
        self.kmem.machine.report(line);
    }
}

/// Bytes as numbers and as text.
struct Bytes<'a, M> {
    kmem: &'a Kmem<M>,
    from: u64,
    to: u64,
}

impl<M: Machine> fmt::Display for Bytes<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for addr in self.from..self.to {
            write!(f, "{:02x} ", self.kmem.byte(addr))?;
        }
        for _ in self.to..self.from + 16 {
            f.write_str("   ")?;
        }
        for addr in self.from..self.to {
            let byte = self.kmem.byte(addr);
            let shown = if byte.is_ascii_graphic() { char::from(byte) } else { '.' };
            write!(f, "{shown}")?;
        }
        Ok(())
    }
}
