//! From a machine file and the command line to a checked [`Machine`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memvisor_inspect::FactE820;

use super::draft::{self, Draft, DraftDistance};
use super::error::Origin;
use super::file::{E820Mode, HmatSpec, MachineFile, Source};
use super::place::{self, Entry};
use super::{
    Cpu, Dma, Hmat, HmatKind, HmatMatrix, Machine, MachineError, Node, Overrides, Paging, Problem, Range,
    disk, flags, layout,
};

/// Distance between two nodes for which none is given (Linux: `REMOTE_DISTANCE`).
const REMOTE_DISTANCE: u8 = 20;
/// Distance of a node to itself (Linux: `LOCAL_DISTANCE`).
const LOCAL_DISTANCE: u8 = 10;

/// Checks a machine file together with what the command line changes, and works out the machine.
///
/// # Errors
/// [`MachineError::Invalid`] with the line or flag that is wrong, and what would be right.
pub fn resolve(file: MachineFile, overrides: &Overrides) -> Result<Machine, MachineError> {
    let draft = Draft::new(&file, overrides)?;
    let paging = overrides.paging.unwrap_or(file.spec.boot.paging);
    let bits = match paging {
        Paging::Five => layout::PHYS_BITS_5_LEVEL,
        Paging::Four | Paging::Auto => layout::PHYS_BITS_4_LEVEL,
    };
    check_nodes(&draft)?;
    let cpus = resolve_cpus(&draft)?;
    let distances = resolve_distances(&draft)?;
    let placed = place::place(&draft, bits)?;
    let entries = e820_entries(&file, &placed)?;
    let memory = place::node_memory(draft.nodes.len(), &placed, &entries, bits)?;
    let backed = place::backed(&draft, &placed)?;
    let nodes = nodes(&draft, memory, &cpus);
    let hmat = if draft.in_file { resolve_hmat(&file, &nodes)? } else { None };
    let name = machine_name(&file)?;
    Ok(Machine {
        description: file.spec.machine.description.clone(),
        vm_name: vm_name(overrides, &name)?,
        name,
        e820: entries.into_iter().map(|entry| entry.fact).collect(),
        nodes,
        cpus,
        backed,
        distances,
        hmat,
        paging,
        boot: overrides.boot.unwrap_or(file.spec.boot.protocol),
        kernel: path(&file.source, overrides.kernel.as_deref(), file.spec.boot.kernel.as_deref()),
        initrd: path(&file.source, overrides.initrd.as_deref(), file.spec.boot.initrd.as_deref()),
        cmdline: cmdline(&file, overrides)?,
        disks: disk::resolve(&file, overrides)?,
        dma: dma_engines(&file)?,
    })
}

/// The DMA engines of the file.
fn dma_engines(file: &MachineFile) -> Result<Vec<Dma>, MachineError> {
    let mut engines = Vec::new();
    for (index, spec) in file.spec.dma.iter().enumerate() {
        let address_bits = spec.get_ref().address_bits;
        let problem = if index >= layout::MAX_DMA_ENGINES {
            Some(Problem::TooManyDmaEngines)
        } else if !matches!(address_bits, 24 | 32 | 64) {
            let text = address_bits.to_string();
            Some(Problem::BadValue { text, what: "address bits of a DMA engine: 24, 32 or 64" })
        } else {
            None
        };
        if let Some(problem) = problem {
            let origin = file.source.origin(spec.span().start, format!("dma[{index}]"));
            return Err(MachineError::at(&origin, problem));
        }
        engines.push(Dma { address_bits });
    }
    Ok(engines)
}

fn check_nodes(draft: &Draft) -> Result<(), MachineError> {
    if draft.nodes.is_empty() {
        return Err(MachineError::at(&draft.origin, Problem::NoNodes));
    }
    if let Some(node) = draft.nodes.get(layout::MAX_NODES) {
        return Err(MachineError::at(&node.origin, Problem::TooManyNodes { count: draft.nodes.len() }));
    }
    let empty = draft.nodes.iter().find(|node| node.memory.is_empty() && node.cpus.is_empty());
    empty.map_or(Ok(()), |node| Err(MachineError::at(&node.origin, Problem::EmptyNode)))
}

/// Node numbers fit: there are at most [`layout::MAX_NODES`].
fn node_id(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn resolve_cpus(draft: &Draft) -> Result<Vec<Cpu>, MachineError> {
    let mut seen: BTreeMap<u32, (usize, &Origin)> = BTreeMap::new();
    for (node, drafted) in draft.nodes.iter().enumerate() {
        for (cpu, origin) in &drafted.cpus {
            if let Some((node, _)) = seen.insert(*cpu, (node, origin)) {
                return Err(MachineError::at(origin, Problem::CpuTwice { cpu: *cpu, node }));
            }
        }
    }
    if seen.is_empty() {
        return Err(MachineError::at(&draft.origin, Problem::NoCpus));
    }
    let mut cpus = Vec::new();
    for (index, (cpu, (node, origin))) in (0..).zip(seen) {
        if index != cpu {
            return Err(MachineError::at(origin, Problem::CpuInNoNode { missing: index, present: cpu }));
        }
        cpus.push(Cpu { index, apic_id: index, node: node_id(node) });
    }
    Ok(cpus)
}

/// The square matrix of distances. One given direction counts for both.
fn resolve_distances(draft: &Draft) -> Result<Vec<Vec<u8>>, MachineError> {
    let count = draft.nodes.len();
    let mut given: BTreeMap<(usize, usize), u8> = BTreeMap::new();
    for (from, node) in draft.nodes.iter().enumerate() {
        for drafted in &node.distances {
            let Some((to, distance)) = check_distance(from, drafted, count)? else { continue };
            if given.insert((from, to), distance).is_some() {
                return Err(MachineError::at(&drafted.origin, Problem::DuplicateKey(to.to_string())));
            }
            if let Some(back) = given.get(&(to, from)).copied()
                && back != distance
                && !draft.asymmetric
            {
                let problem = Problem::Asymmetric { from, to, distance, back, in_file: draft.in_file };
                return Err(MachineError::at(&drafted.origin, problem));
            }
        }
    }
    let distance = |from: usize, to: usize| match given.get(&(from, to)).or_else(|| given.get(&(to, from))) {
        Some(distance) => *distance,
        None if from == to => LOCAL_DISTANCE,
        None => REMOTE_DISTANCE,
    };
    Ok((0..count).map(|from| (0..count).map(|to| distance(from, to)).collect()).collect())
}

/// A distance to another node, or `None` for the node's own, which is only confirmed.
fn check_distance(
    from: usize,
    drafted: &DraftDistance,
    count: usize,
) -> Result<Option<(usize, u8)>, MachineError> {
    let DraftDistance { to, distance, ref origin } = *drafted;
    let target = usize::try_from(to).unwrap_or(usize::MAX);
    if target >= count {
        return Err(MachineError::at(
            origin,
            Problem::NoSuchNode { node: to, last: count.saturating_sub(1) },
        ));
    }
    if target == from {
        return match distance {
            10 => Ok(None),
            _ => Err(MachineError::at(origin, Problem::SelfDistance { from, distance })),
        };
    }
    match u8::try_from(distance) {
        Ok(short) if short > LOCAL_DISTANCE => Ok(Some((target, short))),
        _ => Err(MachineError::at(origin, Problem::DistanceRange { from, to, distance })),
    }
}

fn e820_entries(file: &MachineFile, placed: &[place::Placed]) -> Result<Vec<Entry>, MachineError> {
    let (mode, origin) = draft::e820_mode(file);
    let extra = extra_entries(file)?;
    let entries = match mode {
        E820Mode::Replace if extra.is_empty() => {
            return Err(MachineError::at(&origin, Problem::NothingToReplaceWith));
        }
        E820Mode::Replace => extra,
        E820Mode::Append => place::pc_map(placed)?.into_iter().chain(extra).collect(),
        E820Mode::Prepend => extra.into_iter().chain(place::pc_map(placed)?).collect(),
    };
    match entries.len() {
        count if count > layout::E820_MAX_ENTRIES => {
            Err(MachineError::at(&origin, Problem::TooManyEntries { count: count as u64 }))
        }
        _ => Ok(entries),
    }
}

fn extra_entries(file: &MachineFile) -> Result<Vec<Entry>, MachineError> {
    let mut entries = Vec::new();
    let mut count = 0;
    for (index, spanned) in file.spec.e820.iter().enumerate() {
        let origin = file.source.origin(spanned.span().start, format!("e820[{index}]"));
        let spec = spanned.get_ref();
        let repeat = spec.repeat.as_ref().map_or(1, |repeat| *repeat.get_ref());
        if repeat == 0 {
            let problem =
                Problem::BadValue { text: "repeat = 0".to_owned(), what: "a number of entries from 1 on" };
            return Err(MachineError::at(&origin, problem));
        }
        count += u64::from(repeat);
        if count > layout::E820_MAX_ENTRIES as u64 {
            return Err(MachineError::at(&origin, Problem::TooManyEntries { count }));
        }
        let stride = spec.stride.unwrap_or(spec.size);
        for step in 0..u64::from(repeat) {
            let addr =
                stride.bytes().checked_mul(step).and_then(|offset| spec.at.bytes().checked_add(offset));
            let Some(addr) = addr else {
                return Err(MachineError::at(&origin, Problem::Wraps { base: spec.at.bytes(), len: stride }));
            };
            let fact = FactE820 { addr, size: spec.size.bytes(), kind: spec.kind.0 };
            entries.push(Entry { fact, origin: origin.clone() });
        }
    }
    Ok(entries)
}

fn nodes(draft: &Draft, memory: Vec<Vec<Range>>, cpus: &[Cpu]) -> Vec<Node> {
    let cpus_of = |id| cpus.iter().filter(|cpu| cpu.node == id).map(|cpu| cpu.index).collect();
    memory
        .into_iter()
        .zip(&draft.nodes)
        .enumerate()
        .map(|(index, (memory, drafted))| Node {
            id: node_id(index),
            memory,
            cpus: cpus_of(node_id(index)),
            backing: drafted.backing,
        })
        .collect()
}

fn resolve_hmat(file: &MachineFile, nodes: &[Node]) -> Result<Option<Hmat>, MachineError> {
    let Some(spanned) = &file.spec.hmat else { return Ok(None) };
    let HmatSpec {
        latency_ns,
        read_latency_ns,
        write_latency_ns,
        bandwidth_mbps,
        read_bandwidth_mbps,
        write_bandwidth_mbps,
    } = spanned.get_ref();
    let given = [
        (HmatKind::AccessLatency, "hmat.latency_ns", latency_ns),
        (HmatKind::ReadLatency, "hmat.read_latency_ns", read_latency_ns),
        (HmatKind::WriteLatency, "hmat.write_latency_ns", write_latency_ns),
        (HmatKind::AccessBandwidth, "hmat.bandwidth_mbps", bandwidth_mbps),
        (HmatKind::ReadBandwidth, "hmat.read_bandwidth_mbps", read_bandwidth_mbps),
        (HmatKind::WriteBandwidth, "hmat.write_bandwidth_mbps", write_bandwidth_mbps),
    ];
    let mut hmat = Hmat {
        initiators: nodes.iter().filter(|node| !node.cpus.is_empty()).map(|node| node.id).collect(),
        targets: nodes.iter().filter(|node| !node.memory.is_empty()).map(|node| node.id).collect(),
        matrices: Vec::new(),
    };
    for (kind, field, rows) in given {
        let Some(rows) = rows else { continue };
        let origin = file.source.origin(rows.span().start, field);
        let matrix =
            hmat_matrix(kind, rows.get_ref(), &hmat).map_err(|problem| MachineError::at(&origin, problem))?;
        hmat.matrices.push(matrix);
    }
    match hmat.matrices.is_empty() {
        true => Err(MachineError::at(&file.source.origin(spanned.span().start, "hmat"), Problem::HmatEmpty)),
        false => Ok(Some(hmat)),
    }
}

fn hmat_matrix(kind: HmatKind, rows: &[Vec<i64>], hmat: &Hmat) -> Result<HmatMatrix, Problem> {
    if rows.len() != hmat.initiators.len() {
        return Err(Problem::HmatRows { found: rows.len(), initiators: hmat.initiators.clone() });
    }
    let max = kind.largest_figure();
    let mut figures = Vec::new();
    for (row, given) in rows.iter().enumerate() {
        if given.len() != hmat.targets.len() {
            let targets = hmat.targets.clone();
            return Err(Problem::HmatColumns { row, found: given.len(), targets });
        }
        let checked: Result<Vec<u32>, Problem> = given
            .iter()
            .map(|figure| match u32::try_from(*figure) {
                Ok(short) if (1..=max).contains(&short) => Ok(short),
                _ => Err(Problem::HmatFigure { figure: *figure, row, max }),
            })
            .collect();
        figures.push(checked?);
    }
    let matrix = HmatMatrix { kind, figures };
    let (unit, largest) = (matrix.unit(), matrix.figures.iter().flatten().copied().max().unwrap_or(0));
    match u64::from(largest) / unit.max(1) < u64::from(HmatMatrix::UNREACHABLE) {
        true => Ok(matrix),
        false => Err(Problem::HmatUnit { unit, largest }),
    }
}

fn machine_name(file: &MachineFile) -> Result<String, MachineError> {
    match &file.spec.machine.name {
        Some(name) if is_name(name.get_ref()) => Ok(name.get_ref().clone()),
        Some(name) => {
            let origin = file.source.origin(name.span().start, "machine.name");
            Err(MachineError::at(&origin, Problem::BadName(name.get_ref().clone())))
        }
        // A file may be called anything; its name only labels what it describes.
        None => {
            let plain = |letter: char| if is_name_letter(letter) { letter } else { '-' };
            let name: String = file.source.stem.chars().map(plain).take(NAME_MAX).collect();
            Ok(if is_name(&name) { name } else { "machine".to_owned() })
        }
    }
}

fn vm_name(overrides: &Overrides, machine: &str) -> Result<String, MachineError> {
    match &overrides.name {
        None => Ok(machine.to_owned()),
        Some(name) if is_name(name) => Ok(name.clone()),
        Some(name) => Err(MachineError::at(&flags::origin("--name", ""), Problem::BadName(name.clone()))),
    }
}

/// Longest name: it becomes that of a socket, which has 48 bytes, and may get a number appended.
pub(super) const NAME_MAX: usize = 44;

fn is_name_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-')
}

pub(super) fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(is_name_letter)
}

/// The flag's path as it is, or the file's, relative to the machine file.
pub(super) fn path(source: &Source, flag: Option<&Path>, file: Option<&Path>) -> Option<PathBuf> {
    flag.map(Path::to_owned).or_else(|| {
        let file = file?;
        Some(source.directory.as_ref().map_or_else(|| file.to_owned(), |directory| directory.join(file)))
    })
}

fn cmdline(file: &MachineFile, overrides: &Overrides) -> Result<String, MachineError> {
    let check = |text: &str, origin: Origin| match text.chars().find(|letter| letter.is_control()) {
        Some(letter) => Err(MachineError::at(&origin, Problem::CmdlineControl(letter))),
        None if text.len() as u64 > layout::CMDLINE_MAX => {
            Err(MachineError::at(&origin, Problem::CmdlineTooLong { len: text.len() }))
        }
        None => Ok(()),
    };
    let mut cmdline = String::new();
    if let Some(text) = &file.spec.boot.cmdline {
        check(text.get_ref(), file.source.origin(text.span().start, "boot.cmdline"))?;
        cmdline.push_str(text.get_ref());
    }
    if let Some(text) = &overrides.cmdline {
        if !cmdline.is_empty() && !text.is_empty() {
            cmdline.push(' ');
        }
        cmdline.push_str(text);
        check(&cmdline, flags::origin("--cmdline", ""))?;
    }
    Ok(cmdline)
}
