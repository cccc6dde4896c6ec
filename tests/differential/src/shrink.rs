//! The shortest sequence that still differs.
//!
//! A round tries many sequences at once, since each needs a machine booted: all that lack one piece. Pieces that can be missing alone are
//! then left out together, or as many of them as can be. When no piece can be missing, pieces are halved.

use crate::compare::first_difference;
use crate::differences::explain;
use crate::output::{Outcome, Side, run_all};
use crate::sequence::{Mode, Sequence};

/// Two kernels.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// What is right.
    pub linux: &'a dyn Side,
    /// What is compared with it.
    pub guest: &'a dyn Side,
}

impl std::fmt::Debug for Pair<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} and {}", self.linux.name(), self.guest.name())
    }
}

/// Rounds at most; each boots once, and once more for each sequence that kills the guest.
const ROUNDS: usize = 40;

impl Pair<'_> {
    /// Both records of each sequence.
    ///
    /// # Errors
    /// If a program cannot be run.
    pub fn records(&self, sequences: &[Sequence]) -> anyhow::Result<Vec<(Outcome, Outcome)>> {
        let linux = run_all(self.linux, sequences, Mode::Full, &|_| ())?;
        let guest = run_all(self.guest, sequences, Mode::Full, &|_| ())?;
        Ok(linux.into_iter().zip(guest).collect())
    }

    /// Whether each sequence differs without being meant to, and the calls that matter then.
    fn differ(&self, sequences: &[Sequence]) -> anyhow::Result<Vec<Option<usize>>> {
        let records = self.records(sequences)?;
        let differ = sequences.iter().zip(records).map(|(sequence, (linux, guest))| {
            let part = first_difference(&linux, &guest)?;
            if explain(sequence, &part).is_some() {
                return None;
            }
            Some(part.call.map_or(sequence.calls.len(), |call| call + 1))
        });
        Ok(differ.collect())
    }

    /// Takes calls away from a sequence that differs, as long as it does.
    ///
    /// # Errors
    /// If a program cannot be run.
    pub fn shrink(&self, sequence: &Sequence, round: &dyn Fn(usize)) -> anyhow::Result<Sequence> {
        let mut best = sequence.clone();
        if let Some(shorter) = self.cut(&best)? {
            best = shorter;
        }
        let mut piece = best.calls.len().div_ceil(2).max(1);
        for _ in 0..ROUNDS {
            round(best.calls.len());
            match self.without_pieces(&best, piece)? {
                Some(shorter) => {
                    best = self.cut(&shorter)?.unwrap_or(shorter);
                    piece = piece.min(best.calls.len().div_ceil(2).max(1));
                }
                None if piece == 1 => break,
                None => piece = piece.div_ceil(2),
            }
        }
        Ok(best)
    }

    /// The sequence up to the call that differs, if that differs, too.
    fn cut(&self, sequence: &Sequence) -> anyhow::Result<Option<Sequence>> {
        let Some(Some(len)) = self.differ(std::slice::from_ref(sequence))?.first().copied() else {
            return Ok(None);
        };
        if len >= sequence.calls.len() {
            return Ok(None);
        }
        let first = sequence.first(len);
        let differs = self.differ(std::slice::from_ref(&first))?;
        Ok(differs.first().is_some_and(Option::is_some).then_some(first))
    }

    /// The sequence without as many pieces of that length as possible.
    fn without_pieces(&self, sequence: &Sequence, piece: usize) -> anyhow::Result<Option<Sequence>> {
        let starts: Vec<usize> = (0..sequence.calls.len()).step_by(piece).collect();
        let lacking: Vec<Sequence> =
            starts.iter().map(|&start| sequence.without(start, start + piece)).collect();
        let differ = self.differ(&lacking)?;
        let removable: Vec<usize> =
            starts.iter().zip(&differ).filter(|(_, differs)| differs.is_some()).map(|(&s, _)| s).collect();
        if removable.len() < 2 {
            let at = differ.iter().position(Option::is_some);
            return Ok(at.map(|at| lacking[at].clone()));
        }
        // The first two, the first three and so on; from behind, so that what is left keeps its place.
        let together: Vec<Sequence> = (2..=removable.len())
            .rev()
            .map(|count| {
                let gone = &removable[removable.len() - count..];
                gone.iter().rev().fold(sequence.clone(), |rest, &start| rest.without(start, start + piece))
            })
            .collect();
        let differ = self.differ(&together)?;
        let at = differ.iter().position(Option::is_some);
        let alone = differ_alone(&lacking, &starts, removable[0]);
        Ok(at.map(|at| together[at].clone()).or(alone))
    }
}

fn differ_alone(lacking: &[Sequence], starts: &[usize], start: usize) -> Option<Sequence> {
    let at = starts.iter().position(|&other| other == start)?;
    lacking.get(at).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that answers 0 to all calls, or 1 to a munlockall that stands behind a given read and write.
    struct Pretended {
        is_wrong: bool,
    }

    impl Side for Pretended {
        fn name(&self) -> &str {
            "pretended"
        }

        fn run(&self, input: &str) -> anyhow::Result<String> {
            let mut out = String::new();
            let (mut index, mut id, mut seen) = (0, 0, 0);
            let end = |out: &mut String, id: usize| {
                if id > 0 {
                    out.push_str(&format!("~= {id:x} {:x}\n", 1));
                }
            };
            for line in input.lines().skip(1) {
                if line.starts_with("S ") {
                    end(&mut out, id);
                    (index, id, seen) = (0, id + 1, 0);
                    continue;
                }
                seen += usize::from(seen == 0 && line == "read m3000" || seen == 1 && line == "write m5000");
                let answer = usize::from(self.is_wrong && seen == 2 && line == "munlockall");
                out.push_str(&format!("~+ {index} {answer}\n"));
                index += 1;
            }
            end(&mut out, id);
            out.push_str("~. 0\n");
            Ok(out)
        }
    }

    #[test]
    fn what_does_not_matter_is_taken_away() {
        let mut calls: Vec<crate::call::Call> = Vec::new();
        for at in 0..90 {
            let line = match at {
                20 => "read main+3p".to_owned(),
                55 => "write main+5p".to_owned(),
                70 => "munlockall".to_owned(),
                other => format!("munmap main+{other}p 1p"),
            };
            calls.push(line.parse().unwrap());
        }
        let sequence = Sequence { name: "s".to_owned(), calls };
        let (right, wrong) = (Pretended { is_wrong: false }, Pretended { is_wrong: true });
        let pair = Pair { linux: &right, guest: &wrong };
        let shortest = pair.shrink(&sequence, &|_| ()).unwrap();
        let lines: Vec<String> = shortest.calls.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["read main+3p", "write main+5p", "munlockall"]);
    }
}
