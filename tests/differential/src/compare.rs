//! Records of two kernels side by side.

use crate::output::Outcome;

/// What both did for one call: a line that begins with its number, and the lines below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Part {
    /// Number of the call; `None` for what stands before or behind all calls.
    pub call: Option<usize>,
    /// Linux's lines.
    pub linux: Vec<String>,
    /// The guest's lines.
    pub guest: Vec<String>,
}

/// The first part in which two records differ; `None` if there is none.
pub fn first_difference(linux: &Outcome, guest: &Outcome) -> Option<Part> {
    let (linux, guest) = (parts(linux), parts(guest));
    let count = linux.len().max(guest.len());
    (0..count).find_map(|at| {
        let (ours, theirs) = (linux.get(at), guest.get(at));
        if ours == theirs {
            return None;
        }
        let lines = |part: Option<&Vec<String>>| part.cloned().unwrap_or_default();
        let (linux, guest) = (lines(ours), lines(theirs));
        let call = number(&linux).or_else(|| number(&guest));
        Some(Part { call, linux, guest })
    })
}

fn number(lines: &[String]) -> Option<usize> {
    lines.first()?.split(' ').next()?.parse().ok()
}

/// A record's lines in parts.
fn parts(outcome: &Outcome) -> Vec<Vec<String>> {
    let mut parts: Vec<Vec<String>> = Vec::new();
    match outcome {
        Outcome::Ran { lines, .. } => {
            for line in lines {
                match parts.last_mut() {
                    Some(part) if line.starts_with("  ") => part.push(line.clone()),
                    _ => parts.push(vec![line.clone()]),
                }
            }
        }
        Outcome::Died(words) => {
            parts.push(std::iter::once("died:").chain(words.lines()).map(str::to_owned).collect());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(text: &str) -> Outcome {
        Outcome::Ran { hash: 1, lines: text.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn the_first_call_whose_lines_differ_is_found() {
        let linux = ran("0 m0\n  m0-m1000 rw-p 0\n1 0\n  m0-m1000 r--p 0\n2 0");
        let guest = ran("0 m0\n  m0-m1000 rw-p 0\n1 0\n  m0-m1000 rw-p 0\n2 0");
        let part = first_difference(&linux, &guest).unwrap();
        assert_eq!(part.call, Some(1));
        assert_eq!(part.linux[1], "  m0-m1000 r--p 0");
        assert_eq!(first_difference(&linux, &linux.clone()), None);
    }

    #[test]
    fn what_one_lacks_is_a_difference() {
        assert_eq!(first_difference(&ran("0 a\n1 b"), &ran("0 a")).unwrap().call, Some(1));
        let died = Outcome::Died("panic\n".to_owned());
        assert_eq!(first_difference(&ran("0 a"), &died).unwrap().guest, ["died:", "panic"]);
    }
}
