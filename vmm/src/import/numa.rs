//! Nodes, CPUs and distances from claims.
//!
//! Linux numbers a node when it first meets a proximity domain: in the SRAT all CPUs come before memory
//! (drivers/acpi/numa/srat.c). RAM that no node claims goes to node 0 (arch/x86/mm/numa.c).

use std::collections::{BTreeMap, BTreeSet};

use memvisor_inspect::FactE820;

use super::claims::{At, Claim, Claims};
use super::shape::{Node, Shape};
use crate::machine::{Hmat, HmatMatrix, Range, e820};

/// Works out nodes, CPUs and distances of a machine with the memory map `map`.
pub(super) fn settle(claims: &mut Claims, map: Vec<FactE820>) -> Shape {
    let node_of = number_domains(claims);
    let spans = spans(claims, &node_of);
    let ram: Vec<Range> = e820::resolve(&map)
        .into_iter()
        .filter(|entry| entry.kind == e820::RAM)
        .map(|entry| Range { base: entry.addr, len: entry.size })
        .collect();
    let memory = assign(claims, &ram, &spans);
    check_totals(claims, &memory);
    let cpus = cpus(claims, &node_of, &memory);
    let distances = distances(claims, &node_of);
    let mut ids: BTreeSet<u32> = memory.keys().chain(cpus.keys()).copied().collect();
    if ids.is_empty() {
        ids.insert(0);
    }
    let hotplug: BTreeSet<u32> = node_of.values().copied().filter(|node| !ids.contains(node)).collect();
    if !hotplug.is_empty() {
        claims.note(format!("nodes {hotplug:?} have neither RAM nor CPUs now and were left out"));
    }
    if ids.iter().zip(0..).any(|(id, index)| *id != index) {
        claims.note(format!("Linux's nodes {ids:?} are numbered from 0 here, in that order"));
    }
    let nodes = ids
        .iter()
        .map(|id| Node {
            spans: memory.get(id).cloned().unwrap_or_default(),
            cpus: cpus.get(id).cloned().unwrap_or_default(),
            backing: None,
        })
        .collect();
    let ids: Vec<u32> = ids.into_iter().collect();
    let distances = square(&distances, &ids);
    let mut shape = Shape { e820: map, nodes, distances, hmat: None };
    shape.hmat = hmat(claims, &node_of, &ids, &shape);
    shape
}

/// Linux's node of each proximity domain.
fn number_domains(claims: &mut Claims) -> BTreeMap<u32, u32> {
    let mut known: BTreeMap<u32, (u32, At)> = BTreeMap::new();
    let printed = claims.srat_cpus.iter().map(|claim| (claim.value.pxm, claim.value.node, &claim.at));
    let printed =
        printed.chain(claims.srat_memory.iter().map(|claim| (claim.value.pxm, claim.value.node, &claim.at)));
    let printed: Vec<(u32, Option<u32>, At)> =
        printed.map(|(pxm, node, at)| (pxm, node, at.clone())).collect();
    for (pxm, node, at) in &printed {
        let Some(node) = *node else { continue };
        let (first, place) = known.entry(*pxm).or_insert((node, at.clone())).clone();
        if first != node {
            let text = |node| format!("is node {node}");
            claims.contradict(
                format!("proximity domain {pxm}"),
                (text(first), place),
                (text(node), at.clone()),
            );
        }
    }
    let mut map: BTreeMap<u32, u32> = known.into_iter().map(|(pxm, (node, _))| (pxm, node)).collect();
    for (pxm, _, _) in printed {
        if !map.contains_key(&pxm) {
            let next = (0..).find(|node| !map.values().any(|taken| taken == node)).unwrap_or(0);
            map.insert(pxm, next);
        }
    }
    map
}

/// Which node claims which addresses: the SRAT's word, else Linux's early ranges.
fn spans(claims: &mut Claims, node_of: &BTreeMap<u32, u32>) -> Vec<Claim<(u32, Range)>> {
    let mut spans: Vec<Claim<(u32, Range)>> = claims
        .srat_memory
        .iter()
        .filter(|claim| !claim.value.range.is_empty())
        .map(|claim| {
            let node = node_of.get(&claim.value.pxm).copied().unwrap_or(0);
            Claim { value: (node, claim.value.range), at: claim.at.clone() }
        })
        .collect();
    let early = claims.early.clone();
    if spans.is_empty() {
        return early;
    }
    let mut clashes = Vec::new();
    for (index, one) in spans.iter().enumerate() {
        for other in spans.iter().skip(index + 1) {
            let common = one.value.1.intersection(&other.value.1);
            if one.value.0 != other.value.0 && !common.is_empty() {
                clashes.push((common, one.clone(), other.clone()));
            }
        }
    }
    for early in &early {
        let (node, range) = early.value;
        for span in spans.iter().filter(|span| span.value.0 != node) {
            let common = range.intersection(&span.value.1);
            // Ranges of equals are compared above.
            let own =
                spans.iter().any(|own| own.value.0 == node && !own.value.1.intersection(&common).is_empty());
            if !common.is_empty() && !own {
                clashes.push((common, span.clone(), early.clone()));
            }
        }
    }
    for (common, one, other) in clashes.into_iter().take(16) {
        let about = format!("{:#x}..{:#x}", common.base, common.end());
        let text = |claim: &Claim<(u32, Range)>| format!("is of node {}", claim.value.0);
        claims.contradict(about, (text(&one), one.at.clone()), (text(&other), other.at.clone()));
    }
    // A dump and a log of the same table say the same twice.
    spans.dedup_by(|one, other| one.value == other.value);
    spans
}

/// Gives each piece of RAM its node. Neighbours of one node become one range, across what is not RAM.
fn assign(claims: &mut Claims, ram: &[Range], spans: &[Claim<(u32, Range)>]) -> BTreeMap<u32, Vec<Range>> {
    let mut pieces: Vec<(Range, u32)> = Vec::new();
    let mut unclaimed = 0;
    let several = spans.iter().any(|span| span.value.0 != 0);
    for ram in ram {
        let inside = spans.iter().map(|span| span.value.1.intersection(ram)).filter(|part| !part.is_empty());
        let mut borders: Vec<u64> = inside.flat_map(|part| [part.base, part.end()]).collect();
        borders.extend([ram.base, ram.end()]);
        borders.sort_unstable();
        borders.dedup();
        for (start, end) in borders.iter().zip(borders.iter().skip(1)) {
            let piece = Range::new(*start, *end);
            let owner = spans.iter().find(|span| !span.value.1.intersection(&piece).is_empty());
            if owner.is_none() && several {
                unclaimed += piece.len;
            }
            pieces.push((piece, owner.map_or(0, |span| span.value.0)));
        }
    }
    if unclaimed > 0 {
        claims.note(format!(
            "{} KiB of RAM are in no node's ranges and went to node 0, as in Linux",
            unclaimed >> 10
        ));
    }
    let mut memory: BTreeMap<u32, Vec<Range>> = BTreeMap::new();
    let mut before = None;
    for (piece, node) in pieces {
        let ranges = memory.entry(node).or_default();
        match ranges.last_mut() {
            Some(last) if before == Some(node) && !Shape::parts(last.end(), piece.base) => {
                *last = Range::new(last.base, piece.end());
            }
            _ => ranges.push(piece),
        }
        before = Some(node);
    }
    memory
}

fn check_totals(claims: &mut Claims, memory: &BTreeMap<u32, Vec<Range>>) {
    for total in claims.totals.clone() {
        let (node, bytes) = total.value;
        let ranges: u64 = memory.get(&node).into_iter().flatten().map(|range| range.len).sum();
        if bytes > ranges {
            let place =
                claims.srat_memory.iter().find(|claim| claim.value.node == Some(node)).map(|claim| &claim.at);
            let place = place.or(claims.early.first().map(|claim| &claim.at)).cloned();
            let place = place.unwrap_or_else(|| At { file: "memory map".into(), line: 0 });
            let used = (format!("has ranges of {} KiB", ranges >> 10), place);
            claims.contradict(format!("node {node}"), used, (format!("has {} KiB", bytes >> 10), total.at));
        }
    }
}

/// CPUs of each node, by what Linux calls them, else in the order in which it would number them.
fn cpus(
    claims: &mut Claims,
    node_of: &BTreeMap<u32, u32>,
    memory: &BTreeMap<u32, Vec<Range>>,
) -> BTreeMap<u32, Vec<u32>> {
    let listed = listed(claims);
    let srat = srat_cpus(claims, node_of);
    let booted = booted(claims, &srat);
    let views = [listed, booted, srat];
    let mut views = views.into_iter().filter(|(nodes, _)| nodes.values().any(|cpus| !cpus.is_empty()));
    let used = views.next();
    let others: Vec<_> = views.collect();
    let Some((mut nodes, at)) = used else { return counted(claims, memory) };
    nodes.retain(|_, cpus| !cpus.is_empty());
    for (other, other_at) in others {
        let ids: BTreeSet<u32> = nodes.keys().chain(other.keys()).copied().collect();
        for node in ids {
            let count = |nodes: &BTreeMap<u32, Vec<u32>>| nodes.get(&node).map_or(0, Vec::len);
            let (one, two) = (count(&nodes), count(&other));
            if one != two {
                let text = |count| format!("{count} CPUs");
                claims.contradict(
                    format!("node {node}"),
                    (text(one), at.clone()),
                    (text(two), other_at.clone()),
                );
            }
        }
    }
    let total: usize = nodes.values().map(Vec::len).sum();
    for online in claims.online.clone().into_iter().take(1) {
        if usize::try_from(online.value) != Ok(total) {
            let text = |count: usize| format!("{count} CPUs");
            let other = usize::try_from(online.value).unwrap_or(usize::MAX);
            claims.contradict("the machine", (text(total), at.clone()), (text(other), online.at));
        }
    }
    number(&mut nodes, claims);
    nodes
}

type View = (BTreeMap<u32, Vec<u32>>, At);

fn nowhere() -> At {
    At { file: "".into(), line: 0 }
}

/// /sys/devices/system/node, or numactl.
fn listed(claims: &mut Claims) -> View {
    let mut nodes: BTreeMap<u32, Claim<Vec<u32>>> = BTreeMap::new();
    for claim in claims.node_cpus.clone() {
        let (node, cpus) = claim.value;
        match nodes.get(&node).cloned() {
            None => {
                nodes.insert(node, Claim { value: cpus, at: claim.at });
            }
            Some(first) if first.value != cpus => {
                let text = |cpus: &[u32]| format!("has the CPUs {cpus:?}");
                claims.contradict(
                    format!("node {node}"),
                    (text(&first.value), first.at),
                    (text(&cpus), claim.at),
                );
            }
            Some(_) => {}
        }
    }
    let mut owner: BTreeMap<u32, (u32, At)> = BTreeMap::new();
    let mut result = BTreeMap::new();
    for (node, claim) in &nodes {
        let mut own = Vec::new();
        for cpu in &claim.value {
            match owner.get(cpu).cloned() {
                None => {
                    owner.insert(*cpu, (*node, claim.at.clone()));
                    own.push(*cpu);
                }
                Some((first, at)) if first != *node => {
                    let text = |node| format!("is of node {node}");
                    claims.contradict(
                        format!("CPU {cpu}"),
                        (text(first), at),
                        (text(*node), claim.at.clone()),
                    );
                }
                Some(_) => {}
            }
        }
        result.insert(*node, own);
    }
    (result, nodes.into_values().next().map_or_else(nowhere, |claim| claim.at))
}

/// SRAT, restricted to what the MADT has and in its order if there is one. Numbers are ranks.
fn srat_cpus(claims: &mut Claims, node_of: &BTreeMap<u32, u32>) -> View {
    let mut place: BTreeMap<u32, (u32, At)> = BTreeMap::new();
    let mut order: Vec<u32> = Vec::new();
    for claim in claims.srat_cpus.clone() {
        let node = node_of.get(&claim.value.pxm).copied().unwrap_or(0);
        let id = claim.value.apic_id;
        match place.get(&id).cloned() {
            None => {
                place.insert(id, (node, claim.at));
                order.push(id);
            }
            Some((first, at)) if first != node => {
                let text = |node| format!("is of node {node}");
                claims.contradict(
                    format!("the CPU with APIC id {id:#x}"),
                    (text(first), at),
                    (text(node), claim.at),
                );
            }
            Some(_) => {}
        }
    }
    let mut at = place.values().next().map(|(_, at)| at.clone());
    if !claims.madt.is_empty() {
        let mut seen = BTreeSet::new();
        order = claims.madt.iter().map(|claim| claim.value).filter(|id| seen.insert(*id)).collect();
        at = at.or(claims.madt.first().map(|claim| claim.at.clone()));
        let lost = order.iter().filter(|id| !place.contains_key(id)).count();
        if lost > 0 && !place.is_empty() {
            claims
                .note(format!("{lost} CPUs of the MADT are not in the SRAT and went to node 0, as in Linux"));
        }
    }
    let mut nodes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (rank, id) in (0..).zip(order) {
        nodes.entry(place.get(&id).map_or(0, |(node, _)| *node)).or_default().push(rank);
    }
    (nodes, at.unwrap_or_else(nowhere))
}

/// What came up, with CPU 0, which is up already and not printed. Empty unless the count agrees: lines of
/// a log that count CPUs get torn.
fn booted(claims: &Claims, srat: &View) -> View {
    let mut nodes: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for claim in &claims.booted {
        nodes.entry(claim.value.0).or_default().insert(claim.value.1);
    }
    let Some(first) = claims.booted.first() else { return (BTreeMap::new(), nowhere()) };
    let boot = srat.0.iter().find(|(_, cpus)| cpus.contains(&0)).map(|(node, _)| *node);
    // Linux brings the CPUs of the boot CPU's node up first, and calls it 0 on nearly every machine.
    let boot = boot.unwrap_or(0);
    nodes.entry(boot).or_default().insert(0);
    let count: usize = nodes.values().map(BTreeSet::len).sum();
    let online = claims.online.first().and_then(|claim| usize::try_from(claim.value).ok());
    let all: BTreeSet<u32> = nodes.values().flatten().copied().collect();
    if online != Some(count) || all.len() != count {
        return (BTreeMap::new(), nowhere());
    }
    (nodes.into_iter().map(|(node, cpus)| (node, cpus.into_iter().collect())).collect(), first.at.clone())
}

/// Without any word of which node a CPU is of: that many CPUs in turn over the nodes with memory.
fn counted(claims: &mut Claims, memory: &BTreeMap<u32, Vec<Range>>) -> BTreeMap<u32, Vec<u32>> {
    let count = claims.online.first().or(claims.present.first()).map(|claim| claim.value);
    if count.is_none() {
        claims.note("no source says how many CPUs there are; the machine gets one");
    }
    let mut hosts: Vec<u32> = memory.keys().copied().collect();
    if hosts.is_empty() {
        hosts.push(0);
    }
    if hosts.len() > 1 {
        claims.note("no source says which CPU is of which node; they were dealt out in turn");
    }
    let mut nodes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let count = count.unwrap_or(1).clamp(1, 1 << 16);
    for (cpu, host) in (0..count).zip(hosts.into_iter().cycle()) {
        nodes.entry(host).or_default().push(cpu);
    }
    nodes
}

/// Closes gaps that CPUs that are off leave in the numbers.
fn number(nodes: &mut BTreeMap<u32, Vec<u32>>, claims: &mut Claims) {
    let all: BTreeSet<u32> = nodes.values().flatten().copied().collect();
    let rank: BTreeMap<u32, u32> = all.into_iter().zip(0..).collect();
    if rank.iter().any(|(old, new)| old != new) {
        claims.note("CPUs that are off leave gaps; the others are numbered from 0 in their order");
    }
    for cpus in nodes.values_mut() {
        for cpu in cpus.iter_mut() {
            *cpu = rank.get(cpu).copied().unwrap_or(*cpu);
        }
        cpus.sort_unstable();
    }
}

/// Distances between Linux's nodes: firmware's SLIT, else what Linux shows.
fn distances(claims: &mut Claims, node_of: &BTreeMap<u32, u32>) -> BTreeMap<(u32, u32), u8> {
    let mut known: BTreeMap<(u32, u32), (u8, At)> = BTreeMap::new();
    let mut said: Vec<((u32, u32), u8, At)> = Vec::new();
    for slit in &claims.slit {
        for (from, row) in (0..).zip(&slit.value) {
            for (to, distance) in (0..).zip(row) {
                if let (Some(from), Some(to)) = (node_of.get(&from), node_of.get(&to)) {
                    said.push(((*from, *to), *distance, slit.at.clone()));
                }
            }
        }
    }
    for row in &claims.distances {
        let (from, columns, cells) = &row.value;
        for (to, distance) in columns.iter().zip(cells) {
            said.push(((*from, *to), *distance, row.at.clone()));
        }
    }
    for ((from, to), distance, at) in said {
        match known.get(&(from, to)).cloned() {
            None => {
                known.insert((from, to), (distance, at));
            }
            Some((first, place)) if first != distance => {
                let about = format!("the distance from node {from} to node {to}");
                claims.contradict(about, (first.to_string(), place), (distance.to_string(), at));
            }
            Some(_) => {}
        }
    }
    let bad = known
        .iter()
        .filter(|((from, to), (distance, _))| (from == to) != (*distance == 10) || *distance < 10);
    let bad: Vec<(u32, u32)> = bad.map(|(pair, _)| *pair).collect();
    if !bad.is_empty() {
        // Linux distrusts the whole table then (`slit_valid`).
        claims.note(format!(
            "distances {bad:?} cannot be (10 is a node's own and nothing is less); none is used, as in Linux"
        ));
        return BTreeMap::new();
    }
    known.into_iter().map(|(pair, (distance, _))| (pair, distance)).collect()
}

/// The matrix for `ids`; empty if nothing is known.
fn square(known: &BTreeMap<(u32, u32), u8>, ids: &[u32]) -> Vec<Vec<u8>> {
    if known.is_empty() || ids.len() < 2 {
        return Vec::new();
    }
    let cell = |from: u32, to: u32| match known.get(&(from, to)).or_else(|| known.get(&(to, from))) {
        Some(distance) => *distance,
        None if from == to => 10,
        None => 20,
    };
    ids.iter().map(|from| ids.iter().map(|to| cell(*from, *to)).collect()).collect()
}

/// The first matrix of each kind that has a figure for each node with CPUs and each node with memory.
fn hmat(claims: &mut Claims, node_of: &BTreeMap<u32, u32>, ids: &[u32], shape: &Shape) -> Option<Hmat> {
    let having = |has: fn(&Node) -> bool| -> Vec<u32> {
        (0..).zip(&shape.nodes).filter(|(_, node)| has(node)).map(|(index, _)| index).collect()
    };
    let initiators = having(|node| !node.cpus.is_empty());
    let targets = having(|node| !node.spans.is_empty());
    let domain = |index: &u32| {
        let node = ids.get(usize::try_from(*index).ok()?)?;
        node_of.iter().find(|(_, of)| *of == node).map(|(pxm, _)| *pxm)
    };
    let mut matrices: Vec<HmatMatrix> = Vec::new();
    for claim in claims.localities.clone() {
        let locality = &claim.value;
        if matrices.iter().any(|matrix| matrix.kind == locality.kind) {
            continue;
        }
        let figure = |from: &u32, to: &u32| -> Option<u32> {
            let (from, to) = (domain(from)?, domain(to)?);
            let row = locality.initiators.iter().position(|pxm| *pxm == from)?;
            let column = locality.targets.iter().position(|pxm| *pxm == to)?;
            locality.figures.get(row)?.get(column).copied().filter(|figure| *figure > 0)
        };
        let rows: Option<Vec<Vec<u32>>> =
            initiators.iter().map(|from| targets.iter().map(|to| figure(from, to)).collect()).collect();
        match rows {
            Some(figures) => matrices.push(HmatMatrix { kind: locality.kind, figures }),
            None => claims.note(format!(
                "{}: the HMAT's {:?} figures do not cover every node and were left out",
                claim.at, locality.kind
            )),
        }
    }
    (!matrices.is_empty()).then_some(Hmat { initiators, targets, matrices })
}
