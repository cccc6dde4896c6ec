//! Headers: what is taken and what is refused.

use memvisor_abi::SwapHeader;

use super::machine::{Machine, header};
use crate::{HeaderError, Swap, read_swap_header};

fn refused(header: &SwapHeader, pages: u64) -> HeaderError {
    read_swap_header(header, pages).expect_err("a bad header")
}

#[test]
fn a_good_header_gives_its_slots_and_its_name() {
    let mut good = header(100, &[5, 99]);
    good.volume[..4].copy_from_slice(b"swap");
    let parsed = read_swap_header(&good, 100).expect("a good header");
    assert_eq!((parsed.max(), parsed.label()), (100, &b"swap"[..]));
    assert_eq!(parsed.bad_pages().collect::<Vec<_>>(), [5, 99]);
}

#[test]
fn a_header_of_the_other_byte_order_says_the_same() {
    let mut good = header(100, &[5, 99]);
    for word in [&mut good.version, &mut good.last_page, &mut good.nr_badpages] {
        *word = word.swap_bytes();
    }
    for page in &mut good.badpages {
        *page = page.swap_bytes();
    }
    let parsed = read_swap_header(&good, 100).expect("a good header");
    assert_eq!(parsed.max(), 100);
    assert_eq!(parsed.bad_pages().collect::<Vec<_>>(), [5, 99]);
}

#[test]
fn what_is_no_header_is_refused() {
    let mut bad = header(100, &[]);
    bad.magic = *b"SWAP-SPACE";
    assert_eq!(refused(&bad, 100), HeaderError::NoSignature);
    let mut bad = header(100, &[]);
    bad.version = 2;
    assert_eq!(refused(&bad, 100), HeaderError::Version { version: 2 });
    assert_eq!(refused(&header(1, &[]), 100), HeaderError::Empty);
    assert_eq!(refused(&header(100, &[]), 99), HeaderError::Short { device: 99, needed: 100 });
    let mut bad = header(u32::MAX, &[]);
    bad.last_page = u32::MAX;
    assert_eq!(refused(&bad, 1 << 20), HeaderError::Short { device: 1 << 20, needed: 1 << 32 });
}

#[test]
fn bad_pages_must_be_pages_of_the_area() {
    assert_eq!(refused(&header(100, &[7, 0]), 100), HeaderError::BadPage { page: 0 });
    assert_eq!(refused(&header(100, &[100]), 200), HeaderError::BadPage { page: 100 });
    let mut bad = header(100, &[]);
    bad.nr_badpages = 638;
    assert_eq!(refused(&bad, 100), HeaderError::TooManyBad { count: 638 });
}

#[test]
fn an_area_counts_good_slots_only_once() {
    let m = Machine::new(1, &[(header(600, &[1, 1, 300]), None)]);
    // Without the header and the two bad ones.
    assert_eq!(m.totals().total_swap_pages(), 597);
    m.audit();
}
