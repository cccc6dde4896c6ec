//! Zones as text, one character a frame.
//!
//! Input ([`parse`]): `.` free, a letter an allocated block (a run of one letter is one block),
//! `#` reserved, `~` a hole, a space or line break nothing.
//!
//! Output ([`draw`]): a free block starts with its order (`0`..`9`, `X` for 10) and continues with
//! `.`; an allocated block starts with `A` and continues with `a`; `#` reserved, `~` a hole. What no
//! healthy zone contains is `?`: a frame marked as inside a block that no block covers.

use std::ops::Range;

use mm_core::{MemMap, Order, PageFlags, PageKind, PageState, Pfn, ZoneKind};

use crate::SimMem;

/// Builds descriptors from a picture whose first frame is `start`. Free frames are initialised but
/// on no list: hand the returned runs to the allocator.
///
/// # Panics
/// If the picture has another character, or a block of letters that is not a naturally aligned
/// power of two.
pub fn parse(text: &str, start: Pfn, node: u32, zone: ZoneKind) -> (SimMem, Vec<Range<Pfn>>) {
    let cells: Vec<char> = text.chars().filter(|cell| !cell.is_whitespace()).collect();
    let runs = runs(&cells, start);
    let ram: Vec<Range<Pfn>> =
        runs.iter().filter(|(cell, _)| *cell != '~').map(|(_, range)| range.clone()).collect();
    let mem = SimMem::new(&ram);
    let mut free = Vec::new();
    for (cell, range) in runs {
        match cell {
            '~' => {}
            '.' => {
                mem.init(range.clone(), node, zone, PageKind::Tail);
                free.push(range);
            }
            '#' => mem.init(range, node, zone, PageKind::Reserved),
            letter if letter.is_ascii_alphabetic() => allocate(&mem, range, node, zone),
            other => panic!("{other:?} is no part of a picture: use . # ~ or a letter"),
        }
    }
    (mem, free)
}

/// Draws the frames of `range`.
pub fn draw(map: &impl MemMap, range: Range<Pfn>) -> String {
    let mut text = String::new();
    let mut block_end = range.start;
    let mut tail = '?';
    for raw in range.start.as_u64()..range.end.as_u64() {
        let pfn = Pfn::new(raw);
        let inside = pfn < block_end;
        let Some(page) = map.page(pfn) else {
            text.push('~');
            continue;
        };
        let kind = page.kind();
        let cell = match kind {
            PageKind::None => '?',
            PageKind::Tail => {
                if inside {
                    tail
                } else {
                    '?'
                }
            }
            PageKind::Buddy => {
                block_end = pfn.offset(page.order().pages());
                tail = '.';
                if page.order() == Order::MAX { 'X' } else { char::from(b'0' + page.order().as_u8()) }
            }
            _ if page.has(PageFlags::RESERVED) => '#',
            _ if inside && tail == 'a' => 'a',
            _ => {
                block_end = pfn.offset(page.order().pages());
                tail = 'a';
                'A'
            }
        };
        text.push(cell);
    }
    text
}

/// Maximal runs of one character.
fn runs(cells: &[char], start: Pfn) -> Vec<(char, Range<Pfn>)> {
    let mut next = start;
    cells
        .chunk_by(|left, right| left == right)
        .map(|run| {
            let first = next;
            next = first.offset(run.len() as u64);
            (run[0], first..next)
        })
        .collect()
}

/// Marks `range` as the allocator leaves a block that it gave out.
fn allocate(mem: &SimMem, range: Range<Pfn>, node: u32, zone: ZoneKind) {
    let pages = range.end.as_u64() - range.start.as_u64();
    let order = Order::covering(pages)
        .filter(|order| order.pages() == pages && range.start.block(*order) == range.start);
    let Some(order) = order else {
        panic!("{pages} pages at {} are no naturally aligned block", range.start);
    };
    mem.init(range.clone(), node, zone, PageKind::Tail);
    if let Some(head) = mem.page(range.start) {
        head.set_state(PageState::new(PageKind::Allocated, order));
        head.set_refcount(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_gives_runs_holes_and_blocks() {
        let (mem, free) = parse("#.AA BBBB ~~..", Pfn::new(0), 0, ZoneKind::Normal);
        assert_eq!(free, [Pfn::new(1)..Pfn::new(2), Pfn::new(10)..Pfn::new(12)]);
        assert_eq!(draw(&mem, Pfn::new(0)..Pfn::new(12)), "#?AaAaaa~~??");
    }

    #[test]
    fn free_blocks_show_their_order() {
        let (mem, _) = parse("....", Pfn::new(4), 0, ZoneKind::Normal);
        let head = mem.page(Pfn::new(4)).expect("frame 4 is RAM");
        head.set_kind(PageKind::Buddy);
        head.set_order(Order::covering(2).expect("order 1 exists"));
        assert_eq!(draw(&mem, Pfn::new(4)..Pfn::new(8)), "1.??");
    }

    #[test]
    #[should_panic(expected = "no naturally aligned block")]
    fn a_block_off_its_alignment_is_refused() {
        parse(".AA.", Pfn::new(0), 0, ZoneKind::Normal);
    }
}
