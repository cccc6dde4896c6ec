//! The LZ4 block format (lz4_Block_format.md of the LZ4 project; Linux: lib/lz4), for blocks of less than 64 KiB.
//!
//! A block is sequences: a token, literals, and a match, which is a distance back and a length. The high half of the token is the number of
//! literals, the low half the length of the match less 4; 15 in a half says that bytes follow which add to it, until one is not 255.
//! The last sequence has literals only. The last 5 bytes are literals, and no match begins in the last 12.
//!
//! Memory is the caller's: nothing here is allocated or large on the stack.

/// Log2 of the places of a table.
const TABLE_BITS: u32 = 12;
/// Places of a [`Table`].
pub const TABLE_LEN: usize = 1 << TABLE_BITS;
/// Where four bytes were seen last, by a hash of them.
pub type Table = [u16; TABLE_LEN];

const MIN_MATCH: usize = 4;
const LAST_LITERALS: usize = 5;
const NO_MATCH_IN_LAST: usize = 12;
/// Log2 of the misses after which the search takes larger steps: what cannot be compressed is given up soon.
const SKIP_TRIGGER: u32 = 6;
/// What a half of a token can say.
const HALF: usize = 15;

/// The block makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// Compresses `src` into `dst`; the bytes that it takes. `None` if they do not fit, or `src` is 64 KiB or more.
/// ```
/// use mm_zswap::lz4::{TABLE_LEN, compress, decompress};
/// let (mut packed, mut back) = ([0; 64], [0; 1000]);
/// let len = compress(&[7; 1000], &mut packed, &mut [0; TABLE_LEN]).unwrap();
/// assert_eq!(decompress(&packed[..len], &mut back), Ok(1000));
/// assert_eq!(back, [7; 1000]);
/// ```
pub fn compress(src: &[u8], dst: &mut [u8], table: &mut Table) -> Option<usize> {
    u16::try_from(src.len()).ok()?;
    table.fill(0);
    let mut out = Output { bytes: dst, len: 0 };
    let mut anchor = 0;
    if let Some(last_start) = src.len().checked_sub(NO_MATCH_IN_LAST) {
        let mut at = 1;
        let mut misses = 1 << SKIP_TRIGGER;
        while at <= last_start {
            let Some(seen) = look_up(src, at, table) else {
                at += misses >> SKIP_TRIGGER;
                misses += 1;
                continue;
            };
            let back = equal_before(&src[anchor..at], &src[..seen]);
            let (start, from) = (at - back, seen - back);
            let len = MIN_MATCH
                + back
                + equal(&src[at + MIN_MATCH..src.len() - LAST_LITERALS], &src[seen + MIN_MATCH..]);
            out.sequence(&src[anchor..start], start - from, len)?;
            at = start + len;
            anchor = at;
            misses = 1 << SKIP_TRIGGER;
        }
    }
    out.literals(&src[anchor..], 0)?;
    Some(out.len)
}

/// Where the four bytes at `at` were seen before; from now on that is here.
fn look_up(src: &[u8], at: usize, table: &mut Table) -> Option<usize> {
    let four = four(src, at)?;
    // Knuth's multiplicative hash, as the reference encoder has it.
    let hash = four.wrapping_mul(2_654_435_761) >> (u32::BITS - TABLE_BITS);
    let place = table.get_mut(usize::try_from(hash).ok()?)?;
    let seen = usize::from(core::mem::replace(place, u16::try_from(at).ok()?));
    // A place that nobody wrote says 0, where there are four bytes too.
    (self::four(src, seen)? == four).then_some(seen)
}

fn four(src: &[u8], at: usize) -> Option<u32> {
    src.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// How many first bytes are the same.
fn equal(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// How many last bytes are the same.
fn equal_before(left: &[u8], right: &[u8]) -> usize {
    left.iter().rev().zip(right.iter().rev()).take_while(|(left, right)| left == right).count()
}

struct Output<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Output<'_> {
    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes.get_mut(self.len..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }

    /// Literals behind a token whose other half is `low`.
    fn literals(&mut self, literals: &[u8], low: usize) -> Option<()> {
        let token = literals.len().min(HALF) << 4 | low;
        self.push(&[u8::try_from(token).ok()?])?;
        self.rest(literals.len())?;
        self.push(literals)
    }

    fn sequence(&mut self, literals: &[u8], distance: usize, len: usize) -> Option<()> {
        let len = len - MIN_MATCH;
        self.literals(literals, len.min(HALF))?;
        self.push(&u16::try_from(distance).ok()?.to_le_bytes())?;
        self.rest(len)
    }

    /// What a half of a token does not hold of a length.
    fn rest(&mut self, len: usize) -> Option<()> {
        let Some(mut rest) = len.checked_sub(HALF) else { return Some(()) };
        while rest >= 255 {
            self.push(&[255])?;
            rest -= 255;
        }
        self.push(&[u8::try_from(rest).ok()?])
    }
}

/// Brings back what `src` was compressed from; its length. It fits `dst`, or the block is corrupt.
///
/// # Errors
/// [`Corrupt`]; parts of `dst` may have been written then.
pub fn decompress(src: &[u8], dst: &mut [u8]) -> Result<usize, Corrupt> {
    let mut input = Input { bytes: src };
    let mut len = 0;
    loop {
        let token = input.take(1)?[0];
        let count = input.length(token >> 4)?;
        let literals = input.take(count)?;
        dst.get_mut(len..).and_then(|to| to.get_mut(..count)).ok_or(Corrupt)?.copy_from_slice(literals);
        len += count;
        if input.bytes.is_empty() {
            return Ok(len);
        }
        let distance = usize::from(u16::from_le_bytes(input.take(2)?.try_into().map_err(|_| Corrupt)?));
        let count = input.length(token & 0xf)?.checked_add(MIN_MATCH).ok_or(Corrupt)?;
        let from = len.checked_sub(distance).filter(|_| distance > 0).ok_or(Corrupt)?;
        if count > dst.len() - len {
            return Err(Corrupt);
        }
        // A match may reach into what it makes: then it repeats, twice as long each time.
        let mut done = 0;
        while done < count {
            let step = (count - done).min(distance + done);
            dst.copy_within(from..from + step, len + done);
            done += step;
        }
        len += count;
    }
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Corrupt)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A length that begins with a half of a token.
    fn length(&mut self, half: u8) -> Result<usize, Corrupt> {
        let mut length = usize::from(half);
        if length < HALF {
            return Ok(length);
        }
        loop {
            let more = self.take(1)?[0];
            length = length.checked_add(usize::from(more)).ok_or(Corrupt)?;
            if more != 255 {
                return Ok(length);
            }
        }
    }
}
