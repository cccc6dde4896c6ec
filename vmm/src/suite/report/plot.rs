//! Samples as pictures (SVG): memory by kind, free pages against watermarks, events by second.

use std::ops::Range;

use anyhow::anyhow;
use memvisor_abi::LruKind;
use memvisor_inspect::views::{MemoryKind, Sample, ZoneSample};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::suite::samples::{Series, TimedSample};

/// Width and height of a picture in pixels.
const SIZE: (u32, u32) = (640, 230);
/// Pages of a MiB.
const PAGES_PER_MIB: f64 = 256.0;

/// A line of a legend: name and colour.
pub type Key = (String, RGBColor);

/// A picture with its legend.
#[derive(Debug)]
pub struct Plot {
    /// What it shows, with the unit.
    pub title: String,
    /// Colours, in the order in which they are drawn.
    pub keys: Vec<Key>,
    /// The picture.
    pub svg: String,
}

/// Colours that people who see few of them tell apart (Okabe and Ito), by [`MemoryKind`].
const KINDS: [RGBColor; MemoryKind::ALL.len()] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0xe6, 0xe6, 0xe6),
];
const FREE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
/// Watermarks min, low and high.
const MARKS: [(&str, RGBColor); 3] = [
    ("min", RGBColor(0xd5, 0x5e, 0x00)),
    ("low", RGBColor(0xe6, 0x9f, 0x00)),
    ("high", RGBColor(0x00, 0x9e, 0x73)),
];

/// Lists by what legends call them.
const LISTS: [(&str, LruKind); 5] = [
    ("active anonymous", LruKind::ActiveAnon),
    ("inactive anonymous", LruKind::InactiveAnon),
    ("active files", LruKind::ActiveFile),
    ("inactive files", LruKind::InactiveFile),
    ("unevictable", LruKind::Unevictable),
];

/// Which events a rate is made of, by the beginnings of their names in /proc/vmstat.
struct Rate {
    name: &'static str,
    events: &'static [&'static str],
    colour: RGBColor,
}

const RATES: [Rate; 6] = [
    Rate {
        name: "scanned",
        events: &["pgscan_kswapd", "pgscan_direct", "pgscan_khugepaged"],
        colour: RGBColor(0xe6, 0x9f, 0x00),
    },
    Rate {
        name: "reclaimed",
        events: &["pgsteal_kswapd", "pgsteal_direct", "pgsteal_khugepaged"],
        colour: RGBColor(0x00, 0x9e, 0x73),
    },
    Rate { name: "swapped in", events: &["pswpin"], colour: RGBColor(0x56, 0xb4, 0xe9) },
    Rate { name: "swapped out", events: &["pswpout"], colour: RGBColor(0x00, 0x72, 0xb2) },
    Rate { name: "refaulted", events: &["workingset_refault"], colour: RGBColor(0xd5, 0x5e, 0x00) },
    Rate { name: "allocated", events: &["pgalloc_"], colour: RGBColor(0x99, 0x99, 0x99) },
];

impl Rate {
    fn count(&self, sample: &Sample) -> u64 {
        sample.event(|name| self.events.iter().any(|event| name.starts_with(event)))
    }
}

/// All pictures that a series has something for.
///
/// # Errors
/// If one cannot be drawn.
pub fn plots(series: &Series) -> anyhow::Result<Vec<Plot>> {
    let samples = series.samples();
    let Some((first, last)) = samples.first().zip(samples.last()).filter(|(first, last)| first.ms < last.ms)
    else {
        return Ok(Vec::new());
    };
    let time = seconds(first)..seconds(last);
    let mut plots = vec![memory(samples, &time)?];
    for zone in &last.sample.zones {
        plots.push(watermarks(samples, &time, zone)?);
    }
    plots.extend(lists(samples, &time)?);
    plots.extend(rates(samples, &time)?);
    Ok(plots)
}

/// Memory by kind, one above the other.
fn memory(samples: &[TimedSample], time: &Range<f64>) -> anyhow::Result<Plot> {
    let total = |timed: &TimedSample| timed.sample.pages.iter().sum::<u64>();
    let top = mib(samples.iter().map(total).max().unwrap_or(0));
    let svg = draw(time, top, |chart| {
        let mut below = vec![0; samples.len()];
        for (kind, colour) in MemoryKind::ALL.into_iter().zip(KINDS) {
            let floor = below.clone();
            for (sum, timed) in below.iter_mut().zip(samples) {
                *sum += timed.sample.of(kind);
            }
            let point = |(timed, pages): (&TimedSample, &u64)| (seconds(timed), mib(*pages));
            let upper = samples.iter().zip(&below).map(point);
            let lower = samples.iter().zip(&floor).map(point).rev();
            chart.draw_series([Polygon::new(upper.chain(lower).collect::<Vec<_>>(), colour.filled())])?;
        }
        Ok(())
    })?;
    let keys = MemoryKind::ALL.into_iter().zip(KINDS).rev();
    let keys = keys.map(|(kind, colour)| (kind.name().to_owned(), colour)).collect();
    Ok(Plot { title: "memory by kind, MiB".to_owned(), keys, svg })
}

/// Pages of the LRU lists and in swap; nothing if there never were any.
fn lists(samples: &[TimedSample], time: &Range<f64>) -> anyhow::Result<Option<Plot>> {
    let in_swap = samples.iter().any(|timed| timed.sample.swap[1] > 0);
    let mut lines: Vec<(&str, RGBColor, Vec<u64>)> = Vec::new();
    for ((name, kind), colour) in LISTS.into_iter().zip(KINDS) {
        lines.push((name, colour, samples.iter().map(|timed| timed.sample.list(kind)).collect()));
    }
    if in_swap {
        lines.push(("swap in use", BLACK, samples.iter().map(|timed| timed.sample.swap[1]).collect()));
    }
    lines.retain(|(_, _, pages)| pages.iter().any(|pages| *pages > 0));
    if lines.is_empty() {
        return Ok(None);
    }
    let top = lines.iter().flat_map(|(_, _, pages)| pages).max().copied().unwrap_or(0);
    let svg = draw(time, mib(top), |chart| {
        for (_, colour, pages) in &lines {
            let points = samples.iter().zip(pages).map(|(timed, pages)| (seconds(timed), mib(*pages)));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        }
        Ok(())
    })?;
    let keys = lines.iter().map(|(name, colour, _)| ((*name).to_owned(), *colour)).collect();
    Ok(Some(Plot { title: "LRU lists and swap, MiB".to_owned(), keys, svg }))
}

/// Free pages of a zone and its watermarks.
fn watermarks(samples: &[TimedSample], time: &Range<f64>, zone: &ZoneSample) -> anyhow::Result<Plot> {
    let rows: Vec<(f64, &ZoneSample)> = samples
        .iter()
        .filter_map(|timed| {
            let of_zone = |other: &&ZoneSample| (other.node, &other.zone) == (zone.node, &zone.zone);
            Some((seconds(timed), timed.sample.zones.iter().find(of_zone)?))
        })
        .collect();
    let highest = rows.iter().map(|(_, row)| row.free.max(row.watermarks[2])).max();
    let svg = draw(time, mib(highest.unwrap_or(0)), |chart| {
        for (index, (_, colour)) in MARKS.iter().enumerate() {
            let points = rows.iter().map(|(time, row)| (*time, mib(row.watermarks[index])));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(1)))?;
        }
        let points = rows.iter().map(|(time, row)| (*time, mib(row.free)));
        chart.draw_series(LineSeries::new(points, FREE.stroke_width(2)))?;
        Ok(())
    })?;
    let marks = MARKS.iter().map(|(name, colour)| ((*name).to_owned(), *colour));
    let keys = std::iter::once(("free".to_owned(), FREE)).chain(marks).collect();
    Ok(Plot { title: format!("node {} zone {}, MiB", zone.node, zone.zone), keys, svg })
}

/// Events by second, those that happened at all; nothing if none did.
fn rates(samples: &[TimedSample], time: &Range<f64>) -> anyhow::Result<Option<Plot>> {
    let happened = |rate: &&Rate| {
        let ends = samples.first().zip(samples.last());
        ends.is_some_and(|(first, last)| rate.count(&last.sample) != rate.count(&first.sample))
    };
    let lines: Vec<(&Rate, Vec<(f64, f64)>)> =
        RATES.iter().filter(happened).map(|rate| (rate, per_second(samples, rate))).collect();
    let top = lines.iter().flat_map(|(_, points)| points).map(|(_, value)| *value).fold(0.0, f64::max);
    if lines.is_empty() {
        return Ok(None);
    }
    let svg = draw(time, top, |chart| {
        for (rate, points) in &lines {
            chart.draw_series(LineSeries::new(points.iter().copied(), rate.colour.stroke_width(1)))?;
        }
        Ok(())
    })?;
    let keys = lines.iter().map(|(rate, _)| (rate.name.to_owned(), rate.colour)).collect();
    Ok(Some(Plot { title: "pages per second".to_owned(), keys, svg }))
}

/// The rate between each two samples, at the later one's time.
fn per_second(samples: &[TimedSample], rate: &Rate) -> Vec<(f64, f64)> {
    let pairs = samples.windows(2).filter_map(|pair| {
        let [earlier, later] = pair else { return None };
        let passed = seconds(later) - seconds(earlier);
        // A torn sample may count less than the one before.
        let count = rate.count(&later.sample).saturating_sub(rate.count(&earlier.sample));
        (passed > 0.0).then(|| (seconds(later), number(count) / passed))
    });
    pairs.collect()
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// A picture with axes; `series` draws into it.
fn draw(
    time: &Range<f64>,
    top: f64,
    series: impl FnOnce(&mut Chart<'_, '_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area: DrawingArea<SVGBackend<'_>, Shift> =
            SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| anyhow!("cannot be drawn: {error}");
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let top = if top > 0.0 { top * 1.02 } else { 1.0 };
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(56)
            .build_cartesian_2d(time.clone(), 0.0..top)
            .map_err(|error| failed(&error))?;
        let label = |value: &f64| if top < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
            .x_labels(8)
            .y_labels(5)
            .x_label_formatter(&|value| format!("{value:.1} s"))
            .y_label_formatter(&label)
            .draw()
            .map_err(|error| failed(&error))?;
        series(&mut chart)?;
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}

fn seconds(timed: &TimedSample) -> f64 {
    number(timed.ms) / 1000.0
}

fn mib(pages: u64) -> f64 {
    number(pages) / PAGES_PER_MIB
}

#[expect(clippy::cast_precision_loss, reason = "for a picture")]
const fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvisor_abi::VmEvent;

    fn series(free: &[u64]) -> Series {
        let samples = (0..).zip(free).map(|(index, free)| {
            let mut pages = [0; MemoryKind::ALL.len()];
            pages[MemoryKind::Free as usize] = *free;
            pages[MemoryKind::Anon as usize] = 1024 - free;
            let mut events = vec![0; VmEvent::NAMES.len()];
            events[VmEvent::PgallocNormal as usize] = 1024 - free;
            let zone = ZoneSample {
                node: 1,
                zone: "Normal".into(),
                managed: 1024,
                free: *free,
                watermarks: [10, 20, 30],
            };
            serde_json::to_value(TimedSample {
                ms: index * 500,
                sample: Sample {
                    pages,
                    zones: vec![zone],
                    lists: [free / 2, 0, 0, 0, 0],
                    events,
                    ..Sample::default()
                },
            })
            .unwrap()
        });
        serde_json::from_value(samples.collect()).unwrap()
    }

    #[test]
    fn a_series_has_a_picture_of_memory_of_each_zone_and_of_what_happened() {
        let plots = plots(&series(&[1000, 500, 40])).unwrap();
        let titles: Vec<&str> = plots.iter().map(|plot| plot.title.as_str()).collect();
        assert_eq!(
            titles,
            ["memory by kind, MiB", "node 1 zone Normal, MiB", "LRU lists and swap, MiB", "pages per second"]
        );
        assert_eq!(plots[3].keys.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["allocated"]);
        assert!(plots.iter().all(|plot| plot.svg.starts_with("<svg") && plot.svg.ends_with("</svg>\n")));
    }

    #[test]
    fn rates_are_what_was_counted_in_between_by_the_time_it_took() {
        let series = series(&[1000, 900, 950]);
        let points = per_second(series.samples(), &RATES[5]);
        assert_eq!(points, [(0.5, 200.0), (1.0, 0.0)], "a count that went back is none");
    }

    #[test]
    fn one_sample_is_no_picture() {
        assert!(plots(&series(&[5])).unwrap().is_empty());
        assert!(plots(&Series::default()).unwrap().is_empty());
    }
}
