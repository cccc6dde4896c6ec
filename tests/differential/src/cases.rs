//! Hand-written cases: one or a few for each flag and each error, in `cases/*.txt`.
//!
//! ```text
//! case NAME
//! # What it is about.
//! CALL VALUE...
//! ```

use crate::call::ParseError;
use crate::sequence::Sequence;

/// The files, by name.
const FILES: &[(&str, &str)] = &[
    ("mmap", include_str!("../cases/mmap.txt")),
    ("change", include_str!("../cases/change.txt")),
    ("mremap", include_str!("../cases/mremap.txt")),
    ("advice", include_str!("../cases/advice.txt")),
    ("lock", include_str!("../cases/lock.txt")),
    ("file", include_str!("../cases/file.txt")),
    ("fault", include_str!("../cases/fault.txt")),
    ("fork", include_str!("../cases/fork.txt")),
    ("mempolicy", include_str!("../cases/mempolicy.txt")),
    ("limit", include_str!("../cases/limit.txt")),
];

/// Why a file is no list of cases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// A call before the first case.
    #[error("{file}:{line}: a call stands before the first case")]
    NoCase {
        /// The file's name.
        file: String,
        /// Counted from 1.
        line: usize,
    },
    /// A line that is no call.
    #[error("{file}:{line}: {source}")]
    Call {
        /// The file's name.
        file: String,
        /// Counted from 1.
        line: usize,
        /// Why not.
        source: ParseError,
    },
}

/// All hand-written cases.
///
/// # Errors
/// A line that is neither a case nor a call.
pub fn load() -> Result<Vec<Sequence>, CaseError> {
    let mut all = Vec::new();
    for (file, text) in FILES {
        all.extend(parse(file, text)?);
    }
    Ok(all)
}

/// The cases of one file; their names are `FILE/NAME`.
///
/// # Errors
/// A line that is neither a case nor a call.
pub fn parse(file: &str, text: &str) -> Result<Vec<Sequence>, CaseError> {
    let mut cases: Vec<Sequence> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix("case ") {
            cases.push(Sequence { name: format!("{file}/{}", name.trim()), calls: Vec::new() });
            continue;
        }
        let (file, line_number) = (file.to_owned(), at + 1);
        let Some(case) = cases.last_mut() else {
            return Err(CaseError::NoCase { file, line: line_number });
        };
        let call = line.parse();
        case.calls.push(call.map_err(|source| CaseError::Call { file, line: line_number, source })?);
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_cases_can_be_read_and_have_names_of_their_own() {
        let cases = load().unwrap();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.iter().all(|case| !case.calls.is_empty() && case.calls.len() <= 1024));
        assert!(names.iter().all(|name| !name.contains(' ')));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let error = parse("f", "case a\nmunmap main 1p\nmunmap main\n").unwrap_err();
        assert!(error.to_string().starts_with("f:3: munmap takes"));
        assert_eq!(
            parse("f", "\nmunlockall").unwrap_err().to_string(),
            "f:2: a call stands before the first case"
        );
    }
}
