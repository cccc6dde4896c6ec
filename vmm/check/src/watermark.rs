//! Linux's arithmetic for watermarks and reserves, written from its documentation
//! (Documentation/admin-guide/sysctl/vm.rst) and computed in 128 bits.

use memvisor_abi::{MAX_NR_ZONES, PAGE_SHIFT};

/// `min_free_kbytes` for this many kibibytes of memory in zones that are neither high nor movable:
/// four times the square root, between 128 KiB and 256 MiB.
pub(crate) fn min_free_kbytes(lowmem_kbytes: u64) -> u64 {
    lowmem_kbytes.saturating_mul(16).isqrt().clamp(128, 262_144)
}

/// What the guest's command line changes of the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// `min_free_kbytes=`, in place of the square root.
    pub min_free_kbytes: Option<u64>,
    /// `watermark_scale_factor=`, 1 to 3000.
    pub scale_factor: Option<u64>,
}

impl Tuning {
    /// From a guest's command line.
    pub fn of(cmdline: &str) -> Tuning {
        Tuning {
            min_free_kbytes: number(cmdline, "min_free_kbytes"),
            scale_factor: number(cmdline, "watermark_scale_factor")
                .filter(|factor| (1..=3000).contains(factor)),
        }
    }
}

/// The number in the last `name=NUMBER` of a command line: decimal or 0x, with suffixes K, M, G.
fn number(cmdline: &str, name: &str) -> Option<u64> {
    let mut words = cmdline.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let (_, text) = words.rfind(|(key, _)| *key == name)?;
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

/// min, low and high of a zone, in pages (Linux 6.1: `__setup_per_zone_wmarks` with
/// `watermark_scale_factor` 10). `lowmem` and `total` are the managed pages of all zones, without and
/// with movable ones: movable memory does not enlarge the reserve but takes its share of it.
pub(crate) fn watermarks(managed: u64, lowmem: u64, total: u64, tuning: Tuning) -> [u64; 3] {
    let scale_factor = u128::from(tuning.scale_factor.unwrap_or(10));
    let lowmem_kbytes = lowmem.saturating_mul(1 << (PAGE_SHIFT - 10));
    let kbytes = tuning.min_free_kbytes.unwrap_or_else(|| min_free_kbytes(lowmem_kbytes));
    let pages_min = kbytes >> (PAGE_SHIFT - 10);
    let min = u128::from(pages_min) * u128::from(managed) / u128::from(total.max(1));
    let distance = (min / 4).max(u128::from(managed) * scale_factor / 10_000);
    [min, min + distance, min + 2 * distance].map(|pages| u64::try_from(pages).unwrap_or(u64::MAX))
}

/// `lowmem_reserve` of each zone of a node, from the zones' managed pages: against an allocation
/// that could have used zone `j`, zone `i` keeps the managed pages of the zones above it up to `j`
/// divided by its ratio (256, 256, 32; highmem and movable keep nothing).
pub(crate) fn lowmem_reserves(managed: [u64; MAX_NR_ZONES]) -> [[u64; MAX_NR_ZONES]; MAX_NR_ZONES] {
    const RATIOS: [u64; MAX_NR_ZONES] = [256, 256, 32, 0, 0];
    let mut reserves = [[0; MAX_NR_ZONES]; MAX_NR_ZONES];
    for ((i, row), (own, ratio)) in reserves.iter_mut().enumerate().zip(managed.into_iter().zip(RATIOS)) {
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

    #[test]
    fn a_zone_gets_its_share_and_low_and_high_are_evenly_apart() {
        // 256 MiB in all: 2048 kB, 512 pages; a quarter of the memory gets 128 of them.
        assert_eq!(watermarks(16384, 65536, 65536, Tuning::default()), [128, 160, 192]);
        // A large zone: the scale factor's 0.1 % exceeds a quarter of the share.
        let pages = 64 << 18;
        assert_eq!(
            watermarks(pages, pages, pages, Tuning::default()),
            [8192, 8192 + 16777, 8192 + 2 * 16777]
        );
        assert_eq!(watermarks(0, 65536, 65536, Tuning::default()), [0, 0, 0]);
        // Half of the memory is movable: the reserve is that of the other half, shared by both.
        assert_eq!(watermarks(65536, 65536, 131_072, Tuning::default())[0], 256);
    }

    #[test]
    fn the_command_line_replaces_the_defaults() {
        let tuning = Tuning::of("min_free_kbytes=1 min_free_kbytes=0x1000 watermark_scale_factor=200");
        assert_eq!(tuning, Tuning { min_free_kbytes: Some(4096), scale_factor: Some(200) });
        assert_eq!(watermarks(65536, 65536, 65536, tuning), [1024, 1024 + 1310, 1024 + 2 * 1310]);
        let none = Tuning::of("min_free_kbytes= watermark_scale_factor=3001 other=5");
        assert_eq!(none, Tuning::default());
        assert_eq!(Tuning::of("min_free_kbytes=8K").min_free_kbytes, Some(8192));
    }

    #[test]
    fn reserves_protect_low_zones_from_those_who_have_higher_ones() {
        let reserves = lowmem_reserves([4000, 256_000, 512_000, 0, 0]);
        assert_eq!(reserves[0], [0, 1000, 3000, 3000, 3000]);
        assert_eq!(reserves[1], [0, 0, 2000, 2000, 2000]);
        assert_eq!(reserves[2], [0; 5]);
    }

    #[test]
    fn an_empty_zone_reserves_nothing() {
        assert_eq!(lowmem_reserves([0, 256, 512, 0, 0])[0], [0; 5]);
    }
}
