//! What this host's KVM can do.

use super::super::case::{Case, Need, Setup};
use super::super::linux;
use crate::machine::Backing;
use crate::memory::{free_huge_pages, transparent_refusal};
use crate::vcpu::{HostOffer, KvmOpenError, emulates_ring0, open_kvm, second_stage_levels};

/// What this host's KVM can do, as far as cases may need it.
#[derive(Debug)]
pub struct Host {
    la57: bool,
    pages_1g: bool,
    second_stage: bool,
    pool_2m: u64,
    pool_1g: u64,
    thp: bool,
    linux: Result<(), &'static str>,
}

impl Host {
    /// Asks KVM.
    ///
    /// # Errors
    /// Why this bed cannot be used here.
    pub fn probe() -> Result<Host, KvmOpenError> {
        let kvm = open_kvm()?;
        let offer = HostOffer::probe(&kvm, true)?;
        let linux = match linux::folder() {
            None => Err("no Linux to boot: MEMVISOR_LINUX names no folder (docs/linux-guest.md)"),
            Some(_) if emulates_ring0(&kvm) => Err("this KVM emulates ring 0 and does not run Linux"),
            Some(_) => Ok(()),
        };
        let second_stage = second_stage_levels() > 0;
        Ok(Host {
            la57: offer.la57,
            pages_1g: offer.pages_1g,
            second_stage,
            pool_2m: free_huge_pages(Backing::Huge2M),
            pool_1g: free_huge_pages(Backing::Huge1G),
            thp: transparent_refusal().is_none(),
            linux,
        })
    }

    /// Gives a case the memory that it is meant to have on this host.
    pub fn fit(&self, case: &mut Case) {
        if let Setup::Kvm(setup) = &mut case.setup
            && !self.second_stage
            && setup.memory_shadowed.is_some()
        {
            setup.memory.clone_from(&setup.memory_shadowed);
        }
    }

    /// Why a case with these needs means nothing here; `None` if all are met.
    pub fn lacks(&self, needs: &[Need]) -> Option<&'static str> {
        needs.iter().find_map(|need| match need {
            Need::La57 => (!self.la57).then_some("this KVM does not run guests at 5 levels"),
            Need::NoLa57 => self.la57.then_some("this KVM does run guests at 5 levels"),
            Need::Pages1g => (!self.pages_1g).then_some("this KVM has no 1 GiB pages for guests"),
            Need::SecondStage => (!self.second_stage)
                .then_some("this KVM shadows the guest's page tables instead of walking a second stage"),
            Need::Hugetlb2m => {
                (self.pool_2m < 64).then_some("the host's pool has not 64 free pages of 2 MiB")
            }
            Need::Hugetlb1g => (self.pool_1g < 2).then_some("the host's pool has not 2 free pages of 1 GiB"),
            Need::Thp => (!self.thp).then_some("the host gives memory files no transparent huge pages"),
            Need::Linux => self.linux.err(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::parse;

    #[test]
    fn a_host_is_told_what_it_lacks_for_a_case() {
        let host = Host {
            la57: true,
            pages_1g: false,
            second_stage: true,
            pool_2m: 64,
            pool_1g: 0,
            thp: true,
            linux: Ok(()),
        };
        assert_eq!(host.lacks(&[Need::Hugetlb2m, Need::Thp]), None);
        assert!(host.lacks(&[Need::Hugetlb1g]).is_some_and(|reason| reason.contains("1 GiB")));
        assert_eq!(host.lacks(&[Need::La57, Need::SecondStage]), None);
        assert!(host.lacks(&[Need::La57, Need::Pages1g]).unwrap().contains("1 GiB"));
        assert!(host.lacks(&[Need::NoLa57]).unwrap().contains("does run"));
        let shadow = Host { la57: false, second_stage: false, linux: Err("none"), ..host };
        assert!(shadow.lacks(&[Need::SecondStage]).unwrap().contains("shadows"));
        assert_eq!(shadow.lacks(&[Need::NoLa57]), None);
    }

    #[test]
    fn a_case_has_less_memory_only_where_kvm_shadows() {
        let host = |second_stage| Host {
            la57: false,
            pages_1g: false,
            second_stage,
            pool_2m: 0,
            pool_1g: 0,
            thp: false,
            linux: Ok(()),
        };
        let memory = |host: Host, stanza: &str| {
            let text = format!(
                "[[case]]\nname = \"boot/x\"\ndescription = \"d\"\nkvm = {{ machine = \"default\"{stanza} }}\n"
            );
            let mut case = parse("boot", &text).unwrap().remove(0);
            host.fit(&mut case);
            let Setup::Kvm(setup) = case.setup else { panic!("not on kvm") };
            setup.memory
        };
        let both = r#", memory = "96M", memory_shadowed = "48M""#;
        assert_eq!(memory(host(false), both).as_deref(), Some("48M"));
        assert_eq!(memory(host(true), both).as_deref(), Some("96M"));
        assert_eq!(memory(host(false), r#", memory = "96M""#).as_deref(), Some("96M"));
        assert_eq!(memory(host(true), r#", memory_shadowed = "48M""#), None);
    }
}
