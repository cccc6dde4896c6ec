//! Standard output. A reader that goes away is an error that `main` turns into silence.

use std::{
    fmt,
    io::{self, Write},
};

use serde::Serialize;

/// An argument that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Writes bytes.
pub(super) fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes text, ended by a newline.
pub(super) fn text(value: &impl fmt::Display) -> io::Result<()> {
    let mut text = value.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    write(text.as_bytes())
}

/// Writes a JSON document.
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write(&text)
}

/// Writes a value in the form that was asked for.
pub(super) fn show<T: fmt::Display + Serialize>(value: &T, as_json: bool) -> io::Result<()> {
    if as_json { json(value) } else { text(value) }
}

/// An address: hexadecimal with 0x, else decimal.
pub(super) fn parse_address(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .map_err(|error| format!("{text:?} is not an address (0x1000 or 4096): {error}"))
}
