//! What a stock Linux said about itself: the lines "linux: WORD ..." of scripts/linux/init.

use std::collections::BTreeMap;

/// What Linux said about itself: lines "linux: WORD ...".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The map as printed, e.g. "[mem 0x...-0x...] usable".
    pub e820: Vec<String>,
    /// Memory by node, "0x...-0x...", both ends included.
    pub ranges: Vec<(u32, String)>,
    /// KiB that each node's allocator manages.
    pub managed: BTreeMap<u32, u64>,
    /// Pages that each node's zones have (/proc/zoneinfo, `present`), and those that they manage.
    pub present_pages: BTreeMap<u32, u64>,
    pub managed_pages: BTreeMap<u32, u64>,
    /// KiB of RAM and of what was reserved when the allocator took over ("Memory: .../...K available").
    pub boot_kib: Option<(u64, u64)>,
    /// KiB that Linux gave back of what it had reserved ("Freeing ... memory").
    pub freed_kib: u64,
    pub distances: BTreeMap<u32, Vec<u8>>,
    pub cpus: BTreeMap<u32, String>,
    pub apic_ids: Vec<u32>,
    /// Zones with memory (/proc/zoneinfo).
    pub zones: Vec<SaidZone>,
    /// /proc/sys/vm by name; of lowmem_reserve_ratio the first number.
    pub vm: BTreeMap<String, u64>,
    /// Machine's node by Linux's.
    domains: BTreeMap<u32, u32>,
}

/// A zone as /proc/zoneinfo has it; pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SaidZone {
    pub node: u32,
    pub name: String,
    /// start_pfn, spanned, present, managed, min, low, high.
    pub pages: [u64; 7],
    /// By Linux's zones: DMA, DMA32, Normal, Movable, Device.
    pub protection: Vec<u64>,
}

impl SaidZone {
    /// From "NODE NAME START SPANNED PRESENT MANAGED MIN LOW HIGH PROTECTION...".
    fn parse(line: &str) -> Option<SaidZone> {
        let mut words = line.split_whitespace();
        let node = words.next()?.parse().ok()?;
        let name = words.next()?.to_owned();
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let (pages, protection) = numbers.split_first_chunk()?;
        Some(SaidZone { node, name, pages: *pages, protection: protection.to_vec() })
    }
}

impl Said {
    /// Reads the lines between the two marks.
    pub fn parse(console: &str) -> Result<Said, String> {
        let mut said = Said::default();
        let (mut begun, mut ended) = (false, false);
        let mut extended = Vec::new();
        for line in console.lines().filter_map(|line| line.trim_end().strip_prefix("linux: ")) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let fields = || rest.split_once(' ').unwrap_or((rest, ""));
            let bad = || format!("Linux's line is not understood: {line:?}");
            let node = || fields().0.parse::<u32>().map_err(|_| bad());
            match word {
                "begin" => begun = true,
                "end" => ended = true,
                "e820" => said.e820.push(rest.to_owned()),
                // More entries than the zero page holds: the whole map is printed a second time.
                "extended" => extended.push(rest.to_owned()),
                "range" => said.ranges.push((node()?, fields().1.to_owned())),
                "memory" => {
                    said.managed.insert(node()?, fields().1.parse().map_err(|_| bad())?);
                }
                "present" => {
                    said.present_pages.insert(node()?, fields().1.parse().map_err(|_| bad())?);
                }
                "managed" => {
                    said.managed_pages.insert(node()?, fields().1.parse().map_err(|_| bad())?);
                }
                "boot-memory" => {
                    let (total, reserved) = fields();
                    let kib = |text: &str| text.parse().map_err(|_| bad());
                    said.boot_kib = Some((kib(total)?, kib(reserved)?));
                }
                "freed" => {
                    said.freed_kib = said.freed_kib.saturating_add(rest.parse().map_err(|_| bad())?);
                }
                "distances" => {
                    let row: Result<_, _> = fields().1.split_whitespace().map(str::parse).collect();
                    said.distances.insert(node()?, row.map_err(|_| bad())?);
                }
                "cpus" => {
                    said.cpus.insert(node()?, fields().1.to_owned());
                }
                "domain" => {
                    said.domains.insert(node()?, fields().1.parse().map_err(|_| bad())?);
                }
                "zone" => said.zones.push(SaidZone::parse(rest).ok_or_else(bad)?),
                "vm" => {
                    let (name, values) = fields();
                    let first = values.split(' ').next().and_then(|value| value.parse().ok());
                    said.vm.insert(name.to_owned(), first.ok_or_else(bad)?);
                }
                "apicid" => said.apic_ids.push(rest.parse().map_err(|_| bad())?),
                _ => {}
            }
        }
        if !extended.is_empty() {
            said.e820 = extended;
        }
        match (begun, ended) {
            (true, true) => Ok(said.renumbered()),
            (true, false) => Err("Linux's first process did not come to its end".into()),
            _ => Err("Linux did not come to its first process".into()),
        }
    }
}

impl Said {
    /// With the machine's numbers for nodes. Linux counts nodes as it meets them in the SRAT, those with
    /// CPUs first (drivers/acpi/numa/srat.c, `acpi_map_pxm_to_node`).
    fn renumbered(self) -> Said {
        let id = |node: u32| self.domains.get(&node).copied().unwrap_or(node);
        let mut order: Vec<u32> = self.distances.keys().copied().collect();
        order.sort_by_key(|node| id(*node));
        let column = |node: &u32| self.distances.keys().position(|other| other == node);
        let row = |row: &Vec<u8>| order.iter().filter_map(|node| row.get(column(node)?).copied()).collect();
        let mut ranges: Vec<_> = self.ranges.iter().map(|(node, range)| (id(*node), range.clone())).collect();
        // All addresses have 16 digits.
        ranges.sort_by(|a, b| a.1.cmp(&b.1));
        let mut zones = self.zones.clone();
        zones.iter_mut().for_each(|zone| zone.node = id(zone.node));
        zones.sort_by_key(|zone| (zone.node, zone.pages));
        Said {
            ranges,
            zones,
            present_pages: self.present_pages.iter().map(|(node, pages)| (id(*node), *pages)).collect(),
            managed_pages: self.managed_pages.iter().map(|(node, pages)| (id(*node), *pages)).collect(),
            managed: self.managed.iter().map(|(node, kib)| (id(*node), *kib)).collect(),
            distances: self.distances.iter().map(|(node, list)| (id(*node), row(list))).collect(),
            cpus: self.cpus.iter().map(|(node, list)| (id(*node), list.clone())).collect(),
            ..self
        }
    }
}
