//! System Locality Information Table (ACPI 6.5 section 5.2.17).

use memvisor_abi::MAX_NUMNODES;

use super::Table;
use crate::{Memory, Say};

/// Linux's `LOCAL_DISTANCE` and `REMOTE_DISTANCE`.
const LOCAL: u8 = 10;
const REMOTE: u8 = 20;
const CELLS: usize = 44;

/// Distances between nodes.
#[derive(Debug)]
pub struct Slit {
    distances: [u8; MAX_NUMNODES * MAX_NUMNODES],
    nodes: usize,
}

impl Slit {
    /// One node.
    pub const fn new() -> Slit {
        Slit { distances: [LOCAL; MAX_NUMNODES * MAX_NUMNODES], nodes: 1 }
    }

    /// Nodes.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Row by row, `nodes` squared values.
    pub fn distances(&self) -> &[u8] {
        &self.distances[..self.nodes * self.nodes]
    }

    /// As [`Slit::distances`], for those who seed faults.
    pub fn distances_mut(&mut self) -> &mut [u8] {
        &mut self.distances[..self.nodes * self.nodes]
    }

    /// Sets the distances of `nodes` nodes (at most `MAX_NUMNODES`): from the table if it is valid for
    /// them, else 10 and 20.
    pub fn read<M: Memory>(&mut self, table: Option<&Table<'_, M>>, nodes: usize, say: Say<'_>) {
        self.nodes = nodes.clamp(1, MAX_NUMNODES);
        let nodes = self.nodes;
        let localities = table.and_then(|table| table.bytes.u64(36)).unwrap_or(0);
        let count = usize::try_from(localities).unwrap_or(usize::MAX);
        let cell = |table: &Table<'_, M>, from: usize, to: usize| table.bytes.u8(CELLS + from * count + to);
        let valid = table.filter(|table| {
            let end = count.checked_mul(count).and_then(|cells| cells.checked_add(CELLS));
            let complete = count >= nodes && end.is_some_and(|end| end <= table.bytes.len());
            // The diagonal is 10 and everything else is more, or the table says nothing.
            let right = |from, to| {
                cell(table, from, to).is_some_and(|d| if from == to { d == LOCAL } else { d > LOCAL })
            };
            let valid = complete && (0..nodes).all(|from| (0..nodes).all(|to| right(from, to)));
            if !valid {
                say(format_args!(
                    "ACPI: SLIT: {count} localities for {nodes} nodes, or bad distances; table ignored"
                ));
            }
            valid
        });
        for from in 0..nodes {
            for to in 0..nodes {
                let default = if from == to { LOCAL } else { REMOTE };
                self.distances[from * nodes + to] =
                    valid.and_then(|table| cell(table, from, to)).unwrap_or(default);
            }
        }
    }
}

impl Default for Slit {
    fn default() -> Slit {
        Slit::new()
    }
}
