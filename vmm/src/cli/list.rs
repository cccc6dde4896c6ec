//! `memvisor vms` and `memvisor machines`.

use std::process::ExitCode;

use clap::Args;
use memvisor_report::{Align, Table};
use serde_json::json;

use super::out;
use crate::{
    control::{Client, api::VmInfo, running},
    machine,
};

/// Arguments of `vms`.
#[derive(Clone, Debug, Args)]
pub(super) struct VmsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `machines`.
#[derive(Clone, Debug, Args)]
pub(super) struct MachinesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn vms(args: &VmsArgs) -> anyhow::Result<ExitCode> {
    // A guest that ends meanwhile is not an error of a list.
    let guests: Vec<VmInfo> =
        running().iter().filter_map(|name| Client::find(Some(name)).ok()?.info().ok()).collect();
    if args.json {
        out::json(&guests)?;
        return Ok(ExitCode::SUCCESS);
    }
    if guests.is_empty() {
        eprintln!("no guest is running");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["name", "state", "machine", "pid", "CPUs", "RAM MiB"])
        .align(3, Align::Right)
        .align(4, Align::Right)
        .align(5, Align::Right);
    for guest in &guests {
        let bytes: u64 = guest.regions.iter().map(|slot| slot.len).sum();
        table.row([
            guest.name.clone(),
            format!("{:?}", guest.state).to_lowercase(),
            guest.machine.clone(),
            guest.pid.to_string(),
            guest.stats.vcpus.len().to_string(),
            (bytes >> 20).to_string(),
        ]);
    }
    out::text(&table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn machines(args: &MachinesArgs) -> anyhow::Result<ExitCode> {
    if args.json {
        let list: Vec<_> = machine::names()
            .map(|(name, description)| json!({ "name": name, "description": description }))
            .collect();
        out::json(&list)?;
    } else {
        let mut table = Table::new(["machine", "description"]);
        for (name, description) in machine::names() {
            table.row([name.to_owned(), description.to_owned()]);
        }
        out::text(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}
