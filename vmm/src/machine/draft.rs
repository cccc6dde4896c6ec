//! A machine before it is checked: the file's values, changed by the command line, each with the
//! place it came from.

use super::error::Origin;
use super::file::{E820Mode, MachineFile, NodeSpec, Source};
use super::flags::{self, Numa, Zone};
use super::{Backing, MachineError, Overrides, Place, Problem, Size, layout};

/// Nodes in order of their ids, and what places them.
#[derive(Debug)]
pub(super) struct Draft {
    pub nodes: Vec<DraftNode>,
    /// Where to blame the machine as a whole.
    pub origin: Origin,
    /// Whether distances may depend on the direction.
    pub asymmetric: bool,
    /// Whether the nodes are the file's.
    pub in_file: bool,
}

#[derive(Debug)]
pub(super) struct DraftNode {
    pub memory: Vec<DraftMemory>,
    pub cpus: Vec<(u32, Origin)>,
    pub distances: Vec<DraftDistance>,
    pub backing: Option<Backing>,
    pub origin: Origin,
}

#[derive(Debug)]
pub(super) struct DraftMemory {
    /// Where it must be; `None` fills the lowest free addresses.
    pub at: Option<u64>,
    pub size: u64,
    pub origin: Origin,
}

#[derive(Debug)]
pub(super) struct DraftDistance {
    pub to: u32,
    pub distance: i64,
    pub origin: Origin,
}

impl Draft {
    /// The nodes of `file` with `overrides` applied.
    pub(super) fn new(file: &MachineFile, overrides: &Overrides) -> Result<Draft, MachineError> {
        let source = &file.source;
        let mut draft = Draft {
            nodes: Vec::new(),
            origin: source.origin(0, ""),
            asymmetric: file.spec.machine.asymmetric,
            in_file: true,
        };
        if overrides.memory_zone.is_empty() && overrides.numa.is_empty() {
            for (index, node) in file.spec.node.iter().enumerate() {
                let origin = source.origin(node.span().start, format!("node[{index}]"));
                draft.nodes.push(node_of_file(source, index, node.get_ref(), origin)?);
            }
        } else {
            draft.in_file = false;
            draft.asymmetric = false;
            draft.nodes = nodes_of_flags(file, overrides)?;
        }
        for node in &mut draft.nodes {
            node.backing = overrides.backing.or(node.backing).or(file.spec.machine.backing);
        }
        if let Some(total) = overrides.memory {
            draft.scale(total)?;
        }
        if let Some(count) = overrides.cpus {
            draft.set_cpus(count)?;
        }
        Ok(draft)
    }

    /// Scales every range so that the sizes add up to `total`, in whole frames. What rounding leaves
    /// over goes to the largest range.
    fn scale(&mut self, total: Size) -> Result<(), MachineError> {
        let flag = flags::origin("--memory", "");
        if !total.bytes().is_multiple_of(layout::PAGE_SIZE) {
            return Err(MachineError::at(&flag, Problem::NotPages(total)));
        }
        let mut ranges: Vec<&mut DraftMemory> =
            self.nodes.iter_mut().flat_map(|node| &mut node.memory).collect();
        let old: u128 = ranges.iter().map(|range| u128::from(range.size)).sum();
        if old == 0 {
            return Err(MachineError::at(&self.origin, Problem::NoMemory));
        }
        let page = u128::from(layout::PAGE_SIZE);
        let mut left = total.bytes();
        for range in &mut ranges {
            let scaled = u128::from(range.size) * u128::from(total.bytes()) / old / page * page;
            // Not more than `total`: `range.size` is a part of `old`.
            range.size = u64::try_from(scaled).unwrap_or(total.bytes());
            left = left.saturating_sub(range.size);
            range.origin = flags::origin("--memory", &range.origin.field);
        }
        if let Some(largest) = ranges.iter_mut().rev().max_by_key(|range| range.size) {
            largest.size += left;
        }
        if ranges.iter().any(|range| range.size == 0) {
            return Err(MachineError::at(&flag, Problem::ScaledToNothing { total, ranges: ranges.len() }));
        }
        Ok(())
    }

    /// Drops CPUs from `count` on; adds missing ones to the nodes that have CPUs, in turn.
    fn set_cpus(&mut self, count: u32) -> Result<(), MachineError> {
        let origin = flags::origin("--cpus", "");
        if count == 0 {
            return Err(MachineError::at(&origin, Problem::NoCpus));
        }
        if count > layout::MAX_CPUS {
            return Err(MachineError::at(&origin, Problem::TooManyCpus { count: count.into() }));
        }
        let mut hosts: Vec<usize> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| !node.cpus.is_empty())
            .map(|(index, _)| index)
            .collect();
        if hosts.is_empty() {
            hosts = (0..self.nodes.len()).collect();
        }
        let present: Vec<u32> =
            self.nodes.iter().flat_map(|node| node.cpus.iter().map(|(cpu, _)| *cpu)).collect();
        for node in &mut self.nodes {
            node.cpus.retain(|(cpu, _)| *cpu < count);
        }
        let missing = (0..count).filter(|cpu| !present.contains(cpu));
        for (cpu, host) in missing.zip(hosts.into_iter().cycle()) {
            if let Some(node) = self.nodes.get_mut(host) {
                node.cpus.push((cpu, origin.clone()));
            }
        }
        Ok(())
    }
}

fn node_of_file(
    source: &Source,
    index: usize,
    node: &NodeSpec,
    origin: Origin,
) -> Result<DraftNode, MachineError> {
    let field = |name: &str| format!("node[{index}].{name}");
    let memory = node.memory.iter().enumerate().map(|(at, memory)| DraftMemory {
        at: memory.get_ref().at.map(Size::bytes),
        size: memory.get_ref().size.bytes(),
        origin: source.origin(memory.span().start, field(&format!("memory[{at}]"))),
    });
    let mut cpus = Vec::new();
    for (at, cpu) in node.cpus.iter().enumerate() {
        let origin = source.origin(cpu.span().start, field(&format!("cpus[{at}]")));
        cpus.push((cpu_number(*cpu.get_ref(), &origin)?, origin));
    }
    let mut distances = Vec::new();
    for (to, distance) in &node.distances {
        let origin = source.origin(distance.span().start, field(&format!("distances.{to}")));
        let to = to.parse().map_err(|_| {
            MachineError::at(&origin, Problem::BadValue { text: to.clone(), what: "the number of a node" })
        })?;
        distances.push(DraftDistance { to, distance: *distance.get_ref(), origin });
    }
    Ok(DraftNode { memory: memory.collect(), cpus, distances, backing: node.backing, origin })
}

fn cpu_number(number: i64, origin: &Origin) -> Result<u32, MachineError> {
    let valid = u32::try_from(number).ok().filter(|cpu| *cpu < layout::MAX_CPUS);
    valid.ok_or_else(|| MachineError::at(origin, Problem::CpuNumber(number)))
}

/// The nodes that `--memory-zone` and `--numa` describe. Without `--numa`, all zones and the file's
/// CPUs make one node.
fn nodes_of_flags(file: &MachineFile, overrides: &Overrides) -> Result<Vec<DraftNode>, MachineError> {
    if overrides.memory.is_some() {
        return Err(MachineError::at(&flags::origin("--memory", ""), Problem::MemoryAndZones));
    }
    let zones = flags::zones(&overrides.memory_zone)?;
    if overrides.numa.is_empty() {
        let mut cpus = Vec::new();
        for cpu in file.spec.node.iter().flat_map(|node| &node.get_ref().cpus) {
            let origin = file.source.origin(cpu.span().start, "cpus");
            cpus.push((cpu_number(*cpu.get_ref(), &origin)?, origin));
        }
        return Ok(vec![DraftNode {
            memory: zones.iter().map(memory_of_zone).collect(),
            cpus,
            distances: Vec::new(),
            backing: None,
            origin: flags::origin("--memory-zone", ""),
        }]);
    }
    let nodes = flags::numa(&overrides.numa, &zones)?;
    Ok(nodes.into_iter().map(|node| node_of_numa(node, &zones)).collect())
}

fn memory_of_zone(zone: &Zone) -> DraftMemory {
    DraftMemory { at: zone.at, size: zone.size, origin: flags::origin("--memory-zone", &zone.id) }
}

fn node_of_numa(numa: Numa, zones: &[Zone]) -> DraftNode {
    let origin = flags::origin("--numa", &format!("guest_numa_id={}", numa.id));
    DraftNode {
        memory: numa.zones.iter().filter_map(|index| zones.get(*index)).map(memory_of_zone).collect(),
        cpus: numa.cpus.into_iter().map(|cpu| (cpu, origin.clone())).collect(),
        distances: numa
            .distances
            .into_iter()
            .map(|(to, distance)| DraftDistance { to, distance, origin: origin.clone() })
            .collect(),
        backing: None,
        origin,
    }
}

/// How the file's `[[e820]]` joins the derived map, with the place of the choice.
pub(super) fn e820_mode(file: &MachineFile) -> (E820Mode, Origin) {
    match &file.spec.machine.e820 {
        Some(mode) => (*mode.get_ref(), file.source.origin(mode.span().start, "machine.e820")),
        None => (
            E820Mode::default(),
            Origin { place: Place::Line { file: file.source.file.clone(), line: 1 }, field: String::new() },
        ),
    }
}
