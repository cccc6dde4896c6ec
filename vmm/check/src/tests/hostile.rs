//! No content of guest memory stops an audit.

use proptest::prelude::*;

use super::guest::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn random_words_in_published_structures_never_stop_an_audit(
        writes in proptest::collection::vec((0_u64..5, any::<u64>(), any::<u64>(), any::<bool>()), 1..12),
    ) {
        let mut guest = healthy();
        let zones = guest.guest().root().zones.gpa;
        for (place, at, value, small) in writes {
            let (base, len) = match place {
                // All of the root but what identifies it.
                0 => (ROOT_GPA + 40, 304),
                1 => (zones, 4096),
                2 => (ROOT_GPA + 4096, 16 * 4096),
                3 => (32 * MIB, 4 * MIB),
                _ => (guest.kernel_pgd << 12, 32 * 4096),
            };
            let value = if small { value % 0x2_0000 } else { value };
            guest.memory.write_u64(base + (at % len) / 8 * 8, value).unwrap();
        }
        let report = guest.audit();
        let text = report.to_string();
        let summary = report.summary();
        prop_assert_eq!(text.lines().last(), Some(summary.as_str()));
    }
}
