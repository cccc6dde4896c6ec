//! Nodes, CPUs and distances, from ACPI.

use core::sync::atomic::Ordering;

use guest_firmware::acpi::{MAX_CPUS, Madt, PowerOff, Slit, Srat, Tables};
use memvisor_abi::{CpuInfo, CpuState};
use mm_core::PhysAddr;

use crate::arch::{percpu, regs};
use crate::init::say;
use crate::mm::early;
use crate::mm::phys::DirectMap;
use crate::sync::Lock;
use crate::{pr_info, pr_warn};

const NO_CPU: CpuInfo = CpuInfo { apic_id: 0, node: 0, state: 0, reserved: 0, percpu_gpa: 0, percpu_len: 0 };

/// CPUs; the boot CPU is number 0.
pub struct Cpus {
    /// One entry a CPU.
    pub table: [CpuInfo; MAX_CPUS],
    /// CPUs.
    pub count: usize,
}

/// CPUs in the order of the MADT, the boot CPU first.
pub static CPUS: Lock<Cpus> = Lock::new(Cpus { table: [NO_CPU; MAX_CPUS], count: 0 });
/// Distances between nodes.
pub static SLIT: Lock<Slit> = Lock::new(Slit::new());
static SRAT: Lock<Srat> = Lock::new(Srat::new());
static POWER_OFF: Lock<Option<PowerOff>> = Lock::new(None);

/// How to reach S5; `None` if the tables do not say.
pub fn power_off_method() -> Option<PowerOff> {
    *POWER_OFF.lock()
}

/// Reads the tables, gives memblock's memory its nodes, and returns where the local APICs are.
pub fn init(rsdp: u64) -> u64 {
    let tables = Tables::find(&DirectMap, rsdp, &mut say);
    *POWER_OFF.lock() = tables.power_off;
    let madt = Madt::read(tables.madt.as_ref(), &mut say);
    if madt.apic_ids().is_empty() {
        pr_warn!("ACPI: no CPUs in a MADT: only the boot CPU is used");
    }
    let mut srat = SRAT.lock();
    if let Some(table) = &tables.srat {
        srat.read(table, &mut say);
    }
    if tables.hmat.is_some() {
        pr_info!("ACPI: HMAT found");
    }
    place_memory(&srat);
    SLIT.lock().read(tables.slit.as_ref(), srat.nodes().max(1) as usize, &mut say);
    place_cpus(&madt, &srat);
    madt.apic_base
}

/// Linux's rule (`numa_register_memblks`): RAM that no range covers goes to node 0.
fn place_memory(srat: &Srat) {
    let mut memblock = early::MEMBLOCK.lock();
    memblock.set_node(PhysAddr::new(0), !0xfff, 0).expect("memblock is full");
    for &(base, len, node) in srat.memory() {
        if let Err(error) = memblock.set_node(PhysAddr::new(base), len, node) {
            pr_warn!("SRAT: node {node}: [mem {base:#x}+{len:#x}]: {error}");
        }
    }
}

fn place_cpus(madt: &Madt, srat: &Srat) {
    // CPUID leaf 1 names the local APIC id of the CPU that asks.
    let boot_id = regs::cpuid(1, 0)[1] >> 24;
    let others = madt.apic_ids().iter().copied().filter(|&id| id != boot_id);
    let mut cpus = CPUS.lock();
    cpus.count = 0;
    for apic_id in core::iter::once(boot_id).chain(others).take(MAX_CPUS) {
        let node = srat.node_of_cpu(apic_id).unwrap_or(0);
        let number = cpus.count;
        cpus.table[number] = CpuInfo { apic_id, node, state: CpuState::Present as u32, ..NO_CPU };
        cpus.count += 1;
    }
}

/// Nodes, those without memory and without CPUs included.
pub fn nr_nodes() -> usize {
    SLIT.lock().nodes()
}

/// CPUs of a node.
pub fn cpus_of(node: u32) -> usize {
    let cpus = CPUS.lock();
    cpus.table[..cpus.count].iter().filter(|cpu| cpu.node == node).count()
}

/// The node of the CPU that asks.
pub fn current_node() -> u32 {
    match percpu::current() {
        Some(percpu) => percpu.node.load(Ordering::Relaxed),
        None => CPUS.lock().table[0].node,
    }
}

/// Calls `f` with the distances, row by row.
pub fn with_distances<T>(f: impl FnOnce(&[u8]) -> T) -> T {
    f(SLIT.lock().distances())
}

/// Prints nodes with CPUs and distances.
pub fn print() {
    let nodes = nr_nodes();
    let cpus = CPUS.lock();
    for node in 0..u32::try_from(nodes).unwrap_or(0) {
        crate::printk!(Info, "NUMA: node {node} cpus:");
        for (cpu, info) in cpus.table[..cpus.count].iter().enumerate() {
            if info.node == node {
                crate::printk!(Info, " {cpu}");
            }
        }
        crate::printk!(Info, "  distances:");
        with_distances(|distances| {
            for distance in &distances[node as usize * nodes..][..nodes] {
                crate::printk!(Info, " {distance}");
            }
        });
        pr_info!("");
    }
}
