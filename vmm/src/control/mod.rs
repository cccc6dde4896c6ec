//! The control socket: HTTP/1.1 with JSON over a Unix socket, one for each running guest.
//!
//! `docs/control-api.md` describes it for users. The server ([`ControlServer`]) is a subscriber of
//! the event loop; [`Client`] is what `memvisor inspect`, `check` and `dump` use from their own
//! processes. Guest RAM is not copied through the socket: `GET /vm/memory` hands out read-only
//! descriptors of it.

pub mod api;
mod client;
pub mod http;
mod routes;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError, running};
pub use server::ControlServer;
pub use socket::{Claim, SocketError, check_name, runtime_dir, socket_path};
