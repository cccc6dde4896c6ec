//! Random topologies resolve, and keep every promise.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::super::*;
use super::{audit, parsed};

/// A range in units of 4 KiB: its size, and how far it begins past the one before, if it says where.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    gap: Option<u64>,
    frames: u64,
    node: usize,
}

/// An extra E820 entry that takes something away, in bytes.
#[derive(Clone, Copy, Debug)]
struct Bite {
    at: u64,
    size: u64,
    kind: u32,
}

fn chunk(nodes: usize) -> impl Strategy<Value = Chunk> {
    let gap = proptest::option::of(0_u64..4096);
    (gap, 1_u64..8192, 0..nodes).prop_map(|(gap, frames, node)| Chunk { gap, frames, node })
}

fn bite() -> impl Strategy<Value = Bite> {
    // Not below 1 MiB, where boot data goes; within node 0, of which enough is left; no RAM, which would need a node.
    (0x10_0000_u64..0x7ff_8000, 0_u64..0x8000, 2_u32..9).prop_map(|(at, size, kind)| Bite { at, size, kind })
}

prop_compose! {
    fn topology()(nodes in 1_usize..6)(
        chunks in proptest::collection::vec(chunk(nodes), 0..10),
        cpus in proptest::collection::vec(0..nodes, 1..6),
        bites in proptest::collection::vec(bite(), 0..12),
        distances in proptest::collection::vec((0..nodes, 0..nodes, 11_u8..=255), 0..8),
        nodes in Just(nodes),
    ) -> String {
        text(nodes, &chunks, &cpus, &bites, &distances)
    }
}

/// The machine as a file. Node 0 has 64 MiB at 0, so every machine can boot; bites are small enough to
/// leave some of it, and other chunks begin past them.
fn text(
    nodes: usize,
    chunks: &[Chunk],
    cpus: &[usize],
    bites: &[Bite],
    distances: &[(usize, usize, u8)],
) -> String {
    let mut memory = vec![String::new(); nodes];
    memory[0].push_str("{ at = 0, size = \"128M\" }, ");
    let mut next = 0x800_0000 / 4096;
    for chunk in chunks {
        match chunk.gap {
            None => write!(memory[chunk.node], "\"{}K\", ", chunk.frames * 4),
            Some(gap) => {
                // Placed ones live above 4 GiB; those without a place fill from below.
                let at = (4 << 30) / 4096 + next + gap;
                next += gap + chunk.frames;
                write!(
                    memory[chunk.node],
                    "{{ at = \"{:#x}\", size = \"{}K\" }}, ",
                    at * 4096,
                    chunk.frames * 4
                )
            }
        }
        .expect("strings grow");
    }
    let mut out = "[machine]\nasymmetric = true\n".to_owned();
    for (node, memory) in memory.iter().enumerate() {
        let numbers: Vec<String> = (0..)
            .zip(cpus)
            .filter(|(_, host)| **host == node)
            .map(|(cpu, _): (u32, _)| cpu.to_string())
            .collect();
        let filler = if memory.is_empty() && numbers.is_empty() { "\"4K\"" } else { "" };
        let mut row: Vec<(usize, u8)> = distances
            .iter()
            .filter(|(from, to, _)| *from == node && to != from)
            .map(|(_, to, distance)| (*to, *distance))
            .collect();
        row.sort_unstable();
        row.dedup_by_key(|(to, _)| *to);
        let row: Vec<String> = row.iter().map(|(to, distance)| format!("{to} = {distance}")).collect();
        write!(
            out,
            "[[node]]\nmemory = [{memory}{filler}]\ncpus = [{}]\ndistances = {{ {} }}\n",
            numbers.join(", "),
            row.join(", ")
        )
        .expect("strings grow");
    }
    for bite in bites {
        write!(out, "[[e820]]\nat = {}\nsize = {}\ntype = {}\n", bite.at, bite.size, bite.kind)
            .expect("strings grow");
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn random_topologies_keep_every_promise(text in topology()) {
        let machine = parsed(&text);
        audit(&machine);
        let description = describe(&machine).expect("describes");
        prop_assert!(!description.to_string().is_empty());
        prop_assert!(serde_json::to_string(&description).is_ok());
    }

    /// Whatever a file says, the answer is a machine or a message, never a panic; and a machine that is
    /// accepted can be described.
    #[test]
    fn arbitrary_numbers_never_panic(
        at in any::<u64>(), size in any::<u64>(), kind in any::<u32>(), repeat in 0_u32..40, stride in any::<u64>(),
        node_at in any::<u64>(), node_size in any::<u64>(), five in any::<bool>(),
        mode in prop_oneof![Just("append"), Just("prepend"), Just("replace")],
    ) {
        let paging = if five { "5" } else { "\"auto\"" };
        let text = format!(
            "[machine]\ne820 = \"{mode}\"\n[[node]]\nmemory = [\"64M\", {{ at = \"{:#x}\", size = \"{:#x}\" }}]\ncpus = [0]\n\
             [[e820]]\nat = 0\nsize = \"640K\"\ntype = 1\n[[e820]]\nat = \"1M\"\nsize = \"63M\"\ntype = 1\n\
             [[e820]]\nat = \"{:#x}\"\nsize = \"{:#x}\"\ntype = 1\n\
             [[e820]]\nat = \"{at:#x}\"\nsize = \"{size:#x}\"\ntype = {kind}\nrepeat = {repeat}\nstride = \"{stride:#x}\"\n[boot]\npaging = {paging}\n",
            node_at & !0xfff, node_size & !0xfff, node_at & !0xfff, node_size & !0xfff,
        );
        let file = MachineFile::from_text("m.toml", &text).expect("well formed");
        if let Ok(machine) = resolve(file, &Overrides::default()) {
            audit(&machine);
        }
    }

    /// Damaged text gives a line that exists, in one line.
    #[test]
    fn damaged_text_is_answered_with_one_line(at in 0_usize..1000, byte in 0x20_u8..0x7f) {
        let mut text = include_str!("../../../../images/machines/numa4.toml").to_owned().into_bytes();
        let at = at % text.len();
        text[at] = byte;
        let text = String::from_utf8_lossy(&text).into_owned();
        if let Err(error) = MachineFile::from_text("m.toml", &text).and_then(|file| resolve(file, &Overrides::default())) {
            let message = error.to_string();
            prop_assert!(!message.contains('\n'), "{message}");
            let MachineError::Invalid { origin: Origin { place: Place::Line { line, .. }, .. }, .. } = error else {
                panic!("{message}");
            };
            prop_assert!((1..=text.lines().count() + 1).contains(&line), "{message}");
        }
    }
}
