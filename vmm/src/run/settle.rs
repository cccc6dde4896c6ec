//! What a machine and its host allow each other: addresses, depth of page tables, and what the command line must say of it.

use memvisor_inspect::{FactNodeMemory, Facts};

use super::RunError;
use crate::{machine::Paging, vcpu::HostOffer};

/// Refuses RAM that KVM could give no slot, or that guests could not address.
pub(super) fn check_phys_bits(facts: &Facts, bits: u32) -> Result<(), RunError> {
    let limit = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
    let past = |memory: &&FactNodeMemory| memory.base.saturating_add(memory.len) > limit;
    facts.node_memory.iter().find(past).map_or(Ok(()), |memory| {
        let end = memory.base.saturating_add(memory.len);
        Err(RunError::PastPhysBits { node: memory.node, base: memory.base, end, bits, limit })
    })
}

pub(super) fn choose_levels(paging: Paging, offer: &HostOffer) -> Result<u32, RunError> {
    match (paging, offer.la57) {
        (Paging::Five, false) => Err(RunError::NoLa57),
        (Paging::Five | Paging::Auto, true) => Ok(5),
        (Paging::Four, _) | (Paging::Auto, false) => Ok(4),
    }
}

/// What the guest cannot learn from CPUID on every host is told on the command line.
pub(super) fn complete_cmdline(cmdline: &str, levels: u32, offer: &HostOffer) -> String {
    let mut words: Vec<&str> = cmdline.split_whitespace().collect();
    for (word, wanted) in [("no5lvl", levels == 4), ("nogbpages", !offer.pages_1g)] {
        if wanted && !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use kvm_bindings::CpuId;

    use super::*;

    fn offer(la57: bool, pages_1g: bool) -> HostOffer {
        let cpuid = CpuId::new(1).expect("one entry");
        HostOffer { cpuid, la57, pages_1g, tsc_deadline: true, phys_bits: 46 }
    }

    #[test]
    fn five_levels_are_refused_where_kvm_refuses_and_auto_takes_what_there_is() {
        assert!(matches!(choose_levels(Paging::Five, &offer(false, true)), Err(RunError::NoLa57)));
        assert_eq!(choose_levels(Paging::Auto, &offer(false, true)).expect("4"), 4);
        assert_eq!(choose_levels(Paging::Auto, &offer(true, true)).expect("5"), 5);
        assert_eq!(choose_levels(Paging::Four, &offer(true, true)).expect("4"), 4);
    }

    #[test]
    fn the_command_line_says_what_cpuid_may_not() {
        assert_eq!(complete_cmdline("a  b", 4, &offer(true, false)), "a b no5lvl nogbpages");
        assert_eq!(complete_cmdline("no5lvl", 4, &offer(false, true)), "no5lvl");
        assert_eq!(complete_cmdline("", 5, &offer(true, true)), "");
    }
}
