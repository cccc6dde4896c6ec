//! What travels through the control socket.

use std::collections::BTreeMap;

use memvisor_inspect::{Busy, CpuRegisters};
use serde::{Deserialize, Serialize};

use crate::{
    devices::{dma::DmaStats, virtio::DiskStats},
    memory::SlotInfo,
    run::{Vm, VmState},
    vcpu::{State, Translation},
};

/// Answer of `GET /vm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// Name of the guest.
    pub name: String,
    /// State.
    pub state: VmState,
    /// Process id of its VMM.
    pub pid: u32,
    /// Name of the machine.
    pub machine: String,
    /// Memory slots.
    pub regions: Vec<SlotInfo>,
    /// Guest-physical address of the announced root descriptor.
    pub root_gpa: Option<u64>,
    /// Statistics.
    pub stats: Stats,
}

/// Answer of `GET /vm/memory`; the descriptors come in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// Memory slots.
    pub regions: Vec<SlotInfo>,
}

/// Answer of `GET /vm/registers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersInfo {
    /// By CPU index.
    pub cpus: Vec<CpuRegisters>,
}

/// Answer of `GET /vm/stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Time since the guest was built, microseconds.
    pub uptime_us: u64,
    /// By CPU index.
    pub vcpus: Vec<VcpuStats>,
    /// Port and MMIO accesses that no device answered.
    pub unclaimed_accesses: u64,
    /// Disks, in the order of their slots.
    #[serde(default)]
    pub disks: Vec<DiskStats>,
    /// DMA engines, in the order of their slots, which are behind the disks'.
    #[serde(default)]
    pub dma: Vec<DmaStats>,
    /// KVM's own counters: of the VM (`pages_4k`, `mmu_*`, ...), and sums over the vCPUs (`exits`,
    /// `insn_emulation`, ...); empty where KVM has none.
    #[serde(default)]
    pub kvm: BTreeMap<String, u64>,
}

impl Stats {
    /// Statistics of a guest as it is now.
    pub fn of(vm: &Vm) -> Stats {
        let vcpus = vm.vcpus().iter().map(|vcpu| {
            let exits =
                vcpu.exits().list().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
            VcpuStats { index: vcpu.index(), state: vcpu.state(), exits }
        });
        Stats {
            uptime_us: u64::try_from(vm.uptime().as_micros()).unwrap_or(u64::MAX),
            vcpus: vcpus.collect(),
            unclaimed_accesses: vm.unclaimed_accesses(),
            disks: vm.disks().iter().map(|disk| disk.stats()).collect(),
            dma: vm.dma_engines().iter().map(|engine| engine.stats()).collect(),
            kvm: vm.kvm_stats(),
        }
    }
}

/// Statistics of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// CPU index.
    pub index: u32,
    /// State.
    pub state: State,
    /// Exits by reason.
    pub exits: BTreeMap<String, u64>,
}

/// Body of `POST /vm/translate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranslateRequest {
    /// CPU whose page tables are used.
    #[serde(default)]
    pub vcpu: u32,
    /// Guest virtual addresses, at most [`TRANSLATE_MAX`].
    pub vas: Vec<u64>,
}

/// Answer of `POST /vm/translate`, in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranslateAnswer {
    /// KVM's answers.
    pub translations: Vec<Translation>,
}

/// Most addresses in one request.
pub const TRANSLATE_MAX: usize = 100_000;

/// Answer of pause, resume and shutdown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateInfo {
    /// State after the request.
    pub state: VmState,
}

/// Answer of rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestInfo {
    /// State after the request.
    pub state: VmState,
    /// Who is in the middle of something, although it was tried for long to find the guest otherwise; nobody if it rests. Null if nobody
    /// can say, or the guest did not run before.
    pub busy: Option<Vec<Busy>>,
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// What is wrong.
    pub error: String,
}
