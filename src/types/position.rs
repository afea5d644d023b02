//! Where a database is in its history.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use super::{Checksum, Epoch, parse_hex};

/// Number of one transaction in a database's history. Starts at 1, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(NonZeroU64);

impl Txid {
    /// The first transaction of every database.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// What would follow the last transaction. No transaction has this number: nothing that comes from outside
    /// can bring it, and the log takes no record with it, so a transaction always has a next number.
    pub const END: Self = Self(NonZeroU64::MAX);

    /// `None` for 0 and 2^64-1, which are no transactions.
    #[must_use]
    pub const fn new(raw: u64) -> Option<Self> {
        match NonZeroU64::new(raw) {
            Some(n) if n.get() < u64::MAX => Some(Self(n)),
            Some(_) | None => None,
        }
    }

    /// The raw number, at least 1.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The transaction after this one; [`Txid::END`] after the last.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Position of a database: its last transaction, the epoch that wrote it, and the checksum of all
/// pages after it. Two databases at the same position hold the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pos {
    /// Epoch of the primary that wrote `txid`.
    pub epoch: Epoch,
    /// Last transaction; `None` before the first.
    pub txid: Option<Txid>,
    /// Checksum over all pages except the lock page.
    pub checksum: Checksum,
}

impl Pos {
    /// The position of a database before its first transaction.
    pub const ZERO: Self = Self { epoch: Epoch::ZERO, txid: None, checksum: Checksum::EMPTY };

    /// A position from its three numbers; `None` if they are none. The transaction 0 is the one before the first.
    #[must_use]
    pub fn from_stored(epoch: u64, txid: u64, checksum: u64) -> Option<Self> {
        let number = if txid == 0 { None } else { Some(Txid::new(txid)?) };
        let checksum = Checksum::from_stored(checksum)?;
        Some(Self { epoch: Epoch::new(epoch), txid: number, checksum })
    }

    /// The transaction that would follow.
    #[must_use]
    pub fn next_txid(self) -> Txid {
        self.txid.map_or(Txid::FIRST, Txid::next)
    }

    /// The raw transaction number, 0 before the first.
    #[must_use]
    pub fn txid_raw(self) -> u64 {
        self.txid.map_or(0, Txid::get)
    }
}

impl Default for Pos {
    fn default() -> Self {
        Self::ZERO
    }
}

impl fmt::Display for Pos {
    /// `TXID/CHECKSUM`, 16 hexadecimal digits each: the text of LiteFS's `-pos` files, where a
    /// database without transactions is all zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checksum = if self.txid.is_none() { 0 } else { self.checksum.get() };
        write!(f, "{:016x}/{checksum:016x}", self.txid_raw())
    }
}

/// Why a text is no position.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a position, expected 16 hex digits, '/' and 16 hex digits")]
pub struct ParsePosError;

impl FromStr for Pos {
    type Err = ParsePosError;

    /// Reads `TXID/CHECKSUM`; the epoch, which the text does not carry, is zero.
    fn from_str(text: &str) -> Result<Self, ParsePosError> {
        let (txid, checksum) = text.split_once('/').ok_or(ParsePosError)?;
        let txid = parse_hex(txid).ok_or(ParsePosError)?;
        let stored = parse_hex(checksum).ok_or(ParsePosError)?;
        if txid == 0 {
            return Ok(Self::ZERO);
        }
        let txid = Some(Txid::new(txid).ok_or(ParsePosError)?);
        let checksum = Checksum::from_stored(stored).ok_or(ParsePosError)?;
        Ok(Self { epoch: Epoch::ZERO, txid, checksum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_print_as_litefs_prints_them() {
        assert_eq!(Pos::ZERO.to_string(), "0000000000000000/0000000000000000");
        let pos =
            Pos { epoch: Epoch::ZERO, txid: Txid::new(26), checksum: Checksum::new(0x1234_5678) };
        assert_eq!(pos.to_string(), "000000000000001a/8000000012345678");
        assert_eq!(pos.to_string().parse(), Ok(pos));
    }

    #[test]
    fn broken_texts_are_no_positions() {
        for text in [
            "",
            "1/2",
            "000000000000001a",
            "000000000000001a/0000000000000000",
            "ffffffffffffffff/8000000000000000",
            "+00000000000001a/8000000012345678",
        ] {
            assert_eq!(text.parse::<Pos>(), Err(ParsePosError), "{text}");
        }
    }

    // `next` of 2^64-1, which a peer or a file could name, was a panic.
    #[test]
    fn every_transaction_has_a_next_number() {
        assert_eq!(Txid::new(0), None);
        assert_eq!(Txid::new(u64::MAX), None);
        let last = Txid::new(u64::MAX - 1).unwrap();
        assert_eq!(last.next(), Txid::END);
        assert_eq!(Txid::END.next(), Txid::END);
    }
}
