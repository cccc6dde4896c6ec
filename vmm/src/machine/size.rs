//! Numbers of bytes, and guest-physical addresses, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes (or an address). Reads `4096`, `"4096"`, `"0x1000"`, `"4K"`, `"4KiB"`, `"128M"`,
/// `"2G"`, `"1T"`; factors are powers of 1024. Prints as the largest unit that divides it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// This many bytes.
    pub const fn new(bytes: u64) -> Size {
        Size(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Suffixes, largest first, with log2 of their factors.
const UNITS: [(&str, u32); 5] = [("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// A text is not a [`Size`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with one of the suffixes.
    #[error("`{0}` is not a size or address; write 4096, 0x1000, 4K, 128M, 2G or 1T")]
    Syntax(String),
    /// More than 64 bits.
    #[error("`{0}` does not fit in 64 bits; the largest number is 0xffffffffffffffff")]
    TooLarge(String),
}

impl FromStr for Size {
    type Err = SizeError;

    /// ```
    /// use memvisor::machine::Size;
    /// assert_eq!("128M".parse(), Ok(Size::new(128 << 20)));
    /// assert_eq!("0x9fc00".parse(), Ok(Size::new(0x9fc00)));
    /// assert!("128 apples".parse::<Size>().is_err());
    /// ```
    fn from_str(text: &str) -> Result<Size, SizeError> {
        let syntax = || SizeError::Syntax(text.to_owned());
        let digits = text.replace('_', "");
        if let Some(hex) = digits.strip_prefix("0x") {
            if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            return u64::from_str_radix(hex, 16).map(Size).map_err(|_| SizeError::TooLarge(text.to_owned()));
        }
        let upper = digits.to_ascii_uppercase();
        let unit = upper.strip_suffix("IB").unwrap_or(&upper);
        let (number, shift) = UNITS
            .iter()
            .find_map(|(suffix, shift)| unit.strip_suffix(suffix).map(|number| (number, *shift)))
            .unwrap_or((&upper, 0));
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(syntax());
        }
        let too_large = || SizeError::TooLarge(text.to_owned());
        let number: u64 = number.parse().map_err(|_| too_large())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(too_large)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((suffix, shift)) => f.pad(&format!("{} {suffix}iB", self.0 >> shift)),
            None => f.pad(&format!("{} B", self.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// Accepts numbers and texts.
pub(super) struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size or address like 4096, \"0x1000\" or \"128M\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Size, E> {
        u64::try_from(number)
            .map(Size)
            .map_err(|_| E::custom(format!("`{number}` is negative; sizes and addresses start at 0")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_size_is_read() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("0xffff_ffff_ffff_ffff", u64::MAX),
            ("640K", 640 << 10),
            ("640k", 640 << 10),
            ("1MiB", 1 << 20),
            ("3G", 3 << 30),
            ("1T", 1 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for text in ["", "M", "0x", "0xg", "-1", "+1", "1.5G", "12MB", "4096iB", "1 M"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Syntax(text.to_owned())), "{text}");
        }
        for text in ["0x10000000000000000", "18446744073709551616", "16384P"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_size_prints_in_its_largest_exact_unit() {
        assert_eq!(Size(0).to_string(), "0 B");
        assert_eq!(Size(0x9fc00).to_string(), "639 KiB");
        assert_eq!(Size(1 << 40).to_string(), "1 TiB");
        assert_eq!(Size(4097).to_string(), "4097 B");
    }
}
