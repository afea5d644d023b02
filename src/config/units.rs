//! Numbers with units, as people write them: `10s`, `64MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Why a text is no duration or size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    /// No digits in front.
    #[error("it starts with no number; write {example}")]
    NoNumber {
        /// What it could look like.
        example: &'static str,
    },
    /// Digits only.
    #[error("it has no unit; write {number}{unit} for example")]
    NoUnit {
        /// The digits.
        number: String,
        /// The commonest unit.
        unit: &'static str,
    },
    /// The letters are no unit.
    #[error("{unit:?} is no unit; the units are {known}")]
    UnknownUnit {
        /// The letters.
        unit: String,
        /// All units.
        known: &'static str,
    },
    /// Beyond 64 bits.
    #[error("it is too large")]
    TooLarge,
}

const DURATIONS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 7 * 86_400_000),
];

const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `150ms`, `10s`, `24h`, `1h30m`.
///
/// # Errors
/// [`UnitError`] says what is missing.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total_ms = 0u64;
    loop {
        let (number, tail) = split_number(rest, "\"10s\" or \"24h\"")?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let factor = lookup(number, unit.trim(), &DURATIONS, "s", "ms, s, m, h, d, w")?;
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        total_ms = part.and_then(|p| total_ms.checked_add(p)).ok_or(UnitError::TooLarge)?;
        if next.is_empty() {
            return Ok(Duration::from_millis(total_ms));
        }
        rest = next;
    }
}

/// Writes a duration so that [`parse_duration`] reads it back, with as few digits as possible.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = DURATIONS
        .iter()
        .rev()
        .filter(|(unit, _)| !matches!(*unit, "d" | "w"))
        .find(|(_, factor)| ms != 0 && ms.is_multiple_of(*factor))
        .unwrap_or(&("s", 1000));
    format!("{}{unit}", ms / factor)
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        if text == "0" {
            return Ok(Self(0));
        }
        let (number, unit) = split_number(text, "\"64MiB\" or \"1GiB\"")?;
        let factor =
            lookup(number, unit.trim(), &SIZES, "MiB", "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB")?;
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        bytes.map(Self).ok_or(UnitError::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    /// Exact with `{:#}` (`64MiB`, `1500B`), else rounded for people (`1.5 KiB`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = &SIZES[..5];
        if f.alternate() {
            let (unit, factor) = binary
                .iter()
                .rev()
                .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
                .unwrap_or(&binary[0]);
            return write!(f, "{}{unit}", self.0 / factor);
        }
        let (unit, factor) =
            binary.iter().rev().find(|(_, factor)| self.0 >= *factor).unwrap_or(&binary[0]);
        if *factor == 1 {
            return write!(f, "{} B", self.0);
        }
        let tenths = u128::from(self.0) * 10 / u128::from(*factor);
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

fn split_number<'a>(text: &'a str, example: &'static str) -> Result<(&'a str, &'a str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 { Err(UnitError::NoNumber { example }) } else { Ok(text.split_at(end)) }
}

fn lookup(
    number: &str,
    unit: &str,
    table: &[(&str, u64)],
    common: &'static str,
    known: &'static str,
) -> Result<u64, UnitError> {
    if unit.is_empty() {
        return Err(UnitError::NoUnit { number: number.to_owned(), unit: common });
    }
    let found = table.iter().find(|(name, _)| *name == unit);
    found
        .map(|(_, factor)| *factor)
        .ok_or_else(|| UnitError::UnknownUnit { unit: unit.to_owned(), known })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, ms) in
            [("150ms", 150), ("10s", 10_000), ("24h", 86_400_000), ("1h30m", 5_400_000), ("0", 0)]
        {
            let duration = parse_duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(ms), "{text}");
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        assert_eq!(format_duration(Duration::from_secs(86_400)), "24h");
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, exact, rounded) in [
            ("64MiB", 64 << 20, "64MiB", "64.0 MiB"),
            ("1500B", 1500, "1500B", "1.4 KiB"),
            ("1GB", 1_000_000_000, "976562KiB", "953.6 MiB"),
            ("0", 0, "0B", "0 B"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size, ByteSize(bytes), "{text}");
            assert_eq!(size.to_string(), rounded);
            if text != "1GB" {
                assert_eq!(format!("{size:#}"), exact);
            }
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        let text = |error: UnitError| error.to_string();
        assert_eq!(
            parse_duration("24").map_err(text),
            Err("it has no unit; write 24s for example".to_owned())
        );
        assert_eq!(
            parse_duration("5 parsec").map_err(text),
            Err("\"parsec\" is no unit; the units are ms, s, m, h, d, w".to_owned())
        );
        assert_eq!(
            parse_duration("soon").map_err(text),
            Err("it starts with no number; write \"10s\" or \"24h\"".to_owned())
        );
        assert_eq!(
            "64".parse::<ByteSize>().map_err(text),
            Err("it has no unit; write 64MiB for example".to_owned())
        );
        assert_eq!("99999999TiB".parse::<ByteSize>(), Err(UnitError::TooLarge));
        assert!("-1B".parse::<ByteSize>().is_err());
        assert!("".parse::<ByteSize>().is_err());
    }
}
