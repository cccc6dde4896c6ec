//! Examinations of a guest that stands at a checkpoint, named in the cases' stanzas.
//!
//! Each is a function from the held guest to an [`Outcome`]; a file each. A probe leaves the guest as it
//! found it.

mod dump;
mod explain;
mod gib_pages;
mod inspect;
mod pcp_pages;
mod proc;
mod proc_format;
mod protocols;
mod random;
mod second_stage;
mod topology;
mod trace;
mod translate;

pub use explain::is_complete as walkthrough_is_complete;
pub use inspect::examine as views_agree;
use memvisor_inspect::{CpuRegisters, Facts, MappedMemory};
use serde::Deserialize;

use super::kvm::HeldVm;
use super::outcome::Outcome;
use super::qmp::Qmp;

/// The probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// Our walk of the guest's page tables says what the VMM says, for 10,000 addresses.
    TranslateAgrees,
    /// The guest's nodes, memory, distances and CPUs are those that were built.
    TopologyEqualsMachine,
    /// A dump holds what the live guest held: the same audit, and gdb opens it.
    DumpRoundtrip,
    /// Every view of the command line works on the live guest, as text and as JSON.
    InspectLive,
    /// Started by the other boot protocol, the guest sees the same machine.
    LinuxAndPvhAgree,
    /// KVM's counts of second-stage pages fit the host's pages behind guest memory.
    SecondStageSizes,
    /// The guest maps its RAM by 1 GiB pages where they fit.
    GibPages,
    /// What the guest prints of /proc's memory files is what the views make of its memory.
    ProcAgrees,
    /// What a program of the guest read in /proc has Linux's lines, and what can be told from outside is so.
    ProcFormat,
    /// Every walkthrough but the long ones has the steps that it is about.
    ExplainComplete,
    /// The same of the long ones.
    ExplainLong,
    /// `inspect page` names the CPU and the list of every page that CPUs keep.
    PcpPages,
    /// Tracing and walkthroughs of guests of their own.
    TraceComplete,
    /// `memvisor inspect` reads a running stock Linux; see [`super::linux`].
    LinuxViews,
    /// A dump of a running stock Linux holds what the running one holds.
    LinuxDump,
}

impl Probe {
    /// The name in the stanza.
    pub const fn name(self) -> &'static str {
        match self {
            Probe::TranslateAgrees => "translate-agrees",
            Probe::TopologyEqualsMachine => "topology-equals-machine",
            Probe::DumpRoundtrip => "dump-roundtrip",
            Probe::InspectLive => "inspect-live",
            Probe::LinuxAndPvhAgree => "linux-and-pvh-agree",
            Probe::SecondStageSizes => "second-stage-sizes",
            Probe::GibPages => "gib-pages",
            Probe::ProcAgrees => "proc-agrees",
            Probe::ProcFormat => "proc-format",
            Probe::ExplainComplete => "explain-complete",
            Probe::ExplainLong => "explain-long",
            Probe::PcpPages => "pcp-pages",
            Probe::TraceComplete => "trace-complete",
            Probe::LinuxViews => "linux-views",
            Probe::LinuxDump => "linux-dump",
        }
    }

    /// Whether it examines a running stock Linux, instead of a guest that stands still.
    pub const fn is_for_linux(self) -> bool {
        matches!(self, Probe::LinuxViews | Probe::LinuxDump)
    }

    /// Examines the guest.
    pub fn run(self, held: &mut Held<'_>) -> Outcome {
        let result = match self {
            Probe::TranslateAgrees => translate::probe(held),
            Probe::TopologyEqualsMachine => topology::probe(held),
            Probe::DumpRoundtrip => dump::probe(held),
            Probe::InspectLive => inspect::probe(held),
            Probe::LinuxAndPvhAgree => protocols::probe(held),
            Probe::SecondStageSizes => second_stage::probe(held),
            Probe::GibPages => gib_pages::probe(held),
            Probe::ProcAgrees => proc::probe(held),
            Probe::ProcFormat => proc_format::probe(held),
            Probe::ExplainComplete => explain::probe(held, false),
            Probe::ExplainLong => explain::probe(held, true),
            Probe::PcpPages => pcp_pages::probe(held),
            Probe::TraceComplete => trace::probe(held),
            // Loaded cases have them for a stock Linux only, which is never held.
            Probe::LinuxViews | Probe::LinuxDump => Err(anyhow::anyhow!("this guest is no stock Linux")),
        };
        result.unwrap_or_else(|error| Outcome::Failed(vec![format!("{error:#}")]))
    }
}

/// A guest that stands still, and the way to its VMM.
#[derive(Debug)]
pub struct Held<'a> {
    /// Its memory.
    pub memory: &'a MappedMemory,
    /// Guest-physical address of its root descriptor.
    pub root_gpa: u64,
    /// Registers of its CPUs.
    pub registers: &'a [CpuRegisters],
    /// What it has printed; of a long text the end.
    pub console: &'a str,
    /// The machine as it was built; without an E820 map where firmware made it.
    pub facts: &'a Facts,
    /// Its VMM.
    pub control: Control<'a>,
}

/// The way to the VMM of a held guest.
#[derive(Debug)]
pub enum Control<'a> {
    /// memvisor.
    Kvm(&'a HeldVm),
    /// QEMU, and the memory files with the guest-physical address of each.
    Qemu(&'a mut Qmp, &'a [(std::path::PathBuf, u64)]),
}
