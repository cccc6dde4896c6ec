//! The shape of a machine: what a machine file says about memory and CPUs, and the file itself.

use std::fmt::Write;

use memvisor_inspect::FactE820;

use crate::machine::{Backing, Boot, Hmat, HmatKind, Machine, Paging, Range, Size, e820, layout};

/// Memory, nodes, CPUs and distances of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The E820 map in the order in which firmware gives it.
    pub e820: Vec<FactE820>,
    /// Nodes by number.
    pub nodes: Vec<Node>,
    /// Distances, one row a node; empty if they are not known.
    pub distances: Vec<Vec<u8>>,
    /// Figures between nodes.
    pub hmat: Option<Hmat>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Addresses whose RAM is the node's, ascending.
    pub spans: Vec<Range>,
    /// Its CPUs.
    pub cpus: Vec<u32>,
    /// What the host backs its RAM with.
    pub backing: Option<Backing>,
}

impl Shape {
    /// The shape of a machine that resolved.
    pub fn of(machine: &Machine) -> Shape {
        Shape {
            e820: machine.e820.clone(),
            nodes: machine
                .nodes
                .iter()
                .map(|node| Node {
                    spans: node.memory.clone(),
                    cpus: node.cpus.clone(),
                    backing: node.backing,
                })
                .collect(),
            distances: machine.distances.clone(),
            hmat: machine.hmat.clone(),
        }
    }

    /// Whether a range of a node cannot go on from `end` to `next`.
    pub(super) fn parts(end: u64, next: u64) -> bool {
        let hole = Range::new(layout::MMIO_HOLE_START, layout::MMIO_HOLE_END);
        !Range::new(end, next).intersection(&hole).is_empty()
    }

    /// "2 nodes, 88 CPUs, ~63.90 GiB", and `more`.
    pub(super) fn describe(&self, more: &str) -> String {
        let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let cpus = self.nodes.iter().map(|node| node.cpus.len()).sum();
        let ram: u64 = e820::resolve(&self.e820)
            .iter()
            .filter(|entry| entry.kind == e820::RAM)
            .map(|entry| entry.size)
            .sum();
        let (unit, shift) = if ram < 1 << 30 { ("MiB", 20) } else { ("GiB", 30) };
        let tenths = ((u128::from(ram) * 10) >> shift).to_string();
        let (whole, tenth) = tenths.split_at(tenths.len().saturating_sub(1));
        let whole = if whole.is_empty() { "0" } else { whole };
        format!("{}, {}, {whole}.{tenth} {unit}{more}", count(self.nodes.len(), "node"), count(cpus, "CPU"))
    }

    /// The machine file. `head` becomes a comment; `like` gives name, boot and command line.
    pub(super) fn to_toml(&self, head: &str, description: &str, like: Option<&Machine>) -> String {
        let mut text = String::new();
        for line in head.lines() {
            push(&mut text, format_args!("# {}\n", line.replace(|letter: char| letter.is_control(), " ")));
        }
        text.push_str("[machine]\n");
        if let Some(machine) = like {
            push(&mut text, format_args!("name = {}\n", quoted(&machine.name)));
        }
        push(&mut text, format_args!("description = {}\n", quoted(description)));
        let cell = |from: usize, to: usize| self.distances.get(from).and_then(|row| row.get(to)).copied();
        let nodes = 0..self.nodes.len();
        let asymmetric = nodes.clone().any(|from| nodes.clone().any(|to| cell(from, to) != cell(to, from)));
        if asymmetric {
            text.push_str("asymmetric = true\n");
        }
        text.push_str("e820 = \"replace\"\n");
        for (from, node) in self.nodes.iter().enumerate() {
            text.push_str("\n[[node]]\n");
            let spans: Vec<String> = paged(&node.spans)
                .iter()
                .map(|span| format!("{{ at = {}, size = {} }}", address(span.base), size(span.len)))
                .collect();
            list(&mut text, "memory", &spans);
            list(&mut text, "cpus", &node.cpus.iter().map(u32::to_string).collect::<Vec<_>>());
            if let Some(backing) = node.backing {
                push(&mut text, format_args!("backing = \"{backing}\"\n"));
            }
            let distances: Vec<String> = nodes
                .clone()
                .filter(|to| *to != from && (asymmetric || *to > from))
                .filter_map(|to| Some(format!("{to} = {}", cell(from, to)?)))
                .collect();
            if !distances.is_empty() {
                push(&mut text, format_args!("distances = {{ {} }}\n", distances.join(", ")));
            }
        }
        for entry in &self.e820 {
            let kind = match entry.kind {
                1 => "\"usable\"".to_owned(),
                2 => "\"reserved\"".to_owned(),
                3 => "\"acpi\"".to_owned(),
                4 => "\"nvs\"".to_owned(),
                5 => "\"unusable\"".to_owned(),
                7 => "\"pmem\"".to_owned(),
                kind => format!("{kind:#x}"),
            };
            push(
                &mut text,
                format_args!(
                    "\n[[e820]]\nat = {}\nsize = {}\ntype = {kind}\n",
                    address(entry.addr),
                    size(entry.size)
                ),
            );
        }
        self.write_hmat(&mut text);
        self.write_boot(&mut text, like);
        text
    }

    fn write_hmat(&self, text: &mut String) {
        let Some(hmat) = &self.hmat else { return };
        text.push_str("\n[hmat]\n");
        for matrix in &hmat.matrices {
            let key = match matrix.kind {
                HmatKind::AccessLatency => "latency_ns",
                HmatKind::ReadLatency => "read_latency_ns",
                HmatKind::WriteLatency => "write_latency_ns",
                HmatKind::AccessBandwidth => "bandwidth_mbps",
                HmatKind::ReadBandwidth => "read_bandwidth_mbps",
                HmatKind::WriteBandwidth => "write_bandwidth_mbps",
            };
            push(text, format_args!("{key} = {:?}\n", matrix.figures));
        }
    }

    fn write_boot(&self, text: &mut String, like: Option<&Machine>) {
        let high = 1 << layout::PHYS_BITS_4_LEVEL;
        let past = self.nodes.iter().flat_map(|node| &node.spans).any(|span| span.end() > high);
        let Some(machine) = like else {
            if past {
                text.push_str("\n[boot]\npaging = 5\n");
            }
            return;
        };
        text.push_str("\n[boot]\n");
        if machine.boot != Boot::default() {
            push(text, format_args!("protocol = \"{}\"\n", machine.boot));
        }
        if machine.paging != Paging::default() {
            push(text, format_args!("paging = \"{}\"\n", machine.paging));
        }
        for (key, path) in [("kernel", &machine.kernel), ("initrd", &machine.initrd)] {
            if let Some(path) = path {
                push(text, format_args!("{key} = {}\n", quoted(&path.display().to_string())));
            }
        }
        if !machine.cmdline.is_empty() {
            push(text, format_args!("cmdline = {}\n", quoted(&machine.cmdline)));
        }
    }
}

/// Spans in whole frames, touching ones joined: a frame that is RAM in part is the node's as a whole.
fn paged(spans: &[Range]) -> Vec<Range> {
    let mut paged: Vec<Range> = Vec::new();
    for span in spans {
        let base = span.base / layout::PAGE_SIZE * layout::PAGE_SIZE;
        let end = span.end().checked_next_multiple_of(layout::PAGE_SIZE).unwrap_or(span.end());
        match paged.last_mut() {
            Some(last) if last.end() >= base => *last = Range::new(last.base, end),
            _ => paged.push(Range::new(base, end)),
        }
    }
    paged
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = text.write_fmt(arguments);
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => push(&mut quoted, format_args!("\\u{:04X}", u32::from(letter))),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

fn address(addr: u64) -> String {
    if addr == 0 { "0".to_owned() } else { format!("\"{addr:#x}\"") }
}

/// A size in the largest unit that divides it, as machine files spell it.
fn size(bytes: u64) -> String {
    let text = Size::new(bytes).to_string();
    match text.split_once(' ') {
        _ if bytes == 0 => "0".to_owned(),
        Some((number, unit)) if unit.ends_with("iB") && number.len() <= 7 => {
            format!("\"{number}{}\"", &unit[..1])
        }
        _ => format!("\"{bytes:#x}\""),
    }
}

/// `key = [a, b]`, broken into lines where it is long.
fn list(text: &mut String, key: &str, items: &[String]) {
    const WIDTH: usize = 110;
    if items.is_empty() {
        return;
    }
    let line = items.join(", ");
    if line.len() + key.len() + 5 <= WIDTH {
        push(text, format_args!("{key} = [{line}]\n"));
        return;
    }
    push(text, format_args!("{key} = [\n"));
    let mut row = String::new();
    for item in items {
        if !row.is_empty() && row.len() + item.len() + 2 > WIDTH {
            push(text, format_args!("   {row}\n"));
            row.clear();
        }
        push(&mut row, format_args!(" {item},"));
    }
    push(text, format_args!("   {row}\n]\n"));
}
