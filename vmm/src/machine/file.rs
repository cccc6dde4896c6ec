//! The TOML of a machine file, with the place of every value kept for errors.
//!
//! This module only reads; what the values mean together is checked by [`super::resolve`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use toml::Spanned;

use super::error::Origin;
use super::library::BUNDLED;
use super::size::{Size, SizeVisitor};
use super::{Backing, Boot, MachineError, Paging, Place, Problem, Sectors, names};

/// A machine file, read but not yet checked.
#[derive(Clone, Debug)]
pub struct MachineFile {
    pub(super) source: Source,
    pub(super) spec: Spec,
}

/// The file behind a [`MachineFile`].
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The file as the user knows it.
    pub file: String,
    /// Name of the machine if the file does not give one.
    pub stem: String,
    /// Paths in the file are relative to this; `None` for bundled files.
    pub directory: Option<PathBuf>,
    /// Byte offsets at which lines begin.
    line_starts: Vec<usize>,
}

impl Source {
    fn new(file: String, stem: String, directory: Option<PathBuf>, text: &str) -> Source {
        let after_newlines =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Source { file, stem, directory, line_starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Where a value at byte `offset` is.
    pub(super) fn origin(&self, offset: usize, field: impl Into<String>) -> Origin {
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        Origin { place: Place::Line { file: self.file.clone(), line }, field: field.into() }
    }
}

/// Reads a machine by the name of a bundled file, or by the path of a `.toml` file.
///
/// A text with a `/` or ending in `.toml` is a path; everything else is a name.
///
/// # Errors
/// [`MachineError::Unknown`], [`MachineError::Read`], or [`MachineError::Invalid`] with the line.
pub fn load(name_or_path: &str) -> Result<MachineFile, MachineError> {
    if name_or_path.contains('/') || name_or_path.ends_with(".toml") {
        let path = Path::new(name_or_path);
        let text = fs::read_to_string(path)
            .map_err(|source| MachineError::Read { path: path.to_owned(), source })?;
        let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let source = Source::new(name_or_path.to_owned(), stem, path.parent().map(Path::to_owned), &text);
        return parse(source, &text);
    }
    let Some(bundled) = BUNDLED.iter().find(|bundled| bundled.name == name_or_path) else {
        let known = names().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        return Err(MachineError::Unknown { name: name_or_path.to_owned(), known });
    };
    parse(Source::new(bundled.path.to_owned(), bundled.name.to_owned(), None, bundled.text), bundled.text)
}

impl MachineFile {
    /// Reads a machine from `text`; `file` is what errors call it.
    ///
    /// # Errors
    /// [`MachineError::Invalid`] with the line.
    pub fn from_text(file: &str, text: &str) -> Result<MachineFile, MachineError> {
        let stem =
            Path::new(file).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        parse(Source::new(file.to_owned(), stem, None, text), text)
    }
}

fn parse(source: Source, text: &str) -> Result<MachineFile, MachineError> {
    match toml::from_str(text) {
        Ok(spec) => Ok(MachineFile { source, spec }),
        Err(error) => {
            let span = error.span().unwrap_or(text.len()..text.len());
            let origin = source.origin(span.start, "");
            let problem = match (error.message(), text.get(span)) {
                ("duplicate key", Some(key)) => Problem::DuplicateKey(key.trim().to_owned()),
                (message, _) => Problem::Syntax(message.replace('\n', "; ")),
            };
            Err(MachineError::at(&origin, problem))
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    pub machine: MachineSpec,
    #[serde(default)]
    pub node: Vec<Spanned<NodeSpec>>,
    #[serde(default)]
    pub e820: Vec<Spanned<E820Spec>>,
    #[serde(default)]
    pub boot: BootSpec,
    pub hmat: Option<Spanned<HmatSpec>>,
    #[serde(default)]
    pub disk: Vec<Spanned<DiskSpec>>,
    #[serde(default)]
    pub dma: Vec<Spanned<DmaSpec>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MachineSpec {
    pub name: Option<Spanned<String>>,
    pub description: String,
    pub asymmetric: bool,
    pub e820: Option<Spanned<E820Mode>>,
    pub backing: Option<Backing>,
}

/// How `[[e820]]` entries and the map derived from the nodes go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum E820Mode {
    #[default]
    Append,
    Prepend,
    Replace,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeSpec {
    pub memory: Vec<Spanned<MemorySpec>>,
    pub cpus: Vec<Spanned<i64>>,
    pub distances: BTreeMap<String, Spanned<i64>>,
    pub backing: Option<Backing>,
}

/// `"128M"` or `{ at = "4G", size = "64M" }`.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemorySpec {
    pub at: Option<Size>,
    pub size: Size,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct E820Spec {
    pub at: Size,
    pub size: Size,
    #[serde(rename = "type")]
    pub kind: E820KindSpec,
    pub repeat: Option<Spanned<u32>>,
    pub stride: Option<Size>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct E820KindSpec(pub u32);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BootSpec {
    pub protocol: Boot,
    pub paging: Paging,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub cmdline: Option<Spanned<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DiskSpec {
    pub name: Option<String>,
    pub file: Option<PathBuf>,
    pub size: Option<Size>,
    pub read_only: bool,
    pub read_errors: Vec<Sectors>,
    pub write_errors: Vec<Sectors>,
    pub delay_us: u64,
    pub torn_writes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DmaSpec {
    pub address_bits: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HmatSpec {
    pub latency_ns: Option<Spanned<Vec<Vec<i64>>>>,
    pub read_latency_ns: Option<Spanned<Vec<Vec<i64>>>>,
    pub write_latency_ns: Option<Spanned<Vec<Vec<i64>>>>,
    pub bandwidth_mbps: Option<Spanned<Vec<Vec<i64>>>>,
    pub read_bandwidth_mbps: Option<Spanned<Vec<Vec<i64>>>>,
    pub write_bandwidth_mbps: Option<Spanned<Vec<Vec<i64>>>>,
}

impl<'de> Deserialize<'de> for MemorySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MemorySpec, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Placed {
            at: Option<Size>,
            size: Size,
        }
        struct SizeOrPlaced;
        // Not an untagged enum: that would swallow the places of errors inside.
        impl<'de> Visitor<'de> for SizeOrPlaced {
            type Value = MemorySpec;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"128M\", or { at = \"4G\", size = \"64M\" }")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MemorySpec, E> {
                Ok(MemorySpec { at: None, size: SizeVisitor.visit_str(text)? })
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<MemorySpec, E> {
                Ok(MemorySpec { at: None, size: SizeVisitor.visit_i64(number)? })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MemorySpec, A::Error> {
                let placed = Placed::deserialize(MapAccessDeserializer::new(map))?;
                Ok(MemorySpec { at: placed.at, size: placed.size })
            }
        }
        deserializer.deserialize_any(SizeOrPlaced)
    }
}

const E820_TYPES: &str =
    "\"usable\", \"reserved\", \"acpi\", \"nvs\", \"unusable\", \"pmem\", or a number below 2^32";

impl<'de> Deserialize<'de> for E820KindSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<E820KindSpec, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = E820KindSpec;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(E820_TYPES)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<E820KindSpec, E> {
                Ok(E820KindSpec(match text {
                    "usable" | "ram" => 1,
                    "reserved" => 2,
                    "acpi" => 3,
                    "nvs" => 4,
                    "unusable" => 5,
                    "pmem" => 7,
                    _ => return Err(E::custom(format!("`{text}` is not an E820 type; use {E820_TYPES}"))),
                }))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<E820KindSpec, E> {
                u32::try_from(number)
                    .map(E820KindSpec)
                    .map_err(|_| E::custom(format!("`{number}` is not an E820 type; use {E820_TYPES}")))
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// A word of a choice, by its spelling in files and on the command line.
macro_rules! choice {
    ($ty:ty, $what:literal, { $($text:literal => $value:expr),* $(,)? }) => {
        impl FromStr for $ty {
            type Err = Problem;
            fn from_str(text: &str) -> Result<$ty, Problem> {
                match text {
                    $($text => Ok($value),)*
                    _ => Err(Problem::BadValue { text: text.to_owned(), what: $what }),
                }
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if *self == $value { return f.pad($text); })*
                Ok(())
            }
        }

        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$ty, D::Error> {
                struct Word;
                impl Visitor<'_> for Word {
                    type Value = $ty;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$ty, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$ty, E> {
                        self.visit_str(&number.to_string())
                    }
                }
                deserializer.deserialize_any(Word)
            }
        }
    };
}

choice!(Boot, "a boot protocol: \"linux\" or \"pvh\"", { "linux" => Boot::Linux, "pvh" => Boot::Pvh });
choice!(Backing, "a backing: \"4k\", \"thp\", \"hugetlb-2m\" or \"hugetlb-1g\"", {
    "4k" => Backing::Small,
    "thp" => Backing::Transparent,
    "hugetlb-2m" => Backing::Huge2M,
    "hugetlb-1g" => Backing::Huge1G,
});
choice!(Paging, "a paging depth: \"auto\", 4 or 5", {
    "auto" => Paging::Auto,
    "4" => Paging::Four,
    "5" => Paging::Five,
});
