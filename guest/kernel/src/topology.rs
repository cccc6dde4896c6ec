//! Nodes, CPUs and distances, from ACPI.

use memvisor_abi::{CpuInfo, CpuState, MAX_NUMNODES, NODE_NONE};
use mm_core::PhysAddr;

use crate::acpi::{self, MAX_CPUS, Slit, Srat};
use crate::arch::{percpu, regs};
use crate::mm::early;
use crate::println;
use crate::sync::Lock;

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
pub static SLIT: Lock<Slit> = Lock::new(Slit { distances: [0; MAX_NUMNODES * MAX_NUMNODES], nodes: 1 });
static SRAT: Lock<Srat> =
    Lock::new(Srat { memory: [(0, 0, 0); 256], ranges: 0, cpu: [(0, 0); MAX_CPUS], cpus: 0, nodes: 0 });

/// Reads the tables, gives memblock's memory its nodes, and returns where the local APICs are.
pub fn init(rsdp: u64) -> u64 {
    let tables = acpi::find(rsdp);
    let madt = acpi::madt(tables.madt.as_ref());
    if tables.madt.is_none() {
        println!("ACPI: no MADT: only the boot CPU is used");
    }
    let mut srat = SRAT.lock();
    acpi::srat(tables.srat.as_ref(), &mut srat);
    if tables.hmat.is_some() {
        println!("ACPI: HMAT found");
    }
    place_memory(&mut srat);
    let nodes = srat.nodes.max(1) as usize;
    acpi::slit(tables.slit.as_ref(), nodes, &mut SLIT.lock());
    place_cpus(&madt, &srat);
    madt.apic_base
}

/// Linux's rule (`numa_register_memblks`): RAM that no range covers goes to node 0.
fn place_memory(srat: &mut Srat) {
    let mut memblock = early::MEMBLOCK.lock();
    let everything = !0xfff;
    memblock.set_node(PhysAddr::new(0), everything, 0).expect("memblock is full");
    for &(base, len, node) in &srat.memory[..srat.ranges] {
        if let Err(error) = memblock.set_node(PhysAddr::new(base), len, node) {
            println!("SRAT: node {node}: [mem {base:#x}+{len:#x}]: {error}");
        }
    }
    srat.nodes = srat.nodes.max(1);
}

fn place_cpus(madt: &acpi::Madt, srat: &Srat) {
    // CPUID leaf 1 names the local APIC id of the CPU that asks.
    let boot_id = regs::cpuid(1, 0)[1] >> 24;
    let mut cpus = CPUS.lock();
    let others = madt.apic_ids[..madt.count].iter().copied().filter(|&id| id != boot_id);
    let mut count = 0;
    for apic_id in core::iter::once(boot_id).chain(others).take(MAX_CPUS) {
        let node = match srat.node_of_cpu(apic_id) {
            NODE_NONE => 0,
            node => node,
        };
        cpus.table[count] = CpuInfo { apic_id, node, state: CpuState::Present as u32, ..NO_CPU };
        count += 1;
    }
    cpus.count = count;
}

/// Nodes, those without memory and without CPUs included.
pub fn nr_nodes() -> usize {
    SLIT.lock().nodes
}

/// CPUs of a node.
pub fn cpus_of(node: u32) -> usize {
    let cpus = CPUS.lock();
    cpus.table[..cpus.count].iter().filter(|cpu| cpu.node == node).count()
}

/// The node of the CPU that asks.
pub fn current_node() -> u32 {
    CPUS.lock().table[percpu::cpu() as usize].node
}

/// Calls `f` with the distances, row by row.
pub fn with_distances<T>(f: impl FnOnce(&[u8]) -> T) -> T {
    let slit = SLIT.lock();
    f(&slit.distances[..slit.nodes * slit.nodes])
}

/// Prints nodes with CPUs and distances.
pub fn print() {
    let nodes = nr_nodes();
    let cpus = CPUS.lock();
    for node in 0..u32::try_from(nodes).unwrap_or(0) {
        crate::print!("NUMA: node {node} cpus:");
        for (cpu, info) in cpus.table[..cpus.count].iter().enumerate() {
            if info.node == node {
                crate::print!(" {cpu}");
            }
        }
        crate::print!("  distances:");
        with_distances(|distances| {
            for distance in &distances[node as usize * nodes..][..nodes] {
                crate::print!(" {distance}");
            }
        });
        println!();
    }
}
