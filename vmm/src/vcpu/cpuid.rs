//! CPUID of each vCPU: what KVM supports, with this CPU's identity and the machine's topology.
//!
//! Topology told: one thread a core; on a machine of one node all CPUs are cores of one package, else each
//! is a package of its own, because no package or cache may span nodes (Linux: arch/x86/kernel/smpboot.c,
//! `topology_sane`; AMD's older families share the last cache in a package). Nodes come from the SRAT alone.
//!
//! On some hosts ring-3 and ring-0 CPUID show the host's leaves 1 and 7 whatever is set here; the
//! guest therefore also gets `no5lvl` and `nogbpages` on its command line.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Features of which the machine, not the host, decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Whether the guest may see LA57.
    pub la57: bool,
    /// Whether KVM emulates the TSC-deadline timer.
    pub tsc_deadline: bool,
    /// Whether the CPUs are cores of one package; else each is a package.
    pub one_package: bool,
}

const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF7_ECX_LA57: u32 = 1 << 16;

/// CPUID for CPU `apic_id` of `count`.
pub fn build_cpuid(supported: &CpuId, apic_id: u32, count: u32, features: Features) -> CpuId {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // Extended topology is told by leaf 0xb alone; 0x1f would only repeat it.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    let cores = if features.one_package { count.max(1) } else { 1 };
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = (entry.ebx & 0xffff) | (cores.min(255) << 16) | ((apic_id & 0xff) << 24);
                entry.ecx |= LEAF1_ECX_HYPERVISOR | LEAF1_ECX_X2APIC;
                set(&mut entry.ecx, LEAF1_ECX_TSC_DEADLINE, features.tsc_deadline);
                set(&mut entry.edx, LEAF1_EDX_HTT, cores > 1);
            }
            // Caches are a core's own: no sharing, so no host topology shows.
            (4 | 0x8000_001d, _) if entry.eax & 0x1f != 0 => entry.eax &= 0x3fff,
            // AMD takes an L3 for one of the whole package, whatever the leaf above says.
            (0x8000_0006, _) => entry.edx = 0,
            (7, 0) if !features.la57 => entry.ecx &= !LEAF7_ECX_LA57,
            (0x8000_0008, _) => {
                let bits = apic_id_bits(cores);
                entry.ecx = (entry.ecx & !0xf0ff) | (bits << 12) | (cores - 1).min(255);
            }
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id & 0xff, 0),
            _ => {}
        }
    }
    entries.extend(topology(apic_id, cores));
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

/// Leaf 0xb: threads of a core (one), cores of the package (all), end.
fn topology(apic_id: u32, cores: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: (kind << 8) | index,
        edx: apic_id,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, apic_id_bits(cores), cores, 2), level(2, 0, 0, 0)]
}

/// Bits that number `count` CPUs.
fn apic_id_bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

fn set(word: &mut u32, bit: u32, on: bool) {
    if on {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, index, ecx| kvm_cpuid_entry2 { function, index, ecx, ..Default::default() };
        let mut one = leaf(1, 0, 0);
        (one.ebx, one.edx) = (0x7702_0800, LEAF1_EDX_HTT);
        CpuId::from_entries(&[one, leaf(7, 0, LEAF7_ECX_LA57 | 4), leaf(0xb, 0, 0), leaf(0x1f, 0, 0)])
            .expect("four entries")
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).expect("leaf")
    }

    #[test]
    fn identity_and_topology_are_the_machines() {
        let cpuid =
            build_cpuid(&host(), 5, 6, Features { la57: false, tsc_deadline: true, one_package: true });
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.ebx & 0xffff), (5, 6, 0x0800));
        assert_ne!(one.ecx & LEAF1_ECX_HYPERVISOR, 0);
        assert_ne!(one.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.edx), (3, 6, 5));
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x1f));
        let lone =
            build_cpuid(&host(), 0, 1, Features { la57: false, tsc_deadline: false, one_package: true });
        assert_eq!(find(&lone, 1, 0).edx & LEAF1_EDX_HTT, 0);
    }

    #[test]
    fn on_several_nodes_each_cpu_is_a_package() {
        let features = Features { la57: false, tsc_deadline: true, one_package: false };
        let cpuid = build_cpuid(&host(), 5, 6, features);
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx & LEAF1_EDX_HTT), (5, 1, 0));
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.edx), (0, 1, 5));
    }

    #[test]
    fn no_cache_is_shared() {
        let shared = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0x1c_4143,
            edx: 0x0200_9140,
            ..Default::default()
        };
        let host = [shared(4, 3), shared(0x8000_001d, 3), shared(0x8000_0006, 0)];
        let host = CpuId::from_entries(&host).expect("three entries");
        let cpuid = build_cpuid(&host, 1, 2, Features { la57: false, tsc_deadline: true, one_package: true });
        for function in [4, 0x8000_001d] {
            assert_eq!(find(&cpuid, function, 3).eax, 0x143, "type and level stay, sharers go");
        }
        assert_eq!(find(&cpuid, 0x8000_0006, 0).edx, 0, "no L3");
    }

    #[test]
    fn la57_shows_only_when_wanted_and_offered() {
        let ecx = |la57| {
            find(&build_cpuid(&host(), 0, 1, Features { la57, tsc_deadline: true, one_package: true }), 7, 0)
                .ecx
        };
        assert_eq!(ecx(true), LEAF7_ECX_LA57 | 4);
        assert_eq!(ecx(false), 4);
    }
}
