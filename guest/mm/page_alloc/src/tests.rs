//! Tests: pictures for single steps, the bitmap for long ones, hand-computed numbers for formulas.
mod alloc;
mod buddy;
mod contig;
mod damage;
mod extent;
mod model;
mod pcp;
mod stealing;
mod types;
mod watermark;
mod zonelist;

use mm_core::{Order, Pfn, ZoneKind};
use mm_sim::{SimMem, picture};

use crate::Zone;

/// A NORMAL zone of node 0 that starts at frame 0, as a picture shows it.
struct Pictured {
    mem: SimMem,
    zone: Zone,
    pages: u64,
}

fn zone(text: &str) -> Pictured {
    let (mem, free) = picture::parse(text, Pfn::new(0), 0, ZoneKind::Normal);
    let pages = text.chars().filter(|cell| !cell.is_whitespace()).count() as u64;
    let mut zone = Zone::new(0, ZoneKind::Normal);
    zone.set_extent(Pfn::new(0), pages, pages);
    for range in free {
        zone.free_range(&mem, range.start, range.end).expect("a fresh picture can be handed over");
    }
    zone.add_managed(text.chars().filter(|cell| *cell == '.' || cell.is_ascii_alphabetic()).count() as u64);
    Pictured { mem, zone, pages }
}

fn order(raw: u8) -> Order {
    Order::new(raw).expect("tests use orders that exist")
}

impl Pictured {
    fn picture(&self) -> String {
        self.zone.audit(&self.mem).expect("lists are sound");
        self.zone.audit_range(&self.mem, Pfn::new(0), Pfn::new(self.pages)).expect("frames are sound");
        picture::draw(&self.mem, Pfn::new(0)..Pfn::new(self.pages))
    }

    fn alloc(&mut self, raw: u8) -> Option<u64> {
        self.zone.alloc_block(&self.mem, order(raw)).map(Pfn::as_u64)
    }

    fn free(&mut self, pfn: u64, raw: u8) -> Result<(), crate::FreeError> {
        self.zone.free_block(&self.mem, Pfn::new(pfn), order(raw))
    }
}
