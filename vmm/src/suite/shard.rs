//! A share of the cases, so that several machines can run one selection together.
//!
//! An existing scheduler starts the machines; this reads which of how many one is, from `--shard I/N` or
//! from what the scheduler puts into the environment:
//!
//! | Scheduler | index | count |
//! |---|---|---|
//! | Kubernetes Indexed Job | `JOB_COMPLETION_INDEX`, from 0 | `MEMVISOR_SHARDS` (Kubernetes sets none) |
//! | Slurm array | `SLURM_ARRAY_TASK_ID`, from `_MIN` by `_STEP` | `SLURM_ARRAY_TASK_COUNT` |
//! | CI matrix (GitLab and others) | `CI_NODE_INDEX`, from 1 | `CI_NODE_TOTAL` |
//!
//! Invariant: over the N shares every case occurs exactly once, whatever the selection.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// One of `count` shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    index: usize,
    /// At least 1.
    count: usize,
}

/// Why a share cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardError {
    /// Not of the form I/N.
    #[error("'{0}' is not a share: write I/N with 1 <= I <= N, for example 2/5")]
    Form(String),
    /// A scheduler's variable is no number in range.
    #[error("environment: {name}={value} is not usable as a share; unset it, or pass --shard I/N")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
    },
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let parsed = text.split_once('/').and_then(|(index, count)| {
            let (index, count): (usize, usize) = (index.parse().ok()?, count.parse().ok()?);
            Shard::new(index.checked_sub(1)?, count)
        });
        parsed.ok_or_else(|| ShardError::Form(text.to_owned()))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

/// What the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing about shares.
    Nothing,
    /// This share, from this variable.
    Share(Shard, &'static str),
    /// An index whose count is not known: this variable would have to give it.
    NoCount {
        /// The variable that has the index.
        index: &'static str,
        /// The variable that should have the count.
        count: &'static str,
    },
}

struct Scheduler {
    index: &'static str,
    count: &'static str,
    first: First,
}

enum First {
    Zero,
    One,
    Slurm,
}

const SCHEDULERS: [Scheduler; 3] = [
    Scheduler { index: "JOB_COMPLETION_INDEX", count: "MEMVISOR_SHARDS", first: First::Zero },
    Scheduler { index: "SLURM_ARRAY_TASK_ID", count: "SLURM_ARRAY_TASK_COUNT", first: First::Slurm },
    Scheduler { index: "CI_NODE_INDEX", count: "CI_NODE_TOTAL", first: First::One },
];

impl Shard {
    /// Share `index`, from 0, of `count`; `None` if there is no such share.
    pub fn new(index: usize, count: usize) -> Option<Shard> {
        (index < count).then_some(Shard { index, count })
    }

    /// What a scheduler says, read through `var` (`std::env::var_os` in the program).
    ///
    /// # Errors
    /// [`ShardError::Environment`] if a variable holds no number, or an index past the count.
    pub fn from_environment(var: impl Fn(&str) -> Option<String>) -> Result<Found, ShardError> {
        for scheduler in &SCHEDULERS {
            let Some(text) = var(scheduler.index) else { continue };
            let Some(total) = var(scheduler.count) else {
                return Ok(Found::NoCount { index: scheduler.index, count: scheduler.count });
            };
            let error = |name, value: &str| ShardError::Environment { name, value: value.to_owned() };
            let raw: usize = text.parse().map_err(|_| error(scheduler.index, &text))?;
            let count: usize = total.parse().map_err(|_| error(scheduler.count, &total))?;
            let number = |name, otherwise: usize| match var(name) {
                None => Ok(otherwise),
                Some(text) => text.parse().map_err(|_| error(name, &text)),
            };
            let index = match scheduler.first {
                First::Zero => Some(raw),
                First::One => raw.checked_sub(1),
                First::Slurm => {
                    let first = number("SLURM_ARRAY_TASK_MIN", 0)?;
                    let step = number("SLURM_ARRAY_TASK_STEP", 1)?.max(1);
                    raw.checked_sub(first).filter(|offset| offset % step == 0).map(|offset| offset / step)
                }
            };
            let shard = index.and_then(|index| Shard::new(index, count));
            return shard
                .map(|shard| Found::Share(shard, scheduler.index))
                .ok_or_else(|| error(scheduler.index, &text));
        }
        Ok(Found::Nothing)
    }

    /// Keeps this share's items: every count-th, so that neighbours, which cost alike, are spread.
    pub fn take<T>(self, items: Vec<T>) -> Vec<T> {
        items
            .into_iter()
            .enumerate()
            .filter(|(position, _)| position % self.count == self.index)
            .map(|(_, item)| item)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment(pairs: &[(&'static str, &str)]) -> Result<Found, ShardError> {
        Shard::from_environment(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn share(index: usize, count: usize) -> Shard {
        Shard::new(index, count).unwrap()
    }

    proptest! {
        #[test]
        fn every_case_is_in_exactly_one_share(cases in 0_usize..200, count in 1_usize..20) {
            let mut seen: Vec<usize> =
                (0..count).flat_map(|index| share(index, count).take((0..cases).collect())).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..cases).collect::<Vec<_>>());
        }

        #[test]
        fn shares_differ_by_at_most_one_case(cases in 0_usize..200, count in 1_usize..20) {
            let sizes: Vec<usize> =
                (0..count).map(|index| share(index, count).take(vec![(); cases]).len()).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }

        #[test]
        fn text_round_trips(index in 0_usize..99, more in 1_usize..99) {
            let shard = share(index, index + more);
            prop_assert_eq!(shard.to_string().parse(), Ok(shard));
        }
    }

    #[test]
    fn a_share_is_written_from_one() {
        assert_eq!("2/5".parse(), Ok(share(1, 5)));
        for wrong in ["0/5", "6/5", "1/0", "1", "a/b", "-1/3", ""] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn schedulers_are_understood() {
        let found = |index, count, name| Ok(Found::Share(share(index, count), name));
        assert_eq!(environment(&[]), Ok(Found::Nothing));
        assert_eq!(
            environment(&[("JOB_COMPLETION_INDEX", "0"), ("MEMVISOR_SHARDS", "3")]),
            found(0, 3, "JOB_COMPLETION_INDEX")
        );
        assert_eq!(
            environment(&[("CI_NODE_INDEX", "3"), ("CI_NODE_TOTAL", "3")]),
            found(2, 3, "CI_NODE_INDEX")
        );
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "14"),
            ("SLURM_ARRAY_TASK_MIN", "10"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
        ];
        assert_eq!(environment(&slurm), found(2, 4, "SLURM_ARRAY_TASK_ID"));
    }

    #[test]
    fn an_index_without_a_count_is_reported_not_guessed() {
        assert_eq!(
            environment(&[("JOB_COMPLETION_INDEX", "1")]),
            Ok(Found::NoCount { index: "JOB_COMPLETION_INDEX", count: "MEMVISOR_SHARDS" })
        );
    }

    #[test]
    fn nonsense_in_the_environment_is_an_error() {
        assert!(environment(&[("CI_NODE_INDEX", "0"), ("CI_NODE_TOTAL", "3")]).is_err());
        assert!(environment(&[("CI_NODE_INDEX", "4"), ("CI_NODE_TOTAL", "3")]).is_err());
        assert!(environment(&[("JOB_COMPLETION_INDEX", "x"), ("MEMVISOR_SHARDS", "3")]).is_err());
    }
}
