//! The same calls on the crate and on the Linux of this machine: every result and every line of /proc/self/maps.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::model::Model;
use common::op::{Op, mapping_op, op};
use common::{canonical, host};
use proptest::prelude::*;

/// `MEMVISOR_WITHOUT=Mremap,Fork` leaves calls out, to look behind a difference.
fn wanted(op: &Op) -> bool {
    let without = std::env::var("MEMVISOR_WITHOUT").unwrap_or_default();
    let name = format!("{op:?}");
    let name = name.split(' ').next().unwrap_or_default();
    !without.split(',').any(|left_out| left_out == name)
}

fn compare(ops: &[Op]) -> Result<(), TestCaseError> {
    let ops: Vec<Op> = ops.iter().copied().filter(wanted).collect();
    let ops = &ops[..];
    let mut linux = host::run(ops).map_err(TestCaseError::fail)?;
    let mut model = Model::new();
    for (index, &op) in ops.iter().enumerate() {
        if model.is_known_difference(op) {
            break;
        }
        let mut both = [model.run(index, op), linux[index].clone()];
        canonical(&mut both);
        let [ours, linux] = both;
        prop_assert_eq!(ours, linux, "left: crate, right: Linux, call {}: {:?}", index, op);
        for &mm in model.parents.iter().chain([&model.mm]) {
            let audit = mm_vma::audit(&model.k, mm);
            prop_assert!(audit.is_ok(), "call {}: {:?}: {:x?}", index, op, audit);
        }
    }
    linux.clear();
    model.finish();
    Ok(())
}

/// `MEMVISOR_SEQUENCES` sets another number of sequences.
fn config(cases: u32) -> ProptestConfig {
    let wanted = std::env::var("MEMVISOR_SEQUENCES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: wanted.unwrap_or(cases),
        max_shrink_iters: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn random_mappings_have_the_shape_that_linux_gives_them(
        ops in proptest::collection::vec(mapping_op(), 1..80),
    ) {
        compare(&ops)?;
    }

    #[test]
    fn random_calls_do_what_linux_does(ops in proptest::collection::vec(op(), 1..80)) {
        compare(&ops)?;
    }
}
