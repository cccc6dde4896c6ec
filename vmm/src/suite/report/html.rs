//! Results as one HTML page that needs nothing else: totals, a table of suites, every failure, and for each case that was watched what its
//! memory looked like.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::style::RGBColor;

use super::plot::{self, Plot};
use super::suites;
use crate::suite::outcome::{CaseResult, Outcome, Subcase, Totals};

/// Lines of a failed case's console that are shown.
const CONSOLE_LINES: usize = 60;

const STYLE: &str = "\
:root { color-scheme: light dark; --good: #117a4b; --bad: #b3261e; --skip: #8a6d00; --line: #8884; --card: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 84rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.passed { color: var(--good); } .failed { color: var(--bad); } .skipped { color: var(--skip); }
.bar { display: inline-flex; width: 12rem; height: .7rem; background: var(--card); } .bar span { height: 100%; }
.bar .passed { background: var(--good); } .bar .failed { background: var(--bad); } .bar .skipped { background: var(--skip); }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; } .time { float: right; opacity: .7; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; background: var(--card); padding: .6rem; font-size: .85rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: .5rem 0; } figcaption { font-size: .85rem; }
figure svg { background: white; border: 1px solid var(--line); max-width: 100%; height: auto; }
.key { white-space: nowrap; margin-right: .8rem; } .key i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border: 1px solid var(--line); }";

/// The page.
///
/// # Errors
/// If a picture cannot be drawn.
pub fn page(results: &[CaseResult], time: Duration) -> anyhow::Result<Markup> {
    let totals = Totals::of(results);
    let failed = |result: &&CaseResult| matches!(result.outcome, Outcome::Failed(_));
    let watched: Vec<(&CaseResult, Vec<Plot>)> = results
        .iter()
        .filter(|result| !result.samples.is_empty())
        .map(|result| Ok((result, plot::plots(&result.samples)?)))
        .collect::<anyhow::Result<_>>()?;
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "memvisor test: " (sentence(totals)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "memvisor test" }
                p { (count(totals.passed, "passed")) ", " (count(totals.failed, "failed")) ", " (count(totals.skipped, "skipped"))
                    ", in " (format!("{:.1} s", time.as_secs_f64())) }
                (suite_table(results))
                @if totals.failed > 0 {
                    h2 { "Failures" }
                    @for result in results.iter().filter(failed) { (failure(result)) }
                }
                @if !watched.is_empty() {
                    h2 { "Memory, as seen from outside" }
                    @for (result, plots) in &watched { (pictures(result, plots)) }
                }
                h2 { "Cases" }
                @for suite in suites(results) {
                    details {
                        summary { (suite) }
                        table {
                            tr { th { "case" } th { "bed" } th { "outcome" } th.n { "time" } th.n { "audits" } th.n { "findings" } th.n { "tests" } }
                            @for result in results.iter().filter(|result| result.suite() == suite) { (row(result)) }
                        }
                    }
                }
            }
        }
    })
}

fn sentence(totals: Totals) -> String {
    format!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped)
}

fn count(number: usize, outcome: &str) -> Markup {
    html! { b class=(outcome) { (number) " " (outcome) } }
}

const fn class(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "failed",
        Outcome::Skipped(_) => "skipped",
    }
}

fn suite_table(results: &[CaseResult]) -> Markup {
    html! {
        table {
            tr { th { "suite" } th {} th.n { "passed" } th.n { "failed" } th.n { "skipped" } th.n { "time" } }
            @for suite in suites(results) {
                @let cases = || results.iter().filter(|result| result.suite() == suite);
                @let totals = Totals::of(cases());
                @let time: Duration = cases().map(|result| result.time).sum();
                tr {
                    td { (suite) }
                    td { span.bar {
                        @for (number, outcome) in [(totals.passed, "passed"), (totals.failed, "failed"), (totals.skipped, "skipped")] {
                            @if number > 0 { span class=(outcome) style=(format!("flex-grow:{number}")) {} }
                        }
                    } }
                    td.n { (totals.passed) } td.n { (totals.failed) } td.n { (totals.skipped) }
                    td.n { (format!("{:.1} s", time.as_secs_f64())) }
                }
            }
        }
    }
}

fn failure(result: &CaseResult) -> Markup {
    let reasons: &[String] = if let Outcome::Failed(reasons) = &result.outcome { reasons } else { &[] };
    let lines: Vec<&str> = result.console.lines().collect();
    let last = lines.get(lines.len().saturating_sub(CONSOLE_LINES)..).unwrap_or_default();
    let parts = result.subcases.iter().filter(|part| matches!(part.outcome, Outcome::Failed(_)));
    html! {
        details open {
            summary { b.failed { (result.name) } " [" (result.bed.name()) "]" }
            ul { @for reason in reasons { li { pre { (reason) } } } }
            @for Subcase { name, outcome } in parts {
                @if let Outcome::Failed(reasons) = outcome { p { (name) ": " (reasons.join("; ")) } }
            }
            @if !last.is_empty() {
                details { summary { "the end of its console" } pre { (last.join("\n")) } }
            }
        }
    }
}

fn pictures(result: &CaseResult, plots: &[Plot]) -> Markup {
    html! {
        details open[!plots.is_empty()] {
            summary {
                b class=(class(&result.outcome)) { (result.name) } " [" (result.bed.name()) "]"
                span.time { (result.samples.samples().len()) " looks" }
            }
            @if plots.is_empty() { p { "It ended before it could be looked at twice." } }
            div.plots { @for plot in plots { (figure(plot)) } }
        }
    }
}

fn figure(plot: &Plot) -> Markup {
    let css = |RGBColor(r, g, b): RGBColor| format!("background:rgb({r},{g},{b})");
    html! {
        figure {
            figcaption {
                b { (plot.title) } " "
                @for (name, colour) in &plot.keys { span.key { i style=(css(*colour)) {} (name) } }
            }
            (PreEscaped(&plot.svg))
        }
    }
}

fn row(result: &CaseResult) -> Markup {
    let note = if let Outcome::Skipped(reason) = &result.outcome { reason.as_str() } else { "" };
    html! {
        tr {
            td { (result.name) } td { (result.bed.name()) }
            td { span class=(class(&result.outcome)) { (class(&result.outcome)) } " " (note) }
            td.n { (format!("{:.2} s", result.time.as_secs_f64())) }
            td.n { (result.audits.count) } td.n { (result.audits.findings) } td.n { (result.subcases.len()) }
        }
    }
}
