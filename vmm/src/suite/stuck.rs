//! What a guest was at when its time was over: the calls that each of its tasks was in, and which counts still moved, so that one can tell who
//! waits from who goes round in circles.

use std::path::Path;

use super::command::memvisor;
use anyhow::Context;

/// What `memvisor inspect bt` and `vmstat --rate` say about the running guest of that name, as part of a failure; `kernel` runs in it instead
/// of the bundled one.
pub fn asked(name: &str, kernel: Option<&Path>) -> String {
    let ask = |words: &[&str]| -> anyhow::Result<String> { Ok(memvisor(words)?.succeed()?.to_owned()) };
    let calls = || {
        let mut words = vec!["inspect", "bt", "--vm", name];
        if let Some(kernel) = kernel {
            words.extend(["--symbols", kernel.to_str().context("the kernel's path is not UTF-8")?]);
        }
        ask(&words)
    };
    let counts = || ask(&["inspect", "vmstat", "--rate", "--count", "1", "--vm", name]);
    // A guest that says nothing about its tasks has no counts either.
    told(calls().and_then(|calls| Ok(calls + &counts()?)))
}

/// The same of such a view, or of why there is none.
pub fn told(view: anyhow::Result<String>) -> String {
    match view {
        Ok(view) => format!("when its time was over: {}", view.trim_end().replace('\n', "\n  ")),
        Err(error) => format!("what it was at when its time was over cannot be told: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_indented_below_their_reason_and_their_lack_is_explained() {
        let view = "where 1 tasks are\n    7 sh\n        ffffffff81000010  schedule+0x10\n".to_owned();
        assert_eq!(
            told(Ok(view)),
            "when its time was over: where 1 tasks are\n      7 sh\n          ffffffff81000010  schedule+0x10"
        );
        let none = told(Err(anyhow::anyhow!("no guest")));
        assert_eq!(none, "what it was at when its time was over cannot be told: no guest");
    }
}
