//! Which cases a command line means.

use std::collections::BTreeSet;

use thiserror::Error;

use super::case::{Bed, Case};

/// A name that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnknownName {
    /// A case that its suite does not have.
    #[error("suite {suite} has no case '{name}'; it has {cases}")]
    Case {
        /// What was asked for.
        name: String,
        /// The suite.
        suite: String,
        /// Its cases.
        cases: String,
    },
    /// Nothing of the kind.
    #[error(
        "no suite and no case matches '{name}'; suites: {suites}; `memvisor test --list` names the cases"
    )]
    Suite {
        /// What was asked for.
        name: String,
        /// All suites and groups.
        suites: String,
    },
}

impl UnknownName {
    fn new(name: &str, cases: &[Case]) -> UnknownName {
        let suite = name.split('/').next().unwrap_or(name);
        let of_suite: Vec<&str> =
            cases.iter().filter(|case| case.suite() == suite).map(|case| case.name.as_str()).collect();
        if !of_suite.is_empty() {
            return UnknownName::Case {
                name: name.to_owned(),
                suite: suite.to_owned(),
                cases: of_suite.join(", "),
            };
        }
        let mut suites: Vec<&str> = cases.iter().map(Case::suite).collect();
        suites.dedup();
        let groups: BTreeSet<&str> = cases.iter().flat_map(|case| &case.groups).map(String::as_str).collect();
        suites.extend(groups);
        UnknownName::Suite { name: name.to_owned(), suites: suites.join(", ") }
    }
}

/// The cases that `names` mean on `beds`, in the catalog's order. A name is a suite, a group of suites, a case, or a case with
/// `*` for any characters; none means all.
///
/// # Errors
/// [`UnknownName`] for a name that matches no case on any bed.
pub fn select(cases: Vec<Case>, names: &[String], beds: &[Bed]) -> Result<Vec<Case>, UnknownName> {
    for name in names {
        if !cases.iter().any(|case| matches(case, name)) {
            return Err(UnknownName::new(name, &cases));
        }
    }
    Ok(cases
        .into_iter()
        .filter(|case| beds.contains(&case.bed))
        .filter(|case| names.is_empty() || names.iter().any(|name| matches(case, name)))
        .collect())
}

fn matches(case: &Case, name: &str) -> bool {
    case.suite() == name
        || case.groups.iter().any(|group| group == name)
        || glob(name.as_bytes(), case.name.as_bytes())
}

/// `*` stands for any bytes, everything else for itself. Greedy with one point to return to, so linear in
/// practice and quadratic at worst.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            p = star_p + 1;
            t = star_t + 1;
            star = Some((star_p, t));
        } else {
            return false;
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::case::load;
    use proptest::prelude::*;

    fn names(wanted: &[&str], beds: &[Bed]) -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        select(load().unwrap(), &wanted, beds).unwrap().into_iter().map(|case| case.name).collect()
    }

    const BOTH: &[Bed] = &[Bed::Kvm, Bed::Qemu];

    #[test]
    fn no_name_means_all() {
        assert_eq!(names(&[], BOTH).len(), load().unwrap().len());
    }

    #[test]
    fn the_beds_divide_the_cases() {
        let all = load().unwrap().len();
        assert_eq!(names(&[], &[Bed::Kvm]).len() + names(&[], &[Bed::Qemu]).len(), all);
    }

    #[test]
    fn bed_nested_has_the_cases_of_bed_kvm_that_do_not_take_it_too_long() {
        let nested: Vec<Case> = load().unwrap().into_iter().filter_map(Case::nested).collect();
        let of_nested = select(nested, &[], &[Bed::Nested]).unwrap();
        let of_nested: Vec<String> = of_nested.into_iter().map(|case| case.name).collect();
        let mut of_kvm = names(&[], &[Bed::Kvm]);
        of_kvm.retain(|name| !name.starts_with("real/"));
        assert_eq!(of_nested, of_kvm, "all but the real machines");
    }

    #[test]
    fn a_suite_means_its_cases_and_a_case_itself() {
        assert!(names(&["audit"], BOTH).iter().all(|name| name.starts_with("audit/")));
        assert_eq!(names(&["boot/la57-refused"], BOTH), ["boot/la57-refused"]);
        assert!(names(&["audit/*-leak*"], BOTH).iter().all(|name| name.contains("leak")));
    }

    #[test]
    fn a_group_means_its_suites() {
        let text = "groups = [\"pressure\"]\n[[case]]\nname = \"oom/a\"\ndescription = \"d\"\nkvm = { machine = \"tiny\" }\n";
        let mut all = load().unwrap();
        all.extend(crate::suite::case::parse("oom", text).unwrap());
        let chosen = select(all, &["pressure".to_owned()], BOTH).unwrap();
        assert!(chosen.iter().any(|case| case.name == "oom/a"));
        assert!(chosen.iter().all(|case| case.groups.contains(&"pressure".to_owned())));
    }

    #[test]
    fn a_name_that_matches_nothing_is_an_error() {
        let error = select(load().unwrap(), &["nonsense".to_owned()], BOTH).unwrap_err();
        assert!(error.to_string().contains("boot"), "{error}");
        let error = select(load().unwrap(), &["kswapd/qenu".to_owned()], BOTH).unwrap_err().to_string();
        assert!(error.starts_with("suite kswapd has no case 'kswapd/qenu'; it has kswapd/tiny"), "{error}");
        assert!(error.contains("kswapd/qemu-la48") && !error.contains("boot"), "{error}");
    }

    /// The plain recursive definition.
    fn model(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                model(rest, text) || text.split_first().is_some_and(|(_, tail)| model(pattern, tail))
            }
            (Some((a, rest)), Some((b, tail))) => a == b && model(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_obey_the_definition(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                model(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
