//! What the tests share.
#![allow(dead_code, reason = "each test uses a part")]

pub mod host;
pub mod kernel;
pub mod model;
pub mod op;

/// A line of /proc/self/maps, in bytes from the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub start: u64,
    pub end: u64,
    pub perms: String,
    pub offset: u64,
    pub inode: u64,
}

/// What a call returned, and what is mapped after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub result: i64,
    pub lines: Vec<Line>,
}

/// Inode numbers by order of appearance; Linux does not use one twice, the crate does.
pub fn canonical(outcomes: &mut [Outcome]) {
    for outcome in outcomes {
        let mut seen = vec![0];
        for line in &mut outcome.lines {
            let at = seen.iter().position(|&inode| inode == line.inode).unwrap_or_else(|| {
                seen.push(line.inode);
                seen.len() - 1
            });
            line.inode = at as u64;
        }
    }
}
