//! A machine with less RAM and the same shape.
//!
//! Addresses are moved by a map that never changes their order, so that nothing that was apart meets and
//! nothing that touched parts:
//!
//! S1  below 32 MiB nothing moves: boot data, the kernel at 16 MiB and its first memory are there;
//! S2  from there to the end of RAM below 4 GiB, every stretch (RAM, hole, what firmware keeps) gets 1/N of its
//!     length, rounded up to a frame; what follows up to 4 GiB stays in its place;
//! S3  the same from 4 GiB on.
//!
//! Nodes keep their order, CPUs, distances and, but for rounding and S1, their relative sizes.

use std::fmt;
use std::str::FromStr;

use memvisor_inspect::FactE820;

use super::shape::{Node, Shape};
use crate::machine::{Machine, MachineError, MachineFile, Range, e820, layout};

/// Below, nothing is scaled (S1).
const FIXED_END: u64 = 32 << 20;

/// A factor 1/N.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale(u64);

/// A text is not a [`Scale`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scale; write 1/N with N from 1 to 1048576, such as 1/64")]
pub struct ScaleError(String);

impl FromStr for Scale {
    type Err = ScaleError;

    /// ```
    /// use memvisor::import::Scale;
    /// assert!("1/64".parse::<Scale>().is_ok());
    /// assert!("64".parse::<Scale>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Scale, ScaleError> {
        let bad = || ScaleError(text.to_owned());
        let digits =
            text.strip_prefix("1/").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let divisor: u64 = digits.ok_or_else(bad)?.parse().map_err(|_| bad())?;
        if (1..=1 << 20).contains(&divisor) { Ok(Scale(divisor)) } else { Err(bad()) }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1/{}", self.0)
    }
}

/// The machine file of `machine` with its RAM scaled, to be resolved like any other. Kernel, command line
/// and boot protocol stay.
///
/// # Errors
/// None that a user can cause: what is written is well-formed.
pub fn scale(machine: &Machine, scale: Scale) -> Result<MachineFile, MachineError> {
    let shape = shape(&Shape::of(machine), scale);
    let description = format!("{} (RAM scaled by {scale})", machine.description);
    let text =
        shape.to_toml(&format!("{} with RAM scaled by {scale}.", machine.name), &description, Some(machine));
    MachineFile::from_text(&format!("{} --scale {scale}", machine.name), &text)
}

/// `shape` scaled.
pub(super) fn shape(shape: &Shape, scale: Scale) -> Shape {
    let moves = Moves::new(shape, scale);
    let entry = |entry: &FactE820| match entry.addr.checked_add(entry.size) {
        Some(end) => {
            let range = moves.range(&Range::new(entry.addr, end));
            FactE820 { addr: range.base, size: range.len, kind: entry.kind }
        }
        // Past 2^64: means nothing, and stays that way.
        None => *entry,
    };
    Shape {
        e820: shape.e820.iter().map(entry).collect(),
        nodes: shape
            .nodes
            .iter()
            .map(|node| Node {
                spans: node.spans.iter().map(|span| moves.range(span)).collect(),
                cpus: node.cpus.clone(),
                backing: node.backing,
            })
            .collect(),
        distances: shape.distances.clone(),
        hmat: shape.hmat.clone(),
    }
}

/// Where each border goes, ascending; between borders nothing is asked.
struct Moves(Vec<(u64, u64)>);

impl Moves {
    fn new(shape: &Shape, scale: Scale) -> Moves {
        let ends = |entry: &FactE820| [Some(entry.addr), entry.addr.checked_add(entry.size)];
        let spans = shape.nodes.iter().flat_map(|node| &node.spans).flat_map(|span| [span.base, span.end()]);
        let mut borders: Vec<u64> = shape.e820.iter().flat_map(ends).flatten().chain(spans).collect();
        borders.sort_unstable();
        borders.dedup();
        let ram = e820::resolve(&shape.e820).into_iter().filter(|entry| entry.kind == e820::RAM);
        let low_end = ram
            .map(|entry| entry.addr.saturating_add(entry.size))
            .filter(|end| *end <= layout::MMIO_HOLE_END);
        let low_end = low_end.max().unwrap_or(0);
        let low = Range::new(FIXED_END, low_end);
        let high = Range::new(layout::MMIO_HOLE_END, u64::MAX);
        let mut moved = Vec::new();
        // Where the last border was and where it went.
        let mut before = (0, 0);
        for border in borders {
            let area = if border <= low.end() { &low } else { &high };
            let to = if border <= area.base || area.is_empty() || (border > low.end() && border <= high.base)
            {
                border
            } else {
                let (from, to) = if before.0 < area.base { (area.base, area.base) } else { before };
                let len = (border - from).div_ceil(scale.0);
                // Lengths of less than a frame stay less than a frame only without scaling.
                let len = if scale.0 == 1 { len } else { len.next_multiple_of(layout::PAGE_SIZE) };
                to.saturating_add(len)
            };
            before = (border, to);
            moved.push((border, to));
        }
        Moves(moved)
    }

    fn to(&self, addr: u64) -> u64 {
        let index = self.0.binary_search_by_key(&addr, |(from, _)| *from);
        index.ok().and_then(|index| self.0.get(index)).map_or(addr, |(_, to)| *to)
    }

    fn range(&self, range: &Range) -> Range {
        Range::new(self.to(range.base), self.to(range.end()))
    }
}
