//! What is compressed comes back, and nonsense is told.

use proptest::prelude::*;

use crate::lz4::{Corrupt, TABLE_LEN, compress, decompress};

fn pack(src: &[u8], room: usize) -> Option<Vec<u8>> {
    let mut dst = vec![0xee; room];
    // What another page left in the table does not matter.
    let len = compress(src, &mut dst, &mut [0xffff; TABLE_LEN])?;
    dst.truncate(len);
    Some(dst)
}

fn unpack(src: &[u8], room: usize) -> Result<Vec<u8>, Corrupt> {
    let mut dst = vec![0xdd; room];
    let len = decompress(src, &mut dst)?;
    dst.truncate(len);
    Ok(dst)
}

/// Sequences of a block, each with its literals, distance and length of the match; the last has a distance of 0.
fn sequences(block: &[u8]) -> Vec<(usize, usize, usize)> {
    let mut bytes = block.iter().map(|byte| usize::from(*byte));
    let mut found = Vec::new();
    while let Some(token) = bytes.next() {
        let literals = length(token >> 4, &mut bytes);
        let skipped = bytes.by_ref().take(literals).count();
        assert_eq!(skipped, literals, "the literals are there");
        let Some(low) = bytes.next() else {
            found.push((literals, 0, 0));
            break;
        };
        let distance = low | bytes.next().expect("the other half") << 8;
        found.push((literals, distance, length(token & 15, &mut bytes) + 4));
    }
    found
}

/// A length of which a half of a token has the first part.
fn length(half: usize, bytes: &mut impl Iterator<Item = usize>) -> usize {
    if half < 15 {
        return half;
    }
    let mut length = half;
    loop {
        let more = bytes.next().expect("the rest of a length");
        length += more;
        if more != 255 {
            return length;
        }
    }
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    (0_u32..).map(|at| at.wrapping_mul(at).wrapping_mul(2_654_435_761).to_le_bytes()[2]).take(len).collect()
}

#[test]
fn a_block_of_the_format_s_description_is_read() {
    // Four literals, then a match of 8 two back, then five literals.
    let block = [0x44, b'a', b'b', b'c', b'd', 2, 0, 0x50, b'1', b'2', b'3', b'4', b'5'];
    assert_eq!(unpack(&block, 100), Ok(b"abcdcdcdcdcd12345".to_vec()));
}

#[test]
fn what_the_reference_encoder_makes_is_read() {
    let text =
        b"the pool, the page, the pool, the slot, the page of the pool: sixteen and more bytes that are new!";
    let block = [
        &b"\xa1the pool, \x0a\x00\x33age\x0a\x00\x05\x14\x00\x43slot\x14\x00\x62age of\x2a\x00"[..],
        b"\xf0\x1aool: sixteen and more bytes that are new!",
    ];
    assert_eq!(unpack(&block.concat(), 200), Ok(text.to_vec()));
    let own = pack(text, 200).expect("there is room");
    assert_eq!(unpack(&own, 200), Ok(text.to_vec()));
}

#[test]
fn lengths_of_15_and_more_have_bytes_of_their_own() {
    for len in [14_usize, 15, 16, 269, 270, 271, 4000] {
        let literals = noise(len);
        let block = pack(&literals, 5000).expect("there is room");
        assert_eq!(unpack(&block, 5000).as_deref(), Ok(&literals[..]));
        let repeated = vec![9; len + 20];
        let block = pack(&repeated, 5000).expect("there is room");
        assert!(block.len() < 45);
        assert_eq!(unpack(&block, 5000), Ok(repeated));
    }
}

#[test]
fn what_does_not_fit_is_refused_not_cut() {
    let page = noise(4096);
    let whole = pack(&page, 5000).expect("there is room").len();
    assert!(whole > 4000);
    assert_eq!(pack(&page, whole - 1), None);
    assert!(pack(&page, whole).is_some());
}

#[test]
fn nonsense_is_told() {
    for block in [
        &[][..],
        &[0x10],
        &[0xf0, 255],
        // A match with nothing before it, at distance 0, and one that ends the block.
        &[0x00, 1, 0, 0x00],
        &[0x10, 7, 0, 0, 0x00],
        &[0x10, 7, 1, 0],
    ] {
        assert_eq!(unpack(block, 100), Err(Corrupt), "{block:x?}");
    }
    assert_eq!(
        unpack(&[0x1f, 7, 1, 0, 200, 0x00], 100),
        Err(Corrupt),
        "it makes more than there is room for"
    );
}

/// Pages of runs, text-like pieces and noise.
fn page() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<u8>(), 1..300_usize).prop_map(|(byte, len)| vec![byte; len]),
        prop::collection::vec(any::<u8>(), 1..200),
        (prop::collection::vec(0..4_u8, 1..9), 1..40_usize).prop_map(|(word, times)| word.repeat(times)),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn everything_comes_back(src in page()) {
        let block = pack(&src, src.len() + src.len() / 255 + 16).expect("room for the worst");
        prop_assert_eq!(unpack(&block, src.len()), Ok(src.clone()));
        // The rules of the format about the end of a block.
        let sequences = sequences(&block);
        let (last, before) = sequences.split_last().expect("a last one");
        prop_assert!(before.is_empty() || last.0 >= 5);
        let mut at = 0;
        for (literals, distance, len) in before {
            at += literals;
            prop_assert!(*distance <= at && at + 12 <= src.len());
            at += len;
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(block in prop::collection::vec(any::<u8>(), 0..300), room in 0..5000_usize) {
        if let Ok(out) = unpack(&block, room) {
            prop_assert!(out.len() <= room);
        }
    }

    #[test]
    fn a_block_that_was_damaged_is_read_without_harm(src in page(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut block = pack(&src, src.len() * 2 + 16).expect("room");
        let at = at.index(block.len());
        block[at] = byte;
        let _ = unpack(&block, 4096);
    }
}
