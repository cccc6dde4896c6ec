//! `memvisor inspect map`: the frame map as a picture.

use std::{fs, io::IsTerminal, path::Path};

use anyhow::Context;
use memvisor_abi::{MIGRATE_TYPES, Migratetype};
use memvisor_inspect::views::{MapCell, MapView, Use};
use memvisor_report::{Colours, Layer, Legend, Picture};

use super::out;

/// Cells of an SVG picture, and cells of its rows.
const SVG_CELLS: usize = 8192;
const SVG_COLUMNS: usize = 128;
/// Rows of the terminal that the map may take.
const TERMINAL_ROWS: usize = 24;
/// Before a row: the address of its first frame and its node.
const LABEL: usize = 20;

/// Where the picture goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Canvas {
    /// A terminal of that many columns.
    Terminal(usize),
    /// A file.
    Svg,
}

impl Canvas {
    /// The terminal that this process writes to; 80 columns if it is none.
    pub(super) fn terminal() -> Canvas {
        let columns = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).map_or(80, |size| size.ws_col);
        Canvas::Terminal(usize::from(columns.max(40)))
    }

    /// Cells that can be drawn.
    pub(super) fn cells(self) -> usize {
        match self {
            Canvas::Terminal(_) => self.columns() * TERMINAL_ROWS,
            Canvas::Svg => SVG_CELLS,
        }
    }

    fn columns(self) -> usize {
        match self {
            // A power of two, so that rows begin at round addresses.
            Canvas::Terminal(columns) => 1 << columns.saturating_sub(LABEL).max(16).ilog2(),
            Canvas::Svg => SVG_COLUMNS,
        }
    }
}

/// What each layer is called on the command line.
const LAYERS: [&str; 4] = ["owner", "order", "type", "node"];

/// The picture of a map.
pub(super) fn picture(view: &MapView, canvas: Canvas) -> Picture {
    let columns = canvas.columns() as u64;
    let mut rows = Vec::new();
    let mut drawn: [Vec<Vec<usize>>; LAYERS.len()] = Default::default();
    for region in &view.regions {
        let row_of = |cell: &MapCell| cell.pfn / view.frames_per_cell / columns;
        for row in region.cells.chunk_by(|a, b| row_of(a) == row_of(b)) {
            let Some(first) = row.first() else { continue };
            let node = region.node.map_or_else(|| "-".to_owned(), |node| node.to_string());
            rows.push(format!("{:#014x} n{node}", first.pfn << 12));
            // A region may begin inside a row.
            let before = usize::try_from(first.pfn / view.frames_per_cell % columns).unwrap_or(0);
            let cells = |index: fn(&MapCell) -> usize| {
                std::iter::repeat_n(usize::MAX, before).chain(row.iter().map(index)).collect()
            };
            let nodes = std::iter::repeat_n(usize::MAX, before)
                .chain(
                    row.iter().map(|_| region.node.map_or(NODES.len(), |node| node as usize % NODES.len())),
                )
                .collect();
            let [owner, order, kind, node] = &mut drawn;
            kind.push(cells(|cell| cell.migratetype.map_or(MIGRATE_TYPES, usize::from)));
            owner.push(cells(|cell| cell.mostly as usize));
            order.push(cells(|cell| cell.free_order.map_or(0, |order| usize::from(order) + 1)));
            node.push(nodes);
        }
    }
    let [owner, order, kind, node] = drawn;
    let per_cell = size(view.frames_per_cell << 12);
    Picture {
        title: format!("{} of RAM, {per_cell} a cell", size(view.total() << 12)),
        rows,
        layers: vec![
            Layer { title: "owner of most frames".into(), legend: owners(), cells: owner },
            Layer { title: "largest free block".into(), legend: orders(), cells: order },
            Layer { title: "migratetype of the pageblocks".into(), legend: types(), cells: kind },
            Layer { title: "node".into(), legend: nodes(), cells: node },
        ],
    }
}

fn size(bytes: u64) -> String {
    let (unit, shift) = match bytes {
        0..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    if tenths % 10 == 0 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

fn owners() -> Vec<Legend> {
    let style = |usage: Use| match usage {
        Use::Free => (0xd9_f0_d3, '.'),
        Use::PerCpuList => (0x7f_bf_7b, ','),
        Use::Deferred => (0xee_ee_ee, '_'),
        Use::User => (0x2b_8c_be, 'U'),
        Use::Slab => (0xfd_ae_61, 'S'),
        Use::Vmalloc => (0xf4_6d_43, 'V'),
        Use::PageTable => (0x7b_32_94, 'T'),
        Use::PerCpu => (0xc2_a5_cf, 'C'),
        Use::Allocated => (0xd7_30_27, 'A'),
        Use::Memmap => (0xa6_bd_db, 'M'),
        Use::Kernel => (0x25_25_25, 'K'),
        Use::Reserved => (0x96_96_96, 'R'),
        Use::Unknown => (0xff_00_ff, '?'),
    };
    Use::ALL
        .into_iter()
        .map(|usage| {
            let (colour, letter) = style(usage);
            Legend::new(usage.name(), colour, letter)
        })
        .collect()
}

/// From red, where memory is in pieces, to green.
fn orders() -> Vec<Legend> {
    const COLOURS: [u32; 12] = [
        0x40_40_40, 0xa5_00_26, 0xc4_1e_27, 0xd7_30_27, 0xf4_6d_43, 0xfd_ae_61, 0xfe_e0_8b, 0xff_ff_bf,
        0xd9_ef_8b, 0xa6_d9_6a, 0x66_bd_63, 0x1a_98_50,
    ];
    const LETTERS: &str = "#0123456789X";
    LETTERS
        .chars()
        .zip(COLOURS)
        .enumerate()
        .map(|(index, (letter, colour))| {
            let label = if index == 0 { "none free".to_owned() } else { format!("order {}", index - 1) };
            Legend::new(label, colour, letter)
        })
        .collect()
}

fn types() -> Vec<Legend> {
    const STYLES: [(u32, char); MIGRATE_TYPES] = [
        (0xd7_30_27, 'U'),
        (0x91_bf_db, 'M'),
        (0xfe_e0_90, 'R'),
        (0x7b_32_94, 'H'),
        (0x1a_98_50, 'C'),
        (0x25_25_25, 'I'),
    ];
    let mut legend: Vec<Legend> = Migratetype::ALL
        .into_iter()
        .zip(STYLES)
        .map(|(kind, (colour, letter))| Legend::new(kind.name(), colour, letter))
        .collect();
    legend.push(Legend::new("no type", 0xff_00_ff, '?'));
    legend
}

const NODES: [u32; 8] =
    [0x1b_9e_77, 0xd9_5f_02, 0x75_70_b3, 0xe7_29_8a, 0x66_a6_1e, 0xe6_ab_02, 0xa6_76_1d, 0x66_66_66];

fn nodes() -> Vec<Legend> {
    let mut legend: Vec<Legend> = ('0'..='7')
        .zip(NODES)
        .map(|(letter, colour)| Legend::new(format!("node {letter}, {letter}+8, ..."), colour, letter))
        .collect();
    legend.push(Legend::new("no node", 0xcc_cc_cc, '-'));
    legend
}

/// Writes the map to where it was asked for.
pub(super) fn show(view: &MapView, canvas: Canvas, layer: usize, svg: Option<&Path>) -> anyhow::Result<()> {
    let picture = picture(view, canvas);
    if let Some(path) = svg {
        fs::write(path, picture.svg()).with_context(|| format!("write {}", path.display()))?;
        out::text(&view)?;
        return Ok(());
    }
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = if std::io::stdout().is_terminal() && !plain { Colours::On } else { Colours::Off };
    out::text(&format!("{}\n{view}", picture.text(layer, colours).unwrap_or_default()))?;
    Ok(())
}

/// The index of a layer's name.
pub(super) fn parse_layer(text: &str) -> Result<usize, String> {
    LAYERS
        .iter()
        .position(|layer| *layer == text)
        .ok_or_else(|| format!("{text:?} is no layer: there are {}", LAYERS.join(", ")))
}

#[cfg(test)]
mod tests {
    use memvisor_inspect::{
        Guest, Levels, RamRegion,
        testing::{Machine, SyntheticGuest},
    };

    use super::*;

    fn view(cells: usize) -> MapView {
        let memory = vec![
            (0, RamRegion { gpa: 0, len: 0xa_0000 }),
            (0, RamRegion { gpa: 0x10_0000, len: 0xf0_0000 }),
            (1, RamRegion { gpa: 0x100_0000, len: 0x100_0000 }),
        ];
        let guest = SyntheticGuest::new(&Machine { memory, cpus: vec![0, 1], levels: Levels::Four });
        MapView::new(&Guest::attach(&guest.memory, guest.root_gpa).expect("a root"), cells).expect("readable")
    }

    #[test]
    fn the_terminal_shows_every_frame_once() {
        let canvas = Canvas::Terminal(80);
        let view = view(canvas.cells());
        assert_eq!(view.frames.iter().map(|(_, count)| count).sum::<u64>(), view.total());
        let picture = picture(&view, canvas);
        let drawn: usize =
            picture.layers[0].cells.iter().flatten().filter(|cell| **cell != usize::MAX).count();
        assert_eq!(drawn, view.regions.iter().map(|region| region.cells.len()).sum::<usize>());
        assert!(picture.rows.iter().all(|row| row.len() < LABEL) && picture.rows.len() <= TERMINAL_ROWS + 3);
        let text = picture.text(parse_layer("owner").expect("a layer"), Colours::Off).expect("drawn");
        assert!(text.starts_with("31.6 MiB of RAM, 64 KiB a cell: owner of most frames\n"), "{text}");
        assert!(text.contains("\n0x000001000000 n1 "), "{text}");
        assert!(picture.svg().contains("largest free block"));
        assert!(parse_layer("colour").is_err());
        let text = picture.text(parse_layer("type").expect("a layer"), Colours::Off).expect("drawn");
        assert!(
            text.starts_with("31.6 MiB of RAM, 64 KiB a cell: migratetype of the pageblocks\n"),
            "{text}"
        );
        assert!(view.regions.iter().flat_map(|region| &region.cells).all(|cell| cell.migratetype.is_some()));
    }

    #[test]
    fn sizes_are_round_where_they_are() {
        assert_eq!([size(4096), size(3 << 30), size(3 << 39)], ["4 KiB", "3 GiB", "1.5 TiB"]);
    }
}
