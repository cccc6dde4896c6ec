//! Linux's arithmetic for watermarks and reserves, written from its documentation
//! (Documentation/admin-guide/sysctl/vm.rst) and computed in 128 bits.

use memvisor_abi::{MAX_NR_ZONES, PAGE_SHIFT, VmSysctl};

/// `min_free_kbytes` for this many kibibytes of memory in zones that are neither high nor movable:
/// four times the square root, between 128 KiB and 256 MiB.
pub(crate) fn min_free_kbytes(lowmem_kbytes: u64) -> u64 {
    lowmem_kbytes.saturating_mul(16).isqrt().clamp(128, 262_144)
}

/// What watermarks and reserves follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// In place of the square root.
    pub min_free_kbytes: Option<u64>,
    /// Tenths of a thousandth.
    pub scale_factor: u64,
    /// Tenths of a thousandth.
    pub boost_factor: u64,
    /// By kind of zone.
    pub ratios: [u64; MAX_NR_ZONES],
}

impl Default for Tuning {
    /// Linux's.
    fn default() -> Tuning {
        let ratios = [256, 256, 32, 0, 0];
        Tuning { min_free_kbytes: None, scale_factor: 10, boost_factor: 15_000, ratios }
    }
}

impl Tuning {
    /// From a guest's command line: what is out of range changes nothing.
    pub fn of(cmdline: &str) -> Tuning {
        let default = Tuning::default();
        let within = |name, least: u64, most: u64| {
            number(cmdline, name).filter(|number| (least..=most).contains(number))
        };
        let int_max = u64::from(i32::MAX.unsigned_abs());
        Tuning {
            min_free_kbytes: within("min_free_kbytes", 0, int_max),
            scale_factor: within("watermark_scale_factor", 1, 3000).unwrap_or(default.scale_factor),
            boost_factor: within("watermark_boost_factor", 0, int_max).unwrap_or(default.boost_factor),
            ratios: ratios(cmdline).unwrap_or(default.ratios),
        }
    }

    /// From what a guest publishes.
    pub fn published(sysctl: &VmSysctl) -> Tuning {
        Tuning {
            min_free_kbytes: Some(sysctl.min_free_kbytes),
            scale_factor: sysctl.watermark_scale_factor.into(),
            boost_factor: sysctl.watermark_boost_factor.into(),
            ratios: sysctl.lowmem_reserve_ratio.map(u64::from),
        }
    }

    /// Whether a kernel can have these settings.
    pub fn is_possible(&self) -> bool {
        let int = |value: u64| value <= u64::from(i32::MAX.unsigned_abs());
        (1..=3000).contains(&self.scale_factor)
            && int(self.boost_factor)
            && self.min_free_kbytes.is_none_or(int)
    }
}

/// The last `lowmem_reserve_ratio=A,B,...` of a command line; the rest are Linux's.
fn ratios(cmdline: &str) -> Option<[u64; MAX_NR_ZONES]> {
    let mut ratios = Tuning::default().ratios;
    let text = word(cmdline, "lowmem_reserve_ratio")?;
    for (index, number) in text.split(',').enumerate() {
        *ratios.get_mut(index)? = number.parse::<u32>().ok()?.into();
    }
    Some(ratios)
}

fn word<'c>(cmdline: &'c str, name: &str) -> Option<&'c str> {
    let mut words = cmdline.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    words.rfind(|(key, _)| *key == name).map(|(_, text)| text)
}

/// The number in the last `name=NUMBER` of a command line: decimal or 0x, with suffixes K, M, G.
pub(crate) fn number(cmdline: &str, name: &str) -> Option<u64> {
    let text = word(cmdline, name)?;
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 10),
        (at, 'M' | 'm') => (&text[..at], 20),
        (at, 'G' | 'g') => (&text[..at], 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(1 << shift)
}

/// Managed pages of all zones of all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Of DMA, DMA32 and NORMAL: `min_free_kbytes` grows with these.
    pub buffer: u64,
    /// Of all zones that the direct map reaches: these share the reserve.
    pub low: u64,
}

/// min, low and high of a zone, in pages (Linux 6.1: `__setup_per_zone_wmarks`). Movable memory does not enlarge the
/// reserve but takes its share of it. `high`: the direct map does not reach the zone, so that its minimum is a
/// thousandth of it, 32 pages at least and 128 at most, while low and high are as far above as for any other.
pub(crate) fn watermarks(managed: u64, high: bool, sums: Sums, tuning: &Tuning) -> [u64; 3] {
    let buffer_kbytes = sums.buffer.saturating_mul(1 << (PAGE_SHIFT - 10));
    let kbytes = tuning.min_free_kbytes.unwrap_or_else(|| min_free_kbytes(buffer_kbytes));
    let pages_min = kbytes >> (PAGE_SHIFT - 10);
    let share = u128::from(pages_min) * u128::from(managed) / u128::from(sums.low.max(1));
    let distance = (share / 4).max(u128::from(managed) * u128::from(tuning.scale_factor) / 10_000);
    let min = match (high, managed) {
        (false, _) => share,
        (true, 0) => 0,
        (true, managed) => u128::from((managed / 1024).clamp(32, 128)),
    };
    [min, min + distance, min + 2 * distance].map(|pages| u64::try_from(pages).unwrap_or(u64::MAX))
}

/// `lowmem_reserve` of each zone of a node, from the zones' managed pages: against an allocation
/// that could have used zone `j`, zone `i` keeps the managed pages of the zones above it up to `j`
/// divided by its ratio.
pub(crate) fn lowmem_reserves(
    managed: [u64; MAX_NR_ZONES],
    ratios: [u64; MAX_NR_ZONES],
) -> [[u64; MAX_NR_ZONES]; MAX_NR_ZONES] {
    let mut reserves = [[0; MAX_NR_ZONES]; MAX_NR_ZONES];
    for ((i, row), (own, ratio)) in reserves.iter_mut().enumerate().zip(managed.into_iter().zip(ratios)) {
        if own == 0 || ratio == 0 {
            continue;
        }
        let mut above = 0_u64;
        for (cell, pages) in row.iter_mut().zip(managed).skip(i + 1) {
            above = above.saturating_add(pages);
            *cell = above / ratio;
        }
    }
    reserves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_free_kbytes_is_the_table_in_linux_documentation() {
        // The table above init_per_zone_wmark_min in mm/page_alloc.c, MiB and kbytes; it says 11584 for
        // 8 GiB, where the code it stands above gives 11585.
        let table = [
            (16, 512),
            (32, 724),
            (64, 1024),
            (128, 1448),
            (256, 2048),
            (512, 2896),
            (1024, 4096),
            (2048, 5792),
            (4096, 8192),
            (8192, 11585),
            (16384, 16384),
        ];
        for (mebibytes, kbytes) in table {
            assert_eq!(min_free_kbytes(mebibytes << 10), kbytes, "{mebibytes} MiB");
        }
    }

    #[test]
    fn min_free_kbytes_is_clamped() {
        assert_eq!(min_free_kbytes(0), 128);
        assert_eq!(min_free_kbytes(64 << 30), 262_144);
    }

    fn of(managed: u64, buffer: u64, low: u64, tuning: Tuning) -> [u64; 3] {
        watermarks(managed, false, Sums { buffer, low }, &tuning)
    }

    #[test]
    fn a_zone_gets_its_share_and_low_and_high_are_evenly_apart() {
        let default = Tuning::default();
        // 256 MiB in all: 2048 kB, 512 pages; a quarter of the memory gets 128 of them.
        assert_eq!(of(16384, 65536, 65536, default), [128, 160, 192]);
        // A large zone: the scale factor's 0.1 % exceeds a quarter of the share.
        let pages = 64 << 18;
        assert_eq!(of(pages, pages, pages, default), [8192, 8192 + 16777, 8192 + 2 * 16777]);
        assert_eq!(of(0, 65536, 65536, default), [0, 0, 0]);
        // Half of the memory is movable: the reserve is that of the other half, shared by both.
        assert_eq!(of(65536, 65536, 131_072, default)[0], 256);
    }

    #[test]
    fn highmem_keeps_little() {
        let of = |managed| watermarks(managed, true, Sums { buffer: 65536, low: 65536 }, &Tuning::default());
        // 512 pages a 65536: the share is 512, a quarter of it the distance.
        assert_eq!(of(65536), [64, 192, 320]);
        assert_eq!((of(1000)[0], of(1 << 20)[0], of(0)), (32, 128, [0; 3]));
    }

    #[test]
    fn the_command_line_replaces_the_defaults() {
        let tuning = Tuning::of(
            "min_free_kbytes=1 min_free_kbytes=0x1000 watermark_scale_factor=200 lowmem_reserve_ratio=1,0 \
             watermark_boost_factor=0",
        );
        let wanted = Tuning {
            min_free_kbytes: Some(4096),
            scale_factor: 200,
            boost_factor: 0,
            ratios: [1, 0, 32, 0, 0],
        };
        assert_eq!(tuning, wanted);
        assert_eq!(of(65536, 65536, 65536, tuning), [1024, 1024 + 1310, 1024 + 2 * 1310]);
        let none =
            Tuning::of("min_free_kbytes= watermark_scale_factor=3001 lowmem_reserve_ratio=1,2,3,4,5,6");
        assert_eq!(none, Tuning::default());
        assert_eq!(Tuning::of("min_free_kbytes=8K").min_free_kbytes, Some(8192));
    }

    #[test]
    fn reserves_protect_low_zones_from_those_who_have_higher_ones() {
        let reserves = lowmem_reserves([4000, 256_000, 512_000, 0, 0], Tuning::default().ratios);
        assert_eq!(reserves[0], [0, 1000, 3000, 3000, 3000]);
        assert_eq!(reserves[1], [0, 0, 2000, 2000, 2000]);
        assert_eq!(reserves[2], [0; 5]);
    }

    #[test]
    fn an_empty_zone_reserves_nothing() {
        assert_eq!(lowmem_reserves([0, 256, 512, 0, 0], Tuning::default().ratios)[0], [0; 5]);
    }
}
