//! Results as HTML, JUnit, JSON and KTAP files.

mod html;
mod plot;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ktap;
use super::outcome::{self, CaseResult, Outcome, Subcase, Totals, Usage};

/// A file to write, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFile {
    form: Form,
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Junit,
    Json,
    Ktap,
}

/// Why a report cannot be written.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Not FORM=FILE.
    #[error("'{0}' is not a report: write html=FILE, junit=FILE, json=FILE or ktap=FILE")]
    Argument(String),
    /// The file cannot be written.
    #[error("write report {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The results cannot be put into this form.
    #[error("write report {}: {problem}", path.display())]
    Render {
        /// The file.
        path: PathBuf,
        /// What the serializer says.
        problem: String,
    },
}

impl FromStr for ReportFile {
    type Err = ReportError;

    fn from_str(text: &str) -> Result<Self, ReportError> {
        let error = || ReportError::Argument(text.to_owned());
        let (form, path) = text.split_once('=').ok_or_else(error)?;
        let form = match form {
            "html" => Form::Html,
            "junit" => Form::Junit,
            "json" => Form::Json,
            "ktap" => Form::Ktap,
            _ => return Err(error()),
        };
        if path.is_empty() {
            return Err(error());
        }
        Ok(ReportFile { form, path: PathBuf::from(path) })
    }
}

impl ReportFile {
    /// Whether it shows samples.
    pub fn has_plots(&self) -> bool {
        self.form == Form::Html
    }

    /// Writes the results of a run that took `time`. Folders on the way are made.
    ///
    /// # Errors
    /// [`ReportError::Write`] if the file cannot be written.
    pub fn write(&self, results: &[CaseResult], time: Duration) -> Result<(), ReportError> {
        let render = |problem: String| ReportError::Render { path: self.path.clone(), problem };
        let text = match self.form {
            Form::Html => {
                let page = html::page(results, time).map_err(|error| render(error.to_string()))?;
                page.into_string()
            }
            Form::Junit => junit(results, time).map_err(|error| render(error.to_string()))?,
            Form::Json => json(results, time).map_err(|error| render(error.to_string()))?,
            Form::Ktap => ktap::write(&by_suite(results)),
        };
        write_file(&self.path, &text).map_err(|source| ReportError::Write { path: self.path.clone(), source })
    }
}

fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)
}

/// The suites in the order of their first case.
fn suites(results: &[CaseResult]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for result in results {
        if !names.contains(&result.suite()) {
            names.push(result.suite());
        }
    }
    names
}

fn by_suite(results: &[CaseResult]) -> Vec<(String, Vec<Subcase>)> {
    suites(results)
        .into_iter()
        .map(|suite| {
            let cases = results.iter().filter(|result| result.suite() == suite);
            let lines = cases.map(|result| Subcase {
                name: result.name.split_once('/').map_or(result.name.as_str(), |(_, name)| name).to_owned(),
                outcome: result.outcome.clone(),
            });
            (suite.to_owned(), lines.collect())
        })
        .collect()
}

fn status(outcome: &Outcome) -> TestCaseStatus {
    match outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Failed(reasons) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(reasons.first().map_or("failed", String::as_str));
            status.set_description(reasons.join("\n"));
            status
        }
        Outcome::Skipped(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
    }
}

fn junit(results: &[CaseResult], time: Duration) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new("memvisor");
    report.set_time(time);
    for suite in suites(results) {
        let mut out = TestSuite::new(suite);
        let mut total = Duration::ZERO;
        for result in results.iter().filter(|result| result.suite() == suite) {
            total += result.time;
            let mut case = TestCase::new(result.name.as_str(), status(&result.outcome));
            case.set_classname(format!("{}.{}", result.bed.name(), suite)).set_time(result.time);
            for (reason, count) in result.usage.exits.iter().flatten() {
                case.add_property((format!("exits.{reason}"), count.to_string()));
            }
            if let Some(count) = result.usage.emulated_instructions {
                case.add_property(("emulated_instructions".to_owned(), count.to_string()));
            }
            if matches!(result.outcome, Outcome::Failed(_)) {
                case.set_system_out(result.console.as_str());
            }
            out.add_test_case(case);
            for part in &result.subcases {
                let name = format!("{}/{}", result.name, part.name);
                let mut case = TestCase::new(name, status(&part.outcome));
                case.set_classname(format!("{}.{}", result.bed.name(), suite));
                out.add_test_case(case);
            }
        }
        out.set_time(total);
        report.add_test_suite(out);
    }
    report.to_string()
}

/// Results that were read.
#[derive(Debug, Deserialize)]
pub struct Document {
    /// How long the run took.
    #[serde(rename = "seconds", deserialize_with = "outcome::from_seconds")]
    pub time: Duration,
    /// Its cases.
    pub cases: Vec<CaseResult>,
}

/// Reads what a JSON report holds.
///
/// # Errors
/// What is wrong with it, by line and column.
pub fn read_json(text: &str) -> serde_json::Result<Document> {
    serde_json::from_str(text)
}

fn json(results: &[CaseResult], time: Duration) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Document<'a> {
        format: u32,
        seconds: f64,
        totals: Totals,
        usage: Usage,
        cases: Vec<Cow<'a, CaseResult>>,
    }
    let mut usage = Usage::default();
    results.iter().for_each(|result| usage.add(&result.usage));
    let document = Document {
        format: 1,
        seconds: time.as_secs_f64(),
        totals: Totals::of(results),
        usage,
        cases: results.iter().map(without_needless_console).collect(),
    };
    serde_json::to_string(&document).map(|text| text + "\n")
}

/// What a case that passed said is not worth its room.
fn without_needless_console(result: &CaseResult) -> Cow<'_, CaseResult> {
    if matches!(result.outcome, Outcome::Failed(_)) || result.console.is_empty() {
        return Cow::Borrowed(result);
    }
    Cow::Owned(CaseResult { console: String::new(), ..result.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::Bed;
    use crate::suite::outcome::Audits;
    use crate::suite::samples::Series;

    fn result(name: &str, outcome: Outcome) -> CaseResult {
        CaseResult {
            name: name.to_owned(),
            bed: Bed::Kvm,
            outcome,
            time: Duration::from_millis(1500),
            audits: Audits { found: vec!["owner.none".to_owned()], ..Audits::default() },
            usage: Usage { exits: Some([("hlt".to_owned(), 3)].into()), emulated_instructions: Some(70) },
            samples: Series::default(),
            subcases: vec![Subcase { name: "map <&>".to_owned(), outcome: Outcome::Passed }],
            console: "before\u{1b}[0m after\u{0} ]]> end".to_owned(),
        }
    }

    fn results() -> Vec<CaseResult> {
        vec![
            result("boot/a", Outcome::Passed),
            result("audit/b", Outcome::Failed(vec!["1 < 2 & \"3\"".to_owned(), "more".to_owned()])),
            result("boot/c", Outcome::Skipped("no /dev/kvm".to_owned())),
        ]
    }

    #[test]
    fn junit_reads_back_with_the_same_counts() {
        let xml = junit(&results(), Duration::from_secs(3)).unwrap();
        let report = Report::deserialize_from_str(&xml).unwrap();
        let suites: Vec<_> = report.test_suites.iter().map(|suite| suite.name.to_string()).collect();
        assert_eq!(suites, ["boot", "audit"]);
        // Three cases, each with one part.
        assert_eq!((report.tests, report.failures), (6, 1));
        let properties = &report.test_suites[0].test_cases[0].properties;
        assert_eq!((properties[0].name.as_str(), properties[0].value.as_str()), ("exits.hlt", "3"));
        let failed = &report.test_suites[1].test_cases[0];
        let TestCaseStatus::NonSuccess { message, .. } = &failed.status else { panic!("{failed:?}") };
        assert_eq!(message.as_ref().unwrap().as_str(), "1 < 2 & \"3\"");
    }

    #[test]
    fn json_has_totals_and_a_case_each() {
        let document: serde_json::Value =
            serde_json::from_str(&json(&results(), Duration::from_secs(3)).unwrap()).unwrap();
        assert_eq!(document["totals"], serde_json::json!({ "passed": 1, "failed": 1, "skipped": 1 }));
        assert_eq!(document["cases"][1]["outcome"], "failed");
        assert_eq!(document["cases"][1]["reason"][1], "more");
        assert_eq!(document["cases"][0]["audits"]["found"][0], "owner.none");
        assert_eq!(document["cases"][0]["subcases"][0]["name"], "map <&>");
        assert_eq!(document["cases"][0]["usage"]["exits"]["hlt"], 3);
        assert_eq!(document["usage"]["emulated_instructions"], 210);
    }

    #[test]
    fn json_reads_back_as_what_it_was_but_for_consoles_that_nobody_needs() {
        let mut results = results();
        let document = read_json(&json(&results, Duration::from_secs(3)).unwrap()).unwrap();
        assert_eq!(document.time, Duration::from_secs(3));
        for result in results.iter_mut().filter(|result| !matches!(result.outcome, Outcome::Failed(_))) {
            result.console.clear();
        }
        assert_eq!(document.cases, results);
    }

    #[test]
    fn ktap_numbers_cases_within_their_suite() {
        let text = ktap::write(&by_suite(&results()));
        assert_eq!(
            text,
            "KTAP version 1\n1..2\n  KTAP version 1\n  1..2\n  ok 1 - a\n  ok 2 - c # SKIP no /dev/kvm\n\
             ok 1 - boot\n  KTAP version 1\n  1..1\n  not ok 1 - b\n  # 1 < 2 & \"3\"\n  # more\n\
             not ok 2 - audit\n"
        );
    }

    #[test]
    fn a_report_argument_names_form_and_file() {
        assert!("junit=a.xml".parse::<ReportFile>().is_ok());
        for wrong in ["a.xml", "pdf=a", "json="] {
            assert!(wrong.parse::<ReportFile>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_report_is_written_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/r.json");
        let report: ReportFile = format!("json={}", path.display()).parse().unwrap();
        report.write(&results(), Duration::ZERO).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(read_json(&text).unwrap().cases.len(), results().len());
        assert!(text.contains("\"passed\":1"));
    }
}
